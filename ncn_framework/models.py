"""What passes through the hooks: frozen values, no behaviour beyond what they are.

Hashes are 32 bytes (SHA-256), addresses 20 bytes (Ethereum), signatures 65 bytes (r, s, v with v 27 or 28);
as ``bytes`` inside, as 0x-hex at every border. Money is an int of the token's base units (wei). Times are
int milliseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from . import digests
from .payments import Authorization, Escrow, PaymentDue
from .states import State
from .tensors import Tensor, TensorSpec

__all__ = [
    "ANONYMOUS",
    "FREE",
    "Candidate",
    "Candidates",
    "Chunk",
    "Considered",
    "Domain",
    "Event",
    "InferenceRequest",
    "Lease",
    "Leases",
    "ModelFile",
    "ModelManifest",
    "NodeInfo",
    "Parameter",
    "Receipt",
    "Record",
    "Route",
    "SandboxSpec",
    "Settlement",
    "Signature",
    "SignedReceipt",
]

Parameter = bool | int | float | str
"""What a request's parameter may be."""

ANONYMOUS = bytes(20)
"""Address of a client without a key; its requests carry no signature and can only be free."""

FREE = "free"
"""Payment mode in which nothing is owed."""


@dataclass(frozen=True)
class Domain:
    """EIP-712 domain that all signatures are bound to.

    Attributes:
        chain_id: EIP-155 chain id; 31337 is the customary one of development chains.
        contract: address of InferencePayment; zero where no chain is configured.
    """

    chain_id: int = 31337
    contract: bytes = ANONYMOUS


@dataclass(frozen=True)
class Signature:
    """A secp256k1 signature over a digest, and the address it claims to come from."""

    signer: bytes
    value: bytes


@dataclass(frozen=True)
class ModelFile:
    """One file of a model: relative POSIX path, size, SHA-256."""

    path: str
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class ModelManifest:
    """What a model is; its SHA-256 (``digest``) is the model's identity everywhere.

    Attributes:
        name: what people call it, such as ``minilm``.
        version: free text.
        runtime: which runtime executes it, such as ``safetensors``.
        architecture: how the runtime builds it, such as ``bert-embedding``; may be empty.
        files: every file, sorted by path.
        inputs: tensor specifications of a request.
        outputs: tensor specifications of each chunk of an answer.
        parameters: the architecture's settings.
        base_fee_wei: price of a request.
        unit_fee_wei: price of each unit on top (an architecture says what its unit is).
        memory_bytes: memory that a worker with this model may use.
        time_limit_ms: wall time that one execution may take.
        tolerance: largest absolute difference of two float outputs that counts as equal; CPUs round differently.
    """

    name: str
    version: str
    runtime: str
    architecture: str
    files: tuple[ModelFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    base_fee_wei: int = 0
    unit_fee_wei: int = 0
    memory_bytes: int = 2 << 30
    time_limit_ms: int = 60_000
    tolerance: float = 0.0

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON (``digests.model_digest``)."""
        return digests.model_digest(self)

    def fee_wei(self, units: int, payment: str) -> int:
        """Return what ``units`` cost: base + units x unit price; nothing in ``free`` mode."""
        return 0 if payment == FREE else self.base_fee_wei + units * self.unit_fee_wei


@dataclass(frozen=True)
class InferenceRequest:
    """A client's request, as it is hashed and signed.

    Attributes:
        model: digest of the model's manifest.
        inputs: one tensor per input specification, in any order.
        parameters: name to scalar.
        client: address of the payer, ``ANONYMOUS`` for nobody.
        nonce: 32 bytes that the client never uses again for other content.
        limit_units: most units that the client pays for.
        deadline_ms: after this time the request is dead.
        payment: payment mode, such as ``free``.
        signature: of the client over ``digests.request_digest``; empty for ``ANONYMOUS``.
        authorization: what the payer signed for the fee, where the payment mode wants that with the request. It is
            no part of the content: the same request may come again with another one.
    """

    model: bytes
    inputs: tuple[Tensor, ...]
    nonce: bytes
    limit_units: int
    deadline_ms: int
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    client: bytes = ANONYMOUS
    payment: str = FREE
    signature: bytes = b""
    authorization: Authorization | None = None

    @cached_property
    def request_id(self) -> bytes:
        return digests.request_id(self.client, self.nonce)

    @cached_property
    def request_hash(self) -> bytes:
        return digests.request_hash(self)


@dataclass(frozen=True)
class NodeInfo:
    """What a compute node says of itself, inside a signed ``Record``.

    Attributes:
        node: its address, which is its identity.
        models: manifests of the models it serves.
        capacity: requests it executes at once.
        sandbox: its sandbox mode: ``strict``, ``permissive`` or ``disabled``.
        software: name and version of the program.
    """

    node: bytes
    models: tuple[ModelManifest, ...]
    capacity: int
    sandbox: str
    software: str = ""


@dataclass(frozen=True)
class Record:
    """A signed statement for the network; of two, the higher sequence counts.

    Attributes:
        kind: ``node`` (payload: ``NodeInfo``).
        owner: address whose key signed it.
        sequence: grows with every record of this owner and kind.
        expires_ms: after this time it counts for nothing.
        payload: MessagePack encoding (``wire.records``).
        signature: over ``digests.record_digest``.
    """

    kind: str
    owner: bytes
    sequence: int
    expires_ms: int
    payload: bytes
    signature: bytes = b""


@dataclass(frozen=True)
class Candidate:
    """A node that serves a model, as routing sees it.

    Attributes:
        node: address.
        manifest: of the model.
        capacity: requests it executes at once.
        in_flight: requests it has now.
        latency_ms: smoothed time of its answers; 0 where none is known.
        failures: smoothed share of failed requests, 0 to 1.
    """

    node: bytes
    manifest: ModelManifest
    capacity: int
    in_flight: int = 0
    latency_ms: float = 0.0
    failures: float = 0.0


class Candidates(Protocol):
    """Read-only view of a directory; looking up a node costs the same with 100 and 100,000 of them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Candidate: ...
    def __iter__(self) -> Iterator[Candidate]: ...


@dataclass(frozen=True)
class Considered:
    """Why a node was taken or left: a stable reason code, and its score where it has one (lower is better)."""

    node: bytes
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class Route:
    """Where a request goes.

    Attributes:
        node: address of the chosen node.
        manifest: of the model.
        considered: the nodes that the decision looked at.
        directory: on the node itself, where the model's verified files are.
    """

    node: bytes
    manifest: ModelManifest
    considered: tuple[Considered, ...] = ()
    directory: Path | None = None


@dataclass(frozen=True)
class Lease:
    """What one plugin reserved.

    Attributes:
        kind: ``capacity``, ``slot``, ``funds``, ...
        token: fencing token; grows with each lease of the same holder.
        expires_ms: after this time the holder may give it to somebody else.
        authorization: of funds: what the node shall see in place of the request's own.
        escrow: of funds: the payment to wait for before the request is executed.
    """

    kind: str
    token: int
    expires_ms: int
    authorization: Authorization | None = None
    escrow: Escrow | None = None


@dataclass(frozen=True)
class Leases(Sequence[Lease]):
    """All that was reserved for a request, and the route it was reserved for."""

    route: Route
    held: tuple[Lease, ...]

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.held[index]


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        sequence: 1, 2, 3, ...
        units: cumulative units up to and with this chunk.
        data: encoded tensors (``tensors.pack_tensors``).
        link: the hash chain's link (``digests.chunk_link``); empty where a runtime leaves it to the kernel.
    """

    sequence: int
    units: int
    data: bytes
    link: bytes = b""


@dataclass(frozen=True)
class Receipt:
    """What was done for a request; signed by the node.

    Attributes:
        request_id, request_hash: of the request.
        model: manifest digest.
        output_hash: last link of the chunk chain.
        chunks: number of chunks.
        units: units used in all.
        fee_wei: what is owed.
        node: address of the node.
        started_ms, finished_ms: when the node began and ended.
    """

    request_id: bytes
    request_hash: bytes
    model: bytes
    output_hash: bytes
    chunks: int
    units: int
    fee_wei: int
    node: bytes
    started_ms: int
    finished_ms: int


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt and every signature over it; the node's own is always among them."""

    receipt: Receipt
    signatures: tuple[Signature, ...]

    def signature_of(self, signer: bytes) -> bytes:
        """Return the signature by ``signer``, or empty bytes."""
        return next((s.value for s in self.signatures if s.signer == signer), b"")


@dataclass(frozen=True)
class Settlement:
    """How a receipt was settled: the mode, what was charged, and a reference such as a transaction hash."""

    mode: str
    charged_wei: int = 0
    reference: str = ""


@dataclass(frozen=True)
class Event:
    """A move of a request from one state to the next.

    Attributes:
        request_id: of the request.
        state: the state moved into.
        at_ms: when.
        detail: reason code and message of a failure; empty otherwise.
        node: address of the chosen node, in the move to ROUTED.
        payment: what the client has to pay, in the move to AWAITING_PAYMENT.
    """

    request_id: bytes
    state: State
    at_ms: int
    detail: str = ""
    node: bytes = b""
    payment: PaymentDue | None = None


@dataclass(frozen=True)
class SandboxSpec:
    """A program to be jailed.

    Attributes:
        argv: command inside the jail.
        readable: host paths to show read-only, each at the same path inside.
        pass_fds: file descriptors that the program inherits, by the same numbers.
        memory_bytes: limit on resident memory.
        pids: limit on threads and processes.
        label: for the names of control groups and for logs.
    """

    argv: Sequence[str]
    readable: Iterable[Path]
    pass_fds: Sequence[int] = ()
    memory_bytes: int = 2 << 30
    pids: int = 64
    label: str = "worker"
