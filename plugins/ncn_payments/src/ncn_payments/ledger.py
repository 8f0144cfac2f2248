"""What was charged, on disk before anybody hears of it: vouchers, charges and batches in one SQLite database.

A channel's balance is nothing but the sum of its charges: no running total is stored that could differ from it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from ncn_framework.digests import channel_id, preprocess_commitment
from ncn_framework.errors import StoreError
from ncn_framework.group_commit import GroupCommit, sqlite_pragmas
from ncn_framework.payments import BatchStatement, Charge, Credit, EscrowTerms, Voucher
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_batches import charge_from_pb, charge_to_pb, statement_from_pb, statement_to_pb
from ncn_framework.wire.convert_payments import escrow_terms_from_pb, escrow_terms_to_pb, voucher_from_pb, voucher_to_pb

from .ledger_lock import lock_ledger

__all__ = ["BatchRow", "BatchState", "ChannelBalance", "Entry", "Ledger", "LedgerReader", "Owed"]

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
_BATCH_COLUMNS = "id, gateway, nonce, state, head, tx, gas, detail, at_ms"

Statement = tuple[str, Sequence[Any]]
"""SQL and its parameters."""


class BatchState(StrEnum):
    """Where a batch stands: signed by a quorum; on chain; or never to be, its charges free for another one."""

    SIGNED = "signed"
    SETTLED = "settled"
    DEAD = "dead"


@dataclass(frozen=True)
class Entry:
    """A charge in the ledger, with its number there and the time it was entered."""

    number: int
    at_ms: int
    charge: Charge


@dataclass(frozen=True, slots=True)
class Owed:
    """A charge that is in no batch, as far as it takes to say whether it is due.

    Attributes:
        number: in this ledger; grows with time.
        channel: that it draws on, which is with ``gateway``.
    """

    number: int
    request_id: bytes
    channel: bytes
    gateway: bytes
    fee_wei: int
    at_ms: int


@dataclass(frozen=True)
class BatchRow:
    """A batch in the ledger.

    Attributes:
        id: its number in this ledger.
        gateway, nonce: its name on chain.
        receipts, credits: what is in it; not known where somebody else made the batch.
        tx: hash of the transaction, 0x-hex, once it is on chain.
        gas: that the transaction used.
        detail: why it is dead, or who settled it.
    """

    id: int
    gateway: bytes
    nonce: int
    state: BatchState
    receipts: int
    credits: tuple[Credit, ...]
    tx: str
    gas: int
    detail: str
    at_ms: int


@dataclass(frozen=True)
class ChannelBalance:
    """A channel's best voucher and the sum of its charges, in wei."""

    voucher: Voucher
    charged_wei: int


class LedgerReader:
    """A ledger to look at, entered as a context manager: nothing is written, and whoever writes it is not disturbed.

    Args:
        path: of the database.

    Raises:
        StoreError: (on entering) there is none, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        if not self.path.exists():
            raise StoreError(f"there is no ledger {self.path}; a node writes it once it runs, or set another NCN_HOME")
        try:
            self._reader = sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)
        except sqlite3.Error as cause:
            raise StoreError(f"the ledger {self.path} cannot be opened: {cause}") from cause
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def open_escrows(self) -> list[EscrowTerms]:
        """Return the terms of the escrows that may hold money."""
        rows = self._rows("SELECT terms FROM escrows")
        return [escrow_terms_from_pb(pb.EscrowTerms.FromString(data)) for (data,) in rows]

    def balances(self) -> dict[bytes, ChannelBalance]:
        """Return every channel's best voucher and what it was charged, by channel."""
        charged: dict[bytes, int] = {}
        for channel, fee in self._rows("SELECT channel, fee_wei FROM charges"):
            charged[channel] = charged.get(channel, 0) + int(fee)
        return {
            channel: ChannelBalance(voucher_from_pb(pb.Voucher.FromString(data)), charged.get(channel, 0))
            for channel, data in self._rows("SELECT channel, voucher FROM vouchers")
        }

    def vouchers(self, channels: Iterable[bytes]) -> dict[bytes, Voucher]:
        """Return the best voucher of each of these channels that has one."""
        sql = "SELECT voucher FROM vouchers WHERE channel = ?"
        rows = ((channel, data) for channel in channels for (data,) in self._rows(sql, (channel,)))
        return {channel: voucher_from_pb(pb.Voucher.FromString(data)) for channel, data in rows}

    def has_charge(self, request_id: bytes) -> bool:
        """Return whether a request was charged."""
        return any(self._rows("SELECT 1 FROM charges WHERE request_id = ?", (request_id,)))

    def open_charge(self, request_id: bytes) -> Charge | None:
        """Return the charge of a request, if there is one and it is in no batch."""
        sql = "SELECT charge FROM charges WHERE request_id = ? AND batch IS NULL"
        return next((_charge(data) for (data,) in self._rows(sql, (request_id,))), None)

    def in_doubt(self) -> list[bytes]:
        """Return the requests that were charged, are in no batch, and of which it is not known that they settled."""
        sql = "SELECT request_id FROM charges WHERE delivered = 0 AND batch IS NULL"
        return [request_id for (request_id,) in self._rows(sql)]

    def unsettled(self, limit: int = -1) -> list[Owed]:
        """Return the oldest charges that are in no batch, oldest first."""
        sql = (
            "SELECT number, request_id, channel, gateway, fee_wei, at_ms "
            "FROM charges WHERE batch IS NULL ORDER BY number LIMIT ?"
        )
        return [
            Owed(number, request_id, channel, gateway, int(fee), at)
            for number, request_id, channel, gateway, fee, at in self._rows(sql, (limit,))
        ]

    def charges(self, numbers: Iterable[int]) -> list[Charge]:
        """Return charges by their numbers, in the order of these."""
        sql = "SELECT charge FROM charges WHERE number = ?"
        return [_charge(data) for number in numbers for (data,) in self._rows(sql, (number,))]

    def history(self, limit: int, channel: bytes | None = None) -> list[tuple[Entry, BatchRow | None]]:
        """Return the newest charges, newest first, each with its batch; of one channel where it is given."""
        columns = "b." + _BATCH_COLUMNS.replace(", ", ", b.")
        sql = (
            f"SELECT c.number, c.at_ms, c.charge, {columns} "
            "FROM charges c LEFT JOIN batches b ON b.id = c.batch WHERE ? IS NULL OR c.channel = ? "
            "ORDER BY c.number DESC LIMIT ?"
        )
        return [
            (
                Entry(number, at, _charge(data)),
                None if batch[0] is None else _batch_row(*batch),
            )
            for number, at, data, *batch in self._rows(sql, (channel, channel, limit))
        ]

    def batches(self, state: BatchState | None = None) -> list[BatchRow]:
        """Return the batches, oldest first; only those of one state where it is given."""
        sql = f"SELECT {_BATCH_COLUMNS} FROM batches WHERE ? IS NULL OR state = ? ORDER BY id"
        return [_batch_row(*row) for row in self._rows(sql, (state, state))]

    def newest_batches(self, limit: int) -> list[tuple[BatchRow, int, int]]:
        """Return the newest batches, newest first; each with its receipts: how many, and their fees in all (wei)."""
        sql = f"SELECT {_BATCH_COLUMNS} FROM batches ORDER BY id DESC LIMIT ?"
        rows = [_batch_row(*row) for row in self._rows(sql, (limit,))]
        fees: dict[int, list[int]] = {row.id: [] for row in rows}
        oldest = min(fees, default=0)
        for batch, fee in self._rows("SELECT batch, fee_wei FROM charges WHERE batch >= ?", (oldest,)):
            if batch in fees:
                fees[batch].append(int(fee))
        return [(row, len(fees[row.id]), sum(fees[row.id])) for row in rows]

    def statement(self, gateway: bytes, nonce: int) -> BatchStatement | None:
        """Return a batch of this ledger with its charges; None where it is dead, somebody else's, or unknown."""
        sql = "SELECT id, head FROM batches WHERE gateway = ? AND nonce = ? AND state != ? AND head != x''"
        for number, head in self._rows(sql, (gateway, nonce, BatchState.DEAD)):
            rows = self._rows("SELECT charge FROM charges WHERE batch = ? ORDER BY number", (number,))
            charges = tuple(_charge(data) for (data,) in rows)
            return replace(statement_from_pb(pb.BatchStatement.FromString(head)), charges=charges)
        return None

    def highest_nonce(self, gateway: bytes) -> int:
        """Return the highest nonce of any batch of ``gateway`` here; 0 where there is none."""
        sql = "SELECT coalesce(max(nonce), 0) FROM batches WHERE gateway = ?"
        return int(next(self._rows(sql, (gateway,)))[0])

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
        try:
            yield from self._reader.execute(sql, parameters)
        except sqlite3.Error as cause:
            raise StoreError(f"the ledger {self.path} cannot be read: {cause}") from cause


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
        batch, head = statement.batch, statement_to_pb(replace(statement, charges=())).SerializeToString()
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


def _charge(data: bytes) -> Charge:
    return charge_from_pb(pb.Charge.FromString(data))


def _batch_row(
    number: int, gateway: bytes, nonce: int, state: str, head: bytes, tx: str, gas: int, detail: str, at_ms: int
) -> BatchRow:
    message = pb.BatchStatement.FromString(head)
    credits_ = tuple(Credit(credit.payee, int(credit.amount_wei)) for credit in message.credits)
    return BatchRow(number, gateway, nonce, BatchState(state), message.count, credits_, tx, gas, detail, at_ms)
