"""A chain whose epochs follow each other, shared by registries that speak for its validators."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ncn_framework import hookimpl
from ncn_framework.committees import Epoch
from ncn_framework.errors import ChainError, TransactionReverted
from ncn_framework.models import Signature
from ncn_framework.node import Node
from ncn_framework.payments import Quorum
from ncn_framework.quorums import check_quorum
from ncn_framework.statements import Evidence, PerformancesStatement, Reputation, Statement, excluded_from

from .committee import an_epoch, signed_by
from .network import DOMAIN


@dataclass
class Ground:
    """What is on chain.

    Attributes:
        current: number of the epoch.
        booked: periods that were reported.
        reported: how, in order.
        points: by account.
        away: whether the chain does not answer.
    """

    current: int = 7
    booked: set[int] = field(default_factory=set)
    reported: list[PerformancesStatement] = field(default_factory=list)
    points: dict[bytes, int] = field(default_factory=dict)
    away: bool = False

    def epoch(self, number: int) -> Epoch:
        """Return an epoch, of the same members as all."""
        if self.away or number > self.current:
            raise ChainError("no answer")
        return an_epoch(number=number or self.current)

    def report(self, statement: Statement, quorum: Quorum) -> str:
        """Book performances as the contract does."""
        assert isinstance(statement, PerformancesStatement)
        check_quorum(DOMAIN, statement, quorum, self.epoch(statement.epoch))
        if statement.period in self.booked:
            raise TransactionReverted("it was reported", "DisputeManager__PeriodReported")
        self.booked.add(statement.period)
        self.reported.append(statement)
        for one in statement.performances:
            delta = one.done - 2 * one.failed - 5 * one.timeouts
            self.points[one.validator] = self.points.get(one.validator, 0) + delta
        return "0xabc"


def a_moving_chain(ground: Ground) -> Any:
    """Return the plugin of one process, whose validators sign what no plugin objects to."""

    class Chain:
        roles = ("registry", "gateway")

        def __init__(self, node: Node) -> None:
            self.node = node

        @hookimpl
        def ncn_epoch(self, number: int) -> Awaitable[Epoch]:
            async def found() -> Epoch:
                return ground.epoch(number)

            return found()

        @hookimpl
        def ncn_vouch(
            self, statement: Statement, evidence: Mapping[bytes, Evidence]
        ) -> Awaitable[tuple[Signature, ...]] | None:
            async def vouched() -> tuple[Signature, ...]:
                if isinstance(statement, PerformancesStatement):
                    await self.node.validation.inspect(statement, evidence)
                able = (one for one in self.node.validators if one.address not in excluded_from(statement))
                return signed_by(statement, *able)

            return vouched() if self.node.validators else None

        @hookimpl
        def ncn_report(self, statement: Statement, quorum: Quorum) -> Awaitable[str]:
            async def reported() -> str:
                return ground.report(statement, quorum)

            return reported()

        @hookimpl
        def ncn_reputation(self, account: bytes, period: int) -> Awaitable[Reputation]:
            async def found() -> Reputation:
                if ground.away:
                    raise ChainError("no answer")
                return Reputation(ground.points.get(account, 0), period in ground.booked)

            return found()

    return Chain
