"""Records in SQLite, all of them in memory as well; whoever published one waits until it is on the disk."""

from __future__ import annotations

import asyncio
import heapq
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ncn_framework.errors import NoCapacity
from ncn_framework.group_commit import GroupCommit, sqlite_pragmas
from ncn_framework.models import Domain, Record

from .database import as_store_errors, checkpoint, noticed, transaction

__all__ = ["Kept", "RecordStore"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL,
    owner BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    payload BLOB NOT NULL,
    signature BLOB NOT NULL,
    keep_until_ms INTEGER NOT NULL,
    direct INTEGER NOT NULL,
    PRIMARY KEY (kind, owner)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS belongs_to (chain_id INTEGER NOT NULL, contract BLOB NOT NULL);
"""

Key: TypeAlias = tuple[str, bytes]


@dataclass(frozen=True)
class Kept:
    """The newest record of an owner and kind.

    Attributes:
        record: which may have expired.
        keep_until_ms: when the last of all that came before it expires, too: until then its sequence is
            remembered, or else an older one could be brought back.
        direct: its owner gave it to this registry, which renews it in the DHT.
    """

    record: Record
    keep_until_ms: int
    direct: bool


class RecordStore:
    """Opened as an asynchronous context manager.

    Args:
        path: of the database.
        domain: that records are signed for; those of another one are forgotten.
        now_ms: records that need not be kept until then are forgotten.
        max_records: of all owners and kinds; each owner has one of each kind.
        max_bytes: of all payloads.
    """

    def __init__(
        self, path: Path, domain: Domain, now_ms: int, max_records: int = 100_000, max_bytes: int = 256 << 20
    ) -> None:
        self._path, self._domain, self._now_ms = path, domain, now_ms
        self._max_records, self._max_bytes = max_records, max_bytes
        self._kept: dict[Key, Kept] = {}
        self._kinds: dict[bytes, set[str]] = {}
        self._owners: dict[str, dict[bytes, None]] = {}
        self._bytes = 0
        self._ends: list[tuple[int, Key, int]] = []  # heap of expiries: when, whose, which sequence (0: of keeping)
        self._writer = GroupCommit[Kept | Key]("records", self._write, checkpoint=self._checkpoint)

    async def __aenter__(self) -> RecordStore:
        with as_store_errors("records", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            sqlite_pragmas(self._database)
            self._database.executescript(_SCHEMA)
            self._load()
        await self._writer.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writer.__aexit__(*_)
        self._database.close()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, kind: str, owner: bytes) -> Kept | None:
        """Return the newest record of an owner and kind, expired or not."""
        return self._kept.get((kind, owner))

    def of(self, owner: bytes) -> list[Kept]:
        """Return all records of an owner."""
        return [self._kept[kind, owner] for kind in sorted(self._kinds.get(owner, ()))]

    def of_kind(self, kind: str) -> list[Kept]:
        """Return all records of a kind."""
        return [self._kept[kind, owner] for owner in self._owners.get(kind, ())]

    def all(self) -> list[Kept]:
        """Return every record."""
        return list(self._kept.values())

    def put(self, record: Record, *, direct: bool) -> asyncio.Future[None]:
        """Keep a record that was judged and is newer; the future is done once it is durable.

        Raises:
            NoCapacity: a bound is reached.
        """
        known = self._kept.get((record.kind, record.owner))
        if known is None and len(self._kept) >= self._max_records:
            raise NoCapacity(f"this registry keeps {self._max_records} records already; try another one")
        more = len(record.payload) - (0 if known is None else len(known.record.payload))
        if more > 0 and self._bytes + more > self._max_bytes:
            raise NoCapacity(f"the records of this registry fill {self._max_bytes} bytes already; try another one")
        until = record.expires_ms if known is None else max(record.expires_ms, known.keep_until_ms)
        kept = Kept(record, until, direct)
        self._add(kept)
        return self._writer.put(kept)

    def sweep(self, now_ms: int) -> tuple[list[Record], list[bytes]]:
        """Forget what need not be kept any more.

        Returns:
            The newest records that expired since the last time, and the owners of whom nothing is left.
        """
        expired, forgotten = [], []
        while self._ends and self._ends[0][0] <= now_ms:
            _, key, sequence = heapq.heappop(self._ends)
            kept = self._kept.get(key)
            if kept is None:
                continue
            if kept.record.sequence == sequence:
                expired.append(kept.record)
            if kept.keep_until_ms <= now_ms:
                self._drop(key)
                self._writer.put(key).add_done_callback(noticed)
                if key[1] not in self._kinds:
                    forgotten.append(key[1])
        return expired, forgotten

    def _add(self, kept: Kept) -> None:
        record = kept.record
        key = (record.kind, record.owner)
        known = self._kept.get(key)
        self._bytes += len(record.payload) - (0 if known is None else len(known.record.payload))
        self._kept[key] = kept
        self._kinds.setdefault(record.owner, set()).add(record.kind)
        self._owners.setdefault(record.kind, {})[record.owner] = None
        heapq.heappush(self._ends, (record.expires_ms, key, record.sequence))
        if kept.keep_until_ms > record.expires_ms:
            heapq.heappush(self._ends, (kept.keep_until_ms, key, 0))

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key)
        self._bytes -= len(kept.record.payload)
        kinds = self._kinds[key[1]]
        kinds.discard(key[0])
        self._owners[key[0]].pop(key[1], None)
        if not kinds:
            del self._kinds[key[1]]

    # --- the database ---

    def _load(self) -> None:
        identity = (self._domain.chain_id, self._domain.contract)
        if self._database.execute("SELECT chain_id, contract FROM belongs_to").fetchone() != identity:
            with transaction(self._database):
                self._database.execute("DELETE FROM records")
                self._database.execute("DELETE FROM belongs_to")
                self._database.execute("INSERT INTO belongs_to VALUES (?, ?)", identity)
        self._database.execute("DELETE FROM records WHERE keep_until_ms <= ?", (self._now_ms,))
        rows = self._database.execute(
            "SELECT kind, owner, sequence, expires_ms, payload, signature, keep_until_ms, direct FROM records"
        )
        for *fields, keep_until_ms, direct in rows:
            self._add(Kept(Record(*fields), keep_until_ms, bool(direct)))

    def _write(self, items: list[Kept | Key]) -> None:
        with transaction(self._database):
            for item in items:
                if isinstance(item, Kept):
                    record = item.record
                    self._database.execute(
                        "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            record.kind,
                            record.owner,
                            record.sequence,
                            record.expires_ms,
                            record.payload,
                            record.signature,
                            item.keep_until_ms,
                            item.direct,
                        ),
                    )
                else:
                    self._database.execute("DELETE FROM records WHERE kind = ? AND owner = ?", item)

    def _checkpoint(self) -> None:
        checkpoint(self._database)
