"""What validators are asked to sign: each statement with all that a validator needs to check it."""

from __future__ import annotations

from dataclasses import dataclass

from . import digests
from .models import Chunk, Domain, InferenceRequest, ModelManifest, Record, SignedReceipt
from .payments import Batch, Charge, Claim, Credit, EscrowTerms

__all__ = [
    "DISPUTES_NAME",
    "INVALID_RESULT",
    "BatchStatement",
    "CompletionStatement",
    "Contradiction",
    "Evidence",
    "FailureStatement",
    "Performance",
    "PerformancesStatement",
    "Reputation",
    "Statement",
    "SubnetStatement",
    "TermsStatement",
    "VerdictStatement",
    "digest_of",
    "epoch_of",
    "excluded_from",
    "subject_of",
]


DISPUTES_NAME = "NCN DisputeManager"
"""EIP-712 name of the contract that judges conduct; verdicts and performances are bound to it."""

INVALID_RESULT = 1
"""``IDisputeManager.Misconduct.INVALID_RESULT``."""


@dataclass(frozen=True)
class BatchStatement:
    """A batch with all that a validator needs to check it."""

    batch: Batch
    claims: tuple[Claim, ...]
    credits: tuple[Credit, ...]
    charges: tuple[Charge, ...]


@dataclass(frozen=True)
class TermsStatement:
    """Price and node of an escrow request (the contract's ``Preprocess``).

    Attributes:
        base_fee_wei, unit_fee_wei: how the amount came about: base and unit price of the model.
    """

    terms: EscrowTerms
    escrow_id: bytes
    request: InferenceRequest
    base_fee_wei: int
    unit_fee_wei: int


@dataclass(frozen=True)
class CompletionStatement:
    """The result of an escrow request (the contract's ``Completion``)."""

    terms: EscrowTerms
    escrow_id: bytes
    receipt: SignedReceipt


@dataclass(frozen=True)
class FailureStatement:
    """An escrow request came to nothing (the contract's ``Failure``).

    Attributes:
        reason: for people.
        signature: the gateway's, over the digest that the validators sign: nobody else may say so.
    """

    terms: EscrowTerms
    escrow_id: bytes
    reason: str
    signature: bytes = b""


@dataclass(frozen=True)
class VerdictStatement:
    """A node signed a result that another execution of the same request does not give (``Verdict``).

    Attributes:
        contract: address of DisputeManager.
        epoch: whose validators sign.
        receipt: that the node signed.
        reason: for people: how the results differ.
    """

    contract: bytes
    epoch: int
    receipt: SignedReceipt
    reason: str


@dataclass(frozen=True)
class SubnetStatement:
    """The configuration of a subnet, signed by its owner.

    Attributes:
        epoch: whose validators sign.
        record: of kind ``subnet``.
        fee_transaction: of a new subnet, the hash of the transaction that paid its fee; empty for a new version.
    """

    epoch: int
    record: Record
    fee_transaction: bytes = b""


@dataclass(frozen=True)
class Performance:
    """What a validator did in a period: statements signed, refused against the quorum, not answered in time."""

    validator: bytes
    done: int
    failed: int
    timeouts: int


@dataclass(frozen=True)
class PerformancesStatement:
    """What the validators did in a past epoch (``Performances``).

    Attributes:
        contract: address of DisputeManager.
        epoch: whose validators sign.
        period: the epoch that is over.
        performances: sorted by validator.
    """

    contract: bytes
    epoch: int
    period: int
    performances: tuple[Performance, ...]


@dataclass(frozen=True)
class Reputation:
    """What the chain has of an account's conduct.

    Attributes:
        points: of all periods that were reported, and 20 less for each slashing.
        booked: whether the period that was asked about is among those that were reported.
    """

    points: int
    booked: bool


Statement = (
    BatchStatement
    | TermsStatement
    | CompletionStatement
    | FailureStatement
    | VerdictStatement
    | SubnetStatement
    | PerformancesStatement
)


@dataclass(frozen=True)
class Contradiction:
    """One validator's signatures under two statements of which one must be untrue: it proves itself.

    Two batches of one gateway with one nonce, or two decisions (completion or failure) on one escrow.

    Attributes:
        validator: that signed both.
        first, second: with at least what their digests need.
        first_signature, second_signature: the validator's, 65 bytes each, over their digests.
    """

    validator: bytes
    first: Statement
    second: Statement
    first_signature: bytes
    second_signature: bytes


@dataclass(frozen=True)
class Evidence:
    """A request with its whole answer, so that a validator can execute it again.

    Attributes:
        chunks: each with its link.
        receipt: signed by the node.
        manifest: of the model, which its digest binds to the request.
    """

    request: InferenceRequest
    chunks: tuple[Chunk, ...]
    receipt: SignedReceipt
    manifest: ModelManifest


def epoch_of(statement: Statement) -> int:
    """Return the number of the epoch whose members sign."""
    match statement:
        case BatchStatement():
            return statement.batch.epoch
        case TermsStatement() | CompletionStatement() | FailureStatement():
            return statement.terms.epoch
        case _:
            return statement.epoch


def excluded_from(statement: Statement) -> frozenset[bytes]:
    """Return who may not sign, because the statement is about their own money or conduct."""
    match statement:
        case BatchStatement():
            return frozenset({statement.batch.gateway, *(credit.payee for credit in statement.credits)})
        case TermsStatement() | CompletionStatement() | FailureStatement():
            return frozenset({statement.terms.gateway, statement.terms.node})
        case VerdictStatement():
            return frozenset({statement.receipt.receipt.node})
        case SubnetStatement():
            return frozenset({statement.record.owner})
        case PerformancesStatement():
            return frozenset()


def subject_of(statement: Statement) -> bytes:
    """Return what a committee is drawn for.

    It has nothing that the asking gateway could choose anew until the draw suits it: of a batch, neither nonce nor
    content, so that a gateway has one committee for batches all through an epoch.
    """
    match statement:
        case BatchStatement():
            return digests.keccak(b"batch" + statement.batch.gateway)
        case TermsStatement() | CompletionStatement() | FailureStatement():
            return statement.escrow_id
        case VerdictStatement():
            return statement.receipt.receipt.request_id
        case SubnetStatement():
            return digests.keccak(b"subnet" + statement.record.owner)
        case PerformancesStatement():
            return digests.keccak(b"period" + statement.period.to_bytes(8, "big"))


def digest_of(domain: Domain, statement: Statement) -> bytes:
    """Return the EIP-712 digest that a validator signs.

    Args:
        domain: of InferencePayment.
        statement: unchecked.
    """
    match statement:
        case BatchStatement():
            return digests.batch_digest(domain, statement.batch)
        case TermsStatement():
            return digests.preprocess_digest(domain, statement.escrow_id, statement.terms)
        case CompletionStatement():
            receipt = statement.receipt.receipt
            return digests.completion_digest(domain, statement.escrow_id, receipt.output_hash, receipt.fee_wei)
        case FailureStatement():
            return digests.failure_digest(domain, statement.escrow_id)
        case VerdictStatement():
            node, subject = statement.receipt.receipt.node, digests.receipt_digest(domain, statement.receipt.receipt)
            words = (_uint(INVALID_RESULT), node.rjust(32, b"\0"), subject, _uint(statement.epoch))
            return _disputed(domain, statement, "Verdict", *words)
        case SubnetStatement():
            record = digests.record_digest(domain, statement.record)
            return digests.typed(domain, "Subnet", record, _uint(statement.epoch))
        case PerformancesStatement():
            rows = digests.array_hash(
                p.validator.rjust(32, b"\0") + _uint(p.done) + _uint(p.failed) + _uint(p.timeouts)
                for p in statement.performances
            )
            return _disputed(domain, statement, "Performances", _uint(statement.period), rows, _uint(statement.epoch))


def _disputed(
    domain: Domain, statement: VerdictStatement | PerformancesStatement, type_name: str, *words: bytes
) -> bytes:
    return digests.typed(Domain(domain.chain_id, statement.contract), type_name, *words, name=DISPUTES_NAME)


def _uint(value: int) -> bytes:
    return value.to_bytes(32, "big")
