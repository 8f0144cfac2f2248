"""The payments plugin's answers to the hooks: translate and delegate."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ncn_framework import hookimpl

if TYPE_CHECKING:
    import click
    from starlette.routing import BaseRoute

    from ncn_framework.committees import Epoch
    from ncn_framework.models import (
        Event,
        InferenceRequest,
        ModelManifest,
        Route,
        Settlement,
        Signature,
        SignedReceipt,
    )
    from ncn_framework.node import Node
    from ncn_framework.payments import FeeDue, PaymentConfirmation, PaymentDue, Quorum
    from ncn_framework.signing import Signer
    from ncn_framework.statements import Contradiction, Evidence, Reputation, Statement

    from .config import PaymentsSettings
    from .service import Payments


class Plugin:
    """Holds, charges and settles fees: vouchers, escrows, one-off payments; in a compute node, keeps its books.

    In a registry, and in a gateway without one, it speaks for validators.
    """

    roles = ("registry", "gateway", "compute")

    def __init__(self, node: Node) -> None:
        self.node = node

    @cached_property
    def payments(self) -> Payments:
        from .service import Payments

        return Payments(self.node)

    @hookimpl
    def ncn_check(self, request: InferenceRequest, manifest: ModelManifest) -> Awaitable[None] | None:
        return self.payments.check(request, manifest)

    @hookimpl
    def ncn_reserve(self, request: InferenceRequest, route: Route) -> AbstractAsyncContextManager[Any] | None:
        return self.payments.reserve(request, route)

    @hookimpl
    def ncn_settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement] | None:
        return self.payments.settle(receipt, request)

    @hookimpl
    def ncn_confirm_payment(self, confirmation: PaymentConfirmation) -> Awaitable[None] | None:
        return self.payments.confirm(confirmation)

    @hookimpl
    def ncn_pay(self, due: PaymentDue | FeeDue, signer: Signer) -> Awaitable[bytes] | None:
        from ncn_framework.config import Config

        from .paying import pay

        config = Config()
        return pay(config, due, signer) if due.chain_id == config.core.chain_id else None

    @hookimpl(trylast=True)  # where there are registries, they collect a quorum
    def ncn_endorse(self, statement: Statement) -> Awaitable[Quorum] | None:
        return self.payments.endorse(statement)

    @hookimpl
    def ncn_vouch(
        self, statement: Statement, evidence: Mapping[bytes, Evidence]
    ) -> Awaitable[tuple[Signature, ...]] | None:
        return self.payments.vouch(statement, evidence)

    @hookimpl
    def ncn_epoch(self, number: int) -> Awaitable[Epoch] | None:
        return self.payments.epoch(number)

    @hookimpl
    def ncn_report(self, statement: Statement | Contradiction, quorum: Quorum | None) -> Awaitable[str] | None:
        return self.payments.report(statement, quorum)

    @hookimpl
    def ncn_reputation(self, account: bytes, period: int) -> Awaitable[Reputation] | None:
        return self.payments.reputation(account, period)

    @hookimpl
    def ncn_event(self, event: Event) -> None:
        self.payments.event(event)

    @hookimpl
    def ncn_http_routes(self) -> Iterable[BaseRoute]:
        return self.payments.routes()

    @hookimpl(tryfirst=True)  # the chain is known, and its contract bound, before anybody is served
    def ncn_serve(self) -> AbstractAsyncContextManager[Any]:
        return self.payments.serve()

    @hookimpl
    def ncn_settings(self) -> type[PaymentsSettings]:
        from .config import PaymentsSettings

        return PaymentsSettings

    @hookimpl
    def ncn_commands(self) -> Iterable[click.Command]:
        from .commands.chain import chain
        from .commands.payments import payments
        from .commands.staking import stake
        from .commands.wallet import wallet

        return (wallet, payments, stake, chain)
