"""Requests that are paid by vouchers: a voucher with each, and an account of what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ncn_framework.errors import PaymentRequired
from ncn_framework.models import Domain
from ncn_framework.payments import VOUCHER, Voucher
from ncn_framework.proof import Proof
from ncn_framework.signing import Signer

from .channel import Channel, ChannelJson, Standing
from .exchange import Call, Exchange, Pay, Reply, decoded
from .network import no_key
from .requests import Prepared, body

__all__ = ["Spending", "Vouchers"]

T = TypeVar("T")


@dataclass(frozen=True)
class Spending:
    """How a client pays.

    Attributes:
        signer: key that signs requests and vouchers; None asks anonymously.
        payer: whose deposit vouchers draw on, where ``signer`` is a session key of it; None is the signer itself.
        payment: mode of requests that name none; None leaves it to the gateway.
        max_fee_wei: most that a request may cost that says nothing else; None has no bound.
        pay: pays into escrow.
    """

    signer: Signer | None = None
    payer: bytes | None = None
    payment: str | None = None
    max_fee_wei: int | None = None
    pay: Pay | None = None


class Vouchers:
    """The channels of one client, one for each gateway and domain that it meets; threads may share it.

    Args:
        spending: whose they are.
    """

    def __init__(self, spending: Spending) -> None:
        self._spending = spending
        self._channels: dict[tuple[bytes, Domain], Channel] = {}

    def channel(self, gateway: bytes, domain: Domain) -> Channel:
        """Return the channel with a gateway.

        Raises:
            PaymentRequired: there is no key.
        """
        signer, payer = self._spending.signer, self._spending.payer
        if signer is None:
            raise no_key("there is no key to sign a voucher with")
        channel = self._channels.get((gateway, domain))
        if channel is None:
            fresh = Channel(payer or signer.address, signer, gateway, domain)
            channel = self._channels.setdefault((gateway, domain), fresh)  # of two threads, one is first
        return channel

    def ask(self, channel: Channel) -> Exchange[Standing]:
        """Ask the gateway how a channel stands."""
        call, since = Call("GET", channel.path), channel.changes
        return channel.see(decoded(call, (yield call), ChannelJson), since)

    def post(
        self,
        channel: Channel,
        prepared: Prepared,
        path: str,
        timeout_s: float,
        take: Callable[[Call, Reply, Voucher | None], T],
    ) -> Exchange[T]:
        """Send a request with a voucher and return what ``take`` makes of the reply.

        A voucher that falls short is signed once more, after a look at the channel.

        Raises:
            PaymentRequired: the deposit is too small, or no voucher will do.
        """
        request, limit_wei = prepared.request, prepared.limit_wei
        if channel.must_ask():
            yield from self.ask(channel)
        standing: Standing | None = None
        while True:
            again = standing is not None
            voucher = channel.hold(request.request_id, limit_wei, request.deadline_ms, again=again)
            try:
                with channel.watched(request.request_id):
                    call = Call("POST", path, body(prepared, voucher), timeout_s)
                    return take(call, (yield call), voucher)
            except PaymentRequired as refused:
                if standing is None:
                    standing = yield from self.ask(channel)
                error = channel.refused(standing, limit_wei, str(refused) if again else "")
                if error is not None:
                    raise error from refused

    def settle(self, proof: Proof) -> None:
        """Count the fee of a request that was answered, where a voucher paid for it."""
        if proof.request.payment == VOUCHER:
            for channel in self._channels.values():
                channel.settle(proof.request.request_id, proof.receipt.receipt.fee_wei)

    def release(self, request_id: bytes) -> None:
        """Forget a request that failed."""
        for channel in self._channels.values():
            channel.release(request_id)
