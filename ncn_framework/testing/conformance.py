"""Checks that a plugin author calls from a test. Each failure is an AssertionError that says what the contract is.

async def test_runtime(tmp_path):
    check_plugin(ncn_echo, "compute")
    await check_runtime(ncn_echo, manifest, request, directory=tmp_path)
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import digests
from ..config import Config
from ..errors import NcnError, NoCandidate, NoHandlerError
from ..hookspecs import hookimpl
from ..lifecycle import Lifecycle, Observer, Outcome
from ..manager import ROLES, PluginSet, build_manager, loaded_plugin
from ..models import Candidate, Candidates, Chunk, Event, InferenceRequest, Leases, ModelManifest, Route
from ..node import Node
from ..signing import check_signature
from ..states import State
from ..tensors import check_tensors, unpack_tensors
from .fakes import (
    FakeRuntime,
    RecordingPlugin,
    as_plugins,
    fake_candidates,
    fake_manifest,
    fake_request,
    fake_signer,
    sources_of,
)

__all__ = ["check_plugin", "check_router", "check_runtime"]

_FOREIGN = "no-runtime-has-this-name"


def _contract(holds: object, contract: str) -> None:
    if not holds:
        raise AssertionError(f"contract broken: {contract}")


def _node(role: str, *plugins: Any, settings: Mapping[str, Any] | None = None) -> Node:
    home = Path(tempfile.gettempdir()) / f"ncn-conformance-{secrets.token_hex(8)}"  # made by whoever writes there
    sources = sources_of(settings, home)
    node = Node(role, Config(sources), as_plugins(*plugins))
    weakref.finalize(node, shutil.rmtree, home, ignore_errors=True)
    return node


def check_plugin(source: Any, role: str, settings: Mapping[str, Any] | None = None) -> PluginSet:
    """Load a plugin as the kernel would, on the command line and in a node of ``role``.

    Args:
        source: module or class that the entry point names.
        role: ``registry``, ``gateway`` or ``compute``.
        settings: such as ``{"compute.capacity": 2}``.

    Returns:
        The node's plugins, to look further.

    Raises:
        PluginError: the kernel refuses it.
        AssertionError: it would load, but do nothing, or not at the command line.
    """
    loaded = loaded_plugin("checked", source)
    _contract(
        role in loaded.roles,
        f"a plugin works in the roles it names; its roles are {', '.join(loaded.roles)}, not {role!r}",
    )
    everywhere = build_manager([loaded])
    _contract(everywhere.hooks_of(loaded), "a plugin implements at least one hook, marked with @hookimpl")
    for table in everywhere.settings():
        _contract(getattr(table, "table", ""), f"settings name their table; {table.__name__}.table is missing")
    for command in everywhere.commands():
        _contract(command.name, "a command has a name")
    plugins = _node(role, loaded, settings=settings).plugins
    runtimes = plugins.runtimes()
    _contract(
        not runtimes or "ncn_execute" in plugins.hooks_of(loaded),
        f"a plugin that names runtimes ({', '.join(sorted(runtimes))}) implements ncn_execute",
    )
    return plugins


class _Watched:
    """Stands before a runtime and watches the streams that it opens."""

    roles = ROLES
    name = "watched"

    def __init__(self, source: Any) -> None:
        self._source = source
        self.streams: list[_Stream] = []

    def bind(self, node: Node) -> None:
        """Make the runtime with its node."""
        make: Callable[[Node], Any] | None = self._source if inspect.isclass(self._source) else None
        self._runtime = self._source if make is None else make(node)
        self._arguments = inspect.signature(self._runtime.ncn_execute).parameters

    @hookimpl
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> Any:
        given = {"request": request, "leases": leases}
        stream = self._runtime.ncn_execute(**{name: given[name] for name in self._arguments})
        if stream is None:
            return None
        _contract(
            hasattr(stream, "__anext__") and hasattr(stream, "aclose"),
            f"ncn_execute returns None or an asynchronous generator, not {type(stream).__name__}",
        )
        self.streams.append(_Stream(stream))
        return self.streams[-1]


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.closed = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        item = await anext(self._stream)
        _contract(
            isinstance(item, Chunk),
            f"a runtime yields Chunk and leaves receipts to the kernel; this is {type(item).__name__}",
        )
        _contract(not item.link, "a runtime leaves Chunk.link empty; the kernel makes the chain")
        return item

    async def aclose(self) -> None:
        await self._stream.aclose()
        self.closed = not inspect.isasyncgen(self._stream) or self._stream.ag_frame is None


async def check_runtime(
    source: Any,
    manifest: ModelManifest,
    request: InferenceRequest,
    *,
    directory: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Take ``request`` through a compute node whose only runtime is ``source``.

    Checked: it names ``manifest.runtime`` in ``ncn_runtimes``; it declines models of other runtimes; its chunks are
    well formed; the answer verifies; a cancelled request closes its generator and leaves it able to run the next.

    Args:
        source: module or class with ``ncn_execute``; made with its node, but no service is started.
        manifest: of a model that it executes.
        request: for that model, such as ``fake_request(manifest)``.
        directory: where the model's files are.
        settings: such as ``{"echo.delay_ms": 5}``.

    Returns:
        The outcome, to look at what was answered.

    Raises:
        AssertionError: a contract is broken.
        NcnError: the kernel refused what the runtime did; the message says why.
    """
    plugins = check_plugin(source, "compute", settings)
    _contract(
        manifest.runtime in plugins.runtimes(),
        f"ncn_runtimes names the runtimes that ncn_execute accepts; {manifest.runtime!r} is not among "
        f"{sorted(plugins.runtimes())}",
    )
    watched = _Watched(source)
    node = _node("compute", watched, RecordingPlugin(), settings=settings)
    watched.bind(node)
    life = node.lifecycle
    life.check(request, manifest)

    foreign = replace(manifest, runtime=_FOREIGN)
    stranger = replace(request, model=foreign.digest)
    try:
        await _walk(life, stranger, _route(foreign, directory))
    except NoHandlerError:
        pass
    else:
        raise AssertionError("contract broken: a runtime returns None for models whose manifest.runtime is not its own")

    outcome = await _walk(life, request, _route(manifest, directory))
    _contract(watched.streams, f"ncn_execute accepts models of runtime {manifest.runtime!r}; it declined")
    _contract(watched.streams[-1].closed, "ncn_execute's generator ends when its last chunk has been taken")
    _check_answer(life, request, manifest, outcome)

    await _cancelled_at_first_chunk(life, request, _route(manifest, directory))
    _contract(
        watched.streams[-1].closed,
        "a cancelled request closes ncn_execute's generator; do not catch GeneratorExit or CancelledError in it",
    )
    again = await _walk(life, request, _route(manifest, directory))
    _check_answer(life, request, manifest, again)
    return outcome


def _route(manifest: ModelManifest, directory: Path | None) -> Route:
    return Route(fake_signer().address, manifest, directory=directory)


def _ignore(update: Event | Chunk) -> None:
    pass


async def _walk(
    life: Lifecycle,
    request: InferenceRequest,
    route: Route | None,
    observe: Observer = _ignore,
    candidates: Candidates | None = None,
) -> Outcome:
    """Run the request; a broken contract is not hidden behind the life cycle's own error."""
    try:
        return await life.run(request, observe, route=route, candidates=candidates)
    except NcnError as error:
        if isinstance(error.__cause__, AssertionError):
            raise error.__cause__ from None
        raise


def _check_answer(life: Lifecycle, request: InferenceRequest, manifest: ModelManifest, outcome: Outcome) -> None:
    """Check an answer as a client does: every link, every output, the receipt and the node's signature."""
    receipt = outcome.receipt.receipt
    link = digests.chain_start(request.request_hash, request.model, receipt.node)
    units = 0
    for number, chunk in enumerate(outcome.chunks, 1):
        _contract(chunk.sequence == number, f"chunks are numbered 1, 2, 3, ...; this is {chunk.sequence}, not {number}")
        _contract(units <= chunk.units <= request.limit_units, "Chunk.units counts all units so far and never shrinks")
        units = chunk.units
        link = digests.chunk_link(link, chunk)
        _contract(chunk.link == link, "each chunk's link is the hash of the link before and the chunk")
        check_tensors(unpack_tensors(chunk.data), manifest.outputs)
    _contract(receipt.output_hash == link and receipt.units == units, "the receipt is for these chunks")
    signature = outcome.receipt.signature_of(receipt.node)
    check_signature(digests.receipt_digest(life.domain, receipt), signature, receipt.node, "the receipt")


async def _cancelled_at_first_chunk(life: Lifecycle, request: InferenceRequest, route: Route) -> None:
    def observe(update: Event | Chunk) -> None:
        task = asyncio.current_task()
        if isinstance(update, Chunk) and update.sequence == 1 and task is not None:
            task.cancel()

    walking = asyncio.ensure_future(_walk(life, request, route, observe))
    await asyncio.wait({walking})
    if not walking.cancelled() and (error := walking.exception()) is not None:
        raise error
    _contract(walking.cancelled(), "a runtime lets CancelledError pass: catch it only to clean up, then raise it again")


async def check_router(source: Any, settings: Mapping[str, Any] | None = None) -> None:
    """Let a router choose among 1, 2 and 100 nodes, some of them shutting down.

    Checked: the route is one of the candidates with its manifest, has capacity, and is explained by a reason code;
    candidates are read, not changed; where no node has capacity, ``NoCandidate`` is raised.

    Args:
        source: module or class with ``ncn_route``.
        settings: such as ``{"sticky.seed": 1}``.

    Raises:
        AssertionError: a contract is broken.
    """
    check_plugin(source, "gateway", settings)
    manifest = fake_manifest()
    request = fake_request(manifest)
    for count in (1, 2, 100):
        candidates = fake_candidates(count, manifest)
        for offered in (candidates, candidates[::-1], _draining_but(candidates, count - 1)):
            route = await _chosen(source, request, _ReadOnly(offered), settings)
            found = [c for c in offered if c.node == route.node]
            _contract(found, "ncn_route returns one of the candidates it was given")
            _contract(route.manifest == found[0].manifest, "Route.manifest is the manifest of the chosen candidate")
            _contract(found[0].capacity > 0, "a node with capacity 0 is shutting down and is not chosen")
            _contract(
                any(seen.node == route.node and seen.reason for seen in route.considered),
                "Route.considered has a reason code for the chosen node",
            )
        try:
            await _chosen(source, request, _ReadOnly(fake_candidates(count, manifest, capacity=0)), settings)
        except NoCandidate:
            continue
        raise AssertionError("contract broken: where every node is shutting down, ncn_route raises NoCandidate")


def _draining_but(candidates: Sequence[Candidate], index: int) -> list[Candidate]:
    return [c if n == index else replace(c, capacity=0) for n, c in enumerate(candidates)]


class _ReadOnly:
    """The least that ``Candidates`` promises."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = tuple(candidates)

    def __len__(self) -> int:
        return len(self._candidates)

    def __getitem__(self, index: int, /) -> Candidate:
        if not isinstance(index, int):
            raise AssertionError("contract broken: Candidates are indexed by numbers; slices are not promised")
        return self._candidates[index]

    def __iter__(self) -> Any:
        return iter(self._candidates)


async def _chosen(
    source: Any, request: InferenceRequest, candidates: Candidates, settings: Mapping[str, Any] | None
) -> Route:
    signers = [fake_signer(), *(fake_signer(f"node {n}") for n in range(1, len(candidates)))]
    moves: list[State] = []

    def observe(update: Event | Chunk) -> None:
        if isinstance(update, Event):
            moves.append(update.state)

    node = _node("gateway", source, RecordingPlugin(signers=signers), FakeRuntime(), settings=settings)
    try:
        outcome = await _walk(node.lifecycle, request, None, observe, candidates)
    except NcnError as error:
        if State.ROUTED in moves:
            raise AssertionError(f"contract broken: the route could not be used: {error}") from error
        raise
    return outcome.route
