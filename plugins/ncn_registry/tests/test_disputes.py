"""Disputes: from a wrong result to the chain, once, whatever fails on the way."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ncn_framework import digests
from ncn_framework.committees import Epoch
from ncn_framework.errors import ChainError, EndorsementRefused, NcnError, NoCapacity, StoreError, TransactionReverted
from ncn_framework.hookspecs import hookimpl
from ncn_framework.payments import Quorum
from ncn_framework.signing import address_hex
from ncn_framework.statements import Evidence, Statement, VerdictStatement
from ncn_registry import disputes as module
from ncn_registry.commands import registry
from ncn_registry.disputes import Disputes, State, kept_disputes

from .answers import DOMAIN, LIAR, a_registry_node, an_answer

CONTRACT = b"\7" * 20
EPOCH = Epoch(9, (), 3, 2**40, bytes(32), CONTRACT)
QUORUM = Quorum(9, 7, (bytes(65),) * 3)


@dataclass
class Chain:
    """A chain and the validators on it.

    Attributes:
        refuse: raised, one after the other, by who is asked: the quorum (EndorsementRefused) or the chain.
        asked: statements that a quorum was asked to sign.
        reported: statements that came on chain.
        out: who gets no more work.
    """

    roles = ("registry",)
    refuse: list[NcnError] = field(default_factory=list)
    asked: list[tuple[VerdictStatement, Mapping[bytes, Evidence]]] = field(default_factory=list)
    reported: list[Statement] = field(default_factory=list)
    out: list[tuple[bytes, bool, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @hookimpl
    def ncn_epoch(self, number: int) -> Awaitable[Epoch]:
        async def epoch() -> Epoch:
            assert number == 0
            return EPOCH

        return epoch()

    async def endorse(self, statement: VerdictStatement, evidence: Mapping[bytes, Evidence]) -> Quorum:
        """Sign, unless told otherwise."""
        self.asked.append((statement, evidence))
        self.changed.set()
        if self.refuse and isinstance(self.refuse[0], EndorsementRefused):
            raise self.refuse.pop(0)
        return QUORUM

    @hookimpl
    def ncn_report(self, statement: Statement, quorum: Quorum) -> Awaitable[str]:
        async def report() -> str:
            assert quorum == QUORUM
            self.changed.set()
            if self.refuse:
                raise self.refuse.pop(0)
            self.reported.append(statement)
            return "0xabc"

        return report()

    @hookimpl
    def ncn_standing(self, account: bytes, out: bool, reason: str) -> None:
        self.out.append((account, out, reason))


@asynccontextmanager
async def opened(home: Path, chain: Chain) -> AsyncIterator[Disputes]:
    """Open the disputes of a home."""
    disputes = Disputes(home / "disputes.db", a_registry_node(home, chain), chain.endorse)
    async with disputes.running():
        yield disputes


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a state of the disputes."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def states(disputes: Disputes) -> list[State]:
    """Return the state of each dispute."""
    return [dispute.state for dispute in disputes.all()]


def closed(disputes: Disputes) -> bool:
    """Return whether no dispute is open."""
    return State.OPEN not in states(disputes)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.0)


async def test_a_wrong_result_goes_before_a_quorum_and_to_the_chain_once(tmp_path: Path) -> None:
    chain, wrong = Chain(), an_answer(off_by=1.0)
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(wrong, "it differs")
        await until(lambda: states(disputes) == [State.REPORTED])
        await disputes.begin(wrong, "it differs still")
        expected = VerdictStatement(CONTRACT, 9, wrong.receipt, "it differs")
        assert chain.asked == [(expected, {wrong.request.request_id: wrong})]
        assert chain.reported == [expected]
        assert chain.out == [(LIAR.address, True, "it differs")]
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(wrong, "after a restart")
        [dispute] = disputes.all()
        assert (dispute.state, dispute.detail, dispute.evidence) == (State.REPORTED, "0xabc", None)
        assert disputes.wrong() == {digests.receipt_digest(DOMAIN, wrong.receipt.receipt): "it differs"}
    assert len(chain.reported) == 1
    assert len(chain.out) == 1, "of who was slashed, the chain tells"


async def test_a_chain_that_is_away_is_waited_for(tmp_path: Path) -> None:
    chain = Chain(refuse=[ChainError("no answer")] * 25)
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(an_answer(off_by=1.0), "it differs")
        await until(lambda: states(disputes) == [State.REPORTED])
    assert len(chain.asked) == 26


async def test_an_open_dispute_outlives_a_restart_with_its_evidence(tmp_path: Path) -> None:
    away, wrong = Chain(), an_answer(off_by=1.0)
    hanging = asyncio.Event()

    async def hang(statement: VerdictStatement, evidence: Mapping[bytes, Evidence]) -> Quorum:
        hanging.set()
        await asyncio.Event().wait()
        return QUORUM

    disputes = Disputes(tmp_path / "disputes.db", a_registry_node(tmp_path, away), hang)
    async with disputes.running():
        await disputes.begin(wrong, "it differs")
        await hanging.wait()
    chain = Chain()
    async with opened(tmp_path, chain) as disputes:
        await until(lambda: states(disputes) == [State.REPORTED])
    assert chain.asked[0][1] == {wrong.request.request_id: wrong}


@pytest.mark.parametrize(
    ("reason", "state", "out_again"),
    [
        ("ValidatorRegistry__WrongState", State.UNBONDED, True),
        ("ValidatorRegistry__EvidenceUsed", State.REPORTED, False),
    ],
)
async def test_what_the_contract_refuses_ends_there_and_the_node_gets_no_more_work(
    tmp_path: Path, reason: str, state: State, out_again: bool
) -> None:
    """Without a stake nothing can be slashed, and the chain will not say that it is out: this registry does."""
    chain = Chain(refuse=[TransactionReverted(f"reverted with {reason}", reason)])
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(an_answer(off_by=1.0), "it differs")
        await until(lambda: states(disputes) == [state])
        assert chain.out == [(LIAR.address, True, "it differs")]
    after = Chain()
    async with opened(tmp_path, after):
        assert after.out == ([(LIAR.address, True, "it differs")] if out_again else [])
    assert after.asked == []


async def test_an_accusation_that_no_quorum_shares_is_dropped(tmp_path: Path) -> None:
    chain = Chain(refuse=[EndorsementRefused("the answer is right here")] * module._MOST_REFUSALS)
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(an_answer(off_by=1.0), "it differs")
        await until(lambda: states(disputes) == [State.REFUSED])
        assert disputes.wrong() == {}
    assert chain.out == []
    assert chain.reported == []


async def test_one_that_is_refused_holds_up_no_other(tmp_path: Path) -> None:
    chain = Chain(refuse=[EndorsementRefused("busy")])
    async with opened(tmp_path, chain) as disputes:
        for number in range(5):
            await disputes.begin(an_answer(number, off_by=1.0), "it differs")
        await until(lambda: states(disputes) == [State.REPORTED] * 5)
    assert len(chain.reported) == 5


async def test_their_number_and_size_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 1)
    chain = Chain(refuse=[ChainError("away")] * 1_000_000)
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(an_answer(1, off_by=1.0), "it differs")
        with pytest.raises(NoCapacity, match="1 disputes are kept already"):
            await disputes.begin(an_answer(2, off_by=1.0), "it differs")
        monkeypatch.setattr(module, "_MOST", 10)
        monkeypatch.setattr(module, "_MOST_BYTES", 100)
        with pytest.raises(NoCapacity):
            await disputes.begin(an_answer(3, off_by=1.0), "it differs")
        assert len(disputes.all()) == 1


async def test_what_is_closed_is_forgotten_after_a_while_but_not_who_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbonded = TransactionReverted("reverted", "ValidatorRegistry__WrongState")
    for number, refuse in ((1, list[NcnError]()), (2, [unbonded])):
        chain = Chain(refuse=list(refuse))
        async with opened(tmp_path, chain) as disputes:
            await disputes.begin(an_answer(number, off_by=1.0), "it differs")
            await until(functools.partial(closed, disputes))
    monkeypatch.setattr(module, "_KEPT_MS", -1)
    async with opened(tmp_path, Chain()) as disputes:
        assert states(disputes) == [State.UNBONDED]


async def test_evidence_that_cannot_be_read_any_more_stops_nothing(tmp_path: Path) -> None:
    chain = Chain(refuse=[ChainError("away")] * 1_000_000)
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(an_answer(off_by=1.0), "it differs")
    database = sqlite3.connect(tmp_path / "disputes.db")
    database.execute("UPDATE disputes SET evidence = x'ff'")
    database.commit()
    database.close()
    async with opened(tmp_path, Chain()) as disputes:
        assert disputes.all() == []
    assert os.stat(tmp_path / "disputes.db").st_size > 0


async def test_a_person_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_HOME", str(tmp_path))

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(registry, ["disputes", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert said() == "it has accused nobody\n"
    chain = Chain()
    async with opened(tmp_path, chain) as disputes:
        await disputes.begin(an_answer(off_by=1.0), "it differs")
        await until(functools.partial(closed, disputes))
        line = await asyncio.to_thread(said)  # beside the registry, which has the database open
    assert f"{address_hex(LIAR.address)}  reported  it differs  0xabc" in line
    (row,) = json.loads(said("--json"))
    assert (row["node"], row["state"], row["detail"]) == (address_hex(LIAR.address), "reported", "0xabc")
    await asyncio.to_thread((tmp_path / "disputes.db").write_bytes, b"no database at all")
    with pytest.raises(StoreError, match="cannot be read"):
        kept_disputes(tmp_path / "disputes.db")
