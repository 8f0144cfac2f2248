"""What a registry's validators look at before they sign: is the node what the terms say, are its answers right?"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ncn_framework.committees import COMMITTEE
from ncn_framework.errors import EndorsementRefused, NcnError
from ncn_framework.models import ModelManifest, Record, SignedReceipt
from ncn_framework.signing import address_hex
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Evidence,
    Statement,
    TermsStatement,
    VerdictStatement,
)
from ncn_framework.wire.convert import node_info_from_record

from .records import NODE
from .repetitions import Finding, Repetitions, Verdict, check_evidence
from .roll import Roll

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["MOST_WANTED", "Accuse", "Inspector"]

log = logging.getLogger(__name__)

MOST_WANTED = 12
"""Requests of one statement that are asked to be shown for each validator of this process, at most: what a committee of
five wants fits into one message (``MAX_EVIDENCE``)."""

_RECORD_S = 2.0
"""How long a node may take to appear here whose gateway knows it already."""

Accuse = Callable[[Evidence, str], Awaitable[None]]


class Inspector:
    """Checks statements for the validators of one process.

    Which requests it wants to see, nobody can foresee: it goes by a hash with a key that this process alone knows. It
    is the same whenever and with whatever other requests it is asked again.

    Args:
        node: executes requests again.
        roll: knows the nodes.
        sample_rate: share of requests to be shown and executed again, 0 to 1.
        patience_s: how long a statement waits for that; what takes longer goes on beside it.
        accuse: takes an answer that is wrong, and why.
        wrong: digests of receipts that were found wrong before, and why.
    """

    def __init__(
        self,
        node: Node,
        roll: Roll,
        sample_rate: float,
        patience_s: float,
        accuse: Accuse,
        wrong: Mapping[bytes, str] | None = None,
    ) -> None:
        self._node, self._roll, self._accuse = node, roll, accuse
        self._patience_s = patience_s
        self._below = int(sample_rate * 2**64)
        self._key = secrets.token_bytes(32)
        self._repetitions = Repetitions(node, wrong)
        self._accusing: set[asyncio.Task[Finding]] = set()

    async def close(self) -> None:
        """Give up what is being executed."""
        await self._repetitions.close()
        await asyncio.gather(*self._accusing, return_exceptions=True)

    async def inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        """Raise unless this registry knows nothing against a statement.

        Raises:
            EndorsementRefused: what is wrong, or which answers are wanted.
        """
        match statement:
            case TermsStatement():
                await self._terms(statement)
            case BatchStatement():
                await self._answers([charge.receipt for charge in statement.charges], evidence)
            case CompletionStatement():
                await self._answers([statement.receipt], evidence)
            case VerdictStatement():
                await self._verdict(statement, evidence)
            case _:
                pass

    # --- terms ---

    async def _terms(self, statement: TermsStatement) -> None:
        node, request = statement.terms.node, statement.request
        manifest = await self._served(node, request.model)
        if (statement.base_fee_wei, statement.unit_fee_wei) != (manifest.base_fee_wei, manifest.unit_fee_wei):
            raise EndorsementRefused(
                f"node {address_hex(node)} asks {manifest.base_fee_wei} wei and {manifest.unit_fee_wei} a unit for "
                f"model {manifest.name[:64]!r}; the terms say {statement.base_fee_wei} and {statement.unit_fee_wei}"
            )
        try:
            self._node.lifecycle.check(request, manifest)
        except NcnError as cause:
            raise EndorsementRefused(str(cause)) from cause

    async def _served(self, node: bytes, model: bytes) -> ModelManifest:
        """Return the manifest of a model that a node serves which is registered, alive and in good standing."""
        if (reason := self._roll.out.get(node)) is not None:
            raise EndorsementRefused(f"node {address_hex(node)} may be given no work: {reason}")
        if (record := self._alive(node)) is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RECORD_S):
                    record = await self._appeared(node)
        if record is None:
            raise EndorsementRefused(f"node {address_hex(node)} is not registered here, or is not alive")
        for manifest in node_info_from_record(record).models:
            if manifest.digest == model:
                return manifest
        raise EndorsementRefused(f"node {address_hex(node)} does not serve model 0x{model.hex()}")

    def _alive(self, node: bytes) -> Record | None:
        return self._roll.get(NODE, node) if node in self._roll.presence else None

    async def _appeared(self, node: bytes) -> Record:
        with self._roll.watchers.joined((NODE,)) as watcher:
            while (record := self._alive(node)) is None:
                await watcher.next()
        return record

    # --- answers ---

    async def _answers(self, receipts: Iterable[SignedReceipt], evidence: Mapping[bytes, Evidence]) -> None:
        by_id = {signed.receipt.request_id: signed for signed in receipts}
        # in a thread: of ten thousand receipts, it takes longer than others should wait
        findings, sampled = await asyncio.to_thread(self._sample, by_id)
        if missing := [id_ for id_ in sampled if id_ not in evidence and findings[id_] is None]:
            raise EndorsementRefused(
                f"{len(missing)} of {len(by_id)} answers must be shown first, to be executed again", wanted=missing
            )
        shown = [id_ for id_ in by_id if id_ in evidence and findings[id_] is None]
        for id_ in shown:
            check_evidence(self._node, evidence[id_], by_id[id_])
        checking = {id_: self._check(evidence[id_]) for id_ in shown}
        if checking:
            await asyncio.wait(checking.values(), timeout=self._patience_s)
        for id_, task in checking.items():
            if not task.done():
                log.info("request 0x%s: its statement does not wait until it is executed again", id_.hex())
            elif (error := task.exception()) is not None:
                raise EndorsementRefused(f"answers could not be checked: {error}") from error
            else:
                findings[id_] = task.result()
        wrong = {id_: found for id_, found in findings.items() if found and found.verdict is Verdict.WRONG}
        if wrong:
            id_, found = next(iter(wrong.items()))
            raise EndorsementRefused(
                f"{len(wrong)} answers are wrong; that to request 0x{id_.hex()}: {found.reason}", invalid=wrong
            )

    def _sample(self, receipts: Mapping[bytes, SignedReceipt]) -> tuple[dict[bytes, Finding | None], list[bytes]]:
        """Return what is known of receipts, and the requests among them that are to be shown."""
        findings = {request_id: self._repetitions.known(signed) for request_id, signed in receipts.items()}
        draws = sorted((draw, id_) for id_ in receipts if (draw := self._draw(id_)) < self._below)
        most = MOST_WANTED * min(max(len(self._node.validators), 1), COMMITTEE)
        return findings, [id_ for _, id_ in draws[:most]]

    def _draw(self, request_id: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(request_id, digest_size=8, key=self._key).digest(), "big")

    def _check(self, evidence: Evidence) -> asyncio.Task[Finding]:
        """Check an answer, and accuse its node where it is wrong; whether or not somebody waits for that."""

        async def checked() -> Finding:
            found = await self._repetitions.of(evidence)
            if found.verdict is Verdict.WRONG:
                try:
                    await self._accuse(evidence, found.reason)
                except NcnError as error:
                    log.error("node %s is not accused: %s", address_hex(evidence.receipt.receipt.node), error)
            return found

        task = asyncio.create_task(checked())
        self._accusing.add(task)
        task.add_done_callback(self._checked)
        return task

    def _checked(self, task: asyncio.Task[Finding]) -> None:
        self._accusing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("an answer was not checked: %s", error)

    # --- verdicts ---

    async def _verdict(self, statement: VerdictStatement, evidence: Mapping[bytes, Evidence]) -> None:
        request_id = statement.receipt.receipt.request_id
        found = self._repetitions.known(statement.receipt)
        if found is None:
            if (shown := evidence.get(request_id)) is None:
                raise EndorsementRefused("a verdict needs the answer that it is about", wanted={request_id})
            check_evidence(self._node, shown, statement.receipt)
            try:
                async with asyncio.timeout(self._patience_s):
                    found = await self._repetitions.of(shown)
            except TimeoutError as cause:
                raise EndorsementRefused(
                    f"request 0x{request_id.hex()} is still being executed again here; ask again soon"
                ) from cause
            except NcnError as cause:
                raise EndorsementRefused(str(cause)) from cause
        if found.verdict is not Verdict.WRONG:
            raise EndorsementRefused(f"another execution here finds the answer to 0x{request_id.hex()} {found}")
