"""What one address did with the payment contract, read from the contract's own events: no gateway is needed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ncn_framework.digests import channel_id

from .abi import Event
from .chain.interface import quantity
from .contracts import Contracts

__all__ = ["Activity", "ChannelKey", "ChannelState"]

_OF_CLIENT = ("Deposited", "WithdrawalRequested", "WithdrawalCancelled", "WithdrawalFinalized", "RequestInitiated")
_OF_ACCOUNT = ("AccountDeposited", "AccountCredited", "AccountWithdrawn")
_OF_REQUEST = ("RequestCompleted", "RequestRefunded")


@dataclass(frozen=True, order=True)
class ChannelKey:
    """Whose a channel is: who deposits, whose signature draws on it, and with whom it is."""

    client: bytes
    signer: bytes
    gateway: bytes

    @property
    def id(self) -> bytes:
        """The channel's id in the contract."""
        return channel_id(self.client, self.signer, self.gateway)


@dataclass(frozen=True)
class ChannelState:
    """A channel on chain, in wei.

    Attributes:
        key: whose it is.
        deposited_wei: all that was ever put in, less what was withdrawn.
        spent_wei: all that batches have taken.
        unlock_at_s: while its client is leaving, the time from which the rest may be withdrawn; else 0.
        lapse_at_s: the time until which it may; else 0.
    """

    key: ChannelKey
    deposited_wei: int
    spent_wei: int
    unlock_at_s: int
    lapse_at_s: int

    @property
    def left_wei(self) -> int:
        """What batches have not taken."""
        return self.deposited_wei - self.spent_wei


class Activity:
    """Reads the events of one address.

    Args:
        contracts: of the network.
        address: a client's, or a payee's.
    """

    def __init__(self, contracts: Contracts, address: bytes) -> None:
        self._contracts, self._address = contracts, address

    async def channels(self) -> list[ChannelKey]:
        """Return every channel of the address that was ever paid into, the oldest first."""
        found = await self._events(("Deposited",), (None, self._topic))
        keys = (ChannelKey(self._address, one.arguments["signer"], one.arguments["gateway"]) for one in found)
        return list(dict.fromkeys(keys))

    async def now_s(self) -> int:
        """Return the time by which the contract would go now, seconds since the epoch: a block is never older than
        the one before it."""
        head = await self._contracts.chain.request("eth_getBlockByNumber", ["latest", False])
        return max(int(time.time()), quantity(head["timestamp"]))

    async def state(self, key: ChannelKey) -> ChannelState:
        """Return a channel as it is on chain; a withdrawal that was let lapse is none."""
        payment = self._contracts.payment
        deposited, spent, unlock_at = await payment.read("channels", key.id)
        lapse_at = unlock_at + int(await payment.read("WITHDRAWAL_WINDOW")) if unlock_at else 0
        if lapse_at < await self.now_s():
            unlock_at = lapse_at = 0
        return ChannelState(key, deposited, spent, unlock_at, lapse_at)

    async def events(self) -> list[Event]:
        """Return all events of the address, the newest first: deposits, withdrawals, escrows and how these ended."""
        found = await self._events(_OF_CLIENT, (None, self._topic))
        found += await self._events(_OF_ACCOUNT, (self._topic,))
        requests = [one.arguments["id"] for one in found if one.name == "RequestInitiated"]
        if requests:
            found += await self._events(_OF_REQUEST, (requests,))
        return sorted(found, key=lambda one: (one.block, one.log_index), reverse=True)

    async def times_s(self, blocks: Iterable[int]) -> dict[int, int]:
        """Return when blocks were made, by number: seconds since the epoch."""
        times = {}
        for number in set(blocks):
            block = await self._contracts.chain.request("eth_getBlockByNumber", [hex(number), False])
            times[number] = quantity(block["timestamp"])
        return times

    @property
    def _topic(self) -> bytes:
        return self._address.rjust(32, b"\0")

    async def _events(self, names: Sequence[str], topics: Sequence[bytes | Sequence[bytes] | None]) -> list[Event]:
        contract = self._contracts.payment
        names_hashed = [contract.interface.topic(name) for name in names]
        logs = await contract.past_logs((names_hashed, *topics), self._contracts.addresses.block)
        return [event for name in names for event in contract.events(logs, name)]
