"""Collects validators' signatures: draws who is asked, asks, asks others where an answer is late, checks what comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

from google.protobuf.message import DecodeError

from ncn_framework.committees import Epoch
from ncn_framework.errors import EndorsementRefused, MalformedRequest, NcnError, code_of
from ncn_framework.models import Signature
from ncn_framework.payments import Quorum
from ncn_framework.statements import Evidence, Statement, epoch_of
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_statements import (
    evidence_from_pb,
    refusal_from_pb,
    refusal_to_pb,
    signatures_from_pb,
    signatures_to_pb,
    statement_from_pb,
    statement_to_pb,
)

from .contradictions import Contradictions
from .gate import Gate
from .limits import MOST_BYTES, Limits
from .outcomes import Outcome
from .rounds import Question, Round
from .signatures import Signatures
from .validators import ValidatorInfo

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Collector", "Peers", "in_thread"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_CHECKED_AT_ONCE = 8
_ADMITTED_AT_ONCE = 64
_MOST_WAITING = 512
_MOST_WAITING_BYTES = 8 * MOST_BYTES
_LARGE = 128 << 10
"""From here on a message is taken apart in a thread: ten thousand charges take half a second."""


class Peers(Protocol):
    """How other registries are reached: ``Swarm`` does."""

    async def ask(self, peer_id: str, addresses: tuple[str, ...], question: bytes, timeout_s: float) -> bytes:
        """Ask a peer directly."""


class Collector:
    """Asks validators, those of this process and those of other registries.

    Args:
        node: the registry of this process; knows epochs, and vouches for its own validators.
        speaker_of: returns who speaks for a validator, or None.
        peers: reaches other registries.
        limits: of time.
        contradictions: of validators: are told what was signed, and what statements say.
        told: called with each statement that a quorum signed, and what each validator that was asked did.
    """

    def __init__(
        self,
        node: Node,
        speaker_of: Callable[[bytes], Awaitable[ValidatorInfo | None]],
        peers: Peers,
        limits: Limits,
        contradictions: Contradictions,
        told: Callable[[Statement, Signatures, Sequence[Outcome]], None] = lambda statement, signatures, outcomes: None,
    ) -> None:
        self._node, self._speaker_of, self._peers, self._limits, self._told = node, speaker_of, peers, limits, told
        self._contradictions = contradictions
        self._checking = Gate("checked", _CHECKED_AT_ONCE, _MOST_WAITING, _MOST_WAITING_BYTES)
        self._admission = Gate("signed", _ADMITTED_AT_ONCE, _MOST_WAITING, _MOST_WAITING_BYTES)

    # --- asking ---

    def admitted(self, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Bound how many statements of gateways are under way at once; entered by who brings one.

        Raises:
            NoCapacity: too many wait already.
        """
        return self._admission.passed(size_bytes)

    async def epoch(self) -> Epoch:
        """Return the current epoch.

        Raises:
            ChainError: the chain does not answer.
        """
        return await self._node.validation.epoch()

    async def endorse(self, statement: Statement, evidence: Mapping[bytes, Evidence] | None = None) -> Quorum:
        """As ``collect``; return the quorum as the contract takes it."""
        return (await self.collect(statement, evidence)).quorum()

    async def collect(self, statement: Statement, evidence: Mapping[bytes, Evidence] | None = None) -> Signatures:
        """Have a quorum of a statement's epoch sign it; return all signatures that came.

        Args:
            statement: from anybody.
            evidence: by request id: what validators asked to be shown.

        Raises:
            EndorsementRefused: too few of them agree, or one of them wants to see more first.
            ChainError: the chain does not answer, or has no such epoch.
        """
        evidence = evidence or {}
        epoch = await self._node.validation.epoch(epoch_of(statement))
        limit_s, hedge_s = self._limits.of(evidence)
        message = _Message(statement, evidence)
        self._contradictions.hear(statement)

        async def ask(validator: bytes) -> tuple[str, Question]:
            if any(own.address == validator for own in self._node.validators):
                return "", lambda: self._vouch(statement, evidence, 0)
            info = await self._speaker_of(validator)
            if info is None:
                raise NcnError("it is not known which registry speaks for it")
            return info.peer_id, lambda: self._ask(info, message, limit_s)

        asking = Round(self._node.domain, epoch, statement, frozenset(evidence), ask, hedge_s)
        try:
            async with asyncio.timeout(limit_s):
                await asking.run()
        except TimeoutError:
            log.info("validators of epoch %d were not done within %g s", epoch.number, limit_s)
        self._contradictions.note(asking.signatures.digest, asking.signatures.all())
        if asking.signatures.enough:
            self._told(statement, asking.signatures, list(asking.outcomes()))
        return asking.result()

    async def _ask(self, info: ValidatorInfo, message: _Message, timeout_s: float) -> tuple[Signature, ...]:
        answer = await self._peers.ask(info.peer_id, info.multiaddrs, await message.encoded(), timeout_s)
        try:
            response = pb.StatementResponse.FromString(answer)
        except DecodeError as cause:
            raise MalformedRequest(f"peer {info.peer_id} gave no answer that can be read") from cause
        if response.HasField("refusal"):
            raise refusal_from_pb(response.refusal)
        return signatures_from_pb(response.signatures)

    # --- answering ---

    async def answer(self, question: bytes, peer: str) -> bytes:
        """Answer another registry: sign its statement with the validators of this process, or say why not."""
        try:
            statement, evidence = await in_thread(len(question), lambda: _decoded(question))
            self._contradictions.hear(statement)
            signatures = await self._vouch(statement, evidence, len(question))
            response = pb.StatementResponse(signatures=signatures_to_pb(signatures))
        except EndorsementRefused as refusal:
            response = pb.StatementResponse(refusal=refusal_to_pb(refusal))
        except NcnError as error:
            log.info("a statement of peer %s was not checked: %s", peer, error)
            response = pb.StatementResponse(
                refusal=refusal_to_pb(EndorsementRefused(f"{code_of(error).code}: {error}"))
            )
        return response.SerializeToString()

    async def _vouch(
        self, statement: Statement, evidence: Mapping[bytes, Evidence], size_bytes: int
    ) -> tuple[Signature, ...]:
        async with self._checking.passed(size_bytes):
            return await self._node.validation.vouch(statement, evidence)


class _Message:
    """A statement with its evidence, encoded when the first registry is asked, once for all."""

    def __init__(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        self._statement, self._evidence = statement, evidence
        self._encoding: asyncio.Task[bytes] | None = None

    async def encoded(self) -> bytes:
        """Return the message's bytes."""
        if self._encoding is None:
            self._encoding = asyncio.create_task(asyncio.to_thread(self._encode))
        return await asyncio.shield(self._encoding)

    def _encode(self) -> bytes:
        return statement_to_pb(self._statement, self._evidence).SerializeToString()


def _decoded(question: bytes) -> tuple[Statement, dict[bytes, Evidence]]:
    try:
        message = pb.StatementRequest.FromString(question)
    except DecodeError as cause:
        raise MalformedRequest("the question is no statement") from cause
    return statement_from_pb(message), evidence_from_pb(message.evidence)


async def in_thread(size_bytes: int, work: Callable[[], T]) -> T:
    """Return what ``work`` returns; done in a thread where it is about a large message, so that others go on."""
    return work() if size_bytes < _LARGE else await asyncio.to_thread(work)
