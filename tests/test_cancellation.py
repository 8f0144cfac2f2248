"""Cancelling at every stage: it always arrives, and never before everything is released."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from ncn_framework.errors import NodeLost
from ncn_framework.lifecycle import StageLimits
from ncn_framework.models import Chunk
from ncn_framework.reservations import Reservations
from ncn_framework.states import State
from ncn_framework.testing.fakes import FakeRuntime
from ncn_framework.testing.walks import RecordedWalk, asked_first, executing, fake_chunk, reserving


class Gate:
    """Where a plugin waits until the test lets it pass."""

    def __init__(self) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def wait(self) -> Any:
        self.reached.set()
        await self.opened.wait()

    @asynccontextmanager
    async def entering(self) -> AsyncIterator[None]:
        await self.wait()
        yield

    @asynccontextmanager
    async def leaving(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.wait()

    async def stream(self) -> AsyncGenerator[Chunk, None]:
        yield fake_chunk()
        await self.wait()


STAGES: dict[str, tuple[str, Callable[[Gate], Any]]] = {
    "route": ("RECEIVED", lambda gate: asked_first(ncn_route=lambda: gate.wait())),
    "reserve": ("ROUTED", lambda gate: reserving(gate.entering)),
    "execute": ("EXECUTING", lambda gate: asked_first(ncn_execute=lambda: gate.stream())),
    "sign": ("EXECUTED", lambda gate: asked_first(ncn_sign=lambda: gate.wait())),
    "settle": ("VALIDATED", lambda gate: asked_first(ncn_settle=lambda: gate.wait())),
}


@pytest.mark.parametrize("stage", STAGES)
async def test_cancelled_in_a_stage(stage: str) -> None:
    state, plugin = STAGES[stage]
    gate = Gate()
    walk = RecordedWalk(plugin(gate), FakeRuntime())
    walking = asyncio.create_task(walk.run())
    await gate.reached.wait()
    assert walk.last.state == state
    walking.cancel()
    await asyncio.wait({walking})
    assert walking.cancelled()
    assert walk.last.state == State.CANCELLED
    assert walk.last.detail == "cancelled: the caller cancelled"
    walk.check_released()
    if stage not in ("route",):
        assert "outer: leave CancelledError" in walk.transcript


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_while_releasing_after_success(times: int) -> None:
    gate = Gate()
    walk = RecordedWalk(reserving(gate.leaving), FakeRuntime())
    await _cancel_at(gate, asyncio.create_task(walk.run()), times)
    assert walk.last.state == State.SETTLED
    assert walk.transcript[-1] == "outer: leave"


async def test_cancelled_while_releasing_after_failure() -> None:
    gate = Gate()
    walk = RecordedWalk(reserving(gate.leaving), executing(NodeLost("gone")))
    await _cancel_at(gate, asyncio.create_task(walk.run()), 2)
    assert walk.last.state == State.CANCELLED
    assert "outer: leave NodeLost" in walk.transcript
    walk.check_released()


async def test_cancelled_again_while_releasing() -> None:
    executes, releases = Gate(), Gate()
    walk = RecordedWalk(reserving(releases.leaving), asked_first(ncn_execute=lambda: executes.stream()))
    walking = asyncio.create_task(walk.run())
    await executes.reached.wait()
    walking.cancel()
    await _cancel_at(releases, walking, 1)
    assert walk.last.state == State.CANCELLED
    walk.check_released()


async def _cancel_at(gate: Gate, walking: asyncio.Task[Any], times: int) -> None:
    """Cancel while the gate is being waited at; the walk must still be there, and end cancelled once it opens."""
    await gate.reached.wait()
    for _ in range(times):
        walking.cancel()
        await asyncio.wait({walking}, timeout=0)
        assert not walking.done()
    gate.opened.set()
    await asyncio.wait({walking})
    assert walking.cancelled()


async def test_releases_that_hang_are_cut_off_and_the_others_follow(caplog: pytest.LogCaptureFixture) -> None:
    gates = [Gate(), Gate()]
    walk = RecordedWalk(*(reserving(gate.leaving) for gate in gates), FakeRuntime(), limits=StageLimits(release_ms=1))
    await walk.run()
    assert walk.last.state == State.SETTLED
    assert all(gate.reached.is_set() for gate in gates)
    assert caplog.text.count("a reservation was not released cleanly: TimeoutError") == 2
    walk.check_released()


async def test_a_failing_release_never_hides_why_the_request_ended(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def breaks() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("cannot undo")

    walk = RecordedWalk(reserving(breaks), executing(NodeLost("gone")))
    await walk.fails(NodeLost, "gone")
    assert "cannot undo" in caplog.text
    assert "outer: leave NodeLost" in walk.transcript


async def test_a_reservation_cannot_swallow_the_failure() -> None:
    @asynccontextmanager
    async def swallows() -> AsyncIterator[None]:
        with suppress(NodeLost):
            yield

    walk = RecordedWalk(reserving(swallows), executing(NodeLost("gone")))
    await walk.fails(NodeLost, "gone")
    assert "outer: leave NodeLost" in walk.transcript


class AtOnce:
    """A reservation whose release never waits, and says so."""

    leaves_at_once = True

    def __init__(self, trouble: Exception | None = None) -> None:
        self.trouble = trouble
        self.left_in: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *failure: object) -> None:
        self.left_in = asyncio.current_task()
        if self.trouble is not None:
            raise self.trouble


async def test_releases_that_never_wait_need_no_task(caplog: pytest.LogCaptureFixture) -> None:
    trouble = RuntimeError("cannot undo")
    contexts = [AtOnce(), AtOnce(trouble), AtOnce()]
    reserved = Reservations(bytes(32), 1)
    with pytest.raises(NodeLost, match="gone"):
        async with reserved:
            for context in contexts:
                await reserved.enter(context)
            raise NodeLost("gone")
    assert {context.left_in for context in contexts} == {asyncio.current_task()}
    assert "cannot undo" in caplog.text


async def test_one_release_that_may_wait_shields_them_all() -> None:
    gate, context = Gate(), AtOnce()
    walk = RecordedWalk(reserving(lambda: context), reserving(gate.leaving), FakeRuntime())
    walking = asyncio.create_task(walk.run())
    await _cancel_at(gate, walking, 1)
    assert context.left_in not in (None, walking)


async def test_a_release_may_use_a_time_limit_of_its_own() -> None:
    caught: list[type[BaseException]] = []

    @asynccontextmanager
    async def impatient() -> AsyncIterator[None]:
        yield
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError as error:
            caught.append(type(error))

    walk = RecordedWalk(reserving(impatient), FakeRuntime())
    await walk.run()
    assert caught == [TimeoutError]
    assert walk.last.state == State.SETTLED


async def test_a_cancelled_request_closes_its_generator() -> None:
    closed = asyncio.Event()
    gate = Gate()

    async def stream() -> AsyncGenerator[Chunk, None]:
        try:
            yield fake_chunk()
            await gate.wait()
        finally:
            closed.set()

    def ncn_execute() -> AsyncGenerator[Chunk, None]:
        return stream()

    walk = RecordedWalk(asked_first(ncn_execute=ncn_execute))
    walking = asyncio.create_task(walk.run())
    await gate.reached.wait()
    walking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walking
    assert closed.is_set()
