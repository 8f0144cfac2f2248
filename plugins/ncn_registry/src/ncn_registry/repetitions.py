"""Answers that nodes gave, held against another execution of the same request."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ncn_framework import digests
from ncn_framework.comparison import difference
from ncn_framework.errors import (
    EndorsementRefused,
    InvalidTensor,
    NcnError,
    NoCapacity,
    OutputRejected,
    SignatureRejected,
)
from ncn_framework.models import ANONYMOUS, Chunk, SignedReceipt
from ncn_framework.signing import check_signature
from ncn_framework.statements import Evidence
from ncn_framework.tensors import check_tensors, unpack_tensors

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Finding", "Repetitions", "Verdict", "check_evidence"]

log = logging.getLogger(__name__)

_AT_ONCE = 4
_MOST_WAITING = 512
_MOST_KNOWN = 16_384


class Verdict(StrEnum):
    """What came of executing a request again."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """It could not be executed here, or two executions here differ from each other."""


@dataclass(frozen=True)
class Finding:
    """What was found about one receipt; ``reason`` is for people."""

    verdict: Verdict
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}" if self.reason else str(self.verdict)


class Repetitions:
    """Executes requests again, each once, a few at a time; goes on when nobody waits any more.

    Args:
        node: executes them.
        wrong: digests of receipts that were found wrong before, and why.
    """

    def __init__(self, node: Node, wrong: Mapping[bytes, str] | None = None) -> None:
        self._node = node
        self._known = OrderedDict((key, Finding(Verdict.WRONG, why)) for key, why in (wrong or {}).items())
        self._running: dict[bytes, asyncio.Task[Finding]] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._told: set[bytes] = set()

    def known(self, receipt: SignedReceipt) -> Finding | None:
        """Return whether a receipt was found right or wrong; None where that is not known, or forgotten."""
        return self._known.get(digests.receipt_digest(self._node.domain, receipt.receipt))

    async def of(self, evidence: Evidence) -> Finding:
        """Return what is found about a receipt.

        Args:
            evidence: that ``check_evidence`` let pass.

        Raises:
            NoCapacity: too many wait already.
        """
        key = digests.receipt_digest(self._node.domain, evidence.receipt.receipt)
        if (found := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return found
        running = self._running.get(key)
        if running is None:
            if len(self._running) >= _MOST_WAITING:
                raise NoCapacity(f"{_MOST_WAITING} answers wait already to be checked here; ask again soon")
            running = self._running[key] = asyncio.create_task(self._find(key, evidence))
        return await asyncio.shield(running)

    async def close(self) -> None:
        """Give up what is being executed."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _find(self, key: bytes, evidence: Evidence) -> Finding:
        request_id = evidence.request.request_id.hex()
        try:
            async with self._turn:
                found = await self._judged(evidence)
            if found.verdict is not Verdict.UNKNOWN:  # the next time, there may be a worker or the model
                self._known[key] = found
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
            log.log(self._level(found, evidence.request.model), "request 0x%s: the answer is %s", request_id, found)
            return found
        finally:
            del self._running[key]

    def _level(self, found: Finding, model: bytes) -> int:
        """Return how loudly to say what was found; once for each model that it is not executed here."""
        if found.verdict is not Verdict.UNKNOWN:
            return logging.WARNING if found.verdict is Verdict.WRONG else logging.INFO
        if model in self._told or len(self._told) >= _MOST_KNOWN:
            return logging.INFO
        self._told.add(model)
        return logging.WARNING

    async def _judged(self, evidence: Evidence) -> Finding:
        if lie := _contradiction(evidence):
            return Finding(Verdict.WRONG, lie)
        try:
            found = await self._repeated(evidence)
            if not (differs := await asyncio.to_thread(_difference, evidence, found)):
                return Finding(Verdict.RIGHT)
            again = await self._repeated(evidence)  # a model that is not the same twice here condemns nobody
            if itself := await asyncio.to_thread(difference, found, again, evidence.manifest.tolerance):
                return Finding(Verdict.UNKNOWN, f"two executions here differ: {itself}")
        except (NcnError, TimeoutError) as error:
            return Finding(Verdict.UNKNOWN, f"it was not executed here: {error or 'it took too long'}")
        return Finding(Verdict.WRONG, differs)

    async def _repeated(self, evidence: Evidence) -> list[Chunk]:
        return await self._node.lifecycle.repeat(evidence.request, evidence.manifest)


def check_evidence(node: Node, evidence: Evidence, signed: SignedReceipt) -> None:
    """Raise unless what is shown is the request and the answer of a receipt: it is the fault of whoever shows it.

    Args:
        node: whose domain signatures are bound to.
        evidence: from anybody.
        signed: the receipt that it is to belong to.

    Raises:
        EndorsementRefused: naming what does not fit, and wanting the request to be shown.
    """
    request, receipt = evidence.request, signed.receipt
    what = f"what is shown of request 0x{receipt.request_id.hex()}"

    def refused(why: str) -> EndorsementRefused:
        return EndorsementRefused(f"{what}: {why}", wanted={receipt.request_id})

    if evidence.receipt.receipt != receipt:
        raise refused("it has another receipt")
    if request.request_id != receipt.request_id or request.request_hash != receipt.request_hash:
        raise refused("it is another request than the receipt's")
    if request.model != receipt.model or evidence.manifest.digest != receipt.model:
        raise refused("it has another model's manifest")
    link = digests.chain_start(request.request_hash, request.model, receipt.node)
    for place, chunk in enumerate(evidence.chunks, 1):
        link = digests.chunk_link(link, chunk)
        if chunk.sequence != place or (chunk.link and chunk.link != link):
            raise refused(f"chunk {place} is out of order or altered")
    if link != receipt.output_hash:
        raise refused("the chunks are not those of the receipt")
    try:
        if request.client != ANONYMOUS:
            digest = digests.request_digest(node.domain, request)
            check_signature(digest, request.signature, request.client, "the request")
        digest = digests.receipt_digest(node.domain, receipt)
        check_signature(digest, signed.signature_of(receipt.node), receipt.node, "the receipt")
    except SignatureRejected as cause:
        raise refused(str(cause)) from cause


def _contradiction(evidence: Evidence) -> str:
    """Return how a receipt contradicts the request and answer that its node signed; empty where it does not."""
    request, receipt, manifest = evidence.request, evidence.receipt.receipt, evidence.manifest
    units = 0
    for chunk in evidence.chunks:
        if chunk.units < units:
            return f"chunk {chunk.sequence} has {chunk.units} units, fewer than the {units} before it"
        units = chunk.units
    if (receipt.chunks, receipt.units) != (len(evidence.chunks), units) or not evidence.chunks:
        return f"a receipt over {receipt.chunks} chunks and {receipt.units} units; {len(evidence.chunks)} have {units}"
    if units > request.limit_units:
        return f"{units} units, above the request's limit of {request.limit_units}"
    if receipt.fee_wei != (fee := manifest.fee_wei(units, request.payment)):
        return f"a fee of {receipt.fee_wei} wei for {units} units, which cost {fee}"
    try:
        check_tensors(request.inputs, manifest.inputs, error=InvalidTensor)
        for chunk in evidence.chunks:
            check_tensors(unpack_tensors(chunk.data, error=OutputRejected), manifest.outputs, error=OutputRejected)
    except (InvalidTensor, OutputRejected) as cause:
        return str(cause)
    return ""


def _difference(evidence: Evidence, found: list[Chunk]) -> str:
    return difference(evidence.chunks, found, evidence.manifest.tolerance)
