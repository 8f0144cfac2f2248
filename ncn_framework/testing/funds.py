"""Payments without a chain: a plugin that holds, awaits, settles and refunds whatever a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from .. import digests, merkle
from ..errors import NcnError, PaymentRequired
from ..hookspecs import hookimpl
from ..inclusion import Inclusion
from ..manager import ROLES
from ..models import FREE, Domain, InferenceRequest, Lease, Receipt, Route, Settlement, SignedReceipt
from ..payments import ESCROW, Authorization, Batch, EscrowTerms, Offer, PaymentConfirmation, PaymentDue, Quorum
from ..statements import Statement
from .fakes import fake_signer

__all__ = ["FakeEscrow", "FakeFunds", "fake_due", "fake_inclusion", "fake_quorum"]


def fake_quorum(members: int = 3) -> Quorum:
    """Return the signatures (which are none) of the first ``members`` of epoch 1."""
    return Quorum(1, 2**members - 1, tuple(bytes([member + 1]) * 65 for member in range(members)))


def fake_due(request: InferenceRequest, route: Route, gateway: bytes = b"\x67" * 20) -> PaymentDue:
    """Return what ``request`` has to pay into an escrow that is nowhere."""
    terms = EscrowTerms(
        client=request.client,
        nonce=1,
        gateway=gateway,
        node=route.node,
        amount_wei=route.manifest.fee_wei(request.limit_units, request.payment),
        epoch=1,
        expiry_s=request.deadline_ms // 1000 + 60,
        request_hash=request.request_hash,
    )
    return PaymentDue(terms, request.request_id, b"\x65" * 20, 31337, fake_quorum())


def fake_inclusion(domain: Domain, receipt: Receipt, inputs: bytes, others: int = 2) -> Inclusion:
    """Return how a receipt was settled in a batch beside ``others``, which three of five made-up validators signed.

    Args:
        domain: that they sign for.
        inputs: hash of the request's inputs.
    """
    channel = b"\x63" * 32
    leaf = digests.receipt_leaf(receipt, channel, inputs)
    leaves = [leaf, *(bytes([i + 1]) * 32 for i in range(others))]
    batch = Batch(b"\x67" * 20, 1, 1, len(leaves), merkle.root(leaves), *(bytes([i]) * 32 for i in range(3)))
    validators = [fake_signer(f"validator {i}") for i in range(5)]
    digest = digests.batch_digest(domain, batch)
    quorum = Quorum(1, 0b01011, tuple(validators[i].sign(digest).value for i in (0, 1, 3)))
    members = tuple(validator.address for validator in validators)
    return Inclusion(batch, channel, merkle.path(leaves, leaf), members, quorum, b"\x74" * 32)


class FakeEscrow:
    """The escrow of one request.

    Attributes:
        due: what is to be paid.
        arrived: set it, and the payment has arrived.
        refunds: how often a refund was asked for.
        refunding: what a refund waits for; an error is raised instead.
    """

    def __init__(self, due: PaymentDue) -> None:
        self.due = due
        self.arrived = asyncio.Event()
        self.refunds = 0
        self.refunding: Awaitable[Any] | Exception | None = None

    async def paid(self) -> None:
        """Return once ``arrived`` is set."""
        await self.arrived.wait()

    async def refund(self) -> bool:
        """Count the call; True where something had been paid."""
        self.refunds += 1
        if isinstance(self.refunding, Exception):
            raise self.refunding
        if self.refunding is not None:
            await self.refunding
        return self.arrived.is_set()


class FakeFunds:
    """Answers the hooks about money for every payment mode but ``free``.

    Attributes:
        refusal: what every new request is refused with, if anything.
        offers: where there are any, a request that is to be paid with itself, and is not, is refused with them.
        doubt: what every confirmation is refused with, if anything.
        prepaid: whether every payment has arrived before it is asked for.
        shown: authorization that nodes see in place of the request's own.
        reference: of each settlement.
        escrows: by request id; made when the funds of an escrow request are reserved.
        confirmations: that came.
        statements: that were to be endorsed.
    """

    roles = ROLES
    name = "funds"

    def __init__(self) -> None:
        self.refusal: NcnError | None = None
        self.offers: tuple[Offer, ...] = ()
        self.doubt: NcnError | None = None
        self.prepaid = False
        self.shown: Authorization | None = None
        self.reference = "0x" + "74" * 32
        self.escrows: dict[bytes, FakeEscrow] = {}
        self.confirmations: list[PaymentConfirmation] = []
        self.statements: list[Statement] = []

    @hookimpl
    def ncn_check(self, request: InferenceRequest) -> Awaitable[None] | None:
        if self.refusal is None and self.offers and request.payment not in (FREE, ESCROW) and not request.authorization:
            return self._refuse(PaymentRequired("nothing was signed for the fee", self.offers))
        return None if self.refusal is None else self._refuse(self.refusal)

    async def _refuse(self, refusal: NcnError) -> None:
        raise refusal

    @hookimpl
    def ncn_reserve(self, request: InferenceRequest, route: Route) -> AbstractAsyncContextManager[Lease] | None:
        return None if request.payment == FREE else self._hold(request, route)

    @asynccontextmanager
    async def _hold(self, request: InferenceRequest, route: Route) -> AsyncIterator[Lease]:
        escrow = None
        if request.payment == ESCROW:
            escrow = self.escrows[request.request_id] = FakeEscrow(fake_due(request, route))
            if self.prepaid:
                escrow.arrived.set()
        yield Lease("funds", 1, request.deadline_ms, authorization=self.shown, escrow=escrow)

    @hookimpl
    def ncn_confirm_payment(self, confirmation: PaymentConfirmation) -> Awaitable[None] | None:
        escrow = self.escrows.get(confirmation.request_id)
        return None if escrow is None else self._confirm(escrow, confirmation)

    async def _confirm(self, escrow: FakeEscrow, confirmation: PaymentConfirmation) -> None:
        self.confirmations.append(confirmation)
        if self.doubt is not None:
            raise self.doubt
        escrow.arrived.set()

    @hookimpl
    def ncn_endorse(self, statement: Statement) -> Awaitable[Quorum]:
        self.statements.append(statement)
        return self._endorse()

    async def _endorse(self) -> Quorum:
        return fake_quorum()

    @hookimpl
    def ncn_settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement] | None:
        return None if request.payment == FREE else self._settle(request.payment, receipt.receipt.fee_wei)

    async def _settle(self, mode: str, fee_wei: int) -> Settlement:
        return Settlement(mode, fee_wei, self.reference)
