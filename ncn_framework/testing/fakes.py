"""Stand-ins: values of every kind that passes through the hooks, a clock, and plugins that answer the hooks.

All is deterministic: the same call gives the same value in every run.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from .. import digests
from ..errors import NoCandidate
from ..hookspecs import hookimpl
from ..lifecycle import now_ms
from ..manager import ROLES, LoadedPlugin, loaded_plugin
from ..models import (
    ANONYMOUS,
    Candidate,
    Candidates,
    Chunk,
    Considered,
    Domain,
    Event,
    InferenceRequest,
    Lease,
    Leases,
    ModelFile,
    ModelManifest,
    Record,
    Route,
    Settlement,
    Signature,
    SignedReceipt,
)
from ..signing import Signer
from ..sources import Sources
from ..tensors import DTYPE_SIZES, Tensor, TensorSpec, bytes_tensor, pack_tensors

__all__ = [
    "FakeRuntime",
    "ManualClock",
    "RecordingPlugin",
    "as_plugins",
    "fake_candidates",
    "fake_manifest",
    "fake_record",
    "fake_request",
    "fake_route",
    "fake_signer",
    "fake_tensor",
    "sources_of",
]


class ManualClock:
    """Milliseconds since the epoch that pass when told to; call it for the time."""

    def __init__(self, at_ms: int = 1_700_000_000_000) -> None:
        self.at_ms = at_ms

    def __call__(self) -> int:
        return self.at_ms

    def advance(self, ms: int) -> None:
        """Let ``ms`` milliseconds pass."""
        self.at_ms += ms


def fake_signer(seed: str = "node") -> Signer:
    """Return a signer; each seed has its own key."""
    return Signer(sha256(f"ncn fake key {seed}".encode()).digest())


def fake_manifest(**changes: Any) -> ModelManifest:
    """Return a manifest of runtime ``fake``, input ``x`` and output ``y``, both FP32[-1]; ``changes`` are fields."""
    manifest = ModelManifest(
        name="fake",
        version="1",
        runtime="fake",
        architecture="",
        files=(ModelFile("model.bin", 4, sha256(b"fake").digest()),),
        inputs=(TensorSpec("x", "FP32", (-1,)),),
        outputs=(TensorSpec("y", "FP32", (-1,)),),
    )
    return replace(manifest, **changes)


def fake_tensor(spec: TensorSpec, size: int = 1) -> Tensor:
    """Return a tensor of zeros (of ``b"fake"`` for BYTES) that fits ``spec``; a dimension of -1 becomes ``size``."""
    shape = tuple(size if dim == -1 else dim for dim in spec.shape)
    count = math.prod(shape)
    data = bytes_tensor("", [b"fake"] * count).data if spec.dtype == "BYTES" else bytes(count * DTYPE_SIZES[spec.dtype])
    return Tensor(spec.name, spec.dtype, shape, data)


def fake_request(
    manifest: ModelManifest | None = None, client: Signer | None = None, domain: Domain | None = None, **changes: Any
) -> InferenceRequest:
    """Return a request that ``manifest`` (by default ``fake_manifest()``) accepts, due in a minute.

    Args:
        manifest: of the model that is asked.
        client: who pays and signs; None: anonymous.
        domain: that the signature is bound to.
        **changes: fields of the request, set before it is signed.
    """
    manifest = manifest or fake_manifest()
    request = InferenceRequest(
        model=manifest.digest,
        inputs=tuple(fake_tensor(spec) for spec in manifest.inputs),
        nonce=sha256(b"ncn fake nonce").digest(),
        limit_units=1_000_000,
        deadline_ms=now_ms() + 60_000,
        client=client.address if client else ANONYMOUS,
    )
    request = replace(request, **changes)
    if client is None:
        return request
    return replace(request, signature=client.sign(digests.request_digest(domain or Domain(), request)).value)


def fake_route(manifest: ModelManifest | None = None, node: Signer | None = None) -> Route:
    """Return a route to ``node`` (by default ``fake_signer()``)."""
    return Route((node or fake_signer()).address, manifest or fake_manifest())


def fake_candidates(count: int = 1, manifest: ModelManifest | None = None, capacity: int = 1) -> list[Candidate]:
    """Return ``count`` nodes that serve ``manifest``, in no particular order; the first is ``fake_signer()``."""
    manifest = manifest or fake_manifest()
    nodes = [fake_signer("node" if n == 0 else f"node {n}").address for n in range(count)]
    return [Candidate(node, manifest, capacity) for node in nodes]


def fake_record(owner: Signer | None = None, domain: Domain | None = None, **changes: Any) -> Record:
    """Return a signed record of kind ``fake`` that expires in a minute."""
    owner = owner or fake_signer()
    record = replace(Record("fake", owner.address, 1, now_ms() + 60_000, b"payload"), **changes)
    return replace(record, signature=owner.sign(digests.record_digest(domain or Domain(), record)).value)


def as_plugins(*sources: Any) -> list[LoadedPlugin]:
    """Return classes, modules and objects as plugins, named after themselves, in call order."""
    plugins: list[LoadedPlugin] = []
    for source in sources:
        if isinstance(source, LoadedPlugin):
            plugins.append(source)
            continue
        name = str(getattr(source, "name", None) or getattr(source, "__name__", type(source).__name__))
        taken = sum(plugin.name.partition("#")[0] == name for plugin in plugins)
        plugins.append(loaded_plugin(f"{name}#{taken + 1}" if taken else name, source))
    return plugins


def sources_of(settings: Mapping[str, Any] | None, home: Path) -> Sources:
    """Return settings (``{"compute.capacity": 2}``) that come from nowhere else: no environment, no files."""
    flags: dict[tuple[str, str], Any] = {("", "home"): str(home)}
    for name, value in (settings or {}).items():
        table, _, field = name.rpartition(".")
        flags[table, field] = value
    return Sources(flags=flags, environment={}, folder=home)


class FakeRuntime:
    """A runtime: answers each request with outputs that fit the manifest, one unit for each chunk.

    Args:
        runtime: ``manifest.runtime`` that it accepts.
        chunks: how many chunks it yields.
        transcript: where it notes that its generator was opened and closed.
    """

    roles = ROLES

    def __init__(self, runtime: str = "fake", chunks: int = 2, transcript: list[str] | None = None) -> None:
        self.runtime, self.chunks = runtime, chunks
        self.transcript = [] if transcript is None else transcript

    @hookimpl
    def ncn_runtimes(self) -> Iterable[str]:
        return (self.runtime,)

    @hookimpl
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None] | None:
        return self._execute(leases.route.manifest) if leases.route.manifest.runtime == self.runtime else None

    async def _execute(self, manifest: ModelManifest) -> AsyncGenerator[Chunk, None]:
        self.transcript.append("runtime: open")
        try:
            for number in range(1, self.chunks + 1):
                yield Chunk(number, number, pack_tensors([fake_tensor(spec, number) for spec in manifest.outputs]))
        finally:
            self.transcript.append("runtime: close")


class RecordingPlugin:
    """Answers every hook of a request's life but ``ncn_execute``, and writes what it hears to a transcript.

    It routes to the first candidate, reserves one lease, signs with its keys, and settles whatever it is given.
    Lines are ``<name>: <hook>``, ``<name>: enter``, ``<name>: leave`` (and the error's class where there is one)
    and ``<name>: move <STATE>``.

    Args:
        name: in the transcript.
        transcript: shared with others, to see the order.
        signers: keys of the nodes that it signs for.
        domain: that signatures are bound to.
    """

    roles = ROLES

    def __init__(
        self,
        name: str = "recorder",
        transcript: list[str] | None = None,
        signers: Sequence[Signer] | None = None,
        domain: Domain | None = None,
    ) -> None:
        self.name, self.domain = name, domain or Domain()
        self.transcript = [] if transcript is None else transcript
        self.signers = {s.address: s for s in ([fake_signer()] if signers is None else signers)}
        self.events: list[Event] = []
        self.records: list[Record] = []

    def note(self, what: str) -> None:
        """Add a line to the transcript."""
        self.transcript.append(f"{self.name}: {what}")

    @hookimpl
    def ncn_register(self, record: Record) -> None:
        self.note("ncn_register")
        self.records.append(record)

    @hookimpl
    def ncn_route(self, candidates: Candidates) -> Awaitable[Route]:
        self.note("ncn_route")
        return self._route(candidates)

    async def _route(self, candidates: Candidates) -> Route:
        if not len(candidates):
            raise NoCandidate("no node serves the model")
        first = candidates[0]
        return Route(first.node, first.manifest, (Considered(first.node, "first"),))

    @hookimpl
    def ncn_reserve(self, request: InferenceRequest) -> Any:
        self.note("ncn_reserve")
        return self._reserve(request)

    @asynccontextmanager
    async def _reserve(self, request: InferenceRequest) -> AsyncIterator[Lease]:
        self.note("enter")
        try:
            yield Lease(self.name, 1, request.deadline_ms)
        except BaseException as error:
            self.note(f"leave {type(error).__name__}")
            raise
        else:
            self.note("leave")

    @hookimpl
    def ncn_execute(self) -> None:
        self.note("ncn_execute declines")

    @hookimpl
    def ncn_sign(self, receipt: SignedReceipt) -> Signature | None:
        self.note("ncn_sign")
        signer = self.signers.get(receipt.receipt.node)
        if signer is None or receipt.signature_of(signer.address):
            return None
        return signer.sign(digests.receipt_digest(self.domain, receipt.receipt))

    @hookimpl
    def ncn_settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement]:
        self.note("ncn_settle")
        return self._settle(Settlement(request.payment, receipt.receipt.fee_wei))

    async def _settle(self, settlement: Settlement) -> Settlement:
        return settlement

    @hookimpl
    def ncn_event(self, event: Event) -> None:
        self.note(f"move {event.state}")
        self.events.append(event)
