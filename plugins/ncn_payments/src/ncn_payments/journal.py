"""Transactions of one key on one chain, written down before they are sent (SQLite)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ncn_framework.errors import ChainError, ReplayConflict, StoreError

from .chain import Chain
from .devkeys import CHAIN_ID
from .transactions import Call

__all__ = ["Attempt", "Entry", "Journal", "identity_of"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS transactions (
    chain TEXT NOT NULL,
    sender BLOB NOT NULL,
    key TEXT NOT NULL,
    nonce INTEGER NOT NULL,
    target BLOB,
    data BLOB NOT NULL,
    what TEXT NOT NULL,
    value TEXT NOT NULL,
    gas INTEGER NOT NULL,
    block INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'done', 'void')),
    receipt TEXT,
    revert BLOB,
    PRIMARY KEY (chain, sender, key),
    UNIQUE (chain, sender, nonce)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    chain TEXT NOT NULL,
    sender BLOB NOT NULL,
    nonce INTEGER NOT NULL,
    hash BLOB NOT NULL,
    raw BLOB NOT NULL,
    max_fee TEXT NOT NULL,
    priority_fee TEXT NOT NULL,
    made_ms INTEGER NOT NULL,
    filler INTEGER NOT NULL,
    PRIMARY KEY (chain, sender, hash)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Attempt:
    """One signed form of a transaction; a later one with higher fees takes its place.

    Attributes:
        hash: of the transaction.
        raw: what is sent.
        max_fee_wei, priority_fee_wei: a unit of gas.
        made_ms: when, in milliseconds since the epoch.
        filler: it only uses the nonce up, because the chain would not take what it was for.
    """

    hash: bytes
    raw: bytes
    max_fee_wei: int
    priority_fee_wei: int
    made_ms: int
    filler: bool = False


@dataclass(frozen=True)
class Entry:
    """A transaction as it was asked for, and what became of it.

    Attributes:
        key: the caller's name for it, once on this chain for this sender.
        nonce: of the sender.
        call: what it shall do.
        value_wei: ether that goes with it.
        gas: its limit.
        block: newest block when the nonce was taken: the transaction is in a later one.
        receipt: as JSON, once it is final.
        revert: what the contract returned when it reverted.
        void: the nonce went to a filler; the key may be used again.
    """

    key: str
    nonce: int
    call: Call
    value_wei: int
    gas: int
    block: int
    receipt: str | None = None
    revert: bytes | None = None
    void: bool = False

    @property
    def pending(self) -> bool:
        return self.receipt is None and not self.void


class Journal:
    """The rows of one sender on one chain; used by one thread at a time, by several processes if need be.

    Args:
        path: of the database; shared by all senders and chains of a home folder.
        chain: identity of the chain.
        sender: address.

    Raises:
        StoreError: the database cannot be opened.
    """

    def __init__(self, path: Path, chain: str, sender: bytes) -> None:
        self._path, self._of = path, (chain, sender)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._refusals():
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def find(self, key: str) -> Entry | None:
        """Return the transaction of ``key``."""
        return next(iter(self._select("key = ?", key)), None)

    def pending(self) -> list[Entry]:
        """Return what is not final yet, by nonce."""
        return self._select("state = 'pending'")

    def attempts(self, nonce: int) -> list[Attempt]:
        """Return the signed forms of the transaction with ``nonce``, oldest first."""
        with self._refusals():
            rows = self._database.execute(
                "SELECT hash, raw, max_fee, priority_fee, made_ms, filler FROM attempts "
                "WHERE chain = ? AND sender = ? AND nonce = ? ORDER BY made_ms, length(max_fee), max_fee",
                (*self._of, nonce),
            ).fetchall()
        return [Attempt(h, raw, int(fee), int(tip), made, bool(filler)) for h, raw, fee, tip, made, filler in rows]

    def record(self, draft: Entry, sign: Callable[[Entry], Attempt]) -> tuple[Entry, bool]:
        """Give ``draft`` the next nonce, sign it, and write both down; durable when this returns.

        Args:
            draft: its nonce is the chain's next one for this sender.
            sign: called with the final nonce.

        Returns:
            The entry, and whether it is new: another task or process may have been first with the key.

        Raises:
            ReplayConflict: the key was used for something else.
        """
        with self._transaction():
            found = self.find(draft.key)
            if found is not None and not found.void:
                if (found.call.to, found.call.data, found.value_wei) != (
                    draft.call.to,
                    draft.call.data,
                    draft.value_wei,
                ):
                    raise ReplayConflict(f"transaction {draft.key!r} was made before, with other content")
                return found, False
            (newest,) = self._database.execute(
                "SELECT max(nonce) FROM transactions WHERE chain = ? AND sender = ?", self._of
            ).fetchone()
            entry = replace(draft, nonce=draft.nonce if newest is None else max(draft.nonce, newest + 1))
            attempt = sign(entry)
            if found is not None:
                # the row of the filler stays for its nonce, under a name of its own
                self._update(found.nonce, key=f"void:{found.nonce}:{found.key}")
            self._database.execute(
                "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', NULL, NULL)",
                (
                    *self._of,
                    entry.key,
                    entry.nonce,
                    entry.call.to,
                    entry.call.data,
                    entry.call.what,
                    str(entry.value_wei),
                    entry.gas,
                    entry.block,
                ),
            )
            self._insert(entry.nonce, attempt)
            return entry, True

    def renumber(self, entry: Entry, nonce: int, block: int, sign: Callable[[Entry], Attempt]) -> Entry:
        """Give a pending entry another nonce, because somebody else's transaction took its own for good.

        Args:
            entry: as it was.
            nonce: the chain's next one.
            block: newest block.
            sign: called with the entry as it will be.
        """
        with self._transaction():
            found = self.find(entry.key)
            if found is None or not found.pending or found.nonce != entry.nonce:
                return found or entry  # another process did it
            (newest,) = self._database.execute(
                "SELECT max(nonce) FROM transactions WHERE chain = ? AND sender = ?", self._of
            ).fetchone()
            moved = replace(found, nonce=max(nonce, newest + 1), block=block)
            self._update(entry.nonce, nonce=moved.nonce, block=block)
            self._insert(moved.nonce, sign(moved))
            return moved

    def add(self, nonce: int, attempt: Attempt) -> None:
        """Write another signed form of a pending transaction down."""
        with self._transaction():
            self._insert(nonce, attempt)

    def settle(self, entry: Entry, receipt: str | None, revert: bytes | None = None) -> Entry:
        """Write down what became of a transaction: its final receipt, or none where a filler took its nonce."""
        with self._transaction():
            self._update(entry.nonce, state="void" if receipt is None else "done", receipt=receipt, revert=revert)
        return replace(entry, receipt=receipt, revert=revert, void=receipt is None)

    def _insert(self, nonce: int, attempt: Attempt) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *self._of,
                nonce,
                attempt.hash,
                attempt.raw,
                str(attempt.max_fee_wei),
                str(attempt.priority_fee_wei),
                attempt.made_ms,
                attempt.filler,
            ),
        )

    def _update(self, at_nonce: int, /, **columns: object) -> None:
        self._database.execute(
            f"UPDATE transactions SET {', '.join(f'{name} = ?' for name in columns)} "
            "WHERE chain = ? AND sender = ? AND nonce = ?",
            (*columns.values(), *self._of, at_nonce),
        )

    def _select(self, condition: str, *values: object) -> list[Entry]:
        with self._refusals():
            rows = self._database.execute(
                "SELECT key, nonce, target, data, what, value, gas, block, receipt, revert, state FROM transactions "
                f"WHERE chain = ? AND sender = ? AND {condition} ORDER BY nonce",
                (*self._of, *values),
            ).fetchall()
        return [
            Entry(key, nonce, Call(target, data, what), int(value), gas, block, receipt, revert, state == "void")
            for key, nonce, target, data, what, value, gas, block, receipt, revert, state in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._refusals():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as cause:
            raise StoreError(f"the journal of transactions {self._path} refused: {cause}") from cause


async def identity_of(chain: Chain) -> str:
    """Return what tells a chain from others: its id, and the first block of one that may begin anew."""
    if chain.chain_id != CHAIN_ID:
        return str(chain.chain_id)
    first = await chain.request("eth_getBlockByNumber", ["0x0", False])
    if not isinstance(first, dict) or "hash" not in first:
        raise ChainError("the development chain has no first block; is it one?")
    return f"{chain.chain_id}:{first['hash']}"
