"""Validators that signed two statements of which one must be untrue: reported to the chain, which slashes them.

Two batches of one gateway with one nonce, or two decisions on one escrow. What validators signed lately is kept, so
that a contradiction is seen however long the process was down between the two; so is what was found, until the chain
has it. It proves itself, and no quorum is asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ncn_framework import digests
from ncn_framework.errors import NcnError, StoreError, TransactionReverted
from ncn_framework.group_commit import GroupCommit
from ncn_framework.models import Signature, SignedReceipt
from ncn_framework.reservations import finish
from ncn_framework.signing import address_hex
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Contradiction,
    FailureStatement,
    Statement,
    digest_of,
)
from ncn_framework.wire.convert_statements import statement_to_pb

from .contradiction_store import ContradictionStore, Decided, Found, Key, State

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Contradictions"]

log = logging.getLogger(__name__)

_HEARD = 8_192
"""Statements of which it is known what they say, should somebody tell who signed them."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0

_FOR_GOOD = {
    "ValidatorRegistry__EvidenceUsed": State.REPORTED,
    "ValidatorRegistry__WrongState": State.REFUSED,
    "DisputeManager__NoConflict": State.REFUSED,
    "DisputeManager__DifferentSigners": State.REFUSED,
}
"""The contracts' errors that stay; what else is refused, such as a fee that nobody has ether for, is tried again."""


@dataclass
class _Wait:
    """What waits for the chain, and when it is tried again."""

    found: Found
    at: float = 0.0
    pause_s: float = 0.0


class Contradictions:
    """What validators signed lately, as far as this registry knows, and those found to have contradicted themselves.

    Args:
        path: of the database.
        node: reports to the chain.
    """

    def __init__(self, path: Path, node: Node) -> None:
        self._path, self._node = path, node
        self._heard: OrderedDict[bytes, Decided] = OrderedDict()
        self._waits: dict[Key, _Wait] = {}
        self._more = asyncio.Event()
        self._writer = GroupCommit[tuple[Decided, Sequence[Signature]]](
            "validators' signatures", self._write, checkpoint=lambda: self._store.checkpoint()
        )

    # --- what is heard ---

    def hear(self, statement: Statement) -> None:
        """Remember for a while what a statement from anybody says."""
        decided = _decided(statement)
        if decided is None:
            return
        subject, bare = decided
        digest = digest_of(self._node.domain, statement)
        if digest not in self._heard:
            self._heard[digest] = Decided(subject, digest, statement_to_pb(bare).SerializeToString())
            if len(self._heard) > _HEARD:
                self._heard.popitem(last=False)

    def note(self, digest: bytes, signatures: Sequence[Signature]) -> asyncio.Future[None] | None:
        """Take validators' signatures, which somebody has checked; of a statement that was not heard, none is taken.

        Args:
            digest: of the statement.
            signatures: of validators.

        Returns:
            Done once they are durable, and compared with what was signed before. Nobody has to wait for it.
        """
        statement = self._heard.get(digest)
        if statement is None or not signatures:
            return None
        try:
            writing = self._writer.put((statement, tuple(signatures)))
        except StoreError as error:
            log.warning("signatures under 0x%s are not kept: %s", digest.hex(), error)
            return None
        writing.add_done_callback(_noticed)
        return writing

    # --- the service ---

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep signatures, and bring contradictions to the chain, until the context is left.

        Raises:
            StoreError: the database cannot be opened.
        """
        node, self._loop = self._node, asyncio.get_running_loop()
        self._store = await asyncio.to_thread(ContradictionStore, self._path, node.domain, node.lifecycle.clock())
        try:
            for found in await asyncio.to_thread(self._store.open_ones):
                self._begin(found)
            async with self._writer:
                working = asyncio.create_task(self._work())
                working.add_done_callback(self._ended)
                try:
                    yield
                finally:
                    working.cancel()
                    await asyncio.gather(working, return_exceptions=True)
        finally:
            self._store.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._node.fail(error)

    def _write(self, items: list[tuple[Decided, Sequence[Signature]]]) -> None:
        for found in self._store.add(items, self._node.lifecycle.clock()):
            validator = address_hex(found.proof.validator)
            log.error("validator %s signed two statements of which one must be untrue; it is reported", validator)
            self._loop.call_soon_threadsafe(self._begin, found)

    def _begin(self, found: Found) -> None:
        self._waits[found.key] = _Wait(found)
        self._more.set()

    async def _work(self) -> None:
        while True:
            self._more.clear()
            for wait in list(self._waits.values()):
                if wait.at <= self._loop.time():
                    await self._try(wait)
            next_at = min((wait.at for wait in self._waits.values()), default=None)
            try:
                async with asyncio.timeout_at(next_at):
                    await self._more.wait()
            except TimeoutError:
                continue

    async def _try(self, wait: _Wait) -> None:
        validator = address_hex(wait.found.proof.validator)
        try:
            state, detail = await self._reported(wait.found.proof)
        except (NcnError, TimeoutError) as error:
            state, detail = State.OPEN, str(error)
            log.info("contradicting signatures of validator %s wait for the chain: %s", validator, error)
        wait.pause_s = min(2 * wait.pause_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        wait.at = self._loop.time() + wait.pause_s
        found = replace(wait.found, state=state, detail=detail)
        try:
            if found != wait.found:
                await finish(asyncio.to_thread(self._store.settle, found))
        except StoreError as error:  # the chain says the same when it is asked again
            log.error("%s", error)
            return
        wait.found = found
        if state is not State.OPEN:
            log.warning("contradicting signatures of validator %s are %s: %s", validator, state, detail)
            del self._waits[found.key]

    async def _reported(self, proof: Contradiction) -> tuple[State, str]:
        try:
            return State.REPORTED, await self._node.validation.report(proof, None)
        except TransactionReverted as error:
            if (state := _FOR_GOOD.get(error.reason)) is None:
                raise
            return state, str(error)


def _decided(statement: Statement) -> tuple[bytes, Statement] | None:
    """Return a name of what may be decided only once, and the statement without what its digest does not cover.

    None where a second statement contradicts nothing.
    """
    match statement:
        case BatchStatement(batch):
            name = digests.keccak(b"batch" + batch.gateway + batch.nonce.to_bytes(8, "big"))
            return name, BatchStatement(batch, (), (), ())
        case CompletionStatement():
            bare = replace(statement, receipt=SignedReceipt(statement.receipt.receipt, ()))
            return digests.keccak(b"escrow" + statement.escrow_id), bare
        case FailureStatement():
            return digests.keccak(b"escrow" + statement.escrow_id), replace(statement, reason="")
        case _:
            return None


def _noticed(written: asyncio.Future[None]) -> None:
    """Take note of a failure that nobody waits for; the writer has logged it."""
    if not written.cancelled():
        written.exception()
