"""The journal: nonces without gaps or doubles, keys that are used once, in any order of events."""

from __future__ import annotations

import multiprocessing
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ncn_framework.digests import keccak
from ncn_framework.errors import ReplayConflict, StoreError
from ncn_payments.journal import Attempt, Entry, Journal
from ncn_payments.transactions import Call

SENDER, OTHER = b"\x01" * 20, b"\x02" * 20


def draft(key: str, nonce: int = 0, data: bytes = b"") -> Entry:
    return Entry(key, nonce, Call(b"\x07" * 20, data, "x"), 5, 21_000, 0)


def sign(entry: Entry, fee: int = 100, filler: bool = False) -> Attempt:
    raw = f"{entry.key} {entry.nonce} {fee} {filler}".encode()
    return Attempt(keccak(raw), raw, fee, fee // 2, 1_000 + fee, filler)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "a" / "transactions.db", "31337:0xab", SENDER)


def test_record_and_find(journal: Journal) -> None:
    entry, is_new = journal.record(draft("a", nonce=7), sign)
    assert is_new
    assert entry == draft("a", nonce=7)
    assert journal.find("a") == entry
    assert journal.pending() == [entry]
    assert journal.attempts(7) == [sign(entry)]
    assert journal.record(draft("a", nonce=9), sign) == (entry, False)
    assert journal.find("b") is None
    with pytest.raises(ReplayConflict):
        journal.record(draft("a", data=b"other"), sign)


def test_chains_and_senders_are_apart(journal: Journal, tmp_path: Path) -> None:
    journal.record(draft("a"), sign)
    for chain, sender in (("1", SENDER), ("31337:0xab", OTHER)):
        other = Journal(tmp_path / "a" / "transactions.db", chain, sender)
        assert other.find("a") is None
        assert other.record(draft("a"), lambda entry: sign(entry, fee=7))[0].nonce == 0
        other.close()


def test_a_failing_signature_leaves_nothing(journal: Journal) -> None:
    def failing(entry: Entry) -> Attempt:
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError):
        journal.record(draft("a"), failing)
    assert journal.find("a") is None
    assert journal.record(draft("b"), sign)[0].nonce == 0


def test_settled(journal: Journal) -> None:
    done, _ = journal.record(draft("a"), sign)
    reverted, _ = journal.record(draft("b"), sign)
    void, _ = journal.record(draft("c"), sign)
    assert journal.settle(done, '{"x": 1}') == replace(done, receipt='{"x": 1}')
    assert journal.settle(reverted, "{}", b"why") == replace(reverted, receipt="{}", revert=b"why")
    assert journal.settle(void, None) == replace(void, void=True)
    assert journal.pending() == []
    assert journal.find("a") == replace(done, receipt='{"x": 1}')
    assert journal.find("b") == replace(reverted, receipt="{}", revert=b"why")
    again, is_new = journal.record(draft("c", data=b"other"), sign)
    assert (again.nonce, is_new) == (3, True)
    assert journal.find("c") == again


def test_attempts_are_in_order(journal: Journal) -> None:
    entry, _ = journal.record(draft("a"), sign)
    for fee in (200, 1_000, 300):
        journal.add(entry.nonce, sign(entry, fee))
    assert [attempt.max_fee_wei for attempt in journal.attempts(0)] == [100, 200, 300, 1_000]


def test_renumbered_once(journal: Journal, tmp_path: Path) -> None:
    entry, _ = journal.record(draft("a"), sign)
    journal.record(draft("b"), sign)
    moved = journal.renumber(entry, 1, 9, sign)
    assert (moved.nonce, moved.block) == (2, 9)
    assert journal.renumber(entry, 1, 9, sign) == moved  # another process was slower
    assert [one.nonce for one in journal.pending()] == [1, 2]
    assert journal.attempts(2) == [sign(moved)]


def test_damaged(tmp_path: Path) -> None:
    (tmp_path / "transactions.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"transactions\.db"):
        Journal(tmp_path / "transactions.db", "1", SENDER)


def test_for_its_owner_alone(journal: Journal, tmp_path: Path) -> None:
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


def _record_many(path: str, name: str, number: int) -> None:
    journal = Journal(Path(path), "1", SENDER)
    for index in range(number):
        journal.record(draft(f"{name}{index}"), sign)
    journal.close()


def test_several_processes(tmp_path: Path) -> None:
    path = str(tmp_path / "transactions.db")
    Journal(Path(path), "1", SENDER).close()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_record_many, args=(path, name, 40)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with sqlite3.connect(path) as database:
        nonces = [nonce for (nonce,) in database.execute("SELECT nonce FROM transactions ORDER BY nonce")]
    database.close()
    assert nonces == list(range(120))


class JournalMachine(RuleBasedStateMachine):
    """A journal and a plain dictionary side by side."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.journal = Journal(Path(self.folder.name) / "transactions.db", "1", SENDER)
        self.rows: dict[str, Entry] = {}
        self.used: set[int] = set()
        self.chain_nonce = 0

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()

    def _new_nonce(self, nonce: int) -> None:
        assert nonce not in self.used
        assert nonce == max([self.chain_nonce - 1, *self.used]) + 1
        self.used.add(nonce)

    @rule(key=st.sampled_from("abcdef"))
    def record(self, key: str) -> None:
        before = self.rows.get(key)
        entry, is_new = self.journal.record(draft(key, nonce=self.chain_nonce), sign)
        assert is_new == (before is None or before.void)
        if is_new:
            self._new_nonce(entry.nonce)
            self.rows[key] = entry
        else:
            assert entry == before

    @rule(key=st.sampled_from("abcdef"), outcome=st.sampled_from(["done", "reverted", "void"]))
    def settle(self, key: str, outcome: str) -> None:
        entry = self.rows.get(key)
        if entry is not None and entry.pending:
            receipt = None if outcome == "void" else "{}"
            self.rows[key] = self.journal.settle(entry, receipt, b"x" if outcome == "reverted" else None)
            self.chain_nonce = max(self.chain_nonce, entry.nonce + 1)

    @rule(key=st.sampled_from("abcdef"))
    def steal(self, key: str) -> None:
        entry = self.rows.get(key)
        if entry is not None and entry.pending:
            self.chain_nonce = max(self.chain_nonce, entry.nonce + 1)
            self.rows[key] = self.journal.renumber(entry, self.chain_nonce, 1, sign)
            self._new_nonce(self.rows[key].nonce)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(Path(self.folder.name) / "transactions.db", "1", SENDER)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "rows"):
            return
        for key, entry in self.rows.items():
            assert self.journal.find(key) == entry
        waiting = sorted((entry for entry in self.rows.values() if entry.pending), key=lambda entry: entry.nonce)
        assert self.journal.pending() == waiting


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
