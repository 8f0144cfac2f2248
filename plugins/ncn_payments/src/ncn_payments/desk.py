"""A gateway's side of payments: every mode but ``free``, from the first look at a request to its batch on chain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from ncn_framework.errors import NcnError, PaymentRequired, RequestError
from ncn_framework.models import (
    FREE,
    Event,
    InferenceRequest,
    ModelManifest,
    Route,
    Settlement,
    SignedReceipt,
)
from ncn_framework.payments import ESCROW, EXACT, VOUCHER, Offer, PaymentConfirmation
from ncn_framework.states import State

from .accounts import Accounts
from .config import PaymentsSettings
from .escrow import EscrowDesk
from .exact import ExactDesk
from .ledger import Ledger
from .onchain import OnChain
from .settlement import Settler

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Desk"]

log = logging.getLogger(__name__)

_ENDED_BADLY = (State.FAILED, State.CANCELLED, State.EXPIRED)


class Desk:
    """Takes payments for one gateway.

    Args:
        node: the gateway.
        settings: of payments.
        ledger: of this gateway, open.
        chain: the contracts, read and written with the gateway's key.
    """

    def __init__(self, node: Node, settings: PaymentsSettings, ledger: Ledger, chain: OnChain) -> None:
        self.settings, self.ledger, self.chain = settings, ledger, chain
        self.gateway, self.clock = node.signer.address, node.lifecycle.clock
        domain, endorse, epoch = node.domain, node.validation.endorse, node.validation.epoch
        stale_s = settings.channel_refresh_ms / 1000
        self.accounts = Accounts(domain, self.gateway, ledger, chain.deposit, stale_s)
        self.escrow = EscrowDesk(
            domain, node.signer, chain, endorse, epoch, ledger, settings.escrow_grace_ms // 1000, self.clock
        )
        self.exact = ExactDesk(domain, node.signer, self.accounts, chain, self.clock)
        self.settler = Settler(
            domain,
            ledger,
            chain,
            endorse,
            settings,
            self.accounts.undelivered,
            self.clock,
            epoch=epoch,
            refused=self.accounts.refuse,
            standing=node.plugins.standing,
        )
        self._recall = node.lifecycle.recall
        self._next_block = chain.addresses.block

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Settle in the background while the context is entered; what is not due when it is left waits for the next
        start."""
        parts = (self.settler.run(), self._keep(), self._clear_doubts())
        work = [asyncio.create_task(part) for part in parts]
        try:
            yield
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _clear_doubts(self) -> None:
        """Keep what an earlier run charged for requests that settled; take back what a crash kept from its client."""
        for request_id in self.accounts.in_doubt():
            try:
                state = await self._recall(request_id)
            except NcnError as error:
                log.warning("request 0x%s: its charge stays in doubt: %s", request_id.hex(), error)
                continue
            if self.accounts.holds(request_id):
                continue  # it was asked again, and says itself how it ends
            if state is State.SETTLED:
                self.accounts.delivered(request_id)
            else:
                log.warning("request 0x%s was cut off by the last stop: its charge is void", request_id.hex())
                self.accounts.void(request_id)

    async def _keep(self) -> None:
        """Now and then, look for what nobody waits for: exits, escrows left open, the own channel."""
        while True:
            for what, work in (
                ("withdrawals of clients were not seen", self._note_exits),
                ("open escrows could not be looked at", self.escrow.recover),
                ("payment mode exact may be refused: the gateway's own channel is not funded", self._top_up),
            ):
                try:
                    await work()
                except NcnError as error:
                    log.warning("%s: %s", what, error)
            await asyncio.sleep(self.settings.batch_poll_ms / 1000)

    async def _note_exits(self) -> None:
        """Refuse new requests of a channel whose client withdraws, and settle what it owes before it has gone."""
        found, self._next_block = await self.chain.exits(self._next_block)
        leaving = set[bytes]()
        for channel in self.settler.leaving | {channel for channel in found if self.accounts.known(channel)}:
            account = self.accounts.account(channel)
            await self.accounts.ask(account, asyncio.get_running_loop().time())
            if account.deposit.unlock_at_s:  # else it was taken back, or is over
                leaving.add(channel)
        self.settler.leave(leaving)

    async def _top_up(self) -> None:
        await self.exact.top_up(self.settings.own_deposit_wei)

    # --- hooks ---

    async def check(self, request: InferenceRequest, manifest: ModelManifest) -> None:
        """Raise unless the request's fee is covered, before anything of it is stored.

        Raises:
            PaymentRequired: with the ways to pay.
            RequestError: the mode is unknown.
            ChainError: the chain had to be asked, and does not answer.
        """
        limit_wei = manifest.fee_wei(request.limit_units, request.payment)
        if request.payment == VOUCHER:
            try:
                voucher = self.accounts.voucher_of(request)
                await self.accounts.cover(voucher, limit_wei)
            except PaymentRequired as error:
                raise PaymentRequired(str(error), self.offers(request, manifest)) from error
        elif request.payment == EXACT:
            await self.exact.check(request, manifest)
        elif request.payment == ESCROW:
            self.escrow.check(request)
        else:
            known = ", ".join((VOUCHER, ESCROW, EXACT, FREE))
            raise RequestError(f"payment mode {request.payment[:32]!r} is unknown; known: {known}")

    def offers(self, request: InferenceRequest, manifest: ModelManifest) -> tuple[Offer, ...]:
        """Return every way to pay for a request that nobody has paid for."""
        amount = manifest.fee_wei(request.limit_units, VOUCHER)
        voucher = Offer(
            mode=VOUCHER,
            amount_wei=amount,
            token=self.chain.addresses.token,
            pay_to=self.gateway,
            chain_id=self.chain.domain.chain_id,
            timeout_s=300,
            extra={"contract": "0x" + self.chain.addresses.payment.hex()},
        )
        return (*self.exact.offers(request, manifest), voucher)

    def reserve(self, request: InferenceRequest, route: Route) -> AbstractAsyncContextManager[Any] | None:
        """Return the hold of a request's funds, to be entered; None where nothing is owed."""
        limit_wei = route.manifest.fee_wei(request.limit_units, request.payment)
        if request.payment == FREE or limit_wei == 0:
            return None
        if request.payment == VOUCHER:
            return self.accounts.lease(request, self.accounts.voucher_of(request), limit_wei)
        if request.payment == ESCROW:
            return self.escrow.lease(request, route)
        return self.exact.lease(request, route.manifest)

    def settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement] | None:
        """Charge what a request has cost; decline modes that are not of here."""
        return self._settle(receipt, request) if request.payment in (VOUCHER, ESCROW, EXACT) else None

    async def _settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Settlement:
        fee_wei = receipt.receipt.fee_wei
        if request.request_id not in self.escrow.open and not self.accounts.holds(request.request_id):
            return Settlement(request.payment)  # of a model that costs nothing
        if request.payment == ESCROW:
            return await self.escrow.settle(receipt)
        if request.payment == EXACT:
            settlement = await self.exact.settle(receipt, request)
        else:
            channel = await self.accounts.charge(receipt, self.clock())
            settlement = Settlement(VOUCHER, fee_wei, "0x" + channel.hex())
        self.settler.charged(fee_wei)
        return settlement

    def confirm(self, confirmation: PaymentConfirmation) -> Awaitable[None] | None:
        """Take a client's word that it has paid into escrow."""
        return self.escrow.confirm(confirmation)

    def event(self, event: Event) -> None:
        """Take a charge back when its request came to nothing, also in a run that was cut off."""
        if event.state is State.SETTLED:
            self.accounts.delivered(event.request_id)
        elif event.state in _ENDED_BADLY:
            self.accounts.void(event.request_id)
