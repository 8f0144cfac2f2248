"""Payment mode ``escrow``: each request is paid on chain before it is executed, and validators decide both ends.

The flow of the reference network: the validators sign price and node (``Preprocess``); the client pays and says so;
the node executes; the validators sign the result (``Completion``) and the contract splits the fee; or they sign that
nothing came of it (``Failure``) and the client has it back. After its expiry anybody may have it given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ncn_framework.committees import Epoch
from ncn_framework.digests import escrow_id, failure_digest
from ncn_framework.errors import (
    EndorsementRefused,
    NcnError,
    PaymentRequired,
    RequestError,
    SignatureRejected,
    TaskEnded,
    TransactionReverted,
)
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import ANONYMOUS, Domain, InferenceRequest, Lease, Route, Settlement, SignedReceipt
from ncn_framework.payments import ESCROW, EscrowTerms, PaymentConfirmation, PaymentDue, Quorum
from ncn_framework.signing import Signer, address_hex
from ncn_framework.statements import CompletionStatement, FailureStatement, Statement, TermsStatement

from .ledger import Ledger
from .onchain import OnChain

__all__ = ["EscrowDesk", "EscrowLease"]

log = logging.getLogger(__name__)


class EscrowDesk:
    """The escrows of one gateway.

    Args:
        domain: of the contract.
        signer: this gateway's key.
        chain: the contracts.
        endorse: collects a quorum's signatures.
        epoch: returns the current epoch, whose validators sign.
        ledger: remembers which escrows are open, for after a crash.
        grace_s: time after a request's deadline that is left for its completion to reach the chain.
        clock: milliseconds since the epoch.
    """

    def __init__(
        self,
        domain: Domain,
        signer: Signer,
        chain: OnChain,
        endorse: Callable[[Statement], Awaitable[Quorum]],
        epoch: Callable[[], Awaitable[Epoch]],
        ledger: Ledger,
        grace_s: int,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.domain, self.gateway, self.chain, self.endorse = domain, signer.address, chain, endorse
        self.epoch, self._signer = epoch, signer
        self.ledger, self.grace_s, self.clock = ledger, grace_s, clock
        self.open: dict[bytes, EscrowLease] = {}

    def check(self, request: InferenceRequest) -> None:
        """Raise unless a request can be paid by escrow.

        Raises:
            SignatureRejected: it has no client who signs.
            RequestError: its deadline is farther away than the contract keeps money for.
        """
        if request.client == ANONYMOUS:
            raise SignatureRejected("payment mode escrow needs a client who signs; this request has none")
        longest_s = self.chain.max_request_time_s - self.grace_s
        if request.deadline_ms > self.clock() + longest_s * 1000:
            raise RequestError(f"an escrow is kept for {longest_s} s; name an earlier deadline")

    def lease(self, request: InferenceRequest, route: Route) -> EscrowLease:
        """Return the escrow of a request that is to go to ``route``, to be entered."""
        return EscrowLease(self, request, route)

    def confirm(self, confirmation: PaymentConfirmation) -> Awaitable[None] | None:
        """Take the word of a client that it has paid; None where no request of this id awaits payment here.

        Raises:
            TaskEnded: it was confirmed before.
            PaymentRequired: the transaction has not paid it.
        """
        lease = self.open.get(confirmation.request_id)
        return None if lease is None else lease.confirm(confirmation)

    async def settle(self, receipt: SignedReceipt) -> Settlement:
        """Have the validators sign the result, and the contract pay for it.

        Raises:
            EndorsementRefused, ChainError, TransactionReverted: it is not paid; the client's money returns.
        """
        lease = self.open[receipt.receipt.request_id]
        due = lease.due
        statement = CompletionStatement(due.terms, due.escrow_id, receipt)
        quorum = await self.endorse(statement)
        tx = await self.chain.complete_escrow(
            due.terms, receipt.receipt.output_hash, receipt.receipt.fee_wei, quorum, f"complete:{due.escrow_id.hex()}"
        )
        lease.completed = True
        await self.ledger.close_escrow(due.terms)
        return Settlement(ESCROW, receipt.receipt.fee_wei, tx)

    async def refund(self, terms: EscrowTerms, reason: str) -> bool:
        """Give back what was paid into an escrow, if it was; return whether money moved.

        Raises:
            EndorsementRefused, ChainError, TransactionReverted: not now.
        """
        identity = escrow_id(self.domain, terms.client, terms.nonce)
        if not await self.chain.is_escrowed(terms):
            return False
        if self.clock() > terms.expiry_s * 1000:
            await self.chain.expire_escrow(terms, f"expire:{identity.hex()}")
        else:
            signature = self._signer.sign(failure_digest(self.domain, identity)).value
            quorum = await self.endorse(FailureStatement(terms, identity, reason, signature))
            await self.chain.fail_escrow(terms, quorum, f"fail:{identity.hex()}")
        await self.ledger.close_escrow(terms)
        return True

    async def recover(self) -> None:
        """Give back what a crash or an unreachable chain left in escrow."""
        live = [lease.due.terms for lease in self.open.values()]
        for terms in self.ledger.open_escrows():
            if terms in live:
                continue
            try:
                given = await self.refund(terms, "the gateway was restarted")
                if not given and self.clock() > terms.expiry_s * 1000:
                    await self.ledger.close_escrow(terms)  # it can no longer be paid
            except NcnError as error:
                log.warning("an escrow of client %s stays open: %s", address_hex(terms.client), error)


class EscrowLease:
    """The escrow of one request: entered, its terms are signed by the validators; left, it is off the desk."""

    def __init__(self, desk: EscrowDesk, request: InferenceRequest, route: Route) -> None:
        self.desk, self.request, self.route = desk, request, route
        self.completed = False
        self.due: PaymentDue
        self._paid: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Lease:
        desk, request, manifest = self.desk, self.request, self.route.manifest
        account = await desk.chain.account(request.client)
        terms = EscrowTerms(
            client=request.client,
            nonce=account.request_nonce,
            gateway=desk.gateway,
            node=self.route.node,
            amount_wei=manifest.fee_wei(request.limit_units, ESCROW),
            epoch=(await desk.epoch()).number,
            expiry_s=-(-request.deadline_ms // 1000) + desk.grace_s,
            request_hash=request.request_hash,
        )
        identity = escrow_id(desk.domain, terms.client, terms.nonce)
        quorum = await desk.endorse(
            TermsStatement(terms, identity, request, manifest.base_fee_wei, manifest.unit_fee_wei)
        )
        self.due = PaymentDue(terms, identity, desk.domain.contract, desk.domain.chain_id, quorum)
        await desk.ledger.open_escrow(terms)
        desk.open[request.request_id] = self
        return Lease("funds", terms.nonce, terms.expiry_s * 1000, escrow=self)

    async def __aexit__(self, *_: object) -> None:
        if self.completed:
            self.desk.open.pop(self.request.request_id, None)

    async def confirm(self, confirmation: PaymentConfirmation) -> None:
        """Look for the payment on chain, and let the request go on."""
        if self._paid.done():
            raise TaskEnded(f"task 0x{confirmation.request_id.hex()} was paid already")
        terms = self.due.terms
        await self.desk.chain.confirmed(confirmation.transaction)
        if not await self.desk.chain.is_escrowed(terms):
            raise PaymentRequired(
                f"transaction 0x{confirmation.transaction.hex()} has not paid {terms.amount_wei} wei into escrow "
                f"0x{self.due.escrow_id.hex()} of {address_hex(self.due.contract)}; send what the task's payment says"
            )
        if not self._paid.done():
            self._paid.set_result(None)

    async def paid(self) -> None:
        """Return once the payment is on chain."""
        await self._paid

    async def refund(self) -> bool:
        """Give back what was paid; return whether that was anything."""
        try:
            return await self.desk.refund(self.due.terms, "the request failed")
        except (EndorsementRefused, TransactionReverted) as error:
            log.warning("the escrow 0x%s waits for its expiry: %s", self.due.escrow_id.hex(), error)
            return False
        finally:
            self.desk.open.pop(self.request.request_id, None)
