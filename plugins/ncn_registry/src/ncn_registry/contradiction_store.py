"""Which statements validators signed lately, and what they contradicted themselves in, in SQLite."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from google.protobuf.message import DecodeError

from ncn_framework.errors import NcnError, StoreError
from ncn_framework.group_commit import sqlite_pragmas
from ncn_framework.models import Domain, Signature
from ncn_framework.signing import address_hex
from ncn_framework.statements import Contradiction
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_statements import statement_from_pb

from .database import as_store_errors, checkpoint, transaction

__all__ = ["ContradictionStore", "Decided", "Found", "Key", "State", "kept_contradictions"]

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS statements (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, subject BLOB NOT NULL, message BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS statements_on_subject ON statements (subject);
CREATE TABLE IF NOT EXISTS signed (
    statement INTEGER NOT NULL, validator BLOB NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (statement, validator)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contradictions (
    validator BLOB NOT NULL,
    subject BLOB NOT NULL,
    first BLOB NOT NULL,
    second BLOB NOT NULL,
    first_signature BLOB NOT NULL,
    second_signature BLOB NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    found_ms INTEGER NOT NULL,
    PRIMARY KEY (validator, subject)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS belongs_to (chain_id INTEGER NOT NULL, contract BLOB NOT NULL);
"""
_TABLES = ("statements", "signed", "contradictions", "belongs_to")
_COLUMNS = "validator, subject, first, second, first_signature, second_signature, state, detail, found_ms"

_REMEMBERED = 50_000
"""Statements whose signatures are kept; the oldest are forgotten first. Each has 1 kB with a committee's signatures."""
_MOST_OPEN = 10_000
"""Contradictions that wait for the chain; each costs a validator half of its stake."""
_KEPT_MS = 180 * 86_400_000
"""How long what is closed is remembered."""

Key: TypeAlias = tuple[bytes, bytes]


class State(StrEnum):
    """Where a contradiction stands."""

    OPEN = "open"
    REPORTED = "reported"
    """On chain: the validator was slashed, by this registry's transaction or another's."""
    REFUSED = "refused"
    """The contract refuses it for good: who signed never had a stake, or this proves nothing."""


@dataclass(frozen=True)
class Decided:
    """A statement that has no second one beside it.

    Attributes:
        subject: 32 bytes, names what may be decided only once.
        digest: that is signed.
        message: the statement, encoded, without what its digest does not cover.
    """

    subject: bytes
    digest: bytes
    message: bytes


@dataclass(frozen=True)
class Found:
    """A contradiction, and how it stands.

    Attributes:
        subject: as in ``Decided``; a validator is slashed for it once.
        detail: transaction, or why there is none.
        found_ms: when, milliseconds since the epoch.
    """

    proof: Contradiction
    subject: bytes
    state: State
    detail: str
    found_ms: int

    @property
    def key(self) -> Key:
        """Names it."""
        return self.proof.validator, self.subject


class ContradictionStore:
    """May be used by several threads.

    Args:
        path: of the database; made where it is missing.
        domain: whose signatures count; what was kept of another one is forgotten.
        now_ms: milliseconds since the epoch.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, path: Path, domain: Domain, now_ms: int) -> None:
        self._path, self._using = path, threading.Lock()
        with as_store_errors("contradictions", self._path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare((domain.chain_id, domain.contract), now_ms - _KEPT_MS)
            except BaseException:
                self._database.close()
                raise

    def _prepare(self, identity: tuple[int, bytes], oldest_ms: int) -> None:
        execute = self._database.execute
        sqlite_pragmas(self._database)
        self._database.executescript(_SCHEMA)
        with transaction(self._database):
            if execute("SELECT chain_id, contract FROM belongs_to").fetchone() != identity:
                for table in _TABLES:
                    execute(f"DELETE FROM {table}")
                execute("INSERT INTO belongs_to VALUES (?, ?)", identity)
            execute("DELETE FROM contradictions WHERE state <> 'open' AND found_ms < ?", (oldest_ms,))

    def close(self) -> None:
        """Close the database."""
        with self._using:
            self._database.close()

    def open_ones(self) -> list[Found]:
        """Return the contradictions that the chain does not have yet."""
        with self._using, as_store_errors("contradictions", self._path):
            return _rows(self._database, "WHERE state = 'open'")

    def add(self, signed: Iterable[tuple[Decided, Sequence[Signature]]], now_ms: int) -> list[Found]:
        """Keep checked signatures; return what contradicts earlier ones, where that is new.

        Raises:
            sqlite3.Error: they could not be kept.
        """
        found: list[Found] = []
        with self._using, transaction(self._database):
            for statement, signatures in signed:
                found += self._add(statement, signatures, now_ms)
            for table, column in (("statements", "id"), ("signed", "statement")):
                sql = f"DELETE FROM {table} WHERE {column} <= (SELECT max(id) FROM statements) - ?"
                self._database.execute(sql, (_REMEMBERED,))
        return found

    def _add(self, statement: Decided, signatures: Sequence[Signature], now_ms: int) -> Iterator[Found]:
        execute = self._database.execute
        execute(
            "INSERT OR IGNORE INTO statements (digest, subject, message) VALUES (?, ?, ?)",
            (statement.digest, statement.subject, statement.message),
        )
        (number,) = execute("SELECT id FROM statements WHERE digest = ?", (statement.digest,)).fetchone()
        for one in signatures:
            execute("INSERT OR IGNORE INTO signed VALUES (?, ?, ?)", (number, one.signer, one.value))
            before = execute(
                "SELECT message, signature FROM statements JOIN signed ON statement = id "
                "WHERE subject = ? AND validator = ? AND id <> ? ORDER BY id LIMIT 1",
                (statement.subject, one.signer, number),
            ).fetchone()
            if before is None:
                continue
            message, signature = before
            row = (one.signer, statement.subject, message, statement.message, signature, one.value)
            if self._is_new(row, now_ms):
                yield _found(*row, State.OPEN, "", now_ms)

    def _is_new(self, row: tuple[bytes, ...], now_ms: int) -> bool:
        execute = self._database.execute
        (waiting,) = execute("SELECT count(*) FROM contradictions WHERE state = 'open'").fetchone()
        if waiting >= _MOST_OPEN:
            log.error("%d contradictions of validators wait for the chain; no more are kept", waiting)
            return False
        sql = "INSERT OR IGNORE INTO contradictions VALUES (?, ?, ?, ?, ?, ?, 'open', '', ?)"
        return execute(sql, (*row, now_ms)).rowcount > 0

    def settle(self, found: Found) -> None:
        """Keep how a contradiction stands now.

        Raises:
            StoreError: it could not be kept.
        """
        with self._using, as_store_errors("contradictions", self._path):
            self._database.execute(
                "UPDATE contradictions SET state = ?, detail = ? WHERE validator = ? AND subject = ?",
                (str(found.state), found.detail, *found.key),
            )

    def checkpoint(self) -> None:
        """Copy the log into the database."""
        with self._using:
            checkpoint(self._database)


def kept_contradictions(path: Path) -> list[Found]:
    """Return the contradictions in a database, oldest first; none where there is no database.

    Raises:
        StoreError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return _rows(database, "ORDER BY found_ms")
        finally:
            database.close()
    except sqlite3.Error as cause:
        raise StoreError(f"the contradictions in {path} cannot be read: {cause}") from cause


def _rows(database: sqlite3.Connection, which: str) -> list[Found]:
    found = []
    for row in database.execute(f"SELECT {_COLUMNS} FROM contradictions {which}").fetchall():
        try:
            found.append(_found(*row))
        except (NcnError, DecodeError) as error:
            log.error("what validator %s contradicts itself in is lost: %s", address_hex(row[0]), error)
    return found


def _found(
    validator: bytes,
    subject: bytes,
    first: bytes,
    second: bytes,
    first_signature: bytes,
    second_signature: bytes,
    state: str,
    detail: str,
    found_ms: int,
) -> Found:
    both = [statement_from_pb(pb.StatementRequest.FromString(message)) for message in (first, second)]
    proof = Contradiction(validator, both[0], both[1], first_signature, second_signature)
    return Found(proof, subject, State(state), detail, found_ms)
