"""What validators have signed, on disk before a signature leaves: so that they never contradict themselves.

Signing two batches under one nonce, one receipt in two batches, or both the completion and the failure of a request
costs a validator its stake. A receipt that was found wrong is in no batch afterwards; of a record there is
one version of each sequence.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ncn_framework.errors import EndorsementRefused, StoreError
from ncn_framework.group_commit import sqlite_pragmas

__all__ = ["Signed", "ValidatorMemory"]

Signed = Mapping[bytes, frozenset[tuple[bytes, int]]]
"""Batches (gateway and nonce), by request."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    gateway BLOB NOT NULL, nonce INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (gateway, nonce)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipts (
    request_id BLOB NOT NULL, gateway BLOB NOT NULL, nonce INTEGER NOT NULL, PRIMARY KEY (request_id, gateway, nonce)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS escrows (
    escrow_id BLOB NOT NULL, kind TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (escrow_id, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (
    request_id BLOB NOT NULL, receipt BLOB NOT NULL, PRIMARY KEY (request_id, receipt)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL, owner BLOB NOT NULL, sequence BLOB NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (kind, owner)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fees (
    tx BLOB PRIMARY KEY, kind TEXT NOT NULL, owner BLOB NOT NULL
) WITHOUT ROWID;
"""


class ValidatorMemory:
    """What one set of validators have signed; used by one thread at a time, and by several processes.

    Args:
        path: of the database; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(path, check_same_thread=False)
        except (sqlite3.Error, OSError) as cause:
            raise StoreError(f"the validators' memory {path} cannot be opened: {cause}") from cause
        try:
            sqlite_pragmas(self._connection)
            self._connection.execute("PRAGMA wal_autocheckpoint=1000")
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as cause:
            self._connection.close()
            raise StoreError(f"the validators' memory {path} cannot be opened: {cause}") from cause

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def batches_of(self, request_ids: Iterable[bytes]) -> Signed:
        """Return the batches that were ever signed with each of these requests in them, where there is one."""
        sql = "SELECT gateway, nonce FROM receipts WHERE request_id = ?"
        rows = ((found, self._connection.execute(sql, (found,)).fetchall()) for found in request_ids)
        return {request_id: frozenset(batches) for request_id, batches in rows if batches}

    def next_nonce(self, gateway: bytes) -> int:
        """Return the lowest nonce above all under which batches of a gateway were signed."""
        sql = "SELECT coalesce(max(nonce), 0) + 1 FROM batches WHERE gateway = ?"
        return int(self._connection.execute(sql, (gateway,)).fetchone()[0])

    def sign_batch(
        self, gateway: bytes, nonce: int, digest: bytes, request_ids: Collection[bytes], known: Signed
    ) -> None:
        """Remember a batch that is about to be signed; again with the same digest changes nothing.

        Args:
            gateway, nonce, digest: of the batch.
            request_ids: of its receipts.
            known: what ``batches_of`` said of them, when it was decided to sign.

        Raises:
            EndorsementRefused: another one was signed under this nonce, or one of its receipts in another batch since.
        """
        with self._connection:  # the first statement writes, so that nobody else does before the last
            self._connection.execute("INSERT OR IGNORE INTO batches VALUES (?, ?, ?)", (gateway, nonce, digest))
            sql = "SELECT digest FROM batches WHERE gateway = ? AND nonce = ?"
            if self._connection.execute(sql, (gateway, nonce)).fetchone() != (digest,):
                following = self.next_nonce(gateway)
                raise EndorsementRefused(
                    f"another batch of this gateway was signed under nonce {nonce}; use {following}", None, following
                )
            if self.batches_of(request_ids) != known:
                raise EndorsementRefused("a receipt of the batch was signed in another one meanwhile; ask again")
            rows = [(request_id, gateway, nonce) for request_id in request_ids]
            self._connection.executemany("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?)", rows)

    def sign_escrow(self, escrow_id: bytes, kind: str, digest: bytes, never_with: str) -> None:
        """Remember a statement of an escrow that is about to be signed; again with the same digest changes nothing.

        Raises:
            EndorsementRefused: another one of this kind, or one of kind ``never_with``, was signed.
        """
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO escrows VALUES (?, ?, ?)", (escrow_id, kind, digest))
            sql = "SELECT kind, digest FROM escrows WHERE escrow_id = ?"
            signed = dict(self._connection.execute(sql, (escrow_id,)).fetchall())
            if signed[kind] != digest or never_with in signed:
                raise EndorsementRefused(
                    f"another statement was signed for the escrow 0x{escrow_id.hex()}: {', '.join(sorted(signed))}"
                )

    # --- conduct ---

    def sign_verdict(self, request_id: bytes, receipt: bytes) -> None:
        """Remember that a receipt is about to be called wrong, by its digest; again changes nothing."""
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (request_id, receipt))

    def wrong_receipts(self, request_ids: Iterable[bytes]) -> Mapping[bytes, frozenset[bytes]]:
        """Return the digests of those receipts of these requests that were called wrong, where there are any."""
        sql = "SELECT receipt FROM verdicts WHERE request_id = ?"
        rows = ((found, self._connection.execute(sql, (found,)).fetchall()) for found in request_ids)
        return {request_id: frozenset(receipt for (receipt,) in some) for request_id, some in rows if some}

    # --- records ---

    def sign_record(self, kind: str, owner: bytes, sequence: int, digest: bytes, fee_tx: bytes) -> None:
        """Remember a version of a record that is about to be signed; again with the same digest changes nothing.

        Args:
            kind, owner: which record it is.
            sequence: of this version.
            digest: of this version.
            fee_tx: hash of the transaction that paid for the record; empty where an earlier version was signed here.

        Raises:
            EndorsementRefused: another version of this sequence or a later one was signed, the fee was paid for
                another record, or it is not known to be paid.
        """
        place = sequence.to_bytes(32, "big")  # more than SQLite's integers hold
        with self._connection:
            if fee_tx:
                self._connection.execute("INSERT OR IGNORE INTO fees VALUES (?, ?, ?)", (fee_tx, kind, owner))
            newest = "SELECT sequence, digest FROM records WHERE kind = ? AND owner = ?"
            signed = self._connection.execute(newest, (kind, owner)).fetchone()
            paid_for = self._connection.execute("SELECT kind, owner FROM fees WHERE tx = ?", (fee_tx,)).fetchone()
            if fee_tx and paid_for != (kind, owner):
                raise EndorsementRefused(f"transaction 0x{fee_tx.hex()} has paid for another record")
            if not fee_tx and signed is None:
                raise EndorsementRefused(
                    f"no earlier version of this {kind} was signed here: name the transaction that has paid its fee"
                )
            if signed is not None and (signed[0] > place or (signed[0] == place and signed[1] != digest)):
                at = int.from_bytes(signed[0], "big")
                raise EndorsementRefused(
                    f"version {at} of this {kind} was signed already; sequence {sequence} must be higher than that"
                )
            self._connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", (kind, owner, place, digest))
