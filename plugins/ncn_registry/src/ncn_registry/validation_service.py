"""gRPC of ``P2PRegistryService`` that concerns validators: decode, ask the collector, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import grpc

from ncn_framework import digests
from ncn_framework.committees import Epoch, Member
from ncn_framework.errors import EndorsementRefused, NcnError, UnknownNode
from ncn_framework.signing import address_hex
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Evidence,
    FailureStatement,
    Statement,
    TermsStatement,
)
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert_payments import sized
from ncn_framework.wire.convert_statements import (
    evidence_from_pb,
    refusal_to_pb,
    signatures_to_pb,
    statement_from_pb,
)
from ncn_framework.wire.convert_subnets import PRICE_TREE
from ncn_framework.wire.grpc_errors import abort
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceServicer

from .collector import Collector, in_thread
from .reputations import Reputations
from .roll import Roll
from .speakers import Speakers

__all__ = ["ValidationService"]

_Context = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer", mpb.PreprocessingValidation, mpb.CompletionValidation, mpb.BatchValidation)

_MOST_LISTED = 1_000


class ValidationService(P2PRegistryServiceServicer):
    """The part of the registry's service for gateways that want something signed, and for who asks about validators.

    A refusal is in the response; an error of gRPC means that nobody was asked.

    Attributes:
        roll: of the network.
        collector: asks validators.
        speakers: knows who speaks for them.
        reputations: of validators.
    """

    roll: Roll
    collector: Collector
    speakers: Speakers
    reputations: Reputations

    async def RequestPreprocessingValidation(  # noqa: N802 - gRPC's name
        self, request: mpb.InferenceRequest, context: _Context
    ) -> mpb.PreprocessingValidation:
        """Have price and node of an escrow request signed, before its client pays."""

        def answered(statement: TermsStatement) -> mpb.PreprocessingValidation:
            terms = statement.terms
            compute, gateway, validators, treasury = PRICE_TREE
            return mpb.PreprocessingValidation(
                request_id=statement.request.request_id,
                commitment=digests.preprocess_commitment(terms),
                node=terms.node,
                fee_wei=str(terms.amount_wei),
                payment_tree=mpb.PaymentTree(
                    compute_bps=compute, gateway_bps=gateway, validators_bps=validators, treasury_bps=treasury
                ),
            )

        return await self._endorsed(mpb.StatementRequest(preprocessing=request), answered, context)

    async def RequestCompletionValidation(  # noqa: N802
        self, request: mpb.ComputeCompletion, context: _Context
    ) -> mpb.CompletionValidation:
        """Have the result of an escrow request signed; with chunks and request, where validators want to see them."""

        def answered(statement: CompletionStatement) -> mpb.CompletionValidation:
            receipt = statement.receipt.receipt
            return mpb.CompletionValidation(request_id=receipt.request_id, result_hash=receipt.output_hash)

        shown = [request] if request.HasField("request") else []
        return await self._endorsed(mpb.StatementRequest(completion=request, evidence=shown), answered, context)

    async def RequestFailureValidation(  # noqa: N802
        self, request: mpb.EscrowFailure, context: _Context
    ) -> mpb.CompletionValidation:
        """Have it signed that an escrow request came to nothing."""

        def answered(statement: FailureStatement) -> mpb.CompletionValidation:
            return mpb.CompletionValidation(request_id=statement.escrow_id)

        return await self._endorsed(mpb.StatementRequest(failure=request), answered, context)

    async def RequestBatchValidation(  # noqa: N802
        self, request: mpb.BatchStatement, context: _Context
    ) -> mpb.BatchValidation:
        """Have a batch of receipts signed; with evidence, where validators want to see answers."""

        def answered(statement: BatchStatement) -> mpb.BatchValidation:
            return mpb.BatchValidation()

        message = mpb.StatementRequest(batch=request, evidence=request.evidence)
        message.batch.ClearField("evidence")
        return await self._endorsed(message, answered, context)

    async def _endorsed(
        self, message: mpb.StatementRequest, answered: Callable[[Any], _Answer], context: _Context
    ) -> _Answer:
        def decoded() -> tuple[Statement, Mapping[bytes, Evidence]]:
            return statement_from_pb(message), evidence_from_pb(message.evidence)

        size_bytes = message.ByteSize()
        try:
            async with self.collector.admitted(size_bytes):
                statement, evidence = await in_thread(size_bytes, decoded)
                response = answered(statement)
                try:
                    signatures = await self.collector.collect(statement, evidence)
                except EndorsementRefused as refusal:
                    response.refusal.CopyFrom(refusal_to_pb(refusal))
                else:
                    response.signatures.extend(signatures_to_pb(signatures.all()))
        except NcnError as error:
            await abort(context, error)
        return response

    async def GetValidator(self, request: mpb.WalletAddress, context: _Context) -> pb.ValidatorInfo:  # noqa: N802
        """Return one validator of the current epoch."""
        try:
            address = sized(request.address, 20, "address")
            epoch = await self.collector.epoch()
            member = next((member for member in epoch.members if member.address == address), None)
            if member is None:
                raise UnknownNode(f"{address_hex(address)} is no validator of the current epoch, {epoch.number}")
            reputations = await self.reputations.of_validators([address])
            return await self._info(epoch, member, reputations[address])
        except NcnError as error:
            await abort(context, error)

    async def ListValidators(  # noqa: N802
        self, request: pb.ListRequest, context: _Context
    ) -> AsyncIterator[pb.ValidatorInfo]:
        """Stream the validators of the current epoch, by address in lower case; ``after`` is one."""
        try:
            epoch = await self.collector.epoch()
            reputations = await self.reputations.of_validators([member.address for member in epoch.members])
        except NcnError as error:
            await abort(context, error)
        after, left = request.after.lower(), min(request.limit or _MOST_LISTED, _MOST_LISTED)
        for member in sorted(epoch.members, key=lambda member: member.address):
            if left and f"0x{member.address.hex()}" > after:
                left -= 1
                yield await self._info(epoch, member, reputations[member.address])

    async def _info(self, epoch: Epoch, member: Member, reputation: int) -> pb.ValidatorInfo:
        speaker = await self.speakers.of(member.address)
        return pb.ValidatorInfo(
            validator=member.address,
            stake_wei=str(member.stake_wei),
            epoch=epoch.number,
            state="jailed" if member.address in self.roll.out else "silent" if speaker is None else "active",
            reputation=reputation,
            multiaddrs=() if speaker is None else speaker.multiaddrs,
        )
