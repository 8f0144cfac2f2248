"""Reputation, as far as this registry knows it: what the chain has, and what is proven since."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ncn_framework.errors import ChainError, NcnError, NoHandlerError
from ncn_framework.statements import Performance

from .tallies import Tallies

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["NODE", "VALIDATOR", "Points", "Reputations", "points_of"]

log = logging.getLogger(__name__)

VALIDATOR, NODE = "validator", "node"
"""Roles."""

_FRESH_S = 10.0
"""How long what the chain said of an account is taken for true."""

_ASKED_AT_ONCE = 16
_MOST_ASKED = 10_000
"""Accounts whose points on chain are remembered."""


@dataclass(frozen=True)
class Points:
    """An account's reputation.

    Attributes:
        account: its address.
        role: ``VALIDATOR`` or ``NODE``.
        on_chain: points that the chain has.
        since: of a validator, what was not reported yet.
        receipts: of a compute node, how many were settled.
    """

    account: bytes
    role: str
    on_chain: int
    since: Performance
    receipts: int = 0

    @property
    def points(self) -> int:
        """All together."""
        return self.on_chain + points_of(self.since) + self.receipts


def points_of(performance: Performance) -> int:
    """Return what a validator's work is worth, as ``DisputeManager.reportPerformances`` books it."""
    return performance.done - 2 * performance.failed - 5 * performance.timeouts


class Reputations:
    """Asks the chain and counts.

    Args:
        node: knows the chain.
        tallies: of what is proven.
        interval_s: how often ``of_node`` is brought up to date.
    """

    def __init__(self, node: Node, tallies: Tallies, interval_s: float) -> None:
        self._node, self._tallies, self._interval_s = node, tallies, interval_s
        self._pending: Mapping[bytes, Performance] = {}
        self._receipts: Mapping[bytes, int] = {}
        self._seen = -1
        self._on_chain: dict[bytes, tuple[float, int]] = {}
        self._validators: set[bytes] = set()
        self._slashed: set[bytes] = set()
        self._counting, self._asking = asyncio.Lock(), asyncio.Semaphore(_ASKED_AT_ONCE)

    def slashed(self, account: bytes) -> None:
        """Note that an account lost points on chain."""
        self._slashed.add(account)
        self._on_chain.pop(account, None)

    def of_node(self, node: bytes) -> int:
        """Return a compute node's points at once, as of some seconds ago."""
        return self._receipts.get(node, 0) + self._on_chain.get(node, (0.0, 0))[1]

    async def keep(self) -> None:
        """Bring what ``of_node`` says up to date, for ever."""
        while True:
            try:
                await self._recount()
                for account in list(self._slashed):
                    await self._chain(account)
            except NcnError as error:
                log.warning("reputations could not be brought up to date: %s", error)
            await asyncio.sleep(self._interval_s)

    async def of(self, account: bytes) -> Points | None:
        """Return an account's reputation; None where it is neither a known validator nor a known node.

        Raises:
            StoreError: the tallies could not be read.
        """
        await self._recount()
        await self._meet()
        known = (self._receipts, self._pending, self._validators, self._slashed)
        return await self._points(account) if any(account in some for some in known) else None

    async def of_validators(self, validators: Collection[bytes]) -> Mapping[bytes, int]:
        """Return validators' points, by address.

        Raises:
            StoreError: the tallies could not be read.
        """
        await self._recount()
        self._validators.update(validators)
        return {one.account: one.points for one in await asyncio.gather(*map(self._points, validators))}

    async def all(self) -> list[Points]:
        """Return the reputation of every known validator and node, by address.

        Raises:
            StoreError: the tallies could not be read.
        """
        await self._recount()
        await self._meet()
        accounts = self._validators | self._pending.keys() | self._receipts.keys() | self._slashed
        return await asyncio.gather(*map(self._points, sorted(accounts)))

    async def _points(self, account: bytes) -> Points:
        role = VALIDATOR if account in self._validators or account in self._pending else NODE
        asked = role == VALIDATOR or account in self._slashed  # else the chain has nothing of it
        on_chain = await self._chain(account) if asked else 0
        since = self._pending.get(account, Performance(account, 0, 0, 0))
        return Points(account, role, on_chain, since, self._receipts.get(account, 0))

    async def _meet(self) -> None:
        """Note who the validators are, as long as the chain answers."""
        with suppress(ChainError, NoHandlerError):
            epoch = await self._node.validation.epoch()
            self._validators.update(member.address for member in epoch.members)

    async def _chain(self, account: bytes) -> int:
        """Return an account's points on chain; those known last where it does not answer."""
        loop = asyncio.get_running_loop()
        at, points = self._on_chain.get(account, (-_FRESH_S, 0))
        if loop.time() - at < _FRESH_S:
            return points
        try:
            async with self._asking:
                points = (await self._node.validation.reputation(account)).points
        except (ChainError, NoHandlerError) as error:
            log.debug("reputation of 0x%s as last known: %s", account.hex(), error)
            return points
        if len(self._on_chain) >= _MOST_ASKED:
            self._on_chain.clear()
        self._on_chain[account] = loop.time(), points
        return points

    async def _recount(self) -> None:
        async with self._counting:
            changes = self._tallies.changes
            if changes != self._seen:
                self._pending = await self._tallies.pending()
                self._receipts = await self._tallies.receipts()
                self._seen = changes
