"""What py-evm stores, in one SQLite file: a block is written whole, or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ncn_framework.errors import ChainError

from .pyevm import AtomicDBWriteBatch, AtomicWriteBatchAPI, BaseAtomicDB

__all__ = ["SqliteDatabase"]


class SqliteDatabase(BaseAtomicDB):
    """A key-value database for py-evm whose writes wait in memory for ``commit``; used by one thread.

    py-evm writes in many small steps: tries, then headers, then the head. Here they become one transaction of
    SQLite, so that a crash at any point leaves the block before or the block after.

    Args:
        path: of the file.

    Raises:
        ChainError: the file cannot be opened, or is no database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: dict[bytes, bytes | None] = {}
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")  # what was reported as mined stays, power cut or not
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS nodes (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
            )
        except sqlite3.Error as cause:
            raise ChainError(f"the embedded chain's database {path} cannot be opened: {cause}") from cause

    def close(self) -> None:
        """Close the file; what was not committed is forgotten."""
        self._connection.close()

    def commit(self) -> None:
        """Make every write since the last commit durable, all of them or none.

        Raises:
            ChainError: the disk refused; the writes are still waiting.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO nodes VALUES (?, ?)",
                    [(key, value) for key, value in self._pending.items() if value is not None],
                )
                self._connection.executemany(
                    "DELETE FROM nodes WHERE key = ?", [(key,) for key, value in self._pending.items() if value is None]
                )
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as cause:
            raise ChainError(f"the embedded chain's database {self._path} refused a block: {cause}") from cause
        self._pending.clear()

    def rollback(self) -> None:
        """Forget every write since the last commit."""
        self._pending.clear()

    def __getitem__(self, key: bytes) -> bytes:
        if key in self._pending:
            value = self._pending[key]
        else:
            try:
                row = self._connection.execute("SELECT value FROM nodes WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as cause:
                raise ChainError(f"the embedded chain's database {self._path} cannot be read: {cause}") from cause
            value = row[0] if row else None
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._pending[key] = value

    def __delitem__(self, key: bytes) -> None:
        if key not in self:
            raise KeyError(key)
        self._pending[key] = None

    def _exists(self, key: bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    @contextmanager
    def atomic_batch(self) -> Iterator[AtomicWriteBatchAPI]:
        """Yield a view whose writes join the waiting ones at its end, unless it raises."""
        with AtomicDBWriteBatch._commit_unless_raises(self) as batch:
            yield batch
