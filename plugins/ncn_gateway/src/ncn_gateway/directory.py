"""Which node serves which model now, and with which load: an index by model digest, O(1) in the number of nodes."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ncn_framework.errors import MalformedRequest, NoCandidate, NoCapacity, NodeLost, SignatureRejected, UnknownModel
from ncn_framework.models import Candidate, Lease, ModelManifest, NodeInfo, Record
from ncn_framework.signing import address_hex
from ncn_framework.wire.convert import node_info_from_record

if TYPE_CHECKING:
    from .links import NodeLink

__all__ = ["Directory", "Entry", "Serving"]

_SMOOTHING = 0.1  # weight of the newest observation in the moving averages


@dataclass(eq=False)
class Entry:
    """A node as this gateway knows it.

    Attributes:
        info: what its record says.
        sequence: of that record.
        link: its connection; None while it has none.
        draining: it takes no new tasks.
        latency_ms, failures: moving averages.
        waiting: requests that wait for a slot, first come first served.
    """

    info: NodeInfo
    sequence: int
    link: NodeLink | None = None
    draining: bool = False
    in_flight: int = 0
    latency_ms: float = 0.0
    failures: float = 0.0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def observe(self, latency_ms: float | None) -> None:
        """Learn from a finished request: its time, or None where it failed through the node's fault."""
        self.failures += _SMOOTHING * ((latency_ms is None) - self.failures)
        if latency_ms is not None:
            self.latency_ms += (_SMOOTHING if self.latency_ms else 1.0) * (latency_ms - self.latency_ms)

    def release(self) -> None:
        """Give a slot back: to the first who waits, or to nobody."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)  # the slot passes on, in_flight stays
                return
        self.in_flight -= 1

    def abandon(self, why: str) -> None:
        """Fail all who wait: the node is gone, or may be given no work."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_exception(NodeLost(f"node {address_hex(self.info.node)} {why} while the request waited"))


class Serving:
    """The nodes that serve one model; a sequence of candidates for the route hook.

    Attributes:
        out: nodes that serve it and may be given no work; no candidates, so that no router can choose them.
    """

    def __init__(self, manifest: ModelManifest) -> None:
        self.manifest = manifest
        self.entries: list[Entry] = []
        self.out: set[bytes] = set()
        self._places: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int, /) -> Candidate:
        entry = self.entries[index]
        return Candidate(
            node=entry.info.node,
            manifest=self.manifest,
            capacity=0 if entry.draining else entry.info.capacity,
            in_flight=entry.in_flight + len(entry.waiting),
            latency_ms=entry.latency_ms,
            failures=entry.failures,
        )

    def __iter__(self) -> Iterator[Candidate]:
        return (self[index] for index in range(len(self)))

    def add(self, entry: Entry, *, out: bool = False) -> None:
        if out:
            self.out.add(entry.info.node)
            return
        place = self._places.setdefault(entry.info.node, len(self.entries))
        self.entries[place : place + 1] = [entry]

    def remove(self, node: bytes) -> None:
        if node in self.out:
            self.out.remove(node)
            return
        place, last = self._places.pop(node), self.entries.pop()
        if last.info.node != node:  # the last one takes its place
            self.entries[place] = last
            self._places[last.info.node] = place


class Directory:
    """All connected nodes.

    Args:
        allowed: addresses to accept; empty: any.
        max_queue: requests that may wait for a slot of one node.

    Attributes:
        out: accounts that may be given no work, connected or not, and why.
    """

    def __init__(self, allowed: frozenset[bytes] = frozenset(), max_queue: int = 1024) -> None:
        self.allowed = allowed
        self.max_queue = max_queue
        self.nodes: dict[bytes, Entry] = {}
        self.models: dict[bytes, Serving] = {}
        self.out: dict[bytes, str] = {}
        self._names: dict[str, list[bytes]] = {}
        self._tokens = itertools.count(1)

    def put(self, record: Record) -> Entry:
        """Take a node's checked record; of two, the higher sequence counts.

        Raises:
            SignatureRejected: the node is not one of those allowed.
            MalformedRequest: not a node's record, or its sequence was seen before.
        """
        info = node_info_from_record(record)
        if self.allowed and info.node not in self.allowed:
            raise SignatureRejected(f"node {address_hex(info.node)} is not in this gateway's allowed_nodes")
        known = self.nodes.get(info.node)
        if known is not None and record.sequence <= known.sequence:
            raise MalformedRequest(
                f"the record of node {address_hex(info.node)} has sequence {record.sequence}; "
                f"{known.sequence} was seen: sign one with a higher sequence"
            )
        if known is None:
            entry = self.nodes[info.node] = Entry(info, record.sequence)
        else:
            entry = known
            self._unlist(entry)
            entry.info, entry.sequence = info, record.sequence
        for manifest in info.models:
            if manifest.digest not in self.models:
                self.models[manifest.digest] = Serving(manifest)
                self._names.setdefault(manifest.name, []).append(manifest.digest)
            self.models[manifest.digest].add(entry, out=info.node in self.out)
        return entry

    def stand(self, account: bytes, out: bool, reason: str) -> None:
        """Give an account no more work (``out``), whether it is connected or comes later; or give it work again.

        What it executes already goes on.
        """
        if out:
            self.out[account] = reason
        else:
            self.out.pop(account, None)
        entry = self.nodes.get(account)
        if entry is None:
            return
        for manifest in entry.info.models:
            serving = self.models[manifest.digest]
            serving.remove(account)
            serving.add(entry, out=out)
        if out:
            entry.abandon(f"was put out of service ({reason})")

    def remove(self, node: bytes) -> None:
        """Forget a node; who waits for it fails with ``NodeLost``."""
        entry = self.nodes.pop(node)
        self._unlist(entry)
        entry.abandon("left")

    def _unlist(self, entry: Entry) -> None:
        for manifest in entry.info.models:
            serving = self.models.get(manifest.digest)
            if serving is None:
                continue
            serving.remove(entry.info.node)
            if not serving and not serving.out:
                del self.models[manifest.digest]
                self._names[manifest.name].remove(manifest.digest)

    def find(self, model: str | bytes) -> Serving:
        """Return who serves a model, given its digest or name.

        Where nodes serve several models of one name, it is that of the first who came and stayed, so that a
        newcomer cannot take a name over.

        Raises:
            UnknownModel: no connected node serves it.
        """
        digest = model if isinstance(model, bytes) else (self._names.get(model) or [b""])[0]
        serving = self.models.get(digest)
        if serving is None:
            known = ", ".join(sorted(name for name, digests in self._names.items() if digests)[:16]) or "none"
            shown = "0x" + model.hex() if isinstance(model, bytes) else repr(model[:128])
            raise UnknownModel(f"no connected node serves model {shown}; served now: {known}")
        return serving

    def lease(self, node: bytes, expires_ms: int) -> CapacityLease:
        """Return a slot of ``node`` to be entered; leaving it gives the slot back."""
        return CapacityLease(self, node, Lease("capacity", next(self._tokens), expires_ms))


class CapacityLease:
    """A slot of a node, held while the context is entered; waits where none is free.

    Raises:
        NodeLost: the node is gone.
        NoCandidate: it may be given no work.
        NoCapacity: too many wait already.
    """

    leaves_at_once = True

    def __init__(self, directory: Directory, node: bytes, lease: Lease) -> None:
        self.directory, self.node, self.lease = directory, node, lease

    async def __aenter__(self) -> Lease:
        entry = self.directory.nodes.get(self.node)
        if entry is None or entry.link is None:
            raise NodeLost(f"node {address_hex(self.node)} left before the request reached it")
        if (reason := self.directory.out.get(self.node)) is not None:
            raise NoCandidate(f"node {address_hex(self.node)} may be given no work: {reason}")
        self.entry = entry
        if entry.in_flight < entry.info.capacity:
            entry.in_flight += 1
            return self.lease
        if len(entry.waiting) >= self.directory.max_queue:
            raise NoCapacity(f"node {address_hex(self.node)} is full and {len(entry.waiting)} requests wait already")
        waiter = asyncio.get_running_loop().create_future()
        entry.waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                entry.release()  # the slot came in the same moment
            raise
        return self.lease

    async def __aexit__(self, *_: object) -> None:
        self.entry.release()
