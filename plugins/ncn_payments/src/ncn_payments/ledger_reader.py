"""What a ledger tells: balances, what is owed, batches and their charges. Whoever may read the file may ask."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from ncn_framework.errors import StoreError
from ncn_framework.payments import Charge, Credit, EscrowTerms, Voucher
from ncn_framework.statements import BatchStatement
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_batches import batch_from_pb, charge_from_pb
from ncn_framework.wire.convert_payments import escrow_terms_from_pb, voucher_from_pb

__all__ = ["BatchRow", "BatchState", "ChannelBalance", "Entry", "LedgerReader", "Owed"]

_BATCH_COLUMNS = "id, gateway, nonce, state, head, tx, gas, detail, at_ms"


class BatchState(StrEnum):
    """Where a batch stands: signed by a quorum; on chain; or never to be, its charges free for another one.

    Charges that no validator signs are put into none of these, but together under ``REFUSED``, with nonce 0: they are
    never settled, and draw on no channel.
    """

    SIGNED = "signed"
    SETTLED = "settled"
    DEAD = "dead"
    REFUSED = "refused"


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
        detail: why it is dead or refused, or who settled it.
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
    """A channel's best voucher and the sum of its charges, in wei, without those that were refused."""

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
        refused = "SELECT id FROM batches WHERE state = ?"
        sql = f"SELECT channel, fee_wei FROM charges WHERE batch IS NULL OR batch NOT IN ({refused})"
        for channel, fee in self._rows(sql, (BatchState.REFUSED,)):
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
        """Return the newest charges, newest first, each with its batch, which may be ``REFUSED``; of one channel where
        it is given."""
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

    def charged(self, request_id: bytes) -> tuple[bool, BatchRow | None]:
        """Return whether a request was charged, and the batch that its charge is in, if any."""
        columns = "b." + _BATCH_COLUMNS.replace(", ", ", b.")
        sql = f"SELECT {columns} FROM charges c LEFT JOIN batches b ON b.id = c.batch WHERE c.request_id = ?"
        for batch in self._rows(sql, (request_id,)):
            return True, None if batch[0] is None else _batch_row(*batch)
        return False, None

    def batches(self, state: BatchState | None = None) -> list[BatchRow]:
        """Return the batches, oldest first; only those of one state where it is given."""
        sql = f"SELECT {_BATCH_COLUMNS} FROM batches WHERE ? IS NULL OR state = ? ORDER BY id"
        return [_batch_row(*row) for row in self._rows(sql, (state, state))]

    def newest_batches(self, limit: int) -> list[tuple[BatchRow, int, int]]:
        """Return the newest batches, newest first; each with its receipts: how many, and their fees in all (wei).

        What was refused is no batch.
        """
        sql = f"SELECT {_BATCH_COLUMNS} FROM batches WHERE state != ? ORDER BY id DESC LIMIT ?"
        rows = [_batch_row(*row) for row in self._rows(sql, (BatchState.REFUSED, limit))]
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
            return replace(batch_from_pb(pb.BatchStatement.FromString(head)), charges=charges)
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


def _charge(data: bytes) -> Charge:
    return charge_from_pb(pb.Charge.FromString(data))


def _batch_row(
    number: int, gateway: bytes, nonce: int, state: str, head: bytes, tx: str, gas: int, detail: str, at_ms: int
) -> BatchRow:
    message = pb.BatchStatement.FromString(head)
    credits_ = tuple(Credit(credit.payee, int(credit.amount_wei)) for credit in message.credits)
    return BatchRow(number, gateway, nonce, BatchState(state), message.count, credits_, tx, gas, detail, at_ms)
