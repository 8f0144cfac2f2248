"""Notices from anybody: what counts, what is refused, and what cannot be checked yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ncn_framework import hookimpl
from ncn_framework.committees import Epoch
from ncn_framework.errors import ChainError, DeadlineExpired, EndorsementRefused, MalformedRequest, SignatureRejected
from ncn_framework.models import Domain, Record, Signature
from ncn_framework.node import Node
from ncn_framework.signing import Signer
from ncn_framework.statements import Performance, digest_of
from ncn_framework.testing.fakes import fake_signer
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_to_pb
from ncn_registry import notices as module
from ncn_registry.noticeboard import NOTICES, Noticeboard, proven_by
from ncn_registry.notices import Notice, notice_from_record, notice_record, receipts_of
from ncn_registry.outcomes import Answered, Outcome
from ncn_registry.records import Bounds, Judge
from ncn_registry.signatures import Signatures
from ncn_registry.tallies import Tallies

from .committee import VALIDATORS, a_batch, a_completion, a_failure, an_epoch, signed_by
from .network import DOMAIN, NODE, a_node, signed, until

NOW = 1_000_000_000
STATEMENT = a_completion()
DIGEST = digest_of(DOMAIN, STATEMENT)
FIRST, *_, FOURTH, LAST = VALIDATORS


def a_notice(teller: Signer = FIRST, **changes: Any) -> Notice:
    """Return a notice of three validators that signed a completion, one that refused and one that was silent."""
    fields: dict[str, Any] = {
        "teller": teller.address,
        "at_ms": NOW,
        "digest": DIGEST,
        "epoch": 7,
        "signatures": signed_by(STATEMENT, *VALIDATORS[:3]),
        "refused": (FOURTH.address,),
        "silent": (LAST.address,),
        "receipts": ((NODE.address, 1),),
    }
    return Notice(**fields | changes)


def taken(record: Record, now_ms: int = NOW, domain: Domain = DOMAIN) -> Notice:
    return notice_from_record(record, domain, now_ms, 1_000)


def test_a_notice_travels_whole() -> None:
    assert taken(notice_record(a_notice(), FIRST, DOMAIN)) == a_notice()


def test_the_largest_fits_into_a_message() -> None:
    many = tuple(Signature(number.to_bytes(20, "big"), bytes(65)) for number in range(256))
    nodes = tuple((number.to_bytes(20, "big"), 1_000) for number in range(64))
    record = notice_record(a_notice(signatures=many, refused=(), silent=(), receipts=nodes), FIRST, DOMAIN)
    assert len(record.payload) <= module.MOST_BYTES
    taken(record)


def test_receipts_are_counted_by_node() -> None:
    assert receipts_of(a_batch(5)) == ((NODE.address, 5),)
    assert receipts_of(a_completion()) == ((NODE.address, 1),)
    assert receipts_of(a_failure()) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": bytes(31)},
        {"epoch": 0},
        {"epoch": 2**32},
        {"signatures": (Signature(FIRST.address, bytes(64)),)},
        {"signatures": signed_by(STATEMENT, FIRST, FIRST)},
        {"refused": (FIRST.address,)},
        {"silent": (bytes(19),)},
        {"silent": tuple(number.to_bytes(20, "big") for number in range(257))},
        {"receipts": ((NODE.address, 0),)},
        {"receipts": ((NODE.address, 65_537),)},
        {"receipts": ((NODE.address, 1), (NODE.address, 1))},
        {"receipts": tuple((number.to_bytes(20, "big"), 1) for number in range(65))},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_what_is_malformed_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest, match="is malformed"):
        taken(notice_record(a_notice(**changes), FIRST, DOMAIN))


def test_what_is_forged_oversized_old_or_of_another_network_is_refused() -> None:
    good = notice_record(a_notice(), FIRST, DOMAIN)
    for forged in (replace(good, owner=LAST.address), replace(good, payload=good.payload[:-1] + b"\2")):
        with pytest.raises(SignatureRejected):
            taken(forged)
    with pytest.raises(SignatureRejected):
        taken(good, domain=Domain(1, b"\x09" * 20))
    for payload in (b"", b"\xc1", msgspec.msgpack.encode([1, 2])):
        with pytest.raises(MalformedRequest):
            taken(signed(replace(good, payload=payload), FIRST))
    with pytest.raises(MalformedRequest, match="is no notice"):
        taken(signed(replace(good, payload=bytes(module.MOST_BYTES + 1)), FIRST))
    with pytest.raises(MalformedRequest, match="is no notice"):
        taken(signed(replace(good, kind="node"), FIRST))
    for now_ms in (NOW - 1_001, NOW + 600_001):
        with pytest.raises(DeadlineExpired):
            taken(good, now_ms)
    with pytest.raises(DeadlineExpired):
        taken(signed(replace(good, expires_ms=NOW + 10**9), FIRST))


def test_a_notice_is_never_kept_as_a_record() -> None:
    judge = Judge(DOMAIN, lambda: NOW, Bounds(15 << 10, 10**9, 1_000))
    with pytest.raises(MalformedRequest):
        judge.check(notice_record(a_notice(), FIRST, DOMAIN))


# --- what it proves ---


def test_a_quorums_signatures_prove_who_signed_and_a_member_says_who_did_not() -> None:
    proven = proven_by(a_notice(), an_epoch())
    assert proven.signed == {one.address for one in VALIDATORS[:3]}
    assert proven.refused == {FOURTH.address}
    assert proven.silent == {LAST.address}
    assert proven.receipts == ((NODE.address, 1),)


def test_who_is_no_member_says_nothing_about_others() -> None:
    proven = proven_by(a_notice(fake_signer("a registry without validators")), an_epoch())
    assert len(proven.signed) == 3
    assert not proven.refused | proven.silent
    assert proven.receipts == ()


def test_nobody_speaks_about_itself_and_nobody_about_strangers_or_signers() -> None:
    stranger = fake_signer("a stranger").address
    proven = proven_by(a_notice(LAST, refused=(stranger, FOURTH.address)), an_epoch())
    assert proven.silent == set()
    assert proven.refused == {FOURTH.address}


@pytest.mark.parametrize(
    "signatures",
    [
        signed_by(STATEMENT, *VALIDATORS[:2]),
        signed_by(STATEMENT, *VALIDATORS[:3], fake_signer("a stranger")),
        (*signed_by(STATEMENT, *VALIDATORS[:2]), Signature(FOURTH.address, signed_by(STATEMENT, LAST)[0].value)),
        signed_by(a_failure(), *VALIDATORS[:3]),
    ],
    ids=["too few", "a stranger", "somebody else's signature", "another statement"],
)
def test_without_a_quorums_signatures_nothing_counts(signatures: tuple[Signature, ...]) -> None:
    with pytest.raises((EndorsementRefused, SignatureRejected)):
        proven_by(a_notice(signatures=signatures), an_epoch())


# --- the board ---


class Wire:
    """A swarm that keeps what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []

    async def subscribe(self, topic: str) -> None:
        assert topic == NOTICES

    async def publish(self, topic: str, data: bytes) -> None:
        assert len(data) <= 32 << 10
        self.published.append((topic, data))


class Chain:
    """A chain with one epoch, that may be away."""

    roles = ("registry",)
    away = False
    asked = 0

    @hookimpl
    def ncn_epoch(self, number: int) -> Awaitable[Epoch]:
        async def found() -> Epoch:
            self.asked += 1
            if self.away or number not in (0, 7):
                raise ChainError("no answer")
            return an_epoch()

        return found()


@asynccontextmanager
async def a_board(
    folder: Path, chain: Chain, retry_s: float = 0.0, validators: tuple[Signer, ...] = ()
) -> AsyncIterator[tuple[Noticeboard, Tallies, Wire, Node]]:
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    node = a_node("registry", folder, others=[chain])
    node.validators = validators
    wire = Wire()
    async with (
        Tallies(folder / "tallies.db", DOMAIN) as tallies,
        Noticeboard(node, wire, tallies, 1_000, retry_s) as board,  # type: ignore[arg-type]
    ):
        yield board, tallies, wire, node


def message(*records: Record) -> bytes:
    return pb.Records(records=map(record_to_pb, records)).SerializeToString()


def fresh(node: Node, teller: Signer = FIRST, **changes: Any) -> Record:
    return notice_record(a_notice(teller, at_ms=node.lifecycle.clock(), **changes), teller, DOMAIN)


async def done(tallies: Tallies, count: int = 1) -> None:
    await until(lambda: tallies.changes >= count)


async def test_what_is_heard_is_counted(tmp_path: Path) -> None:
    async with a_board(tmp_path, Chain()) as (board, tallies, _, node):
        data = message(fresh(node))
        assert board.admit(data)
        for _ in range(3):
            board.heard(data, "a peer")
        await done(tallies)
        expected = [Performance(one.address, 1, 0, 0) for one in VALIDATORS[:3]]
        expected += [Performance(FOURTH.address, 0, 1, 0), Performance(LAST.address, 0, 0, 1)]
        assert await tallies.performances(7) == tuple(sorted(expected, key=lambda one: one.validator))
        assert await tallies.receipts() == {NODE.address: 1}


async def test_what_does_not_count_is_not_passed_on_and_changes_nothing(tmp_path: Path) -> None:
    async with a_board(tmp_path, Chain()) as (board, tallies, _, node):
        good = fresh(node)
        forged = replace(good, owner=LAST.address)
        for data in (b"\xff", b"", message(forged), message(good, forged), message(*[good] * 65)):
            assert not board.admit(data)
            board.heard(data, "a peer")
        few = fresh(node, signatures=signed_by(STATEMENT, *VALIDATORS[:2]))
        of_no_epoch = fresh(node, epoch=9)
        for record in (few, of_no_epoch):
            board.heard(message(record), "a peer")
        board.heard(message(fresh(node, digest=digest_of(DOMAIN, a_failure()), signatures=_of_failure())), "a peer")
        await done(tallies)
        assert sum(one.done for one in await tallies.performances(7)) == 3, "the last one is the only one that counts"


def _of_failure() -> tuple[Signature, ...]:
    return signed_by(a_failure(), *VALIDATORS[:3])


async def test_while_the_chain_is_away_notices_wait(tmp_path: Path) -> None:
    chain = Chain()
    chain.away = True
    async with a_board(tmp_path, chain) as (board, tallies, _, node):
        board.heard(message(fresh(node)), "a peer")
        await until(lambda: chain.asked > 3)
        assert tallies.changes == 0
        chain.away = False
        await done(tallies)
        assert len(await tallies.performances(7)) == 5


async def test_a_board_tells_what_a_quorum_signed_and_counts_it_itself(tmp_path: Path) -> None:
    def outcome(signer: Signer, answered: Answered) -> Outcome:
        return Outcome(signer.address, 7, DIGEST, answered, True)

    signatures = Signatures(DOMAIN, an_epoch(), STATEMENT)
    for one in signed_by(STATEMENT, *VALIDATORS[:3]):
        assert signatures.add(one)
    outcomes = [outcome(one, Answered.SIGNED) for one in VALIDATORS[:3]]
    outcomes += [outcome(FOURTH, Answered.REFUSED), outcome(LAST, Answered.SILENT)]
    async with a_board(tmp_path / "one", Chain(), validators=(FOURTH, FIRST)) as (board, tallies, wire, _):
        board.told(STATEMENT, signatures, outcomes)
        await until(lambda: wire.published)
        await done(tallies)
        performances = await tallies.performances(7)
        assert Performance(LAST.address, 0, 0, 1) in performances
        assert FOURTH.address not in {one.validator for one in performances}, "it does not speak about its own"
    async with a_board(tmp_path / "two", Chain()) as (board, tallies, _, _node):
        [(_, data)] = wire.published
        assert board.admit(data)
        board.heard(data, "a peer")
        await done(tallies)
        assert await tallies.performances(7) == performances


async def test_many_notices_go_in_several_messages(tmp_path: Path) -> None:
    signatures = Signatures(DOMAIN, an_epoch(), STATEMENT)
    for one in signed_by(STATEMENT, *VALIDATORS[:3]):
        signatures.add(one)
    async with a_board(tmp_path, Chain(), validators=(FIRST,)) as (board, _, wire, _node):
        for _ in range(150):
            board.told(STATEMENT, signatures, ())
        while sum(len(pb.Records.FromString(data).records) for _, data in wire.published) < 150:
            before = len(wire.published)
            await board.flush()
            assert len(wire.published) > before or not board._outbox
        assert all(len(pb.Records.FromString(data).records) <= 64 for _, data in wire.published)
        assert len(wire.published) >= 3
