"""The gateway's answers to the hooks: translate and delegate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ncn_framework import hookimpl

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ncn_framework.models import (
        Candidates,
        Chunk,
        Event,
        InferenceRequest,
        Lease,
        Leases,
        Route,
        Settlement,
        SignedReceipt,
    )
    from ncn_framework.node import Node
    from ncn_framework.statements import Evidence
    from ncn_framework.states import State

    from .config import GatewaySettings
    from .service import Gateway


class Plugin:
    """Routes, reserves, streams from the leased node, settles what is free; serves HTTP, WebSocket and gRPC."""

    roles = ("gateway",)

    def __init__(self, node: Node) -> None:
        self.node = node

    @cached_property
    def gateway(self) -> Gateway:
        from .service import Gateway

        return Gateway(self.node)

    @hookimpl(trylast=True)
    def ncn_route(self, candidates: Candidates) -> Awaitable[Route]:
        from .routing import choose

        return choose(candidates)

    @hookimpl
    def ncn_reserve(self, request: InferenceRequest, route: Route) -> AbstractAsyncContextManager[Lease]:
        return self.gateway.reserve(request, route)

    @hookimpl(trylast=True)
    def ncn_execute(
        self, request: InferenceRequest, leases: Leases
    ) -> AsyncGenerator[Chunk | SignedReceipt, None] | None:
        return self.gateway.execute(request, leases)

    @hookimpl(trylast=True)
    def ncn_settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement] | None:
        return self.gateway.settle(receipt, request)

    @hookimpl(trylast=True)
    def ncn_recall(self, request_id: bytes) -> Awaitable[State | None]:
        return self.gateway.recall(request_id)

    @hookimpl
    def ncn_disclose(self, request_id: bytes) -> Awaitable[Evidence | None]:
        return self.gateway.disclose(request_id)

    @hookimpl
    def ncn_standing(self, account: bytes, out: bool, reason: str) -> None:
        self.gateway.stand(account, out, reason)

    @hookimpl
    def ncn_event(self, event: Event) -> None:
        self.gateway.metrics.event(event)

    @hookimpl
    def ncn_http_routes(self) -> Iterable[BaseRoute]:
        return (self.gateway.metrics.route(),)

    @hookimpl
    def ncn_serve(self) -> AbstractAsyncContextManager[Any]:
        return self.gateway.serve()

    @hookimpl
    def ncn_settings(self) -> type[GatewaySettings]:
        from .config import GatewaySettings

        return GatewaySettings
