"""The network's epochs with the stake that each member had, from the registry's events: the same for everybody.

Public chains do not keep old states, but their logs. The stakes are therefore counted from the first event of the
registry on, and pinned at each ``EpochAdvanced``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ncn_framework.committees import Epoch, Member
from ncn_framework.errors import ChainError
from ncn_framework.signing import address_hex

from .abi import Event
from .contracts import Contract, Contracts

__all__ = ["Epochs"]

_KEPT = 64
"""Epochs of which the stakes are kept; what is older is counted anew when it is asked for."""

_EVENTS = (
    "ValidatorRegistered",
    "Bonded",
    "StakeAdded",
    "ValidatorSlashed",
    "ExitFinalized",
    "EpochAdvanced",
)


class _Gap(ChainError):
    """Logs contradict each other, because some are missing."""


@dataclass(frozen=True)
class _Pin:
    """What was pinned with an epoch: the hash of its block, and all stakes at that point of it."""

    seed: bytes
    valid_until_s: int
    quorum: int
    stakes: Mapping[bytes, int]


class _Count:
    """Counts stakes along the registry's logs.

    Args:
        registry: whose logs.
        first_block: with the first of them.
    """

    def __init__(self, registry: Contract, first_block: int) -> None:
        self._registry, self.next_block = registry, first_block
        self.newest = 0
        self.pins: dict[int, _Pin] = {}
        self._stakes: dict[bytes, int] = {}

    async def read(self, last_block: int) -> None:
        """Go on to the end of a block.

        Raises:
            _Gap: the logs contradict each other; this count is of no use any more.
            ChainError: the chain cannot be reached; nothing was counted.
        """
        if last_block < self.next_block:
            return
        topics = [self._registry.interface.topic(name) for name in _EVENTS]
        self.take(await self._registry.past_logs((topics,), self.next_block, last_block))
        self.next_block = last_block + 1

    def take(self, logs: Iterable[Mapping[str, Any]]) -> None:
        """Count some logs, in the order of the chain."""
        for log in sorted(logs, key=lambda one: (int(one["blockNumber"], 16), int(one["logIndex"], 16))):
            event = self._registry.interface.event(log)
            if event is not None and event.name in _EVENTS:
                self._take(event, bytes.fromhex(log["blockHash"][2:]))

    def _take(self, event: Event, block_hash: bytes) -> None:
        values, stakes = event.arguments, self._stakes
        match event.name:
            case "ValidatorRegistered":
                stakes[values["validator"]] = values["stake"]
            case "Bonded":
                stakes[values["account"]] = values["amount"]
            case "StakeAdded":
                stakes[values["validator"]] = stakes.get(values["validator"], 0) + values["amount"]
                if stakes[values["validator"]] != values["stake"]:
                    raise self._gap(event, f"{address_hex(values['validator'])} has {values['stake']} wei at stake")
            case "ValidatorSlashed":
                left = stakes.get(values["validator"], 0) - values["amount"]
                if left < 0:
                    raise self._gap(event, f"{address_hex(values['validator'])} lost {values['amount']} wei of stake")
                stakes[values["validator"]] = left
            case "ExitFinalized":
                if stakes.pop(values["validator"], 0) != values["stake"]:
                    raise self._gap(event, f"{address_hex(values['validator'])} left with {values['stake']} wei")
            case "EpochAdvanced":
                if values["epoch"] != self.newest + 1:
                    raise self._gap(event, f"epoch {values['epoch']} follows epoch {self.newest}")
                self.newest = values["epoch"]
                pinned = {account: stake for account, stake in stakes.items() if stake}
                self.pins[self.newest] = _Pin(block_hash, values["validUntil"], values["quorumSize"], pinned)
                if len(self.pins) > _KEPT:
                    del self.pins[self.newest - _KEPT]

    def _gap(self, event: Event, what: str) -> _Gap:
        return _Gap(
            f"the chain left out logs of {self._registry} before block {event.block}, where {what}: ask again, or "
            "another node (RPC_URL)"
        )


class Epochs:
    """Reads the epochs of a network, each once; what has been read is remembered.

    Args:
        contracts: of the network, on a chain of any kind.
        confirmations: blocks, its own included, that make a block final. An epoch that began in a later one is not
            known yet: its seed, the hash of that block, might change.
    """

    def __init__(self, contracts: Contracts, confirmations: int = 1) -> None:
        self._contracts, self._confirmations = contracts, confirmations
        self._count = self._from_start()
        self._found: dict[int, Epoch] = {}
        self._one = asyncio.Lock()

    def _from_start(self) -> _Count:
        return _Count(self._contracts.registry, self._contracts.addresses.block)

    async def last_block(self) -> int:
        """Return the number of the newest block that is final."""
        return await self._contracts.chain.block_number() - self._confirmations + 1

    async def epoch(self, number: int = 0) -> Epoch:
        """Return an epoch: its members in the order of a quorum's bitmap, each with the stake that it had at the event
        ``EpochAdvanced`` (earlier events of the same block count, later ones don't).

        Args:
            number: of the epoch; 0 for the newest one that is final.

        Raises:
            ChainError: there is no such epoch, none at all, or the chain does not have its logs.
        """
        async with self._one:
            if number and number in self._found:
                return self._found[number]
            try:
                await self._count.read(await self.last_block())
            except _Gap:
                self._count = self._from_start()
                raise
            newest = self._count.newest
            if not newest:
                raise ChainError(f"no epoch has begun in {self._contracts.registry}: somebody must call advanceEpoch()")
            if not 0 <= number <= newest:
                raise ChainError(f"there is no epoch {number}; the newest that is final is {newest}")
            number = number or newest
            if number in self._found:
                return self._found[number]
            made = await self._made(number, self._count.pins.get(number) or await self._older(number))
            while len(self._found) >= _KEPT:
                self._found.pop(next(iter(self._found)))
            self._found[number] = made
            return made

    async def _older(self, number: int) -> _Pin:
        """Return what was pinned so long ago that it is not kept."""
        count = self._from_start()
        topics = (self._contracts.registry.interface.topic("EpochAdvanced"), number.to_bytes(32, "big"))
        logs = await self._contracts.registry.past_logs(topics, count.next_block, self._count.next_block - 1)
        if not logs:
            raise _Gap(f"the chain left out when epoch {number} of {self._contracts.registry} began: ask again")
        await count.read(int(logs[0]["blockNumber"], 16))
        return count.pins[number]

    async def _made(self, number: int, pin: _Pin) -> Epoch:
        addresses = await self._contracts.registry.read("members", number)
        if missing := [address for address in addresses if address not in pin.stakes]:
            self._count = self._from_start()
            raise ChainError(
                f"the chain left out logs of {self._contracts.registry}: {address_hex(missing[0])} is a member of "
                f"epoch {number} without stake: ask again, or another node (RPC_URL)"
            )
        members = tuple(Member(address, pin.stakes[address]) for address in addresses)
        return Epoch(number, members, pin.quorum, pin.valid_until_s, pin.seed, self._contracts.addresses.disputes)
