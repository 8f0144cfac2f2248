"""How long it takes until a compute node is found: at its own registry, at another one, and in the DHT."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from ncn_framework.models import ModelManifest
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_registry.records import NODE

from .network import Network
from .registry_fleet import ALONE, Fleet, Member, Percentiles, fleet, node_records, timed

__all__ = ["discovery"]

_ASKED_AGAIN = 10
_HEARTBEAT_MS = 10_000
"""Of registries: every heartbeat reaches every other one, and with the default of two seconds, twenty registries on one
machine have two processors busy with nothing but each other's."""
_FORGOTTEN_S = 8.0
"""After this, gossip hands a message to no newcomer any more; and what is put into the DHT is there."""
_APART_S = 0.2
"""Between two nodes: what changes at a registry within 0.1 s is told to others together, and would wait for that."""


async def discovery(folder: Path, manifest: ModelManifest, sizes: Sequence[int], samples: int) -> None:
    """Measure at each number of registries, and print the table.

    Args:
        folder: for homes and logs.
        manifest: of the model that every node serves.
        sizes: numbers of registries, rising.
        samples: nodes of each measurement.
    """
    print(f"discovery: median (p99) ms of {samples} nodes each; in brackets, the ratio to the registry asked directly")
    print(f"{'registries':>10}  {'asked directly':>20}  {'watched, same':>24}  {'watched, another':>24}  {'DHT':>24}")
    settings = ALONE | {"NCN_REGISTRY_HEARTBEAT_INTERVAL_MS": str(_HEARTBEAT_MS)}
    async with fleet(Network(folder / "discovery", folder / "models"), settings) as running:
        for size in sizes:
            await running.grow(*[{}] * (size - 1 - len(running.members)))
            rows = await _measured(running, manifest, samples)
            local = rows[0].p50_ms
            cells = [f"{rows[0].p50_ms:.2f} ({rows[0].p99_ms:.2f})".rjust(20)]
            cells += [f"{r.p50_ms:.1f} ({r.p99_ms:.1f}) [{r.p50_ms / local:.0f}]".rjust(24) for r in rows[1:]]
            if missed := samples - rows[-1].count:
                cells.append(f"{missed} not found in the DHT")
            print(f"{size:>10}  {'  '.join(cells)}", flush=True)
    print()


async def _measured(running: Fleet, manifest: ModelManifest, samples: int) -> list[Percentiles]:
    """Return the columns of one row; the last registry is started here, when it can only find the nodes in the DHT."""
    domain = await running.domain()
    early = node_records(samples, domain, manifest)
    await running.quiet()
    for node in early:
        await running.members[0].stub.RegisterNode(node, timeout=30)
    await asyncio.sleep(_FORGOTTEN_S)
    (newcomer,) = await running.grow({})  # no heartbeat follows, so that gossip tells it nothing of these nodes
    await running.quiet()
    known = sqlite3.connect(f"file:{newcomer.home / 'registry.db'}?mode=ro", uri=True)
    owners = {owner for (owner,) in known.execute("SELECT owner FROM records WHERE kind = ?", (NODE,))}
    known.close()
    if held := sum(node.record.owner in owners for node in early):
        raise RuntimeError(f"the newcomer has {held} of the {samples} records already; nothing would be looked for")
    from_dht = [took for node in early if (took := await _found(newcomer, node)) is not None]
    if not from_dht:
        raise RuntimeError(f"the newcomer found none of {samples} nodes in the DHT")
    others = [member for member in running.members[1:] if member is not newcomer]
    async with _Watcher(running.members[0]) as watcher:
        same = [await watcher.hears(running.members[0], n) for n in node_records(samples, domain, manifest)]
        nodes = node_records(samples, domain, manifest)
        another = [await watcher.hears(others[i % len(others)], node) for i, node in enumerate(nodes)]
    asked = [await timed(_getting(running.members[0], node)) for node in early * _ASKED_AGAIN]
    return [Percentiles.of(durations) for durations in (asked, same, another, from_dht)]


def _getting(member: Member, node: mpb.NodeInfo) -> Callable[[], Any]:
    return lambda: member.stub.GetNode(mpb.WalletAddress(address=node.record.owner), timeout=30)


async def _found(member: Member, node: mpb.NodeInfo) -> float | None:
    """Return how long a look-up took; None where it found nothing within the registry's limit."""
    try:
        return await timed(_getting(member, node))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


class _Watcher:
    """Watches the nodes of a registry as a gateway does; entered as an asynchronous context manager."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._put: dict[bytes, asyncio.Future[None]] = {}
        self._synced = asyncio.Event()

    async def __aenter__(self) -> _Watcher:
        self._task = asyncio.create_task(self._read())
        async with asyncio.timeout(30):
            await self._synced.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def hears(self, registry: Member, node: mpb.NodeInfo) -> float:
        """Return the seconds from the call that registers ``node`` at ``registry`` until it is heard of here."""
        heard = self._put[node.record.owner] = asyncio.get_running_loop().create_future()
        await asyncio.sleep(_APART_S)

        async def register() -> None:
            await registry.stub.RegisterNode(node, timeout=30)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            began = time.perf_counter()
            group.create_task(register())
            await heard
            return time.perf_counter() - began

    async def _read(self) -> None:
        call = self._member.stub.Watch(pb.WatchRequest(kinds=[NODE]), wait_for_ready=True)
        try:
            async for event in call:
                which = event.WhichOneof("event")
                if which == "synced":
                    self._synced.set()
                elif which == "put" and (heard := self._put.pop(event.put.owner, None)) is not None:
                    heard.set_result(None)
        finally:
            call.cancel()
