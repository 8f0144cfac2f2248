"""What validators look at before they sign: terms against the node's record, answers against another execution."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ncn_framework import digests
from ncn_framework.errors import EndorsementRefused, NcnError, NoCapacity, StoreError, WorkerDied
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Chunk
from ncn_framework.signing import Signer
from ncn_framework.statements import CompletionStatement, Evidence, Statement, VerdictStatement
from ncn_framework.tensors import Tensor, pack_tensors
from ncn_framework.testing.fakes import fake_request, fake_signer
from ncn_framework.wire.convert_statements import MAX_EVIDENCE
from ncn_registry.inspection import MOST_WANTED, Inspector
from ncn_registry.presence import Presence
from ncn_registry.records import Judge
from ncn_registry.repetitions import Finding, Verdict
from ncn_registry.roll import Roll
from ncn_registry.store import RecordStore
from ncn_registry.watching import Watchers

from .answers import (
    CLIENT,
    DOMAIN,
    LIAR,
    MANIFEST,
    Runtime,
    a_batch,
    a_registry_node,
    an_answer,
    answer_to,
    answered,
    manifest_of,
    shown,
    terms_of,
)
from .network import a_record


@dataclass
class World:
    """An inspector over a roll, and what it has said."""

    inspector: Inspector
    runtime: Runtime
    roll: Roll
    accused: list[tuple[Evidence, str]] = field(default_factory=list)
    refuses: NcnError | None = None

    async def accuse(self, evidence: Evidence, reason: str) -> None:
        self.accused.append((evidence, reason))
        if self.refuses is not None:
            raise self.refuses

    async def inspect(self, statement: Statement, *answers: Evidence) -> None:
        await self.inspector.inspect(statement, shown(*answers))

    async def refused(self, statement: Statement, *answers: Evidence) -> EndorsementRefused:
        """Return what a statement is refused for, as it must be."""
        with pytest.raises(EndorsementRefused) as refusal:
            await self.inspect(statement, *answers)
        return refusal.value


@asynccontextmanager
async def a_world(
    home: Path, rate: float = 1.0, patience_s: float = 30.0, wrong: dict[bytes, str] | None = None
) -> AsyncIterator[World]:
    """Open a world without a network."""
    runtime = Runtime()
    node = a_registry_node(home, runtime)
    async with RecordStore(home / "registry.db", DOMAIN, 0) as store:
        roll = Roll(store, Judge(DOMAIN, now_ms), Presence(60, lambda: 0.0, now_ms), Watchers(), now_ms)
        world = World(None, runtime, roll)  # type: ignore[arg-type]
        world.inspector = Inspector(node, roll, rate, patience_s, world.accuse, wrong)
        try:
            yield world
        finally:
            runtime.go.set()
            await world.inspector.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as opened:
        yield opened


def verdict_on(answer: Evidence, reason: str = "it differs") -> VerdictStatement:
    """Return a verdict on an answer's receipt."""
    return VerdictStatement(bytes(20), 1, answer.receipt, reason)


# --- answers ---


async def test_answers_are_wanted_then_executed_again_and_found_right(world: World) -> None:
    answers = [an_answer(number) for number in range(3)]
    refusal = await world.refused(a_batch(*answers))
    assert refusal.wanted == {one.request.request_id for one in answers}
    assert "3 of 3 answers must be shown first" in str(refusal)
    await world.inspect(a_batch(*answers), *answers)
    assert sorted(world.runtime.executed) == sorted(refusal.wanted)
    await world.inspect(a_batch(*reversed(answers)))  # known by now, in whatever batch they come
    assert len(world.runtime.executed) == 3
    assert world.accused == []


async def test_what_is_wanted_is_wanted_again_until_it_is_shown(world: World) -> None:
    one, other = an_answer(1), an_answer(2)
    assert (await world.refused(a_batch(one, other), one)).wanted == {other.request.request_id}
    assert world.runtime.executed == []


async def test_a_wrong_answer_is_refused_and_its_node_accused(world: World) -> None:
    right, wrong = an_answer(1), an_answer(2, off_by=0.5)
    refusal = await world.refused(a_batch(right, wrong), right, wrong)
    assert refusal.invalid == {wrong.request.request_id}
    assert "1 answers are wrong" in str(refusal)
    assert "tolerance 0.001" in str(refusal)
    [(evidence, reason)] = world.accused
    assert evidence == wrong
    assert reason.startswith("chunk 1: tensor 'y' differs by 0.5 at element 0")
    assert (await world.refused(a_batch(wrong))).invalid == {wrong.request.request_id}, "without being shown again"
    assert len(world.accused) == 1
    await world.inspect(a_batch(right))


async def test_a_difference_within_the_tolerance_is_none(world: World) -> None:
    answer = an_answer(off_by=0.0009)
    await world.inspect(a_batch(answer), answer)


async def test_the_answer_of_an_escrow_request_is_looked_at_in_the_same_way(world: World) -> None:
    for number, off_by in ((1, 0.0), (2, 1.0)):
        answer = an_answer(number, off_by=off_by)
        terms = terms_of(answer.request).terms
        statement = CompletionStatement(terms, bytes(32), answer.receipt)
        assert (await world.refused(statement)).wanted == {answer.request.request_id}
        if off_by:
            assert (await world.refused(statement, answer)).invalid == {answer.request.request_id}
        else:
            await world.inspect(statement, answer)


@pytest.mark.parametrize(("rate", "least", "most"), [(0.0, 0, 0), (0.02, 1, 60), (1.0, 1_000, 1_000)])
async def test_the_share_that_is_wanted_is_the_setting(tmp_path: Path, rate: float, least: int, most: int) -> None:
    """One by one, of a thousand; 20 are expected of 2%, and 1 to 60 are so with all but a chance of 1e-8."""
    async with a_world(tmp_path, rate) as world:
        wanted = 0
        for number in range(1_000):
            try:
                await world.inspect(a_batch(an_answer(number)))
            except EndorsementRefused:
                wanted += 1
        assert least <= wanted <= most


async def test_what_is_wanted_stays_the_same_and_no_other_process_wants_it(tmp_path: Path) -> None:
    answers = [an_answer(number) for number in range(200)]
    seen = []
    for _ in range(2):
        async with a_world(tmp_path, 0.2) as world:
            found = [(await world.refused(a_batch(*answers))).wanted for _ in range(3)]
            assert len(set(found)) == 1
            alone = [one for one in answers if one.request.request_id in found[0]]
            assert (await world.refused(a_batch(*alone))).wanted == found[0], "whatever else is in the batch"
            assert len(found[0]) == MOST_WANTED
            seen.append(found[0])
    assert seen[0] != seen[1]


async def test_what_is_shown_is_checked_though_another_validator_wanted_it(tmp_path: Path) -> None:
    async with a_world(tmp_path, rate=0.0) as world:
        wrong = an_answer(off_by=1.0)
        await world.inspect(a_batch(wrong))
        assert (await world.refused(a_batch(wrong), wrong)).invalid == {wrong.request.request_id}


async def test_what_belongs_to_no_receipt_of_the_batch_is_not_executed(world: World) -> None:
    right, other = an_answer(1), an_answer(2, off_by=1.0)
    await world.inspect(a_batch(right), right, other)
    assert world.runtime.executed == [right.request.request_id]
    assert world.accused == []


@pytest.mark.parametrize(
    ("error", "why"),
    [(WorkerDied("no memory"), "no memory"), (NoCapacity("busy"), "busy"), (None, "two executions here differ")],
)
async def test_what_cannot_be_executed_here_is_let_pass_and_condemns_nobody(
    world: World, error: NcnError | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the model, with trouble of its own, or with a model that never gives the same answer twice."""
    caplog.set_level("INFO")
    world.runtime.error, world.runtime.drift = error, 0.0 if error else 0.1
    wrong = an_answer(off_by=1.0)
    await world.inspect(a_batch(wrong), wrong)
    assert why in caplog.text
    assert world.accused == []
    world.runtime.error, world.runtime.drift = None, 0.0
    assert (await world.refused(a_batch(wrong), wrong)).invalid, "the next time it is tried again"


async def test_a_statement_does_not_wait_for_a_slow_model_which_is_checked_all_the_same(tmp_path: Path) -> None:
    async with a_world(tmp_path, patience_s=0.0) as world:
        world.runtime.go.clear()
        wrong = an_answer(off_by=1.0)
        await world.inspect(a_batch(wrong), wrong)
        world.runtime.go.set()
        while not world.accused:
            await asyncio.sleep(0)
        assert (await world.refused(a_batch(wrong))).invalid == {wrong.request.request_id}


async def test_who_stops_waiting_stops_nothing(world: World) -> None:
    world.runtime.go.clear()
    wrong = an_answer(off_by=1.0)
    waiting = asyncio.create_task(world.inspect(a_batch(wrong), wrong))
    while not world.runtime.executed:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    world.runtime.go.set()
    while not world.accused:
        await asyncio.sleep(0)
    assert world.runtime.executed == [wrong.request.request_id] * 2, "once for everybody, and once to be sure"


async def test_an_accusation_that_cannot_be_kept_changes_no_finding(world: World) -> None:
    world.refuses = StoreError("the disk is full")
    wrong = an_answer(off_by=1.0)
    assert (await world.refused(a_batch(wrong), wrong)).invalid == {wrong.request.request_id}


async def test_receipts_that_were_found_wrong_before_a_restart_are_refused_unseen(tmp_path: Path) -> None:
    wrong = an_answer(off_by=1.0)
    key = digests.receipt_digest(DOMAIN, wrong.receipt.receipt)
    async with a_world(tmp_path, 0.0, wrong={key: "it differed"}) as world:
        refusal = await world.refused(a_batch(wrong, an_answer(2)))
        assert refusal.invalid == {wrong.request.request_id}
        assert "it differed" in str(refusal)


@pytest.mark.parametrize(("validators", "most"), [(0, 12), (1, 12), (3, 36), (5, 60), (9, 60)])
async def test_more_is_wanted_for_more_validators_and_no_more_than_a_message_holds(
    world: World, validators: int, most: int
) -> None:
    world.inspector._node.validators = tuple(fake_signer(f"validator {n}") for n in range(validators))
    refusal = await world.refused(a_batch(*(an_answer(number) for number in range(100))))
    assert len(refusal.wanted) == most <= MAX_EVIDENCE


# --- what is shown must belong to the receipt: else it is the gateway's fault, and nobody is accused ---


def forged() -> Sequence[tuple[str, Evidence]]:
    """Return evidence of one receipt that was tampered with, and what is said of it."""
    good = an_answer()
    other_input = replace(good.request, inputs=(Tensor("x", "FP32", (1,), b"\0\0\x80\x3f"),))
    unsigned = replace(good.request, signature=b"\1" * 65)
    chunk = good.chunks[0]
    altered = Chunk(1, 1, answered(good.request, 1.0).data)
    return (
        ("another request", replace(good, request=other_input)),
        ("signature", replace(good, request=unsigned)),
        ("another model's manifest", replace(good, manifest=manifest_of(tolerance=5.0))),
        ("another receipt", replace(good, receipt=an_answer(fee_wei=1).receipt)),
        ("not those of the receipt", replace(good, chunks=(altered,))),
        ("not those of the receipt", replace(good, chunks=())),
        ("chunk 1 is out of order or altered", replace(good, chunks=(replace(chunk, link=b"\1" * 32),))),
        ("chunk 2 is out of order", replace(good, chunks=(chunk, replace(chunk, link=b"")))),
    )


@pytest.mark.parametrize(("why", "evidence"), forged(), ids=[why for why, _ in forged()])
async def test_what_does_not_belong_to_the_receipt_is_the_fault_of_who_shows_it(
    world: World, why: str, evidence: Evidence
) -> None:
    good = an_answer()
    with pytest.raises(EndorsementRefused, match=why) as refusal:
        await world.inspector.inspect(a_batch(good), {good.request.request_id: evidence})
    assert refusal.value.wanted == {good.request.request_id}
    assert world.runtime.executed == []
    assert world.accused == []


async def test_a_receipt_that_its_node_did_not_sign_accuses_nobody(world: World) -> None:
    victim = fake_signer("an honest node")
    forged = an_answer(off_by=1.0, node=victim)
    signature = LIAR.sign(digests.receipt_digest(DOMAIN, forged.receipt.receipt))
    signed = replace(forged.receipt, signatures=(replace(signature, signer=victim.address),))
    evidence = replace(forged, receipt=signed)
    with pytest.raises(EndorsementRefused, match="the receipt"):
        await world.inspect(a_batch(evidence), evidence)
    assert world.accused == []


# --- receipts that contradict what their node signed need no execution ---


def contradictory() -> Sequence[tuple[str, Evidence]]:
    """Return answers whose receipts are wrong on their face, and why."""
    good = an_answer().request
    chunk = answered(good)
    long = replace(good, limit_units=1)
    signed = CLIENT.sign(digests.request_digest(DOMAIN, long)).value
    bad_input = fake_request(MANIFEST, CLIENT, DOMAIN, inputs=(Tensor("x", "INT32", (1,), bytes(4)),))
    other = Chunk(1, 1, pack_tensors([Tensor("z", "FP32", (1,), bytes(4))]))
    return (
        ("a fee of 99 wei for 1 units, which cost 11", an_answer(fee_wei=99)),
        ("a receipt over 1 chunks and 7 units; 1 have 1", an_answer(units=7)),
        ("a receipt over 0 chunks", answer_to(good, [])),
        ("fewer than the 5 before it", answer_to(good, [replace(chunk, units=5), Chunk(2, 1, chunk.data)])),
        ("above the request's limit of 1", answer_to(replace(long, signature=signed), [replace(chunk, units=2)])),
        ("tensor 'x' is INT32", answer_to(bad_input, [chunk])),
        ("tensor 'z' is unknown", answer_to(good, [other])),
    )


@pytest.mark.parametrize(("why", "answer"), contradictory(), ids=[why for why, _ in contradictory()])
async def test_a_receipt_that_contradicts_itself_is_wrong(world: World, why: str, answer: Evidence) -> None:
    refusal = await world.refused(a_batch(answer), answer)
    assert refusal.invalid == {answer.request.request_id}
    assert why in str(refusal)
    assert world.runtime.executed == []
    assert len(world.accused) == 1


# --- verdicts ---


async def test_a_verdict_is_agreed_to_only_where_the_result_differs_here_too(world: World) -> None:
    wrong, right = an_answer(1, off_by=1.0), an_answer(2)
    assert (await world.refused(verdict_on(wrong))).wanted == {wrong.request.request_id}
    await world.inspect(verdict_on(wrong), wrong)
    await world.inspect(verdict_on(wrong))  # known
    assert world.accused == [], "somebody accuses it already"
    assert "right" in str(await world.refused(verdict_on(right), right))
    assert (await world.refused(a_batch(wrong))).invalid == {wrong.request.request_id}


async def test_a_verdict_is_not_signed_blindly(world: World) -> None:
    wrong = an_answer(off_by=1.0)
    world.runtime.error = WorkerDied("no model")
    assert "unknown: it was not executed here: no model" in str(await world.refused(verdict_on(wrong), wrong))
    with pytest.raises(EndorsementRefused, match="another receipt"):
        await world.inspect(verdict_on(wrong), an_answer())


async def test_a_verdict_that_takes_too_long_is_to_be_asked_for_again(tmp_path: Path) -> None:
    async with a_world(tmp_path, patience_s=0.0) as world:
        world.runtime.go.clear()
        wrong = an_answer(off_by=1.0)
        assert "still being executed again here" in str(await world.refused(verdict_on(wrong), wrong))
        world.runtime.go.set()
        while world.inspector._repetitions.known(wrong.receipt) is None:
            await asyncio.sleep(0)
        await world.inspect(verdict_on(wrong))
        assert world.inspector._repetitions.known(wrong.receipt) == Finding(
            Verdict.WRONG, "chunk 1: tensor 'y' differs by 1 at element 0 (tolerance 0.001)"
        )


# --- terms ---


def registered(world: World, node: Signer = LIAR, **changes: Any) -> None:
    """Have a node be registered and alive."""
    world.roll.put(a_record(node, models=[manifest_of(**changes)]), direct=True, alive=True)


async def test_terms_at_the_price_of_the_nodes_record_pass(world: World) -> None:
    registered(world)
    await world.inspect(terms_of(an_answer().request))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"base_fee_wei": 9}, "asks 10 wei and 1 a unit for model 'fake'; the terms say 9 and 1"),
        ({"unit_fee_wei": 2}, "the terms say 10 and 2"),
        ({"request": replace(an_answer().request, deadline_ms=1)}, "the deadline 1 has passed"),
        ({"request": replace(an_answer().request, limit_units=0)}, "limit_units is 0"),
        ({"request": replace(an_answer().request, signature=b"\1" * 65)}, "signature"),
    ],
)
async def test_other_terms_are_refused(world: World, changes: dict[str, Any], why: str) -> None:
    registered(world)
    assert why in str(await world.refused(replace(terms_of(an_answer().request), **changes)))


async def test_a_node_must_be_registered_alive_and_in_good_standing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncn_registry.inspection._RECORD_S", 0.0)
    terms = terms_of(an_answer().request)
    assert "is not registered here, or is not alive" in str(await world.refused(terms))
    world.roll.put(a_record(LIAR, models=[MANIFEST]), direct=False, alive=False)
    assert "is not alive" in str(await world.refused(terms))
    registered_again = a_record(LIAR, sequence=2, models=[MANIFEST])
    world.roll.put(registered_again, direct=True, alive=True)
    await world.inspect(terms)
    world.roll.stand(LIAR.address, True, "jailed")
    assert "may be given no work: jailed" in str(await world.refused(terms))
    world.roll.stand(LIAR.address, False, "freed")
    await world.inspect(terms)


async def test_a_node_that_has_just_come_is_waited_for(world: World) -> None:
    asked = asyncio.create_task(world.inspect(terms_of(an_answer().request)))
    while not len(world.roll.watchers):
        await asyncio.sleep(0)
    registered(world)
    await asked


async def test_a_model_that_the_node_does_not_serve_is_refused(world: World) -> None:
    registered(world, version="2")
    assert "does not serve model" in str(await world.refused(terms_of(an_answer().request)))
