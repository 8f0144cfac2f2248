"""Every error this project raises on purpose: one tree, one table.

    NcnError
    ├── ConfigError                a setting is unknown, missing or has a bad value
    ├── PluginError                a plugin cannot be loaded
    ├── RequestError               the caller's request is at fault
    │   ├── MalformedRequest       not the protocol's form: bad JSON, unknown or missing field, too deep
    │   ├── InvalidTensor          a tensor is not what the model's specification says
    │   ├── RequestTooLarge        a bound on size or count is passed
    │   ├── UnknownModel           no connected node serves the model
    │   ├── UnknownTask            no task has this id
    │   ├── UnknownNode            no record of this address is known
    │   ├── UnknownSubnet          no subnet of this name or address is known
    │   ├── ReplayConflict         the id was used before, with other content
    │   ├── TaskEnded              the task rests: it cannot be cancelled, or has no receipt
    │   ├── DeadlineExpired        the request's deadline has passed
    │   ├── PaymentRequired        nothing, or not enough, was signed or deposited for the fee
    │   └── SignatureRejected      a caller's signature is missing or another key's
    ├── CapacityError              nothing wrong with the request, but not now
    │   ├── NoCandidate            every node that serves the model was left out
    │   ├── NoCapacity             no free slot within the waiting time
    │   └── Draining               this process is shutting down
    ├── StageTimeout               a stage of the life cycle passed its time limit
    ├── TaskCancelled              the caller cancelled
    ├── NodeError                  the compute node is at fault
    │   ├── NodeLost               its stream broke or its heartbeats stopped
    │   ├── ChainBroken            a chunk's link is not the link of what arrived
    │   ├── ReceiptRejected        the receipt does not fit the request, the chunks or the node's key
    │   ├── OutputRejected         outputs are not what the manifest promises
    │   ├── WorkerDied             the jailed worker ended, ran out of memory or time
    │   └── ModelFailed            the model's own code raised
    ├── SandboxError               the jail cannot be made as strict as asked
    ├── ModelError                 a model directory or manifest is damaged
    ├── ChainError                 the chain cannot be reached, or does not answer as it should
    ├── TransactionReverted        the chain refused a transaction
    ├── EndorsementRefused         no quorum of validators signed
    ├── WalletError                a wallet is missing, damaged or locked
    ├── NoHandlerError             no plugin answered a decision hook
    ├── IllegalTransition          a move that the table of states does not have
    ├── StoreError                 the durable store refused
    └── VerificationError          a saved answer does not verify

Messages name the object, the value and the remedy. ``TABLE`` says what each class becomes in each protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .payments import Offer

__all__ = [
    "TABLE",
    "CapacityError",
    "ChainBroken",
    "ChainError",
    "ConfigError",
    "DeadlineExpired",
    "Draining",
    "EndorsementRefused",
    "ErrorCode",
    "IllegalTransition",
    "InvalidTensor",
    "MalformedRequest",
    "ModelError",
    "ModelFailed",
    "NcnError",
    "NoCandidate",
    "NoCapacity",
    "NoHandlerError",
    "NodeError",
    "NodeLost",
    "OutputRejected",
    "PaymentRequired",
    "PluginError",
    "ReceiptRejected",
    "ReplayConflict",
    "RequestError",
    "RequestTooLarge",
    "SandboxError",
    "SignatureRejected",
    "StageTimeout",
    "StoreError",
    "TaskCancelled",
    "TaskEnded",
    "TransactionReverted",
    "UnknownModel",
    "UnknownNode",
    "UnknownSubnet",
    "UnknownTask",
    "VerificationError",
    "WalletError",
    "WorkerDied",
    "code_of",
    "error_from_code",
]


_LONGEST = 2048  # characters; names in messages come from callers, and gRPC bounds its metadata


class NcnError(Exception):
    """Root of the tree. ``str(error)`` is fit to be shown to the caller: no secret, no prompt, no tensor; bounded."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


class ConfigError(NcnError):
    """A setting is unknown, missing or has a bad value."""


class PluginError(NcnError):
    """A plugin cannot be loaded; the message names the plugin and the remedy."""


class RequestError(NcnError):
    """The caller's request is at fault; the same request will fail again."""


class MalformedRequest(RequestError):
    """Not the protocol's form: not UTF-8, not JSON, a field unknown or missing, nested too deep."""


class InvalidTensor(RequestError):
    """A tensor's name, dtype, shape or size is not what the model's specification says."""


class RequestTooLarge(RequestError):
    """A bound on size or count is passed."""


class UnknownModel(RequestError):
    """No connected node serves the model."""


class UnknownTask(RequestError):
    """No task has this id."""


class UnknownNode(RequestError):
    """No record of this address is known, or none that counts any more."""


class UnknownSubnet(RequestError):
    """No subnet of this name or address is known, or none that validators have signed."""


class ReplayConflict(RequestError):
    """The id was used before, with other content."""


class TaskEnded(RequestError):
    """The task rests, in a state that the call is not for: nothing to cancel, no receipt, no payment awaited."""


class DeadlineExpired(RequestError):
    """The request's deadline has passed."""


class PaymentRequired(RequestError):
    """Nothing, or not enough, was signed or deposited for the fee.

    Attributes:
        offers: ways to pay, which a gateway tells in its 402 answer (``wire.x402``).
    """

    def __init__(self, message: str, offers: Sequence[Offer] = ()) -> None:
        super().__init__(message)
        self.offers = tuple(offers)


class SignatureRejected(RequestError):
    """A signature is missing, malformed or of another key."""


class CapacityError(NcnError):
    """Nothing is wrong with the request, but it cannot be served now; try again."""


class NoCandidate(CapacityError):
    """Every node that serves the model was left out; the message lists the reason codes."""


class NoCapacity(CapacityError):
    """No free slot within the waiting time."""


class Draining(CapacityError):
    """This process is shutting down and takes no new work."""


class StageTimeout(NcnError):
    """A stage of the life cycle passed its time limit."""


class TaskCancelled(NcnError):
    """The caller cancelled the task."""


class NodeError(NcnError):
    """The compute node is at fault; another node may succeed."""


class NodeLost(NodeError):
    """The node's stream broke, or its heartbeats stopped, with the task in flight."""


class ChainBroken(NodeError):
    """A chunk's link is not the link of what arrived: dropped, reordered, spliced or altered."""


class ReceiptRejected(NodeError):
    """The receipt does not fit the request, the chunks or the node's key."""


class OutputRejected(NodeError):
    """The outputs are not what the manifest promises."""


class WorkerDied(NodeError):
    """The jailed worker ended, or was ended for its use of memory or time."""


class ModelFailed(NodeError):
    """The model's own code raised while it handled these inputs."""


class SandboxError(NcnError):
    """The jail cannot be made as strict as the settings ask."""


class ModelError(NcnError):
    """A model directory or manifest is missing, malformed or damaged."""


class ChainError(NcnError):
    """The chain cannot be reached, is another one than the settings say, or does not answer as it should."""


class TransactionReverted(NcnError):
    """The chain refused a transaction.

    Attributes:
        reason: name of the contract's custom error, or the revert string; empty where none is known.
        arguments: of the custom error.
    """

    def __init__(self, message: str, reason: str = "", arguments: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.reason, self.arguments = reason, tuple(arguments)


class EndorsementRefused(NcnError):
    """Too few validators signed a statement; the message says what they found wrong.

    Attributes:
        settled: of a batch: the requests that are settled on chain already, with the nonce of the batch that did it.
        next_nonce: of a batch: lowest nonce under which it may be signed; 0 where it was not refused for its nonce.
        invalid: of a batch: the requests whose receipts will never be signed, because their results are wrong.
        wanted: the requests that must be shown with their whole answers first.
    """

    def __init__(
        self,
        message: str,
        settled: Mapping[bytes, int] | None = None,
        next_nonce: int = 0,
        *,
        invalid: Iterable[bytes] = (),
        wanted: Iterable[bytes] = (),
    ) -> None:
        super().__init__(message)
        self.settled, self.next_nonce = dict(settled or {}), next_nonce
        self.invalid, self.wanted = frozenset(invalid), frozenset(wanted)


class WalletError(NcnError):
    """A wallet is missing or damaged, or its password is wrong."""


class NoHandlerError(NcnError):
    """No plugin answered a decision hook."""


class IllegalTransition(NcnError):
    """A move that the table of states does not have; a defect of this program."""


class StoreError(NcnError):
    """The durable store refused to read or write."""


class VerificationError(NcnError):
    """A saved answer does not verify; ``where`` names the place in the file."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


class ErrorCode(NamedTuple):
    """What one error class becomes outside.

    Attributes:
        code: stable slug, the last part of the problem type.
        http: HTTP status (RFC 9110).
        grpc: name of the gRPC status code.
        websocket: code of the WebSocket error event; 4000 + the HTTP status, in RFC 6455's private range.
        retryable: whether the same request may succeed later.
        exit: exit status of a command that ends with it.
    """

    code: str
    http: int
    grpc: str
    retryable: bool = False
    exit: int = 1

    @property
    def websocket(self) -> int:
        return 4000 + self.http


TABLE: dict[type[NcnError], ErrorCode] = {
    NcnError: ErrorCode("internal", 500, "INTERNAL"),
    ConfigError: ErrorCode("config", 500, "FAILED_PRECONDITION", exit=2),
    PluginError: ErrorCode("plugin", 500, "FAILED_PRECONDITION", exit=2),
    RequestError: ErrorCode("bad-request", 400, "INVALID_ARGUMENT"),
    MalformedRequest: ErrorCode("malformed", 400, "INVALID_ARGUMENT"),
    InvalidTensor: ErrorCode("invalid-tensor", 400, "INVALID_ARGUMENT"),
    RequestTooLarge: ErrorCode("too-large", 413, "RESOURCE_EXHAUSTED"),
    UnknownModel: ErrorCode("unknown-model", 404, "NOT_FOUND"),
    UnknownTask: ErrorCode("unknown-task", 404, "NOT_FOUND"),
    UnknownNode: ErrorCode("unknown-node", 404, "NOT_FOUND"),
    UnknownSubnet: ErrorCode("unknown-subnet", 404, "NOT_FOUND"),
    ReplayConflict: ErrorCode("replay-conflict", 409, "ALREADY_EXISTS"),
    TaskEnded: ErrorCode("task-ended", 409, "FAILED_PRECONDITION"),
    DeadlineExpired: ErrorCode("deadline-expired", 408, "DEADLINE_EXCEEDED"),
    PaymentRequired: ErrorCode("payment-required", 402, "FAILED_PRECONDITION"),
    SignatureRejected: ErrorCode("signature-rejected", 401, "UNAUTHENTICATED"),
    CapacityError: ErrorCode("unavailable", 503, "UNAVAILABLE", retryable=True),
    NoCandidate: ErrorCode("no-candidate", 503, "UNAVAILABLE", retryable=True),
    NoCapacity: ErrorCode("no-capacity", 503, "UNAVAILABLE", retryable=True),
    Draining: ErrorCode("draining", 503, "UNAVAILABLE", retryable=True),
    StageTimeout: ErrorCode("stage-timeout", 504, "DEADLINE_EXCEEDED", retryable=True),
    TaskCancelled: ErrorCode("cancelled", 409, "CANCELLED"),
    NodeError: ErrorCode("node-error", 502, "INTERNAL", retryable=True),
    NodeLost: ErrorCode("node-lost", 502, "UNAVAILABLE", retryable=True),
    ChainBroken: ErrorCode("chain-broken", 502, "DATA_LOSS", retryable=True),
    ReceiptRejected: ErrorCode("receipt-rejected", 502, "DATA_LOSS", retryable=True),
    OutputRejected: ErrorCode("output-rejected", 502, "DATA_LOSS", retryable=True),
    WorkerDied: ErrorCode("worker-died", 502, "ABORTED", retryable=True),
    ModelFailed: ErrorCode("model-failed", 502, "ABORTED"),
    SandboxError: ErrorCode("sandbox", 500, "FAILED_PRECONDITION"),
    ModelError: ErrorCode("model", 500, "FAILED_PRECONDITION"),
    ChainError: ErrorCode("chain", 503, "UNAVAILABLE", retryable=True),
    TransactionReverted: ErrorCode("transaction-reverted", 422, "FAILED_PRECONDITION"),
    EndorsementRefused: ErrorCode("endorsement-refused", 502, "FAILED_PRECONDITION"),
    WalletError: ErrorCode("wallet", 500, "FAILED_PRECONDITION"),
    NoHandlerError: ErrorCode("no-handler", 501, "UNIMPLEMENTED"),
    IllegalTransition: ErrorCode("illegal-transition", 500, "INTERNAL"),
    StoreError: ErrorCode("store", 503, "UNAVAILABLE", retryable=True),
    VerificationError: ErrorCode("verification", 502, "DATA_LOSS"),
}

_BY_CODE = {row.code: cls for cls, row in TABLE.items()}


def code_of(error: BaseException) -> ErrorCode:
    """Return the table's row for ``error`` or its nearest base; anything outside the tree is ``internal``."""
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), TABLE[NcnError])


def error_from_code(code: str, message: str) -> NcnError:
    """Return the error that a peer named by its stable ``code``; an unknown code becomes ``NcnError``."""
    if code == TABLE[VerificationError].code:
        where, _, what = message.partition(": ")
        return VerificationError(where, what)
    return _BY_CODE.get(code, NcnError)(message)
