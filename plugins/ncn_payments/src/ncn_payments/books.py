"""A compute node's own books: what it is owed, and the vouchers to claim it with when everybody else has gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ncn_framework.digests import channel_id, inputs_hash
from ncn_framework.errors import MalformedRequest, PaymentRequired
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain, InferenceRequest, Lease, Settlement, SignedReceipt
from ncn_framework.payments import Charge, Voucher

from .accounts import check_voucher
from .ledger import Ledger

__all__ = ["Books", "BooksLease"]

log = logging.getLogger(__name__)


class Books:
    """The books of one node.

    A voucher comes with each request. It is checked before anything is executed: signed by the channel's signer, and
    enough for all that this node has done on that channel. The charge is written behind the answer, not before it:
    the gateway's ledger has it by then.

    Args:
        domain: that vouchers are signed for.
        ledger: of this node.
        clock: milliseconds since the epoch.
    """

    def __init__(self, domain: Domain, ledger: Ledger, clock: Callable[[], int] = now_ms) -> None:
        self.domain, self.ledger, self.clock = domain, ledger, clock
        balances = ledger.balances()
        self._owed = {channel: balance.charged_wei for channel, balance in balances.items()}
        self._best = {channel: balance.voucher for channel, balance in balances.items()}

    def lease(self, request: InferenceRequest, limit_wei: int) -> BooksLease:
        """Return the check of a request that may cost ``limit_wei``, to be entered."""
        return BooksLease(self, request, limit_wei)

    def check(self, request: InferenceRequest, limit_wei: int) -> None:
        """Raise unless a request's voucher covers it here.

        Raises:
            PaymentRequired: there is none, or it is for less than this node has done on its channel.
            MalformedRequest: it is not the request's client's.
            SignatureRejected: it is not signed by the channel's signer.
        """
        voucher = request.authorization
        if not isinstance(voucher, Voucher):
            raise PaymentRequired("the request came without a voucher; this node does not work for nothing")
        by_gateway = voucher.client == voucher.gateway  # which may pay for anybody
        if not by_gateway and request.client not in (voucher.client, voucher.signer):
            raise MalformedRequest("the voucher is of neither the request's client nor the gateway")
        check_voucher(self.domain, voucher)
        channel = channel_id(voucher.client, voucher.signer, voucher.gateway)
        owed = self._owed.get(channel, 0)
        best = self._best.get(channel, voucher)
        if owed + limit_wei > max(voucher.cumulative_wei, best.cumulative_wei):
            raise PaymentRequired(
                f"the voucher allows {voucher.cumulative_wei} wei; this node is owed {owed} wei already "
                f"on its channel, and the request may cost {limit_wei} wei"
            )
        if voucher.cumulative_wei >= best.cumulative_wei:
            self._best[channel] = voucher

    async def settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Settlement:
        """Book what the node is owed for a request, once; the charge is written with the next commit."""
        voucher, fee = request.authorization, receipt.receipt.fee_wei
        if isinstance(voucher, Voucher) and fee and not self.ledger.has_charge(request.request_id):
            channel = channel_id(voucher.client, voucher.signer, voucher.gateway)
            self._owed[channel] = self._owed.get(channel, 0) + fee
            best = self._best[channel]
            charge = Charge(best, receipt, inputs_hash(request.inputs), request.client, request.signature)
            self.ledger.enter(charge, self.clock()).add_done_callback(_said)
        return Settlement(request.payment, fee)


def _said(written: asyncio.Future[None]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.error("a charge is missing from this node's books: %s", error)


class BooksLease:
    """The check of one request's voucher, made when the context is entered."""

    leaves_at_once = True

    def __init__(self, books: Books, request: InferenceRequest, limit_wei: int) -> None:
        self.books, self.request, self.limit_wei = books, request, limit_wei

    async def __aenter__(self) -> Lease:
        self.books.check(self.request, self.limit_wei)
        return Lease("funds", 0, self.request.deadline_ms)

    async def __aexit__(self, *_: object) -> None:
        pass
