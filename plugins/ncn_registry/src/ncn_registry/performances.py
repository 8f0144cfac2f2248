"""What validators did in an epoch that is over: proposed by one of them, signed by a quorum, booked on chain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ncn_framework.committees import Epoch, draw
from ncn_framework.errors import EndorsementRefused, NcnError, StoreError, TransactionReverted
from ncn_framework.payments import Quorum
from ncn_framework.signing import address_hex
from ncn_framework.statements import Performance, PerformancesStatement, subject_of

from .tallies import Tallies

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Performances", "agree"]

log = logging.getLogger(__name__)

Endorse = Callable[[PerformancesStatement], Awaitable[Quorum]]

_LOOKS = 3
"""How often this looks until it is the next one's turn, and before it is the first one's: notices may be under way."""

_KEPT = 8
"""Epochs that are kept although nobody got them booked."""

_LATE = 1
"""Past epochs whose statements still come, of those that are booked: an escrow may outlast its epoch."""

_REPORTED = "DisputeManager__PeriodReported"
"""The contract's error where another registry was first."""


class Performances:
    """Proposes what is to be booked when it is a validator's turn that this process speaks for.

    The turns are drawn for the period, by the stakes of the current epoch; whoever comes next waits in case the one
    before gets it done.

    Args:
        node: knows epochs, and what is booked; reports.
        tallies: of what validators did.
        endorse: has a quorum sign it.
        interval_s: between two looks.
    """

    def __init__(self, node: Node, tallies: Tallies, endorse: Endorse, interval_s: float) -> None:
        self._node, self._tallies, self._endorse, self._interval_s = node, tallies, endorse, interval_s
        self._looks: dict[int, int] = {}

    async def keep(self) -> None:
        """Look, for ever, whether an epoch is over."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.look()
            except (NcnError, TimeoutError) as error:
                log.info("what validators did is not reported now: %s", error)

    async def look(self) -> None:
        """See what is booked by now, propose what it is time for, and forget what is long past.

        Raises:
            ChainError: the chain does not answer.
            StoreError: the tallies could not be read.
        """
        periods = await self._tallies.unreported()
        if not periods:
            return
        current = await self._node.validation.epoch()
        oldest = current.number - _LATE
        for period in periods:
            if period < current.number and not await self._done(period, current):
                oldest = min(oldest, period)
        await self._tallies.forget(max(oldest, current.number - _KEPT))
        self._looks = {period: looks for period, looks in self._looks.items() if period >= self._tallies.oldest}

    async def _done(self, period: int, current: Epoch) -> bool:
        """Return whether a period is booked; propose it where it is not and it is time."""
        if not await self._is_booked(period, current):
            looks = self._looks[period] = self._looks.get(period, 0) + 1
            turn = self._turn(period, current)
            if turn is None or looks <= _LOOKS * (turn + 1):
                return False
            try:
                await self._propose(period, current)
            except StoreError:
                raise
            except (NcnError, TimeoutError) as error:
                log.warning("what validators did in epoch %d is not reported yet: %s", period, error)
                self._looks[period] = max(0, looks - _LOOKS)
                return False
        await self._tallies.book(period)
        return True

    async def _is_booked(self, period: int, current: Epoch) -> bool:
        return (await self._node.validation.reputation(current.members[0].address, period)).booked

    def _turn(self, period: int, current: Epoch) -> int | None:
        """Return whose turn the first validator of this process has, from 0; None where it has none."""
        own = {signer.address for signer in self._node.validators}
        order = draw(current, subject_of(PerformancesStatement(b"", current.number, period, ())))
        return next((turn for turn, place in enumerate(order) if current.members[place].address in own), None)

    async def _propose(self, period: int, current: Epoch) -> None:
        performances = await self._tallies.performances(period)
        if not performances:
            return
        statement = PerformancesStatement(current.disputes, current.number, period, performances)
        quorum = await self._endorse(statement)
        try:
            transaction = await self._node.validation.report(statement, quorum)
        except TransactionReverted as error:
            if error.reason != _REPORTED:
                raise
        else:
            log.info(
                "what %d validators did in epoch %d is reported: %s", len(statement.performances), period, transaction
            )

    async def inspect(self, statement: PerformancesStatement) -> None:
        """Raise unless this registry has counted nearly the same.

        Raises:
            EndorsementRefused: naming the first difference that is too large.
            StoreError: the tallies could not be read.
        """
        own = {one.validator: one for one in await self._tallies.performances(statement.period)}
        told = {one.validator: one for one in statement.performances}
        for validator in sorted(own.keys() | told.keys()):
            nothing = Performance(validator, 0, 0, 0)
            here, there = own.get(validator, nothing), told.get(validator, nothing)
            for what in ("done", "failed", "timeouts"):
                if not agree(getattr(here, what), getattr(there, what)):
                    raise EndorsementRefused(
                        f"validator {address_hex(validator)} is said to have {getattr(there, what)} {what} in epoch "
                        f"{statement.period}; {getattr(here, what)} are known here"
                    )


def agree(here: int, there: int) -> bool:
    """Return whether two counts of the same are near enough: 2, or 2%, since a notice may be lost or late."""
    return abs(here - there) * 50 <= max(100, here)
