"""What validators did in an epoch is reported once, by whose turn it is, if a quorum has counted the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ncn_framework.committees import draw
from ncn_framework.errors import ChainError, EndorsementRefused
from ncn_framework.node import Node
from ncn_framework.payments import Quorum
from ncn_framework.signing import Signer
from ncn_framework.statements import Performance, PerformancesStatement, digest_of, subject_of
from ncn_registry.performances import Performances, agree
from ncn_registry.tallies import Proven, Tallies

from .committee import VALIDATORS, an_epoch
from .network import DOMAIN, a_node
from .periods import Ground, a_moving_chain


@dataclass
class Desk:
    """One registry's performances, with what it needs."""

    ground: Ground
    tallies: Tallies
    performances: Performances
    asked: list[PerformancesStatement] = field(default_factory=list)


@asynccontextmanager
async def a_desk(folder: Path, validators: tuple[Signer, ...], refuse: int = 0) -> AsyncIterator[Desk]:
    """Open one, whose first quorums are refused."""
    ground = Ground()
    node: Node = a_node("registry", folder, others=[a_moving_chain(ground)])
    node.validators = validators
    asked: list[PerformancesStatement] = []

    async def endorse(statement: PerformancesStatement) -> Quorum:
        asked.append(statement)
        if len(asked) <= refuse:
            raise EndorsementRefused("others have counted something else")
        digest = digest_of(DOMAIN, statement)
        return Quorum(statement.epoch, 0b111, tuple(one.sign(digest).value for one in VALIDATORS[:3]))

    async with Tallies(folder / "tallies.db", DOMAIN) as tallies:
        yield Desk(ground, tallies, Performances(node, tallies, endorse, 0.01), asked)


async def work(tallies: Tallies, statements: int, epoch: int = 7) -> None:
    """Have all but the last validator sign statements in an epoch."""
    signed = frozenset(one.address for one in VALIDATORS[:4])
    silent = frozenset({VALIDATORS[4].address})
    start = epoch * 1_000
    some = (
        Proven(number.to_bytes(32, "big"), epoch, signed, VALIDATORS[0].address, frozenset(), silent)
        for number in range(start, start + statements)
    )
    await asyncio.gather(*(tallies.put(one) for one in some))


def turns(period: int = 7, current: int = 8) -> list[Signer]:
    """Return the validators in the order of their turns."""
    epoch = an_epoch(number=current)
    order = draw(epoch, subject_of(PerformancesStatement(b"", current, period, ())))
    by_address = {one.address: one for one in VALIDATORS}
    return [by_address[epoch.members[place].address] for place in order]


async def test_it_is_reported_once_when_the_epoch_is_over(tmp_path: Path) -> None:
    async with a_desk(tmp_path, (turns()[0],)) as desk:
        await work(desk.tallies, 4)
        for _ in range(20):
            await desk.performances.look()
        assert desk.asked == [], "the epoch is not over"
        desk.ground.current = 8
        for _ in range(20):
            await desk.performances.look()
        [statement] = desk.ground.reported
        assert desk.asked == [statement]
        assert (statement.period, statement.epoch, statement.contract) == (7, 8, an_epoch().disputes)
        validators = [one.validator for one in statement.performances]
        assert validators == sorted(one.address for one in VALIDATORS)
        assert desk.ground.points[VALIDATORS[0].address] == 4
        assert desk.ground.points[VALIDATORS[4].address] == -20
        assert await desk.tallies.unreported() == []


async def test_who_is_drawn_later_waits_and_does_nothing_where_another_was_first(tmp_path: Path) -> None:
    async with a_desk(tmp_path, (turns()[1],)) as desk:
        await work(desk.tallies, 1)
        desk.ground.current = 8
        for _ in range(6):
            await desk.performances.look()
        assert desk.asked == []
        desk.ground.booked.add(7)
        for _ in range(20):
            await desk.performances.look()
        assert desk.asked == []
        assert await desk.tallies.unreported() == []
    (tmp_path / "other").mkdir()
    async with a_desk(tmp_path / "other", (turns()[1],)) as desk:
        await work(desk.tallies, 1)
        desk.ground.current = 8
        for _ in range(7):
            await desk.performances.look()
        assert desk.ground.booked == {7}, "the first one did nothing"


async def test_who_speaks_for_no_validator_only_listens(tmp_path: Path) -> None:
    async with a_desk(tmp_path, ()) as desk:
        await work(desk.tallies, 1)
        desk.ground.current = 8
        for _ in range(100):
            await desk.performances.look()
        assert desk.asked == []
        assert await desk.tallies.unreported() == [7]


async def test_what_is_refused_is_tried_again(tmp_path: Path) -> None:
    async with a_desk(tmp_path, tuple(VALIDATORS), refuse=2) as desk:
        await work(desk.tallies, 1)
        desk.ground.current = 8
        for _ in range(20):
            await desk.performances.look()
        assert len(desk.asked) == 3
        assert desk.ground.booked == {7}


async def test_another_registry_that_reports_at_the_same_moment_does_no_harm(tmp_path: Path) -> None:
    async with a_desk(tmp_path, tuple(VALIDATORS)) as desk:
        await work(desk.tallies, 1)
        desk.ground.current = 8
        booked, desk.ground.booked = {7}, set()
        report = desk.ground.report

        def late(statement: PerformancesStatement, quorum: Quorum) -> str:
            desk.ground.booked |= booked
            return report(statement, quorum)

        desk.ground.report = late  # type: ignore[assignment,method-assign]
        for _ in range(10):
            await desk.performances.look()
        assert len(desk.asked) == 1
        assert desk.ground.reported == []
        assert await desk.tallies.unreported() == []


async def test_what_nobody_reports_is_kept_for_some_epochs_and_receipts_for_ever(tmp_path: Path) -> None:
    node = b"\x77" * 20
    async with a_desk(tmp_path, ()) as desk:
        await work(desk.tallies, 1)
        signed = frozenset(one.address for one in VALIDATORS[:3])
        await desk.tallies.put(Proven(b"\x01" * 32, 7, signed, VALIDATORS[0].address, receipts=((node, 4),)))
        desk.ground.current = 15
        await desk.performances.look()
        assert await desk.tallies.unreported() == [7]
        desk.ground.current = 16
        await desk.performances.look()
        assert await desk.tallies.unreported() == []
        assert await desk.tallies.receipts() == {node: 4}


async def test_a_chain_that_is_away_is_waited_for(tmp_path: Path) -> None:
    async with a_desk(tmp_path, tuple(VALIDATORS)) as desk:
        await work(desk.tallies, 1)
        desk.ground.current = 8
        desk.ground.away = True
        with pytest.raises(ChainError):
            await desk.performances.look()
        keeping = asyncio.create_task(desk.performances.keep())
        desk.ground.away = False
        async with asyncio.timeout(20):
            while not desk.ground.booked:
                await asyncio.sleep(0.01)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def told(*performances: Performance) -> PerformancesStatement:
    return PerformancesStatement(an_epoch().disputes, 8, 7, performances)


async def test_only_what_was_counted_here_as_well_is_signed(tmp_path: Path) -> None:
    async with a_desk(tmp_path, (VALIDATORS[0],)) as desk:
        await work(desk.tallies, 200)
        right = await desk.tallies.performances(7)
        assert {one.done for one in right} == {200, 0}
        await desk.performances.inspect(told(*right))
        first, *others = right
        near = Performance(first.validator, first.done - 3, first.failed + 2, first.timeouts)
        if first.done:
            await desk.performances.inspect(told(near, *others))
        for wrong in (
            (Performance(first.validator, first.done + 5, 0, first.timeouts), *others),
            (Performance(first.validator, first.done, 3, first.timeouts), *others),
            (Performance(first.validator, first.done, 0, first.timeouts + 3), *others),
            (*right, Performance(b"\x99" * 20, 3, 0, 0)),
            (),
        ):
            with pytest.raises(EndorsementRefused, match="in epoch 7; "):
                await desk.performances.inspect(told(*wrong))


@pytest.mark.parametrize(
    ("here", "there", "near"),
    [(0, 2, True), (0, 3, False), (100, 102, True), (100, 103, False), (1_000, 980, True), (1_000, 979, False)],
)
def test_how_near_is_near_enough(here: int, there: int, near: bool) -> None:
    assert agree(here, there) is near
