"""A gateway's way to validators: through its registry, which it does not have to believe."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import grpc

from ncn_framework.errors import EndorsementRefused
from ncn_framework.payments import Quorum
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Evidence,
    FailureStatement,
    Statement,
    TermsStatement,
    epoch_of,
)
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_statements import (
    MAX_EVIDENCE,
    evidence_to_pb,
    refusal_from_pb,
    signatures_from_pb,
    statement_to_pb,
)
from ncn_framework.wire.grpc_errors import error_from_rpc

from .channel import connected
from .limits import MOST_BYTES, Limits
from .refusals import requests_of
from .signatures import Signatures

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["ENDORSED", "Endorser"]

ENDORSED = (BatchStatement, TermsStatement, CompletionStatement, FailureStatement)
"""What a gateway has signed; the rest is between validators."""

_ROUNDS = 8
"""How often a statement is put to validators, each time with more of what they want to see."""

_SLACK_S = 1.0
"""How much longer than its validators a registry may take."""

_ROOM_BYTES = 64 << 10
"""Of a message, what is left for what is around a statement and its evidence."""


class Endorser:
    """Has statements signed, of a gateway or of a node that settles itself.

    Args:
        node: that makes the statements; knows the epochs from its own chain, and shows answers to validators.
        registry: its HOST:PORT, for messages.
        limits: of time, as the registry has them.

    Attributes:
        stub: of the registry's service; without one, as where a command settles, each call has a connection of its own.
    """

    def __init__(self, node: Node, registry: str, limits: Limits) -> None:
        self._node, self._registry, self._limits = node, registry, limits
        self.stub: Any = None

    async def endorse(self, statement: Statement) -> Quorum:
        """Return a quorum's signatures, each checked here as the contract will check it.

        Raises:
            EndorsementRefused: too few validators agree, or want to see answers that this gateway has no more.
            CapacityError: the registry cannot be reached, or is busy.
            ChainError: the chain does not answer, or has no such epoch.
        """
        epoch = await self._node.validation.epoch(epoch_of(statement))
        shown: dict[bytes, Evidence] = {}
        refusal = EndorsementRefused("the validators were not asked")
        for _ in range(_ROUNDS):
            found = Signatures(self._node.domain, epoch, statement)
            try:
                for signature in signatures_from_pb(await self._ask(statement, shown)):
                    found.add(signature)
            except EndorsementRefused as error:
                refusal = error
                more = await self._disclosed((error.wanted & requests_of(statement)) - shown.keys())
                if not more:
                    raise
                shown = more | shown  # newest first: what was right is remembered, and room may be short
                continue
            if not found.enough:
                raise EndorsementRefused(
                    f"registry {self._registry} gave {len(found)} good signatures of validators of epoch "
                    f"{epoch.number}; {epoch.quorum} are needed"
                )
            return found.quorum()
        raise refusal

    async def _ask(self, statement: Statement, shown: Mapping[bytes, Evidence]) -> Iterable[pb.ValidatorSignature]:
        timeout_s = self._limits.of(shown)[0] + _SLACK_S
        message = await asyncio.to_thread(_encoded, statement, shown)
        try:
            if self.stub is not None:
                response = await _call(self.stub, message, timeout_s)
            else:
                async with connected(self._registry) as stub:
                    response = await _call(stub, message, timeout_s)
        except grpc.aio.AioRpcError as cause:
            raise error_from_rpc(cause, f"registry {self._registry}") from cause
        if response.HasField("refusal"):
            raise refusal_from_pb(response.refusal)
        found: Iterable[pb.ValidatorSignature] = response.signatures
        return found

    async def _disclosed(self, wanted: Iterable[bytes]) -> dict[bytes, Evidence]:
        found: dict[bytes, Evidence] = {}
        for request_id in sorted(wanted)[:MAX_EVIDENCE]:
            evidence = await self._node.validation.disclose(request_id)
            if evidence is not None:
                found[request_id] = evidence
        return found


def _encoded(statement: Statement, shown: Mapping[bytes, Evidence]) -> pb.StatementRequest:
    """Return the message, with as much of the evidence as it holds; in a thread, since batches are large."""
    message = statement_to_pb(statement)
    left = MOST_BYTES - _ROOM_BYTES - message.ByteSize()
    for evidence in list(shown.values())[:MAX_EVIDENCE]:
        one = evidence_to_pb(evidence)
        left -= one.ByteSize() + 8
        if left < 0:
            break
        message.evidence.append(one)
    return message


async def _call(stub: Any, message: pb.StatementRequest, timeout_s: float) -> Any:
    match message.WhichOneof("statement"):
        case "preprocessing":
            return await stub.RequestPreprocessingValidation(message.preprocessing, timeout=timeout_s)
        case "completion":
            completion = message.completion
            if message.evidence:
                shown = message.evidence[0]
                shown.terms.CopyFrom(completion.terms)
                shown.escrow_id = completion.escrow_id
                completion = shown
            return await stub.RequestCompletionValidation(completion, timeout=timeout_s)
        case "failure":
            return await stub.RequestFailureValidation(message.failure, timeout=timeout_s)
        case _:
            message.batch.evidence.extend(message.evidence)
            return await stub.RequestBatchValidation(message.batch, timeout=timeout_s)
