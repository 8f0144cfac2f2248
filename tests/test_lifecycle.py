"""One request through the hooks: the whole transcript, and what is refused before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from ncn_framework import Lifecycle
from ncn_framework.errors import (
    DeadlineExpired,
    InvalidTensor,
    NcnError,
    RequestTooLarge,
    SandboxError,
    SignatureRejected,
)
from ncn_framework.manager import build_manager
from ncn_framework.models import Chunk, Event, InferenceRequest
from ncn_framework.signing import Signer
from ncn_framework.states import State
from ncn_framework.testing.fakes import (
    FakeRuntime,
    ManualClock,
    RecordingPlugin,
    as_plugins,
    fake_candidates,
    fake_manifest,
    fake_record,
    fake_request,
    fake_route,
    fake_signer,
)
from ncn_framework.testing.walks import RecordedWalk, asked_first, hang, refuse


async def test_the_transcript_of_a_whole_life_cycle() -> None:
    transcript: list[str] = []
    first, second = RecordingPlugin("a", transcript), RecordingPlugin("b", transcript)
    runtime = FakeRuntime(chunks=2, transcript=transcript)
    life = Lifecycle(build_manager(as_plugins(first, second, runtime)))

    def observe(update: Event | Chunk) -> None:
        transcript.append(f"observer: {update.state if isinstance(update, Event) else f'chunk {update.sequence}'}")

    outcome = await life.run(fake_request(), observe, candidates=fake_candidates(2))

    def moved(state: str) -> list[str]:
        return [f"observer: {state}", f"a: move {state}", f"b: move {state}"]

    assert transcript == [
        *moved("RECEIVED"),
        "a: ncn_route",
        *moved("ROUTED"),
        "a: ncn_reserve",
        "b: ncn_reserve",
        "a: enter",
        "b: enter",
        *moved("RESERVED"),
        *moved("EXECUTING"),
        "a: ncn_execute declines",
        "b: ncn_execute declines",
        "runtime: open",
        "observer: chunk 1",
        "observer: chunk 2",
        "runtime: close",
        *moved("EXECUTED"),
        "a: ncn_sign",
        "b: ncn_sign",
        *moved("VALIDATED"),
        "a: ncn_settle",
        *moved("SETTLED"),
        "b: leave",
        "a: leave",
    ]
    assert outcome.settlement.mode == "free"
    assert outcome.receipt.receipt.units == 2
    assert len(outcome.receipt.signatures) == 2
    assert first.events[1].node == outcome.route.node


async def test_a_node_that_was_chosen_is_not_asked_to_choose() -> None:
    walk = RecordedWalk(FakeRuntime())
    outcome = await walk.run(route=fake_route())
    assert "outer: ncn_route" not in walk.transcript
    assert outcome.route == fake_route()
    assert walk.moves == ["RECEIVED", "ROUTED", "RESERVED", "EXECUTING", "EXECUTED", "VALIDATED", "SETTLED"]
    walk.check_released()


async def test_leases_reach_the_runtime_and_none_is_no_lease() -> None:
    seen: list[Any] = []

    @asynccontextmanager
    async def nothing() -> AsyncIterator[None]:
        yield

    def ncn_execute(leases: Any) -> None:
        seen.extend(leases)

    await RecordedWalk(asked_first(ncn_reserve=nothing, ncn_execute=ncn_execute), FakeRuntime()).run()
    assert [lease.kind for lease in seen] == ["outer"]


async def test_a_failing_listener_does_not_fail_the_request(caplog: pytest.LogCaptureFixture) -> None:
    def ncn_event() -> None:
        raise RuntimeError("deaf")

    walk = RecordedWalk(asked_first(ncn_event=ncn_event), FakeRuntime())
    await walk.run()
    assert walk.last.state == State.SETTLED
    assert "failed in ncn_event" in caplog.text


async def test_an_observer_that_raises_fails_the_request_and_closes_the_stream_before_the_release() -> None:
    runtime = FakeRuntime()
    walk = RecordedWalk(runtime)
    runtime.transcript = walk.transcript

    def observe(update: Event | Chunk) -> None:
        if isinstance(update, Chunk):
            raise SandboxError("the disk is full")
        walk.observe(update)

    with pytest.raises(SandboxError, match="the disk is full"):
        await walk.life.run(fake_request(), observe, candidates=fake_candidates())
    assert walk.transcript[-3:] == ["runtime: close", "outer: leave SandboxError", "outer: move FAILED"]
    assert walk.last.state == State.FAILED
    walk.check_released()


# --- before the walk ---


def test_a_request_that_no_node_should_see_is_refused(manual_clock: ManualClock, signer: Signer) -> None:
    walk = RecordedWalk(clock=manual_clock)
    manifest = fake_manifest(unit_fee_wei=2**40)
    due: dict[str, Any] = {"deadline_ms": manual_clock() + 1}
    walk.life.check(fake_request(manifest, signer, **due), manifest)
    walk.life.check(fake_request(manifest, **due), manifest)
    signed = fake_request(manifest, signer, **due)
    refused: list[tuple[type[NcnError], InferenceRequest]] = [
        (InvalidTensor, fake_request(manifest, inputs=(), **due)),
        (RequestTooLarge, fake_request(manifest, limit_units=0, **due)),
        (RequestTooLarge, fake_request(manifest, limit_units=2**63, **due)),
        (RequestTooLarge, fake_request(manifest, limit_units=2**62, payment="voucher", **due)),
        (DeadlineExpired, fake_request(manifest, deadline_ms=manual_clock())),
        (SignatureRejected, replace(signed, signature=b"")),
        (SignatureRejected, replace(signed, limit_units=7)),
        (SignatureRejected, replace(signed, signature=fake_request(manifest, fake_signer("x"), **due).signature)),
        (SignatureRejected, replace(fake_request(manifest, **due), signature=signed.signature)),
    ]
    for error, request in refused:
        with pytest.raises(error):
            walk.life.check(request, manifest)
    assert walk.transcript == []


async def test_records_are_checked_before_they_are_published(manual_clock: ManualClock) -> None:
    walk = RecordedWalk(clock=manual_clock)
    record = fake_record(expires_ms=manual_clock() + 1)
    await walk.life.register(record)
    with pytest.raises(SignatureRejected, match="the fake record"):
        await walk.life.register(replace(record, sequence=2))
    manual_clock.advance(1)
    with pytest.raises(DeadlineExpired, match="expired"):
        await walk.life.register(record)
    assert walk.recorder.records == [record]


async def test_one_failing_publisher_fails_the_registration_and_leaves_nothing_unawaited() -> None:
    def ncn_register() -> Awaitable[None]:
        return refuse(SandboxError("down"))

    walk = RecordedWalk(asked_first(ncn_register=ncn_register), asked_first(ncn_register=lambda: hang()))
    with pytest.raises(SandboxError):
        await walk.life.register(fake_record())
