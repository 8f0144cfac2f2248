"""The registry plugin's answers to the hooks: translate and delegate."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ncn_framework import hookimpl

if TYPE_CHECKING:
    import click
    from starlette.routing import BaseRoute

    from ncn_framework.models import Event, Record
    from ncn_framework.node import Node
    from ncn_framework.payments import Quorum
    from ncn_framework.statements import Evidence, Statement

    from .client import RegistryClient
    from .config import RegistrySettings
    from .registry import Registry


class Plugin:
    """Is the registry; in a gateway and a compute node, keeps a registry informed and hears from it who is there."""

    roles = ("registry", "gateway", "compute")

    def __init__(self, node: Node) -> None:
        self.node = node

    @cached_property
    def part(self) -> Registry | RegistryClient:
        """What this process has of it."""
        if self.node.role == "registry":
            from .registry import Registry

            return Registry(self.node)
        from .client import RegistryClient

        return RegistryClient(self.node)

    @hookimpl
    def ncn_register(self, record: Record) -> Awaitable[None] | None:
        return self.part.register(record)

    @hookimpl(tryfirst=True)  # where there is a registry, its committee is asked, and not who is at hand
    def ncn_endorse(self, statement: Statement) -> Awaitable[Quorum] | None:
        return self.part.endorse(statement)

    @hookimpl
    def ncn_inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> Awaitable[None] | None:
        return self.part.inspect(statement, evidence)

    @hookimpl
    def ncn_standing(self, account: bytes, out: bool, reason: str) -> None:
        self.part.stand(account, out, reason)

    @hookimpl
    def ncn_event(self, event: Event) -> None:
        self.part.event(event)

    @hookimpl
    def ncn_http_routes(self) -> Iterable[BaseRoute]:
        return self.part.routes()

    @hookimpl(trylast=True)  # a gateway says where it listens before it is announced
    def ncn_serve(self) -> AbstractAsyncContextManager[Any]:
        return self.part.serve()

    @hookimpl
    def ncn_settings(self) -> type[RegistrySettings]:
        from .config import RegistrySettings

        return RegistrySettings

    @hookimpl
    def ncn_commands(self) -> Iterable[click.Command]:
        from .commands import node, registry
        from .commands_subnet import subnet

        return (registry, node, subnet)
