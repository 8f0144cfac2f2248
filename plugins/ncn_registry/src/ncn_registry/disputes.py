"""Nodes accused of a wrong result: each goes before a quorum, and with its verdict to the chain; kept until then."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ncn_framework import digests
from ncn_framework.errors import EndorsementRefused, NcnError, NoCapacity, StoreError, TransactionReverted
from ncn_framework.group_commit import sqlite_pragmas
from ncn_framework.payments import Quorum
from ncn_framework.reservations import finish
from ncn_framework.signing import address_hex
from ncn_framework.statements import Evidence, VerdictStatement
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_statements import evidence_from_pb, evidence_to_pb

from .database import as_store_errors

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Dispute", "Disputes", "State", "kept_disputes"]

log = logging.getLogger(__name__)

Endorse = Callable[[VerdictStatement, Mapping[bytes, Evidence]], Awaitable[Quorum]]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS disputes (
    receipt BLOB PRIMARY KEY,
    node BLOB NOT NULL,
    reason TEXT NOT NULL,
    evidence BLOB NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    refusals INTEGER NOT NULL,
    found_ms INTEGER NOT NULL
) WITHOUT ROWID;
"""

_MOST = 10_000
_MOST_BYTES = 256 << 20
"""Disputes, and bytes of evidence of those that are open, at most."""

_MOST_REFUSALS = 10
"""How often a quorum may refuse until the accusation is dropped: then it is this process that is mistaken."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_KEPT_MS = 180 * 86_400_000
"""How long what is closed is remembered."""

_REPORTED_BEFORE = "ValidatorRegistry__EvidenceUsed"
"""The contract's error where another registry was first."""

_NO_STAKE = "ValidatorRegistry__WrongState"
"""The contract's error where the node never put up a bond."""


class State(StrEnum):
    """Where a dispute stands."""

    OPEN = "open"
    REPORTED = "reported"
    """On chain: the node was slashed, by this registry's transaction or another's."""
    UNBONDED = "unbonded"
    """A quorum agreed, and the contract refused: the node has no stake. It gets no more work from here."""
    REFUSED = "refused"
    """No quorum found the result wrong."""


@dataclass(frozen=True)
class Dispute:
    """A receipt that is said to be wrong.

    Attributes:
        receipt: its digest.
        node: that signed it.
        reason: how the result differs from another execution.
        evidence: the request with its answer; None once it is closed.
        detail: transaction, or why it was closed.
        refusals: how often no quorum was found.
        found_ms: when the result was found wrong.
    """

    receipt: bytes
    node: bytes
    reason: str
    evidence: Evidence | None
    state: State
    detail: str
    refusals: int
    found_ms: int


@dataclass
class _Wait:
    """When an open dispute is tried again."""

    at: float = 0.0
    pause_s: float = field(default_factory=lambda: _FIRST_PAUSE_S)


class Disputes:
    """All disputes that this registry has begun.

    Args:
        path: of the database.
        node: reports to the chain, and hears who gets no more work.
        endorse: has a quorum sign a verdict, given the evidence by request id.
    """

    def __init__(self, path: Path, node: Node, endorse: Endorse) -> None:
        self._path, self._node, self._endorse = path, node, endorse
        self._all: dict[bytes, Dispute] = {}
        self._waits: dict[bytes, _Wait] = {}
        self._bytes: dict[bytes, int] = {}
        self._more = asyncio.Event()
        self._writing = asyncio.Lock()

    def all(self) -> list[Dispute]:
        """Return every dispute, oldest first."""
        return sorted(self._all.values(), key=lambda dispute: dispute.found_ms)

    def wrong(self) -> dict[bytes, str]:
        """Return the digests of the receipts that count as wrong, and why each does."""
        return {key: one.reason for key, one in self._all.items() if one.state is not State.REFUSED}

    async def begin(self, evidence: Evidence, reason: str) -> None:
        """Accuse the node of a wrong result; once for each receipt. Returns when that is durable.

        Args:
            evidence: the request and the answer that the node signed.
            reason: how the result differs, for people.

        Raises:
            NoCapacity: there are too many already.
            StoreError: it could not be written.
        """
        receipt = evidence.receipt.receipt
        key = digests.receipt_digest(self._node.domain, receipt)
        if key in self._all:
            return
        data = evidence_to_pb(evidence).SerializeToString()
        if len(self._all) >= _MOST or sum(self._bytes.values()) + len(data) > _MOST_BYTES:
            raise NoCapacity(f"{len(self._all)} disputes are kept already, with {sum(self._bytes.values())} bytes")
        now = self._node.lifecycle.clock()
        dispute = Dispute(key, receipt.node, reason[:1_024], evidence, State.OPEN, "", 0, now)
        log.warning("node %s is accused: request 0x%s: %s", address_hex(receipt.node), receipt.request_id.hex(), reason)
        self._take(dispute, data)
        await self._store(dispute, data)

    # --- the service ---

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring disputes before validators and the chain until the context is left."""
        self._database = await asyncio.to_thread(self._open)
        try:
            for dispute in self.all():
                if dispute.state is State.UNBONDED:  # the chain does not say so
                    self._node.plugins.standing(dispute.node, True, dispute.reason)
            working = asyncio.create_task(self._work())
            working.add_done_callback(self._ended)
            try:
                yield
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        finally:
            async with self._writing:
                self._database.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._node.fail(error)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._more.clear()
            for key, wait in list(self._waits.items()):
                if wait.at <= loop.time():
                    await self._try(self._all[key], wait)
            next_at = min((wait.at for wait in self._waits.values()), default=None)
            try:
                async with asyncio.timeout_at(next_at):
                    await self._more.wait()
            except TimeoutError:
                continue

    async def _try(self, dispute: Dispute, wait: _Wait) -> None:
        try:
            closed = await self._judged(dispute)
        except (NcnError, TimeoutError) as error:
            log.info("the dispute with node %s waits: %s", address_hex(dispute.node), error)
            dispute = replace(dispute, refusals=dispute.refusals + isinstance(error, EndorsementRefused))
            closed = replace(dispute, detail=str(error))
            if dispute.refusals >= _MOST_REFUSALS:
                log.warning("node %s is not accused any more: no quorum agrees: %s", address_hex(dispute.node), error)
                closed = replace(closed, state=State.REFUSED)
        if closed.state is State.OPEN:
            wait.at = asyncio.get_running_loop().time() + wait.pause_s
            wait.pause_s = min(2 * wait.pause_s, _LONGEST_PAUSE_S)
        try:
            await self._store(closed)
        except StoreError as error:
            log.error("%s", error)
        self._take(closed)

    async def _judged(self, dispute: Dispute) -> Dispute:
        """Return the dispute as it stands once a quorum and the chain have spoken.

        Raises:
            NcnError: they have not.
        """
        node, evidence = self._node, dispute.evidence
        if evidence is None:
            return dispute
        epoch = await node.validation.epoch()
        statement = VerdictStatement(epoch.disputes, epoch.number, evidence.receipt, dispute.reason)
        quorum = await self._endorse(statement, {evidence.request.request_id: evidence})
        try:
            transaction = await node.validation.report(statement, quorum)
        except TransactionReverted as error:
            if error.reason not in (_REPORTED_BEFORE, _NO_STAKE):
                raise  # such as too little ether for the transaction: tried again
            state = State.REPORTED if error.reason == _REPORTED_BEFORE else State.UNBONDED
            log.warning("node %s is not slashed by this verdict: %s", address_hex(dispute.node), error)
            closed = replace(dispute, state=state, detail=str(error))
        else:
            log.warning("node %s is slashed for a wrong result: %s", address_hex(dispute.node), transaction)
            closed = replace(dispute, state=State.REPORTED, detail=transaction)
        node.plugins.standing(dispute.node, True, dispute.reason)
        return replace(closed, evidence=None)

    # --- what is kept ---

    def _take(self, dispute: Dispute, data: bytes | None = None) -> None:
        key = dispute.receipt
        self._all[key] = dispute
        if dispute.state is State.OPEN:
            self._waits.setdefault(key, _Wait())
            if data is not None:
                self._bytes[key] = len(data)
            self._more.set()
        else:
            self._waits.pop(key, None)
            self._bytes.pop(key, None)
            self._all[key] = replace(dispute, evidence=None)

    def _open(self) -> sqlite3.Connection:
        with as_store_errors("disputes", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            sqlite_pragmas(database)
            database.executescript(_SCHEMA)
            oldest = self._node.lifecycle.clock() - _KEPT_MS
            database.execute("DELETE FROM disputes WHERE state IN ('reported', 'refused') AND found_ms < ?", (oldest,))
            rows = database.execute(
                "SELECT receipt, node, reason, evidence, state, detail, refusals, found_ms FROM disputes"
            ).fetchall()
        for receipt, node, reason, data, state, detail, refusals, found_ms in rows:
            try:
                shown = list(evidence_from_pb([pb.ComputeCompletion.FromString(data)]).values()) if data else [None]
            except (NcnError, DecodeError) as error:
                log.error("the evidence against node %s is lost: %s", address_hex(node), error)
                continue
            self._take(Dispute(receipt, node, reason, shown[0], State(state), detail, refusals, found_ms), data)
        return database

    async def _store(self, dispute: Dispute, data: bytes | None = None) -> None:
        """Write a dispute; its evidence is written once, and dropped when it is closed."""

        async def alone() -> None:
            async with self._writing:
                await asyncio.to_thread(self._write, dispute, data)

        await finish(alone())

    def _write(self, dispute: Dispute, data: bytes | None) -> None:
        with as_store_errors("disputes", self._path):
            if data is not None:
                self._database.execute(
                    "INSERT OR REPLACE INTO disputes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (dispute.receipt, dispute.node, dispute.reason, data, *_progress(dispute), dispute.found_ms),
                )
                return
            evidence = "" if dispute.state is State.OPEN else ", evidence = x''"
            self._database.execute(
                f"UPDATE disputes SET state = ?, detail = ?, refusals = ?{evidence} WHERE receipt = ?",
                (*_progress(dispute), dispute.receipt),
            )


def kept_disputes(path: Path) -> list[Dispute]:
    """Return the disputes in a database, without their evidence, oldest first; none where there is no database.

    Raises:
        StoreError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            rows = database.execute(
                "SELECT receipt, node, reason, state, detail, refusals, found_ms FROM disputes ORDER BY found_ms"
            ).fetchall()
        finally:
            database.close()
    except sqlite3.Error as cause:
        raise StoreError(f"the disputes in {path} cannot be read: {cause}") from cause
    return [Dispute(receipt, node, reason, None, State(state), *rest) for receipt, node, reason, state, *rest in rows]


def _progress(dispute: Dispute) -> tuple[str, str, int]:
    return str(dispute.state), dispute.detail, dispute.refusals
