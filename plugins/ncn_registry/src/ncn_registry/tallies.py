"""What notices have proven, in SQLite: who signed what, who did not, whose receipts were settled.

Whoever has the same notices has the same numbers, in whatever order and how often they came.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ncn_framework.errors import StoreError
from ncn_framework.group_commit import GroupCommit, sqlite_pragmas
from ncn_framework.models import Domain
from ncn_framework.statements import Performance

from .database import as_store_errors, checkpoint, transaction
from .faults import Fault, counted

__all__ = ["Proven", "Tallies"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS notices (digest BLOB PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS notices_of_epoch ON notices (epoch);
CREATE TABLE IF NOT EXISTS signed (
    digest BLOB NOT NULL, validator BLOB NOT NULL, PRIMARY KEY (digest, validator)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS faults (
    digest BLOB NOT NULL, validator BLOB NOT NULL, teller BLOB NOT NULL, silent INTEGER NOT NULL,
    PRIMARY KEY (digest, validator, teller)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipts (
    digest BLOB NOT NULL, node BLOB NOT NULL, receipts INTEGER NOT NULL, PRIMARY KEY (digest, node)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nodes (node BLOB PRIMARY KEY, receipts INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS booked (period INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS oldest (epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS belongs_to (chain_id INTEGER NOT NULL, contract BLOB NOT NULL);
"""
_PARTS = ("signed", "faults", "receipts")
_TABLES = (*_PARTS, "notices", "nodes", "booked", "oldest")

_MOST = 500_000
"""Statements of epochs that count still; each needs a quorum's signatures."""

_REMEMBERED = 64
"""Epochs for which digests are remembered: no signature counts again as one of a later epoch."""


@dataclass(frozen=True)
class Proven:
    """What one notice adds, its signatures checked.

    Attributes:
        digest: of the statement.
        epoch: of the statement.
        signed: the members that did.
        teller: who says the rest.
        refused, silent: members that did not sign.
        receipts: by compute node.
    """

    digest: bytes
    epoch: int
    signed: frozenset[bytes]
    teller: bytes = b""
    refused: frozenset[bytes] = frozenset()
    silent: frozenset[bytes] = frozenset()
    receipts: tuple[tuple[bytes, int], ...] = ()


class Tallies:
    """Opened as an asynchronous context manager.

    Args:
        path: of the database.
        domain: whose signatures count; what was kept of another one is forgotten.

    Attributes:
        oldest: the first epoch whose statements are taken.
        changes: counts what was written.
    """

    def __init__(self, path: Path, domain: Domain) -> None:
        self._path, self._domain = path, domain
        self.oldest, self.changes = 0, 0
        self._count = 0
        self._writer = GroupCommit[Proven]("notices", self._write, checkpoint=self._checkpoint)
        self._using = threading.Lock()

    async def __aenter__(self) -> Tallies:
        with as_store_errors("tallies", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            sqlite_pragmas(self._database)
            self._database.executescript(_SCHEMA)
            self._load()
        await self._writer.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writer.__aexit__(*_)
        with self._using:
            self._database.close()

    def put(self, proven: Proven) -> asyncio.Future[None]:
        """Take what a notice proves, unless its epoch does not count any more; the future is done once it is durable.

        Raises:
            StoreError: there is no room, or this is closed.
        """
        if self._count >= _MOST:
            raise StoreError(f"{self._count} statements are counted already; more are once an epoch was reported")
        return self._writer.put(proven)

    async def performances(self, period: int) -> tuple[Performance, ...]:
        """Return what validators did in an epoch, sorted by address."""
        return await asyncio.to_thread(self._performances, period)

    async def pending(self) -> Mapping[bytes, Performance]:
        """Return what validators did in all epochs that were not reported, by address."""
        return await asyncio.to_thread(self._pending)

    async def receipts(self) -> Mapping[bytes, int]:
        """Return how many receipts of each compute node were settled."""
        return await asyncio.to_thread(self._receipts)

    async def unreported(self) -> list[int]:
        """Return the epochs of which something is known that was not reported, in ascending order."""
        return await asyncio.to_thread(self._unreported)

    async def book(self, period: int) -> None:
        """Note that what validators did in an epoch is on chain."""
        await asyncio.to_thread(self._book, period)

    async def forget(self, before: int) -> None:
        """Forget what validators did in epochs before this one; the nodes keep their receipts."""
        await asyncio.to_thread(self._forget, before)

    # --- reading ---

    def _rows(self, sql: str, *values: int) -> list[tuple[bytes, ...]]:
        with self._using, as_store_errors("tallies", self._path):
            return self._database.execute(sql, values).fetchall()

    def _performances(self, period: int) -> tuple[Performance, ...]:
        done = self._rows(
            "SELECT validator, COUNT(*) FROM notices JOIN signed USING (digest) WHERE epoch = ? GROUP BY validator",
            period,
        )
        rows = self._rows(
            "SELECT validator, digest, teller, silent FROM notices JOIN faults USING (digest) WHERE epoch = ? AND "
            "NOT EXISTS (SELECT 1 FROM signed WHERE signed.digest = faults.digest "
            "AND signed.validator = faults.validator)",
            period,
        )
        worked = {validator: int(count) for validator, count in done}
        failed = counted(Fault(validator, digest, teller, bool(silent)) for validator, digest, teller, silent in rows)
        found = (
            Performance(validator, worked.get(validator, 0), *failed.get(validator, (0, 0)))
            for validator in sorted(worked.keys() | failed.keys())
        )
        return tuple(one for one in found if one.done or one.failed or one.timeouts)

    def _pending(self) -> Mapping[bytes, Performance]:
        found: dict[bytes, Performance] = {}
        for period in self._unreported():
            for one in self._performances(period):
                sum_ = found.get(one.validator, Performance(one.validator, 0, 0, 0))
                done, failed = sum_.done + one.done, sum_.failed + one.failed
                found[one.validator] = Performance(one.validator, done, failed, sum_.timeouts + one.timeouts)
        return found

    def _receipts(self) -> Mapping[bytes, int]:
        rows = self._rows(
            "SELECT node, SUM(receipts) FROM "
            "(SELECT node, receipts FROM receipts UNION ALL SELECT node, receipts FROM nodes) GROUP BY node"
        )
        return {node: int(count) for node, count in rows}

    def _unreported(self) -> list[int]:
        sql = "SELECT DISTINCT epoch FROM notices WHERE epoch >= ? AND epoch NOT IN (SELECT period FROM booked)"
        return sorted(int(epoch) for (epoch,) in self._rows(sql, self.oldest))

    # --- writing ---

    def _write(self, items: list[Proven]) -> None:
        with self._using, transaction(self._database):
            for item in items:
                self._add(item)
        self.changes += 1

    def _add(self, item: Proven) -> None:
        """Add a notice; where two epochs are named for one digest, which only one of them had, the first counts."""
        if item.epoch < self.oldest:
            return
        execute, digest = self._database.execute, item.digest
        known = execute("SELECT epoch FROM notices WHERE digest = ?", (digest,)).fetchone()
        if known is not None and (known[0] < item.epoch or known[0] < self.oldest):
            return
        if known is None:
            execute("INSERT INTO notices VALUES (?, ?)", (digest, item.epoch))
            self._count += 1
        elif known[0] > item.epoch:
            for part in _PARTS:
                execute(f"DELETE FROM {part} WHERE digest = ?", (digest,))
            execute("UPDATE notices SET epoch = ? WHERE digest = ?", (item.epoch, digest))
        many = self._database.executemany
        many("INSERT OR IGNORE INTO signed VALUES (?, ?)", [(digest, one) for one in item.signed])
        many(
            "INSERT INTO faults VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET silent = min(silent, excluded.silent)",
            [(digest, one, item.teller, silent) for one, silent in _faults(item.refused, item.silent)],
        )
        many(
            "INSERT INTO receipts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
            "receipts = min(receipts, excluded.receipts)",
            [(digest, node, count) for node, count in item.receipts],
        )

    def _book(self, period: int) -> None:
        with self._using, as_store_errors("tallies", self._path):
            self._database.execute("INSERT OR IGNORE INTO booked VALUES (?)", (period,))
        self.changes += 1

    def _forget(self, before: int) -> None:
        if before <= self.oldest:
            return
        with self._using, as_store_errors("tallies", self._path), transaction(self._database):
            execute = self._database.execute
            execute(
                "INSERT INTO nodes SELECT node, SUM(receipts) FROM notices JOIN receipts USING (digest) "
                "WHERE epoch < ? GROUP BY node "
                "ON CONFLICT DO UPDATE SET receipts = receipts + excluded.receipts",
                (before,),
            )
            for part in _PARTS:
                execute(f"DELETE FROM {part} WHERE digest IN (SELECT digest FROM notices WHERE epoch < ?)", (before,))
            execute("DELETE FROM notices WHERE epoch < ?", (before - _REMEMBERED,))
            execute("DELETE FROM booked WHERE period < ?", (before,))
            execute("DELETE FROM oldest")
            execute("INSERT INTO oldest VALUES (?)", (before,))
            self.oldest = before
            self._recount()
        self.changes += 1

    def _recount(self) -> None:
        sql = "SELECT COUNT(*) FROM notices WHERE epoch >= ?"
        self._count = self._database.execute(sql, (self.oldest,)).fetchone()[0]

    def _load(self) -> None:
        identity = (self._domain.chain_id, self._domain.contract)
        if self._database.execute("SELECT chain_id, contract FROM belongs_to").fetchone() != identity:
            with transaction(self._database):
                for table in (*_TABLES, "belongs_to"):
                    self._database.execute(f"DELETE FROM {table}")
                self._database.execute("INSERT INTO belongs_to VALUES (?, ?)", identity)
        row = self._database.execute("SELECT epoch FROM oldest").fetchone()
        self.oldest = 0 if row is None else row[0]
        self._recount()

    def _checkpoint(self) -> None:
        with self._using:
            checkpoint(self._database)


def _faults(refused: Collection[bytes], silent: Collection[bytes]) -> Iterable[tuple[bytes, int]]:
    yield from ((one, 0) for one in refused)
    yield from ((one, 1) for one in silent)
