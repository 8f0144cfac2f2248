"""What was charged, on disk before anybody hears of it: vouchers, charges and batches in one SQLite database.

A channel's balance is nothing but the sum of its charges: no running total is stored that could differ from it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ncn_framework.digests import channel_id, preprocess_commitment
from ncn_framework.errors import StoreError
from ncn_framework.group_commit import GroupCommit, sqlite_pragmas
from ncn_framework.payments import Charge, EscrowTerms
from ncn_framework.statements import BatchStatement
from ncn_framework.wire.convert_batches import batch_to_pb, charge_to_pb
from ncn_framework.wire.convert_payments import escrow_terms_to_pb, voucher_to_pb

from .ledger_lock import lock_ledger
from .ledger_reader import BatchState, LedgerReader

__all__ = ["Ledger"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vouchers (
    channel BLOB PRIMARY KEY, voucher BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charges (
    number INTEGER PRIMARY KEY, request_id BLOB NOT NULL UNIQUE, channel BLOB NOT NULL, gateway BLOB NOT NULL,
    fee_wei TEXT NOT NULL, at_ms INTEGER NOT NULL, charge BLOB NOT NULL, batch INTEGER REFERENCES batches (id),
    delivered INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS charges_open ON charges (number) WHERE batch IS NULL;
CREATE INDEX IF NOT EXISTS charges_by_batch ON charges (batch) WHERE batch IS NOT NULL;
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY, gateway BLOB NOT NULL, nonce INTEGER NOT NULL, state TEXT NOT NULL,
    head BLOB NOT NULL, tx TEXT NOT NULL, gas INTEGER NOT NULL, detail TEXT NOT NULL, at_ms INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_by_nonce ON batches (gateway, nonce);
CREATE TABLE IF NOT EXISTS escrows (commitment BLOB PRIMARY KEY, terms BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_UPSERT_VOUCHER = "INSERT INTO vouchers VALUES (?, ?) ON CONFLICT (channel) DO UPDATE SET voucher = excluded.voucher"
_INSERT_CHARGE = (
    "INSERT INTO charges (request_id, channel, gateway, fee_wei, at_ms, charge) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (request_id) DO NOTHING"
)

_INSERT_BATCH = "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ENTER_BATCH = "UPDATE charges SET batch = ? WHERE number = ? AND batch IS NULL"

Statement = tuple[str, Sequence[Any]]
"""SQL and its parameters."""


class Ledger(LedgerReader):
    """The ledger of a role, to write: opened as an asynchronous context manager, in the loop that uses it.

    A ledger has one process that writes it; the lock of one that died is free.

    Args:
        path: of the database; made where it is missing.
        identity: of the chain and contract that the vouchers are for; another one's ledger is refused.
        linger_s: how long a charge may wait for others to be written with; 0 where answers wait for it.

    Raises:
        StoreError: (on entering) another process writes it, it is another contract's, or it cannot be opened.
    """

    def __init__(self, path: Path, identity: str, *, linger_s: float = 0.0) -> None:
        super().__init__(path)
        self.identity, self._linger_s = identity, linger_s
        self._delivered: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._lock = await asyncio.to_thread(lock_ledger, self.path)
        try:
            await asyncio.to_thread(self._open)
        except BaseException:
            os.close(self._lock)
            raise
        self._commits = GroupCommit("charges", self._write, checkpoint=self._checkpoint, linger_s=self._linger_s)
        await self._commits.__aenter__()
        return self

    def _open(self) -> None:
        try:
            self._connection = self._connect()
        except sqlite3.Error as cause:
            raise StoreError(f"the ledger {self.path} cannot be opened: {cause}") from cause
        try:
            self._connection.executescript(_SCHEMA)
            insert = "INSERT INTO identity VALUES ('chain', ?) ON CONFLICT (name) DO NOTHING"
            with self._connection:
                self._connection.execute(insert, (self.identity,))
            (found,) = self._connection.execute("SELECT value FROM identity WHERE name = 'chain'").fetchone()
            newest = "SELECT coalesce(max(id), 0) FROM batches"
            self._last_batch = int(self._connection.execute(newest).fetchone()[0])
            if found != self.identity:
                raise StoreError(
                    f"the ledger {self.path} is of {found}, not of {self.identity}; "
                    "move it away, or use the right chain"
                )
            self._reader = self._connect()
        except BaseException as cause:
            self._connection.close()
            if isinstance(cause, sqlite3.Error):
                raise StoreError(f"the ledger {self.path} cannot be opened: {cause}") from cause
            raise

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False)
        sqlite_pragmas(connection)
        return connection

    async def __aexit__(self, *_: object) -> None:
        if self._delivered:
            self._commits.put(self._deliveries()).add_done_callback(_said)
        await self._commits.__aexit__()
        self._connection.close()
        self._reader.close()
        os.close(self._lock)

    # --- writing ---

    def _write(self, groups: list[list[Statement]]) -> None:
        with self._connection:
            for statements in groups:
                for sql, parameters in statements:
                    self._connection.execute(sql, parameters)

    def _checkpoint(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def enter(self, charge: Charge, at_ms: int, *, alone: bool = False) -> asyncio.Future[None]:
        """Write a charge and the voucher that covers it; the future is done when both are durable.

        A request that is in the ledger already is not entered twice.
        """
        voucher, receipt = charge.voucher, charge.receipt.receipt
        channel = channel_id(voucher.client, voucher.signer, voucher.gateway)
        data = charge_to_pb(charge).SerializeToString()
        row = (receipt.request_id, channel, voucher.gateway, str(receipt.fee_wei), at_ms, data)
        covered_by = (channel, voucher_to_pb(voucher).SerializeToString())
        statements = [(_UPSERT_VOUCHER, covered_by), (_INSERT_CHARGE, row), *self._deliveries()]
        return self._commits.put(statements, alone=alone)

    def deliver(self, request_id: bytes) -> None:
        """Note that a charged request has settled, with whatever is written next: no commit of its own.

        What a crash leaves unwritten of this is in doubt afterwards (``in_doubt``), and asked for.
        """
        self._delivered.append(request_id)

    def _deliveries(self) -> list[Statement]:
        delivered, self._delivered = self._delivered, []
        return [("UPDATE charges SET delivered = 1 WHERE request_id = ?", (request_id,)) for request_id in delivered]

    def void(self, request_id: bytes) -> None:
        """Delete a charge that is in no batch, behind all that was put before."""
        future = self._commits.put([("DELETE FROM charges WHERE request_id = ? AND batch IS NULL", (request_id,))])
        future.add_done_callback(_said)

    async def add_batch(self, statement: BatchStatement, numbers: Iterable[int], at_ms: int) -> int:
        """Write a batch that is about to be signed, and return its id.

        Its charges are in no other batch from now on.

        Args:
            statement: its charges are in the order in which they were entered.
            numbers: of these charges.
            at_ms: now.
        """
        batch, head = statement.batch, batch_to_pb(replace(statement, charges=())).SerializeToString()
        number = self._last_batch = self._last_batch + 1
        row = (number, batch.gateway, batch.nonce, BatchState.SIGNED, head, "", 0, "", at_ms)
        statements: list[Statement] = [(_INSERT_BATCH, row)]
        statements += [(_ENTER_BATCH, (number, charge)) for charge in numbers]
        await self._commits.put(statements)
        return number

    async def settle_batch(self, batch: int, tx: str, gas: int) -> None:
        """Note that a batch is on chain, in transaction ``tx``, which used ``gas``."""
        sql = "UPDATE batches SET state = ?, tx = ?, gas = ? WHERE id = ?"
        await self._commits.put([(sql, (BatchState.SETTLED, tx, gas, batch))])

    async def drop_batch(self, batch: int, detail: str) -> None:
        """Note that a batch will never be on chain, and free its charges."""
        await self._commits.put(
            [
                ("UPDATE batches SET state = ?, detail = ? WHERE id = ?", (BatchState.DEAD, detail, batch)),
                ("UPDATE charges SET batch = NULL WHERE batch = ?", (batch,)),
            ]
        )

    async def refuse(self, gateway: bytes, numbers: Iterable[int], detail: str, at_ms: int) -> None:
        """Note that charges which are in no batch will never be in one, and why: their channels are free of them."""
        self._last_batch += 1
        row = (self._last_batch, gateway, 0, BatchState.REFUSED, b"", "", 0, detail, at_ms)
        statements: list[Statement] = [(_INSERT_BATCH, row)]
        statements += [(_ENTER_BATCH, (row[0], charge)) for charge in numbers]
        await self._commits.put(statements)

    async def settle_elsewhere(self, gateway: bytes, nonce: int, request_ids: Iterable[bytes], at_ms: int) -> None:
        """Note that somebody else has settled charges of ours, in the batch of this nonce."""
        self._last_batch += 1
        row = (self._last_batch, gateway, nonce, BatchState.SETTLED, b"", "", 0, "settled by somebody else", at_ms)
        statements: list[Statement] = [(_INSERT_BATCH, row)]
        statements += [("UPDATE charges SET batch = ? WHERE request_id = ?", (row[0], found)) for found in request_ids]
        await self._commits.put(statements)

    async def open_escrow(self, terms: EscrowTerms) -> None:
        """Write down the terms of an escrow that may be paid from now on."""
        row = (preprocess_commitment(terms), escrow_terms_to_pb(terms).SerializeToString())
        await self._commits.put([("INSERT OR IGNORE INTO escrows VALUES (?, ?)", row)])

    async def close_escrow(self, terms: EscrowTerms) -> None:
        """Forget an escrow: it was paid out, given back, or can no longer be paid."""
        await self._commits.put([("DELETE FROM escrows WHERE commitment = ?", (preprocess_commitment(terms),))])


def _said(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()  # the writer has logged it
