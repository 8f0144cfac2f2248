"""Between protobuf messages and statements that validators sign. What comes from outside is checked for form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import EndorsementRefused, MalformedRequest, ModelError
from ..manifests import manifest_from_json, manifest_json
from ..models import ModelManifest, Signature
from ..statements import (
    BatchStatement,
    CompletionStatement,
    Evidence,
    FailureStatement,
    Performance,
    PerformancesStatement,
    Statement,
    SubnetStatement,
    TermsStatement,
    VerdictStatement,
)
from . import messages_pb2 as pb
from .convert import (
    chunk_from_pb,
    chunk_to_pb,
    receipt_from_pb,
    receipt_to_pb,
    record_from_pb,
    record_to_pb,
    request_from_pb,
    request_to_pb,
)
from .convert_batches import batch_from_pb, batch_to_pb
from .convert_payments import escrow_terms_from_pb, escrow_terms_to_pb, sized, wei_from_pb

__all__ = [
    "MAX_EVIDENCE",
    "evidence_from_pb",
    "evidence_to_pb",
    "refusal_from_pb",
    "refusal_to_pb",
    "signatures_from_pb",
    "signatures_to_pb",
    "statement_from_pb",
    "statement_to_pb",
]

MAX_EVIDENCE = 64
"""Most requests that are shown with their answers beside one statement."""

_MAX_MANIFEST_BYTES = 64 << 10


def statement_to_pb(statement: Statement, evidence: Mapping[bytes, Evidence] | None = None) -> pb.StatementRequest:
    """Return the message of a statement, with the answers that validators want to see."""
    shown = [evidence_to_pb(one) for one in (evidence or {}).values()]
    match statement:
        case BatchStatement():
            return pb.StatementRequest(batch=batch_to_pb(statement), evidence=shown)
        case TermsStatement():
            request = request_to_pb(statement.request)
            request.preprocessing.CopyFrom(
                pb.Preprocessing(
                    terms=escrow_terms_to_pb(statement.terms),
                    escrow_id=statement.escrow_id,
                    base_fee_wei=str(statement.base_fee_wei),
                    unit_fee_wei=str(statement.unit_fee_wei),
                )
            )
            return pb.StatementRequest(preprocessing=request)
        case CompletionStatement():
            completion = pb.ComputeCompletion(
                receipt=receipt_to_pb(statement.receipt),
                terms=escrow_terms_to_pb(statement.terms),
                escrow_id=statement.escrow_id,
            )
            return pb.StatementRequest(completion=completion, evidence=shown)
        case FailureStatement():
            failure = pb.EscrowFailure(
                terms=escrow_terms_to_pb(statement.terms),
                escrow_id=statement.escrow_id,
                reason=statement.reason,
                signature=statement.signature,
            )
            return pb.StatementRequest(failure=failure)
        case VerdictStatement():
            verdict = pb.Verdict(
                contract=statement.contract,
                epoch=statement.epoch,
                receipt=receipt_to_pb(statement.receipt),
                reason=statement.reason,
            )
            return pb.StatementRequest(verdict=verdict, evidence=shown)
        case SubnetStatement():
            subnet = pb.SubnetEndorsement(
                epoch=statement.epoch,
                record=record_to_pb(statement.record),
                fee_transaction=statement.fee_transaction,
            )
            return pb.StatementRequest(subnet=subnet)
        case PerformancesStatement():
            performances = pb.Performances(
                contract=statement.contract,
                epoch=statement.epoch,
                period=statement.period,
                performances=[pb.Performance(**vars(one)) for one in statement.performances],
            )
            return pb.StatementRequest(performances=performances)


def statement_from_pb(message: pb.StatementRequest) -> Statement:
    """Return the statement, unchecked but for form.

    Raises:
        MalformedRequest, ReceiptRejected: a field is missing or malformed.
    """
    kind = message.WhichOneof("statement")
    match kind:
        case "batch":
            return batch_from_pb(message.batch)
        case "preprocessing":
            asked = message.preprocessing.preprocessing
            return TermsStatement(
                escrow_terms_from_pb(asked.terms),
                sized(asked.escrow_id, 32, "escrow_id"),
                request_from_pb(message.preprocessing),
                wei_from_pb(asked.base_fee_wei, "base_fee_wei"),
                wei_from_pb(asked.unit_fee_wei, "unit_fee_wei"),
            )
        case "completion":
            done = message.completion
            return CompletionStatement(
                escrow_terms_from_pb(done.terms), sized(done.escrow_id, 32, "escrow_id"), receipt_from_pb(done.receipt)
            )
        case "failure":
            failed = message.failure
            return FailureStatement(
                escrow_terms_from_pb(failed.terms),
                sized(failed.escrow_id, 32, "escrow_id"),
                failed.reason[:1_024],
                sized(failed.signature, 65, "signature"),
            )
        case "verdict":
            verdict = message.verdict
            return VerdictStatement(
                sized(verdict.contract, 20, "contract"),
                _number(verdict.epoch, "epoch"),
                receipt_from_pb(verdict.receipt),
                verdict.reason[:1_024],
            )
        case "subnet":
            subnet = message.subnet
            return SubnetStatement(
                _number(subnet.epoch, "epoch"),
                record_from_pb(subnet.record),
                subnet.fee_transaction and sized(subnet.fee_transaction, 32, "fee_transaction"),
            )
        case "performances":
            told = message.performances
            return PerformancesStatement(
                sized(told.contract, 20, "contract"),
                _number(told.epoch, "epoch"),
                told.period,
                tuple(
                    Performance(sized(one.validator, 20, "validator"), one.done, one.failed, one.timeouts)
                    for one in told.performances
                ),
            )
        case _:
            raise MalformedRequest("the message has no statement to check")


def _number(value: int, field: str) -> int:
    if value >= 2**32:
        raise MalformedRequest(f"{field} is {value}; it has at most 32 bits")
    return value


def evidence_to_pb(evidence: Evidence) -> pb.ComputeCompletion:
    """Return the message of a request with its answer."""
    return pb.ComputeCompletion(
        receipt=receipt_to_pb(evidence.receipt),
        chunks=[chunk_to_pb(evidence.request.request_id, chunk) for chunk in evidence.chunks],
        request=request_to_pb(evidence.request),
        manifest=manifest_json(evidence.manifest),
    )


def evidence_from_pb(messages: Iterable[pb.ComputeCompletion]) -> dict[bytes, Evidence]:
    """Return requests with their answers, by request id; unchecked but for form.

    Raises:
        MalformedRequest, ReceiptRejected: a field is missing or malformed, or there are too many.
    """
    found: dict[bytes, Evidence] = {}
    for message in messages:
        if len(found) >= MAX_EVIDENCE:
            raise MalformedRequest(f"more than {MAX_EVIDENCE} answers are shown")
        request = request_from_pb(message.request)
        chunks = tuple(chunk_from_pb(chunk) for chunk in message.chunks)
        manifest = _manifest_from_bytes(message.manifest)
        found[request.request_id] = Evidence(request, chunks, receipt_from_pb(message.receipt), manifest)
    return found


def _manifest_from_bytes(data: bytes) -> ModelManifest:
    if len(data) > _MAX_MANIFEST_BYTES:
        raise MalformedRequest(f"a manifest has {len(data)} bytes; at most {_MAX_MANIFEST_BYTES}")
    try:
        return manifest_from_json(data)
    except ModelError as cause:
        raise MalformedRequest(f"evidence: {cause}") from cause


def signatures_to_pb(signatures: Iterable[Signature]) -> list[pb.ValidatorSignature]:
    """Return the messages of validators' signatures."""
    return [pb.ValidatorSignature(validator=one.signer, signature=one.value) for one in signatures]


def signatures_from_pb(messages: Iterable[pb.ValidatorSignature]) -> tuple[Signature, ...]:
    """Return validators' signatures, unchecked but for form.

    Raises:
        MalformedRequest: an address is not 20 bytes or a signature not 65, or there are more than 256.
    """
    found = tuple(
        Signature(sized(one.validator, 20, "validator"), sized(one.signature, 65, "signature")) for one in messages
    )
    if len(found) > 256:
        raise MalformedRequest(f"{len(found)} validators signed; an epoch has at most 256")
    return found


def refusal_to_pb(error: EndorsementRefused) -> pb.Refusal:
    """Return the message of a refusal."""
    return pb.Refusal(
        message=str(error)[:4_096],
        settled=[pb.SettledRequest(request_id=one, nonce=nonce) for one, nonce in error.settled.items()],
        next_nonce=error.next_nonce,
        invalid=sorted(error.invalid),
        wanted=sorted(error.wanted),
    )


def refusal_from_pb(message: pb.Refusal) -> EndorsementRefused:
    """Return the refusal, to be raised."""
    return EndorsementRefused(
        message.message[:4_096],
        {one.request_id: one.nonce for one in message.settled},
        message.next_nonce,
        invalid=message.invalid,
        wanted=message.wanted,
    )
