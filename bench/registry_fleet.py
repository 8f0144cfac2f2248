"""Registries as processes of their own that know each other; for the benchmark ``registry``."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from ncn_framework import digests
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain, ModelManifest, NodeInfo, Record
from ncn_framework.signing import Signer
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import node_record, record_from_pb, record_to_pb
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceStub
from ncn_registry.identity import REGISTRY, registry_info_from_record

from .network import Network, Process, free_ports

__all__ = ["ALONE", "Fleet", "Member", "Percentiles", "fleet", "node_records", "timed"]

ALONE = {"NCN_DISABLED_PLUGINS": "payments,compute"}
"""Environment of a registry that only keeps records: no chain, no validators, no models."""

_JOINED = 3
_WITHIN_S = 120.0
_QUIET_S, _QUIET_WITHIN_S = 0.3, 20.0
_LIFETIME_MS = 3_600_000


@dataclass
class Member:
    """A registry.

    Attributes:
        process: in which it runs.
        home: its folder.
        target: HOST:PORT of its gRPC.
        stub: of its service.
        address: multiaddress by which others join it.
    """

    process: Process
    home: Path
    target: str
    stub: Any
    address: str = ""


@dataclass(frozen=True)
class Percentiles:
    """Of durations, in milliseconds."""

    p50_ms: float
    p99_ms: float
    count: int

    @classmethod
    def of(cls, durations_s: Sequence[float]) -> Percentiles:
        """Return those of durations in seconds."""
        ordered = sorted(durations_s)
        middle, late = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return cls(middle * 1000, late * 1000, len(ordered))


async def timed(call: Callable[[], Any]) -> float:
    """Return how long it takes to await what ``call`` returns, in seconds."""
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


class Fleet:
    """Registries on free loopback ports.

    Args:
        network: whose processes they become.
        extra: environment of each of them.

    Attributes:
        members: in the order in which they were started.
    """

    def __init__(self, network: Network, extra: Mapping[str, str]) -> None:
        if extra.get("NCN_DISABLED_PLUGINS"):  # their settings would be refused as unknown
            gone = tuple(f"NCN_{name}_".upper() for name in extra["NCN_DISABLED_PLUGINS"].split(","))
            network.environment = {k: v for k, v in network.environment.items() if not k.startswith(gone)}
        self.network, self._extra = network, dict(extra)
        self.members: list[Member] = []
        self._channels: list[grpc.aio.Channel] = []

    async def grow(self, *environments: Mapping[str, str]) -> list[Member]:
        """Start one for each of ``environments``, joined to up to three that run; return them once connected."""
        new: list[Member] = []
        for environment in environments:
            new.append(self._start(environment))
            if len(self.members) == 1:
                await self._unless_one_ends(self._settle(new))  # the others join it, so it must be there
        await self._unless_one_ends(self._settle(new))
        await self._unless_one_ends(self._connect())
        return new

    async def _unless_one_ends(self, waiting: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(waiting)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.1)
                if ended := [m for m in self.members if m.process.popen.poll() is not None]:
                    raise RuntimeError(f"registry {ended[0].target} has ended; its log says:\n{self._log()}")
            task.result()
        finally:
            task.cancel()

    async def _connect(self) -> None:
        """Wait until every member is connected to as many others as it was told of; they find the rest meanwhile."""
        wanted = min(_JOINED, len(self.members) - 1)
        async with asyncio.timeout(_WITHIN_S):
            for member in self.members:
                while len([peer async for peer in member.stub.ListPeers(mpb.Empty())]) < wanted:
                    await asyncio.sleep(0.1)

    async def quiet(self) -> None:
        """Wait until the members, which have just met, hardly use the processors; for a while at most."""
        end = time.monotonic() + _QUIET_WITHIN_S
        used = self._cpu_s()
        while time.monotonic() < end:
            await asyncio.sleep(1)
            before, used = used, self._cpu_s()
            if used - before < _QUIET_S:
                return

    def _cpu_s(self) -> float:
        return sum(sum(member.process.cpu_s().values()) for member in self.members)

    async def domain(self) -> Domain:
        """Return what the signatures of records are bound to."""
        network = await self.members[0].stub.GetNetwork(mpb.Empty(), timeout=_WITHIN_S, wait_for_ready=True)
        return Domain(network.chain_id, network.contract)

    async def close(self) -> None:
        """Hang up; the processes are the network's to end."""
        for channel in self._channels:
            await channel.close()

    def _log(self) -> str:
        return (self.network.home / "registry.log").read_text()[-2000:]

    def _start(self, environment: Mapping[str, str]) -> Member:
        number = len(self.members)
        p2p, port = free_ports(2)
        known = [member.address for member in self.members if member.address]
        joined = [known[(number + step) % len(known)] for step in range(min(_JOINED, len(known)))]
        target, home = f"127.0.0.1:{port}", self.network.home / f"registry-{number}"
        settings = self._extra | {
            "NCN_HOME": str(home),
            "NCN_REGISTRY_P2P_LISTEN_ADDR": f"127.0.0.1:{p2p}",
            "NCN_REGISTRY_GRPC_LISTEN_ADDR": target,
            "NCN_REGISTRY_BOOTSTRAP": ",".join(joined),
            "REGISTRY_GRPC_ADDR": "",
        }
        process = self.network.start("registry", **{**settings, **environment})
        options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
        channel = grpc.aio.insecure_channel(target, options=options)
        self._channels.append(channel)
        self.members.append(Member(process, home, target, P2PRegistryServiceStub(channel)))
        return self.members[-1]

    async def _settle(self, members: Collection[Member]) -> None:
        """Wait until each of ``members`` serves, and note by which address others join it."""
        for member in members:
            async with aclosing(self._registries(member)) as shown:
                async for infos in shown:
                    if (own := infos.get(member.target)) is not None:
                        member.address = own
                        break

    async def _registries(self, member: Member) -> AsyncGenerator[dict[str, str]]:
        """Yield, whenever it changes, which registries a member shows: target of gRPC to multiaddress."""
        shown: dict[str, str] = {}
        call = member.stub.Watch(pb.WatchRequest(kinds=[REGISTRY]), timeout=_WITHIN_S, wait_for_ready=True)
        try:
            async for event in call:
                which = event.WhichOneof("event")
                if which in ("put", "gone"):
                    info = registry_info_from_record(record_from_pb(getattr(event, which)))
                    if which == "put":
                        shown[info.grpc_addr] = info.multiaddrs[0]
                    else:
                        shown.pop(info.grpc_addr, None)
                    yield shown
        except grpc.aio.AioRpcError as cause:
            raise RuntimeError(
                f"registry {member.target} shows {len(shown)} of {len(self.members)} registries ({cause.code()}); "
                f"the log says:\n{self._log()}"
            ) from cause
        finally:
            call.cancel()


@asynccontextmanager
async def fleet(network: Network, extra: Mapping[str, str]) -> AsyncIterator[Fleet]:
    """Run a fleet; what was started on ``network`` ends with the context."""
    made = Fleet(network, extra)
    try:
        yield made
    finally:
        await made.close()
        await asyncio.to_thread(network.close)


def node_records(count: int, domain: Domain, manifest: ModelManifest) -> list[mpb.NodeInfo]:
    """Return signed records of so many compute nodes with new keys, each of which serves one model."""
    now = now_ms()
    made = []
    for _ in range(count):
        signer = Signer(secrets.token_bytes(32))
        info = NodeInfo(signer.address, (manifest,), 8, "strict", "bench")
        record: Record = node_record(info, now, now + _LIFETIME_MS)
        signed = replace(record, signature=signer.sign(digests.record_digest(domain, record)).value)
        made.append(mpb.NodeInfo(record=record_to_pb(signed)))
    return made
