"""What the registry's SQLite databases have in common: one transaction, one error, one way to write unattended."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ncn_framework.errors import StoreError

__all__ = ["as_store_errors", "checkpoint", "noticed", "transaction"]


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Write all that is done inside, or nothing; for a connection whose ``isolation_level`` is None."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def as_store_errors(what: str, path: Path) -> Iterator[None]:
    """Raise what the database refuses as ``StoreError``; ``what`` it holds, in the plural, is for the message."""
    try:
        yield
    except (sqlite3.Error, OSError) as cause:
        raise StoreError(f"the {what} in {path} could not be kept: {cause}") from cause


def checkpoint(database: sqlite3.Connection) -> None:
    """Move what the write-ahead log has into the database, as far as nobody is in the way."""
    database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def noticed(written: asyncio.Future[None]) -> None:
    """Take note of a failed write that nobody waits for; GroupCommit has logged it."""
    if not written.cancelled():
        written.exception()
