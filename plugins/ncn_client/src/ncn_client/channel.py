"""What a client knows of its channel with a gateway: what was charged, and what requests in flight may cost yet.

A voucher names a sum, counted from the channel's beginning: all that was charged, the fee limits of the requests in
flight, and the limit of the one that it comes with. The gateway's ledger goes by the same rule, so many requests may
be in flight at once and no more is ever signed than they may cost. What the gateway says of the channel is believed
up to the client's own signature and no further.

One process a channel: two that share one see each other's requests only when a voucher of theirs falls short, and
then ask the gateway. A session key makes a channel of one's own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from ncn_framework import digests
from ncn_framework.errors import MalformedRequest, PaymentRequired, SignatureRejected, VerificationError
from ncn_framework.models import Domain
from ncn_framework.payments import MAX_WEI, Voucher
from ncn_framework.signing import Signer, address_hex, check_signature
from ncn_framework.wire.json_payments import VoucherJson, hash_bytes, voucher_from_json, wei_from_json

from .amounts import shown
from .exchange import is_over

__all__ = ["Channel", "ChannelJson", "Standing"]

_REMEMBERED = 16_384
"""Answered requests that are known by their id, so that one sent again is not counted twice."""

_GRACE_MS = 60_000
"""How long after its deadline a request whose end nobody saw is taken to be over."""


class ChannelJson(msgspec.Struct):
    """What ``GET /api/v1/channels/{client}/{signer}`` gives."""

    channel: str
    deposited_wei: str
    charged_wei: str
    held_wei: str
    unlock_at_s: int
    voucher: VoucherJson | None


@dataclass(frozen=True)
class Standing:
    """How a channel stands, in the gateway's words; what is drawn on it is covered by the client's own voucher.

    Attributes:
        deposited_wei: on chain.
        charged_wei: for requests that were answered.
        held_wei: for requests in flight.
        unlock_at_s: when the deposit may be withdrawn, seconds since the epoch; 0 where no withdrawal was requested.
        voucher_wei: what the highest voucher allows.
    """

    deposited_wei: int
    charged_wei: int
    held_wei: int
    unlock_at_s: int
    voucher_wei: int

    @property
    def drawn_wei(self) -> int:
        """What is charged and held."""
        return self.charged_wei + self.held_wei


@dataclass(slots=True)
class _Hold:
    """A request that may be charged yet; in doubt where nobody here waits for its end any more."""

    limit_wei: int
    deadline_ms: int
    in_doubt: bool = False


class Channel:
    """A channel as its client sees it; threads may share it.

    Args:
        client: whose deposit it is.
        signer: signs its vouchers.
        gateway: address of the gateway.
        domain: of the network.
    """

    def __init__(self, client: bytes, signer: Signer, gateway: bytes, domain: Domain) -> None:
        self.client, self.signer, self.gateway, self.domain = client, signer, gateway, domain
        self.id = digests.channel_id(client, signer.address, gateway)
        self._lock = threading.Lock()
        self._opened = self._shared = False
        self._charged = 0  # sum of the fees known to be charged
        self._held: dict[bytes, _Hold] = {}
        self._held_wei = 0  # sum of their limits
        self._signed = 0  # highest voucher signed here
        self._answered: OrderedDict[bytes, None] = OrderedDict()
        self._changes = 0

    @property
    def path(self) -> str:
        """Where the gateway tells how the channel stands."""
        return f"/api/v1/channels/{address_hex(self.client)}/{address_hex(self.signer.address)}"

    @property
    def charged_wei(self) -> int:
        """Sum of the fees that were charged, as far as it is known here."""
        return self._charged

    @property
    def outstanding_wei(self) -> int:
        """Sum of the fee limits of requests in flight."""
        return self._held_wei

    @property
    def signed_wei(self) -> int:
        """Highest cumulative amount of any voucher that was signed here."""
        return self._signed

    @property
    def changes(self) -> int:
        """A number that differs after every change; ``see`` takes the one from before the gateway was asked."""
        return self._changes

    # --- vouchers ---

    def must_ask(self) -> bool:
        """Return whether to ask the gateway how the channel stands before the next voucher is signed.

        So at first; and once nothing is in flight but requests whose end was not seen.
        """
        with self._lock:
            return not self._opened or (bool(self._held) and self._rests())

    def _rests(self) -> bool:
        """Return whether nobody here waits for a request."""
        late = time.time_ns() // 1_000_000 - _GRACE_MS
        return all(hold.in_doubt or hold.deadline_ms < late for hold in self._held.values())

    def hold(self, request_id: bytes, limit_wei: int, deadline_ms: int, *, again: bool = False) -> Voucher:
        """Count a request as in flight and return the voucher to send with it.

        A request that is in flight already, or was answered, is not counted twice.

        Args:
            request_id: of the request.
            limit_wei: most that it may cost.
            deadline_ms: of the request.
            again: the gateway refused it for a voucher that fell short, and ``see`` was called since.

        Raises:
            PaymentRequired: the sum passes 96 bits.
        """
        with self._lock:
            if again:
                self._answered.pop(request_id, None)
            held = self._held.get(request_id)
            counted = held is not None or request_id in self._answered
            total = self._charged + self._held_wei
            if again and self._shared and self._held:
                total = max(total, self._signed)  # the gateway may have seen any of those in flight, or none
            if not counted:
                total += limit_wei
            if total > MAX_WEI:
                raise PaymentRequired(
                    f"with this request of up to {shown(limit_wei)} the channel's vouchers would pass 96 bits; "
                    "name a lower limit_units or max_fee_wei"
                )
            if held is not None:
                held.in_doubt = False
            elif not counted:
                self._held[request_id] = _Hold(limit_wei, deadline_ms)
                self._held_wei += limit_wei
            self._signed = max(self._signed, total)
            self._changes += 1
        digest = digests.voucher_digest(self.domain, self.id, total)
        return Voucher(self.client, self.signer.address, self.gateway, total, self.signer.sign(digest).value)

    @contextmanager
    def watched(self, request_id: bytes) -> Iterator[None]:
        """Take a request that is in flight as over where the block raises what says so, else as in doubt.

        What stays in doubt (the connection broke, the answer was not proved, nobody waited) counts as in flight until
        its end is seen, or until nothing else is in flight and the gateway was asked.
        """
        try:
            yield
        except BaseException as error:
            if is_over(error):
                self.release(request_id)
            else:
                self._doubt(request_id)
            raise

    def settle(self, request_id: bytes, fee_wei: int) -> None:
        """Count a request that was answered, proved, and charged; one that is not in flight was counted before."""
        with self._lock:
            if self._drop(request_id):
                self._charged += fee_wei
                self._remember(request_id)

    def release(self, request_id: bytes) -> None:
        """Forget a request that will not be charged."""
        with self._lock:
            self._drop(request_id)

    def _drop(self, request_id: bytes) -> bool:
        hold = self._held.pop(request_id, None)
        if hold is None:
            return False
        self._held_wei -= hold.limit_wei
        self._changes += 1
        return True

    def _remember(self, request_id: bytes) -> None:
        self._answered[request_id] = None
        if len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)

    def _doubt(self, request_id: bytes) -> None:
        with self._lock:
            if request_id in self._held:
                self._held[request_id].in_doubt = True

    # --- what the gateway says ---

    def see(self, form: ChannelJson, since: int) -> Standing:
        """Take in how the channel stands.

        Where nothing is in flight, what was charged becomes what the gateway says; else only what passes all that is
        known here is added, which others must have drawn.

        Args:
            form: as the gateway gave it.
            since: ``changes`` before the gateway was asked.

        Raises:
            VerificationError: it is another channel, or more is drawn than the client's own voucher allows.
        """
        standing = self._checked(form)
        with self._lock:
            others = standing.drawn_wei - self._charged - self._held_wei
            self._shared |= self._opened and others > 0
            if self._changes == since and self._rests():
                for request_id in self._held:
                    self._remember(request_id)
                self._held.clear()
                self._held_wei, self._charged = 0, standing.drawn_wei
            elif others > 0:
                self._charged += others
            self._opened = True
            self._changes += 1
        return standing

    def _checked(self, form: ChannelJson) -> Standing:
        try:
            channel = hash_bytes(form.channel, "channel")
            voucher = None if form.voucher is None else voucher_from_json(form.voucher)
            names = ("deposited_wei", "charged_wei", "held_wei")
            deposited, charged, held = (wei_from_json(getattr(form, name), name) for name in names)
        except MalformedRequest as cause:
            raise VerificationError(self.path, str(cause)) from cause
        if channel != self.id:
            raise VerificationError(
                "channel", f"is 0x{channel.hex()}, not 0x{self.id.hex()} with gateway {address_hex(self.gateway)}"
            )
        standing = Standing(deposited, charged, held, form.unlock_at_s, voucher.cumulative_wei if voucher else 0)
        if voucher is not None:
            try:
                digest = digests.voucher_digest(self.domain, self.id, voucher.cumulative_wei)
                check_signature(digest, voucher.signature, self.signer.address, "the channel's voucher")
            except SignatureRejected as cause:
                raise VerificationError("voucher.signature", str(cause)) from cause
        if standing.drawn_wei > standing.voucher_wei:
            raise VerificationError(
                "charged_wei",
                f"and held_wei make {standing.drawn_wei} wei; the client's own voucher allows {standing.voucher_wei}",
            )
        return standing

    def refused(self, standing: Standing, limit_wei: int, why: str) -> PaymentRequired | None:
        """Return what to raise of a request that the gateway refused, where another voucher would not change that.

        Args:
            standing: as the gateway gave it after the refusal.
            limit_wei: most that the request may cost.
            why: in the gateway's words; empty to judge by the standing alone.
        """
        name = f"the channel of {address_hex(self.client)} with gateway {address_hex(self.gateway)}"
        if self.client != self.signer.address:
            name += f" (session key {address_hex(self.signer.address)})"
        if standing.unlock_at_s:
            return PaymentRequired(
                f"{name} is being closed: its deposit may be withdrawn from {standing.unlock_at_s} s after the epoch "
                "on; take that back, or deposit into another channel: `ncn payments --help`"
            )
        missing = standing.drawn_wei + limit_wei - standing.deposited_wei
        if missing > 0:
            return PaymentRequired(
                f"{shown(missing)} are missing: {name} has {shown(standing.deposited_wei)} deposited, "
                f"{standing.charged_wei} wei charged and {standing.held_wei} wei held for requests in flight, and this "
                f"request may cost {shown(limit_wei)}. Add to it: `ncn payments deposit`; or name a lower limit_units"
            )
        if not why:
            return None
        return PaymentRequired(f"the gateway refuses a voucher of {name}, though the deposit would do: {why}")
