"""Two signatures of which one must be a lie: seen however far apart they are, and brought to the chain once."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ncn_framework.errors import ChainError, NcnError, StoreError, TransactionReverted
from ncn_framework.hookspecs import hookimpl
from ncn_framework.models import Domain, SignedReceipt
from ncn_framework.payments import Quorum
from ncn_framework.signing import Signer, address_hex, recover
from ncn_framework.statements import BatchStatement, CompletionStatement, Contradiction, Statement, digest_of
from ncn_registry import contradiction_store
from ncn_registry import contradictions as module
from ncn_registry.commands import registry
from ncn_registry.contradiction_store import Found, State, kept_contradictions
from ncn_registry.contradictions import Contradictions

from .committee import VALIDATORS, a_batch, a_completion, a_failure, signed_by, some_terms
from .network import DOMAIN, a_node, until

ONE, OTHER = VALIDATORS[:2]
USED, STATELESS = "ValidatorRegistry__EvidenceUsed", "ValidatorRegistry__WrongState"


@dataclass
class Chain:
    """A chain that is told of contradictions.

    Attributes:
        refuse: raised, one after the other, by who tells it something.
        reported: what came on it.
    """

    roles = ("registry",)
    refuse: list[NcnError] = field(default_factory=list)
    reported: list[Contradiction] = field(default_factory=list)

    @hookimpl
    def ncn_report(self, statement: Statement | Contradiction, quorum: Quorum | None) -> Awaitable[str]:
        async def report() -> str:
            assert quorum is None
            assert isinstance(statement, Contradiction)
            if self.refuse:
                raise self.refuse.pop(0)
            self.reported.append(statement)
            return "0xabc"

        return report()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.0)


@asynccontextmanager
async def opened(home: Path, chain: Chain, domain: Domain = DOMAIN) -> AsyncIterator[Contradictions]:
    """Open the contradictions of a home."""
    node = a_node("registry", home, others=[chain])
    if domain != node.domain:
        node.bind(domain)
    contradictions = Contradictions(home / "contradictions.db", node)
    async with contradictions.running():
        yield contradictions


async def note(contradictions: Contradictions, statement: Statement, signer: Signer = ONE) -> None:
    """Let it hear a statement with its signature, and wait until that is kept."""
    contradictions.hear(statement)
    writing = contradictions.note(digest_of(DOMAIN, statement), signed_by(statement, signer))
    if writing is not None:
        await writing


def kept(home: Path) -> list[Found]:
    return kept_contradictions(home / "contradictions.db")


def settled(home: Path, count: int = 1) -> Callable[[], bool]:
    """Return whether so many contradictions are known, and none is open."""
    return lambda: len(kept(home)) == count and all(one.state is not State.OPEN for one in kept(home))


def another_result() -> CompletionStatement:
    done = a_completion()
    receipt = replace(done.receipt.receipt, output_hash=b"\x0b" * 32)
    return replace(done, receipt=SignedReceipt(receipt, ()))


def check_proof(proof: Contradiction, signer: Signer, *statements: Statement) -> None:
    """Check that a contradiction is between two statements, as the contract would."""
    both = [(proof.first, proof.first_signature), (proof.second, proof.second_signature)]
    assert proof.validator == signer.address
    for (said, signature), statement in zip(both, statements, strict=True):
        digest = digest_of(DOMAIN, said)
        assert digest == digest_of(DOMAIN, statement)
        assert recover(digest, signature) == signer.address


async def test_two_batches_with_one_nonce_are_reported_once(tmp_path: Path) -> None:
    chain = Chain()
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, a_batch(1))
        await note(contradictions, a_batch(1))
        await note(contradictions, a_batch(2, nonce=2))
        await note(contradictions, a_batch(2), OTHER)
        assert kept(tmp_path) == [], "the same again, another nonce, and what another signed contradict nothing"
        await note(contradictions, a_batch(2))
        await until(settled(tmp_path))
        for seen_again in (a_batch(2), a_batch(1), a_batch(3)):
            await note(contradictions, seen_again)
        await note(contradictions, a_batch(1), OTHER)
        await until(settled(tmp_path, 2))
    first, second = chain.reported
    check_proof(first, ONE, a_batch(1), a_batch(2))
    check_proof(second, OTHER, a_batch(2), a_batch(1))
    assert isinstance(first.first, BatchStatement)
    assert first.first.charges == (), "the batch's head proves it"
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, a_batch(2))
    assert len(chain.reported) == 2, "once, also after a restart"
    assert [(one.state, one.detail) for one in kept(tmp_path)] == [(State.REPORTED, "0xabc")] * 2


@pytest.mark.parametrize("second", [a_failure(), another_result()], ids=["failed", "another result"])
async def test_two_decisions_on_one_escrow_with_a_restart_between_them(tmp_path: Path, second: Statement) -> None:
    chain = Chain()
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, a_completion())
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, second)
        await until(settled(tmp_path))
    (proof,) = chain.reported
    check_proof(proof, ONE, a_completion(), second)


async def test_terms_contradict_nothing(tmp_path: Path) -> None:
    first = some_terms()
    async with opened(tmp_path, Chain()) as contradictions:
        for statement in (first, replace(first, terms=replace(first.terms, amount_wei=1))):
            contradictions.hear(statement)
            assert contradictions.note(digest_of(DOMAIN, statement), signed_by(statement, ONE)) is None


async def test_signatures_of_which_it_is_not_known_what_they_are_for_are_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HEARD", 2)
    async with opened(tmp_path, Chain()) as contradictions:
        assert contradictions.note(digest_of(DOMAIN, a_batch(1)), signed_by(a_batch(1), ONE)) is None
        for count in (1, 2, 3):
            contradictions.hear(a_batch(count))
        assert contradictions.note(digest_of(DOMAIN, a_batch(1)), signed_by(a_batch(1), ONE)) is None
        assert contradictions.note(digest_of(DOMAIN, a_batch(3)), signed_by(a_batch(3), ONE)) is not None


async def test_a_chain_that_is_away_or_a_fee_that_is_missing_is_waited_for(tmp_path: Path) -> None:
    away: list[NcnError] = [ChainError("no answer"), TransactionReverted("too little ether", "InsufficientFunds")]
    chain = Chain(refuse=away * 10)
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, a_batch(1))
        await note(contradictions, a_batch(2))
        await until(settled(tmp_path))
    assert len(chain.reported) == 1
    assert chain.refuse == []


async def test_what_waits_outlives_a_restart(tmp_path: Path) -> None:
    away = Chain(refuse=[ChainError("no answer")] * 1_000_000)
    async with opened(tmp_path, away) as contradictions:
        await note(contradictions, a_batch(1))
        await note(contradictions, a_batch(2))
        await until(lambda: [one.detail for one in kept(tmp_path)] == ["no answer"])
    chain = Chain()
    async with opened(tmp_path, chain):
        await until(settled(tmp_path))
    check_proof(chain.reported[0], ONE, a_batch(1), a_batch(2))


@pytest.mark.parametrize(("reason", "state"), [(USED, State.REPORTED), (STATELESS, State.REFUSED)])
async def test_what_the_contract_refuses_for_good_ends_there(tmp_path: Path, reason: str, state: State) -> None:
    chain = Chain(refuse=[TransactionReverted(f"reverted with {reason}", reason)])
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, a_batch(1))
        await note(contradictions, a_batch(2))
        await until(settled(tmp_path))
    assert chain.reported == []
    assert [(one.state, one.detail) for one in kept(tmp_path)] == [(state, f"reverted with {reason}")]


async def test_only_the_latest_statements_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contradiction_store, "_REMEMBERED", 3)
    async with opened(tmp_path, Chain()) as contradictions:
        for nonce in (1, 2, 3, 4):
            await note(contradictions, a_batch(1, nonce=nonce))
        await note(contradictions, a_batch(2, nonce=1))
        assert kept(tmp_path) == [], "the first of the two is forgotten"
        await note(contradictions, a_batch(2, nonce=4))
        await until(settled(tmp_path))
    database = sqlite3.connect(tmp_path / "contradictions.db")
    counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("statements", "signed")]
    database.close()
    assert counts == [(3,), (3,)]


async def test_those_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contradiction_store, "_MOST_OPEN", 1)
    async with opened(tmp_path, Chain(refuse=[ChainError("no answer")] * 1_000_000)) as contradictions:
        for signer in (ONE, OTHER):
            await note(contradictions, a_batch(1), signer)
            await note(contradictions, a_batch(2), signer)
        assert [one.proof.validator for one in kept(tmp_path)] == [ONE.address]


async def test_what_is_closed_is_forgotten_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, Chain()) as contradictions:
        await note(contradictions, a_batch(1))
        await note(contradictions, a_batch(2))
        await until(settled(tmp_path))
    monkeypatch.setattr(contradiction_store, "_KEPT_MS", -1)
    async with opened(tmp_path, Chain()):
        assert kept(tmp_path) == []


async def test_what_was_signed_for_another_contract_contradicts_nothing(tmp_path: Path) -> None:
    chain = Chain()
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, a_batch(1))
    async with opened(tmp_path, chain, Domain(DOMAIN.chain_id, b"\x77" * 20)):
        pass
    async with opened(tmp_path, chain) as contradictions:
        await note(contradictions, a_batch(2))
        assert kept(tmp_path) == []


async def test_a_disk_that_refuses_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path, Chain()) as contradictions:
        database = sqlite3.connect(tmp_path / "contradictions.db")
        database.execute("DROP TABLE signed")
        database.close()
        with pytest.raises(StoreError, match="validators' signatures could not be stored"):
            await note(contradictions, a_batch(1))
    contradictions.hear(a_batch(1))
    assert contradictions.note(digest_of(DOMAIN, a_batch(1)), signed_by(a_batch(1), ONE)) is None
    assert "are closed; nothing more is stored" in caplog.text
    await asyncio.to_thread((tmp_path / "contradictions.db").write_bytes, b"no database at all" * 500)
    for name in ("contradictions.db-wal", "contradictions.db-shm"):
        await asyncio.to_thread((tmp_path / name).unlink, missing_ok=True)
    with pytest.raises(StoreError, match=r"contradictions\.db could not be kept"):
        async with opened(tmp_path, Chain()):
            pass
    with pytest.raises(StoreError, match="cannot be read"):
        kept(tmp_path)


async def test_a_proof_that_cannot_be_read_any_more_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, Chain(refuse=[ChainError("no answer")] * 1_000_000)) as contradictions:
        await note(contradictions, a_batch(1))
        await note(contradictions, a_batch(2))
    database = sqlite3.connect(tmp_path / "contradictions.db")
    database.execute("UPDATE contradictions SET first = x'ff'")
    database.commit()
    database.close()
    async with opened(tmp_path, Chain()):
        assert kept(tmp_path) == []
    assert f"what validator {address_hex(ONE.address)} contradicts itself in is lost" in caplog.text


async def test_a_person_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_HOME", str(tmp_path))

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(registry, ["contradictions", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    def rows() -> Sequence[dict[str, Any]]:
        found: Sequence[dict[str, Any]] = json.loads(said("--json"))
        return found

    assert said() == "no validator has contradicted itself\n"
    async with opened(tmp_path, Chain()) as contradictions:
        for statement in (a_batch(1), a_batch(2), a_completion(), a_failure()):
            await note(contradictions, statement)
        await until(settled(tmp_path, 2))
        lines = (await asyncio.to_thread(said)).splitlines()  # beside the registry, which has the database open
    assert all(f"  {address_hex(ONE.address)}  reported  " in line and line.endswith("  0xabc") for line in lines)
    batch, escrow = sorted(rows(), key=lambda row: str(row["about"]))
    assert batch["about"] == f"batch 1 of gateway {address_hex(a_batch(1).batch.gateway)}"
    assert (batch["first"][:10], batch["second"][:10]) == ("1 receipts", "2 receipts")
    assert escrow["about"] == f"escrow 0x{a_failure().escrow_id.hex()}"
    assert (escrow["first"], escrow["second"]) == (f"completed with output 0x{'0a' * 32} for 900 wei", "failed")
    assert len(bytes.fromhex(escrow["second_signature"][2:])) == 65
