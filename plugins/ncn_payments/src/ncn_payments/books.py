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
    enough for all that this node has done and is doing on that channel. The charge is written behind the answer, not
    before it: the gateway's ledger has it by then.

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
        self._held: dict[bytes, int] = {}  # limits of the requests in flight, by channel
        self._in_flight: dict[bytes, tuple[bytes, int]] = {}  # request to channel and limit

    def lease(self, request: InferenceRequest, limit_wei: int) -> BooksLease:
        """Return the hold of a request that may cost ``limit_wei``, to be entered."""
        return BooksLease(self, request, limit_wei)

    def hold(self, request: InferenceRequest, limit_wei: int) -> None:
        """Count a request as in flight, if its voucher covers it here beside all that this node has done and does.

        Raises:
            PaymentRequired: there is no voucher, or it is for too little.
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
        owed, held = self._owed.get(channel, 0), self._held.get(channel, 0)
        best = self._best.get(channel, voucher)
        if owed + held + limit_wei > max(voucher.cumulative_wei, best.cumulative_wei):
            raise PaymentRequired(
                f"the voucher allows {voucher.cumulative_wei} wei; on its channel this node is owed {owed} wei "
                f"already, works for {held} wei, and the request may cost {limit_wei} wei"
            )
        if voucher.cumulative_wei >= best.cumulative_wei:
            self._best[channel] = voucher
        self._held[channel] = held + limit_wei
        self._in_flight[request.request_id] = (channel, limit_wei)

    def release(self, request_id: bytes) -> None:
        """Count a request as in flight no longer; again changes nothing."""
        channel, limit_wei = self._in_flight.pop(request_id, (b"", 0))
        if channel:
            self._held[channel] -= limit_wei
            if not self._held[channel]:
                del self._held[channel]

    async def settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Settlement:
        """Book what the node is owed for a request, once; the charge is written with the next commit."""
        voucher, fee = request.authorization, receipt.receipt.fee_wei
        self.release(request.request_id)
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
    """One request in flight, its voucher checked, while the context is entered."""

    leaves_at_once = True

    def __init__(self, books: Books, request: InferenceRequest, limit_wei: int) -> None:
        self.books, self.request, self.limit_wei = books, request, limit_wei

    async def __aenter__(self) -> Lease:
        self.books.hold(self.request, self.limit_wei)
        return Lease("funds", 0, self.request.deadline_ms)

    async def __aexit__(self, *_: object) -> None:
        self.books.release(self.request.request_id)
