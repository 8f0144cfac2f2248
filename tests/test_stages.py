"""A stage fails: the error says why, what was reserved is released, and the request rests in the documented state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ncn_framework import Lifecycle, hookimpl
from ncn_framework.errors import (
    CapacityError,
    ChainBroken,
    DeadlineExpired,
    ModelFailed,
    NcnError,
    NoCandidate,
    NoCapacity,
    NodeError,
    NoHandlerError,
    OutputRejected,
    SandboxError,
    StageTimeout,
)
from ncn_framework.lifecycle import StageLimits
from ncn_framework.manager import build_manager
from ncn_framework.models import Chunk, Lease
from ncn_framework.states import State
from ncn_framework.tensors import Tensor, pack_tensors
from ncn_framework.testing.fakes import (
    FakeRuntime,
    ManualClock,
    RecordingPlugin,
    as_plugins,
    fake_candidates,
    fake_request,
    fake_route,
)
from ncn_framework.testing.walks import (
    RecordedWalk,
    asked_first,
    executing,
    fake_chunk,
    hang,
    refuse,
    reserving,
)

SHORT = StageLimits(route_ms=1, reserve_ms=1, execute_ms=1, sign_ms=1, settle_ms=1)
"""Every stage that waits is over at once; which one waits is up to the test."""


# --- route ---


async def test_nobody_routes() -> None:
    life = Lifecycle(build_manager([]))
    moves: list[Any] = []
    with pytest.raises(NoHandlerError, match=r"no plugin answered ncn_route for model 0x\w+; install"):
        await life.run(fake_request(), moves.append, candidates=fake_candidates())
    assert [move.state for move in moves] == [State.RECEIVED, State.FAILED]


async def test_route_raises() -> None:
    walk = RecordedWalk(asked_first(ncn_route=lambda: refuse(NoCandidate("all are busy"))))
    await walk.fails(NoCandidate, "all are busy")
    assert walk.moves == ["RECEIVED", "FAILED"]
    assert walk.last.detail == "no-candidate: all are busy"
    assert "outer: enter" not in walk.transcript


async def test_route_takes_too_long() -> None:
    walk = RecordedWalk(asked_first(ncn_route=lambda: hang()), limits=SHORT)
    await walk.fails(StageTimeout, "stage route took longer than its limit of 1 ms")
    assert walk.moves == ["RECEIVED", "FAILED"]


# --- reserve ---


async def test_the_second_reservation_refuses_and_the_first_is_released() -> None:
    @asynccontextmanager
    async def full() -> AsyncIterator[Lease]:
        raise NoCapacity("the second has none")
        yield

    walk = RecordedWalk(reserving(full), FakeRuntime())
    error = await walk.fails(NoCapacity, "the second has none")
    assert isinstance(error, CapacityError)
    assert walk.moves == ["RECEIVED", "ROUTED", "FAILED"]
    assert "outer: leave NoCapacity" in walk.transcript


async def test_reserve_takes_too_long() -> None:
    @asynccontextmanager
    async def waits() -> AsyncIterator[None]:
        await hang()
        yield

    walk = RecordedWalk(reserving(waits), limits=SHORT)
    await walk.fails(StageTimeout, "stage reserve took longer")
    assert "outer: leave StageTimeout" in walk.transcript


# --- execute ---


async def test_nobody_executes() -> None:
    walk = RecordedWalk()
    await walk.fails(NoHandlerError, "no plugin executes runtime 'fake' of model 'fake'; install its runtime")
    assert walk.moves[-2:] == ["EXECUTING", "FAILED"]


def outputs(*tensors: Tensor) -> Chunk:
    return fake_chunk(data=pack_tensors(tensors))


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        ([fake_chunk(), ModelFailed("the model raised")], ModelFailed, "the model raised"),
        ([], OutputRejected, "gave no output"),
        ([fake_chunk(link=bytes(32))], ChainBroken, "chunk 1 has link 0x00"),
        ([fake_chunk(link=b"\0")], ChainBroken, "chunk 1 has link 0x00"),
        ([fake_chunk(2)], ChainBroken, "chunk 2 with 1 units follows chunk 0"),
        ([fake_chunk(), fake_chunk()], ChainBroken, "chunk 1 with 1 units follows chunk 1"),
        ([fake_chunk(), fake_chunk(3)], ChainBroken, "chunk 3 with 1 units follows chunk 1"),
        ([fake_chunk(units=1_000_001)], ChainBroken, "with at most 1000000 units"),
        ([fake_chunk(units=-1)], ChainBroken, "with -1 units"),
        ([fake_chunk(units=5), fake_chunk(2, 4)], ChainBroken, "chunk 2 with 4 units follows chunk 1 with 5"),
        ([fake_chunk(data=b"\xff")], OutputRejected, "tensors are not well encoded"),
        ([outputs()], OutputRejected, "tensor 'y' is missing"),
        ([outputs(Tensor("y", "FP32", (2,), bytes(4)))], OutputRejected, "tensor 'y' has 4 bytes"),
        ([outputs(Tensor("y", "FP64", (1,), bytes(8)))], OutputRejected, "tensor 'y' is FP64[1]"),
        ([outputs(Tensor("y", "FP32", (1, 1), bytes(4)))], OutputRejected, "tensor 'y' is FP32[1, 1]"),
        ([outputs(Tensor("z", "FP32", (1,), bytes(4)))], OutputRejected, "tensor 'z' is unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_execution_that_breaks_its_promises(items: list[Any], error: type[NcnError], text: str) -> None:
    walk = RecordedWalk(executing(*items))
    assert isinstance(await walk.fails(error, text), NodeError)
    assert walk.moves[-2:] == ["EXECUTING", "FAILED"]
    assert "outer: ncn_sign" not in walk.transcript


@pytest.mark.parametrize("limits", [StageLimits(output_bytes=30), StageLimits(chunks=1)])
async def test_an_answer_that_is_too_long(limits: StageLimits) -> None:
    walk = RecordedWalk(executing(fake_chunk(), fake_chunk(2)), limits=limits)
    await walk.fails(OutputRejected, "the answer passes")
    assert len([u for u in walk.updates if isinstance(u, Chunk)]) == 1


async def test_execute_hangs() -> None:
    walk = RecordedWalk(executing(fake_chunk(), hang), limits=SHORT)
    await walk.fails(StageTimeout, "stage execute took longer than its limit of 1 ms")


async def test_the_deadline_passes_while_executing(manual_clock: ManualClock) -> None:
    walk = RecordedWalk(executing(fake_chunk(), hang), clock=manual_clock)
    request = fake_request(deadline_ms=manual_clock() + 1)
    await walk.fails(DeadlineExpired, "the deadline passed in stage execute", request)
    assert walk.last.state == State.EXPIRED
    assert walk.last.detail.startswith("deadline-expired: ")
    assert "outer: leave DeadlineExpired" in walk.transcript


async def test_the_deadline_passes_between_two_stages(manual_clock: ManualClock) -> None:
    request = fake_request(deadline_ms=manual_clock() + LONG_MS)

    def ncn_execute() -> None:
        manual_clock.advance(LONG_MS)

    walk = RecordedWalk(asked_first(ncn_execute=ncn_execute), FakeRuntime(), clock=manual_clock)
    await walk.fails(DeadlineExpired, "the deadline passed before stage sign", request)
    assert walk.moves[-2:] == ["EXECUTED", "EXPIRED"]


LONG_MS = 60_000


async def test_a_plugins_own_timeout_is_not_the_stages() -> None:
    await RecordedWalk(executing(TimeoutError("of the plugin"))).fails(NcnError, "a plugin failed")


# --- sign and settle ---


@pytest.mark.parametrize("stage", ["sign", "settle"])
async def test_signing_or_settling_takes_too_long(stage: str) -> None:
    walk = RecordedWalk(asked_first(**{f"ncn_{stage}": lambda: hang()}), FakeRuntime(), limits=SHORT)
    await walk.fails(StageTimeout, f"stage {stage} took longer")


async def test_nobody_signs() -> None:
    walk = RecordedWalk(FakeRuntime())
    walk.recorder.signers = {}
    await walk.fails(NoHandlerError, "no plugin signed the receipt as its node 0x")
    assert walk.moves[-2:] == ["EXECUTED", "FAILED"]


async def test_sign_raises_and_leaves_nothing_unawaited() -> None:
    locked = SandboxError("the key is locked")
    walk = RecordedWalk(
        asked_first(ncn_sign=lambda: refuse(locked)), asked_first(ncn_sign=lambda: hang()), FakeRuntime()
    )
    assert await walk.fails(SandboxError, "the key is locked") is locked


async def test_settle_is_declined_by_all() -> None:
    class Unsettled(RecordingPlugin):
        @hookimpl
        def ncn_settle(self) -> None:  # type: ignore[override]
            self.note("ncn_settle declines")

    recorder = Unsettled()
    life = Lifecycle(build_manager(as_plugins(recorder, FakeRuntime())))
    with pytest.raises(NoHandlerError, match="no plugin answered ncn_settle for payment mode 'free'; install"):
        await life.run(fake_request(), lambda update: None, route=fake_route())
    assert recorder.transcript[-3:] == [
        "recorder: ncn_settle declines",
        "recorder: leave NoHandlerError",
        "recorder: move FAILED",
    ]


async def test_settle_raises() -> None:
    walk = RecordedWalk(asked_first(ncn_settle=lambda: refuse(SandboxError("the chain is away"))), FakeRuntime())
    await walk.fails(SandboxError, "the chain is away")
    assert walk.moves[-2:] == ["VALIDATED", "FAILED"]


# --- what a plugin should not do ---


async def test_a_foreign_exception_is_internal_and_its_cause_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    cause = KeyError("secret detail")
    walk = RecordedWalk(asked_first(ncn_route=lambda: refuse(cause)))
    error = await walk.fails(NcnError, "a plugin failed")
    assert error.__cause__ is cause
    assert walk.last.detail == "internal: a plugin failed; the log has the cause"
    assert "secret detail" in caplog.text
    assert fake_request().request_id.hex() in caplog.text


@pytest.mark.parametrize(
    "hooks",
    [
        {"ncn_route": lambda: fake_route()},
        {"ncn_reserve": lambda: "no context manager"},
        {"ncn_execute": lambda: ["no generator"]},
        {"ncn_sign": lambda: 7},
        {"ncn_settle": lambda: "no awaitable"},
    ],
    ids=lambda hooks: str(*hooks),
)
async def test_an_answer_of_a_wrong_kind_is_internal(
    hooks: dict[str, Callable[[], Any]], caplog: pytest.LogCaptureFixture
) -> None:
    await RecordedWalk(asked_first(**hooks), FakeRuntime()).fails(NcnError, "a plugin failed")
    assert "TypeError" in caplog.text or "AttributeError" in caplog.text


async def test_an_item_that_is_no_chunk_is_internal() -> None:
    await RecordedWalk(executing("no chunk")).fails(NcnError, "a plugin failed")
