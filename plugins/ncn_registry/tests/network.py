"""Registries, gateways and nodes in this process, on a network that is a dictionary; signed records to give them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.errors import NcnError
from ncn_framework.lifecycle import now_ms
from ncn_framework.manager import loaded_plugin
from ncn_framework.models import Domain, ModelManifest, NodeInfo, Record
from ncn_framework.node import Node
from ncn_framework.signing import Signer
from ncn_framework.sources import Sources
from ncn_framework.testing.fakes import fake_manifest, fake_signer
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import node_record
from ncn_framework.wire.convert_records import heartbeat_record
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceStub
from ncn_registry.plugin import Plugin
from ncn_registry.registry import Registry

DOMAIN = Domain()
NODE = fake_signer("a compute node")
OTHER = fake_signer("another compute node")


@dataclass(frozen=True)
class FakePeer:
    """A connected peer."""

    peer_id: str
    addresses: tuple[str, ...]


class Sea:
    """A network that loses nothing and takes no time: what its swarms share."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.providers: dict[bytes, list[str]] = {}
        self.swarms: list[FakeSwarm] = []
        self.published: list[tuple[str, bytes]] = []
        self.questions: list[tuple[str, str, bytes]] = []
        self.deaf = False

    def swarm(self, key: bytes, listen: Sequence[str], **options: Any) -> FakeSwarm:
        """Return a swarm of this network."""
        return FakeSwarm(self, key, listen, **options)


class FakeSwarm:
    """Has the interface of ``Swarm``."""

    def __init__(
        self,
        sea: Sea,
        key: bytes,
        listen: Sequence[str],
        *,
        heard: Callable[[str, bytes, str], None],
        stored: Callable[[str, bytes], None],
        validate: Callable[[str, bytes], int | None],
        admit: Callable[[str, bytes, str], bool],
        asked: Callable[[bytes, str], Awaitable[bytes]],
        announce: Sequence[str] = (),
        bootstrap: Sequence[str] = (),
    ) -> None:
        self.sea, self.heard, self.stored, self.validate, self.admit = sea, heard, stored, validate, admit
        self.answer = asked
        self.peer_id = f"peer{key.hex()[:8]}"
        self.addresses = [f"{listen[0]}/p2p/{self.peer_id}"]
        self.topics: set[str] = set()
        self.asked: list[str] = []

    async def __aenter__(self) -> FakeSwarm:
        self.sea.swarms.append(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sea.swarms.remove(self)

    def _others(self) -> list[FakeSwarm]:
        return [swarm for swarm in self.sea.swarms if swarm is not self]

    async def put(self, key: str, value: bytes) -> int:
        assert len(key) <= 49
        assert len(value) <= 16 << 10
        sequence = self.validate(key, value)
        assert sequence is not None
        known = self.sea.values.get(key)
        if known is None or (self.validate(key, known) or 0) < sequence:
            self.sea.values[key] = value
        return len(self._others())

    async def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        return self.sea.values.get(key)

    async def provide(self, key: bytes) -> None:
        self.sea.providers.setdefault(key, []).append(self.peer_id)

    async def subscribe(self, topic: str) -> None:
        self.topics.add(topic)

    async def publish(self, topic: str, data: bytes) -> None:
        assert len(data) <= 32 << 10
        self.sea.published.append((topic, data))
        for other in [] if self.sea.deaf else self._others():
            if topic in other.topics and other.admit(topic, data, self.peer_id):
                other.heard(topic, data, self.peer_id)

    async def ask(self, peer_id: str, addresses: Sequence[str], question: bytes, timeout_s: float) -> bytes:
        async with asyncio.timeout(timeout_s):
            for other in self._others():
                if other.peer_id == peer_id:
                    assert list(addresses) == other.addresses
                    self.sea.questions.append((self.peer_id, peer_id, question))
                    return await other.answer(question, self.peer_id)
        raise NcnError(f"peer {peer_id} cannot be reached")

    async def wait_down(self) -> None:
        await asyncio.Event().wait()

    def peers(self) -> list[FakePeer]:
        return [FakePeer(other.peer_id, tuple(other.addresses)) for other in self._others()]


def signed(record: Record, signer: Signer = NODE, domain: Domain = DOMAIN) -> Record:
    """Return the record with a signature of ``signer``'s."""
    return replace(record, signature=signer.sign(digests.record_digest(domain, record)).value)


def a_record(
    signer: Signer = NODE,
    sequence: int = 1,
    expires_ms: int | None = None,
    models: Sequence[ModelManifest] | None = None,
    **changes: Any,
) -> Record:
    """Return a signed record of a compute node."""
    info = NodeInfo(signer.address, tuple(models if models is not None else (fake_manifest(),)), 4, "strict", "test")
    record = node_record(info, sequence, now_ms() + 60_000 if expires_ms is None else expires_ms)
    return signed(replace(record, **changes), signer)


def a_heartbeat(signer: Signer = NODE, at_ms: int | None = None, in_flight: int = 0) -> mpb.HeartbeatRequest:
    """Return a signed heartbeat."""
    message = mpb.HeartbeatRequest(node=signer.address, at_ms=now_ms() if at_ms is None else at_ms, in_flight=in_flight)
    message.signature = signer.sign(digests.record_digest(DOMAIN, heartbeat_record(message))).value
    return message


def a_node(role: str, home: Path, plugin: Any = Plugin, others: Sequence[Any] = (), **settings: str) -> Node:
    """Return a role with the registry's plugin, and ``others``."""
    environment = {"NCN_HOME": str(home), **{f"NCN_REGISTRY_{key.upper()}": value for key, value in settings.items()}}
    config = Config(Sources(environment=environment, folder=home))
    more = [loaded_plugin(f"other{number}", other) for number, other in enumerate(others)]
    return Node(role, config, [loaded_plugin("registry", plugin), *more])


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    """Run a role until the context is left."""
    stop, started = asyncio.Event(), asyncio.Event()

    async def ready(_: Node) -> None:
        started.set()

    task = asyncio.create_task(node.run(stop, ready))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if started.is_set():
            yield node
    finally:
        stop.set()
        await task


@dataclass
class RunningRegistry:
    """A registry, and who may ask it."""

    node: Node
    registry: Registry
    stub: Any
    target: str


@asynccontextmanager
async def a_registry(
    home: Path, sea: Sea, others: Sequence[Any] = (), validators: Sequence[Signer] = (), **settings: str
) -> AsyncIterator[RunningRegistry]:
    """Run a registry on ``sea`` until the context is left, with ``others`` as plugins, that speaks for validators."""

    class Faked(Plugin):
        @property
        def part(self) -> Registry:
            if not hasattr(self, "_made"):
                self._made = Registry(self.node, sea.swarm)  # type: ignore[arg-type]
            return self._made

    await asyncio.to_thread(home.mkdir, exist_ok=True)
    given = {"grpc_listen_addr": "127.0.0.1:0", "heartbeat_interval_ms": "200", **settings}
    async with AsyncExitStack() as stack:
        node = a_node("registry", home, Faked, others, **given)
        node.validators = tuple(validators)
        await stack.enter_async_context(running(node))
        target = node.endpoints["grpc"]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        plugin = node.plugins.instances["registry"]
        yield RunningRegistry(node, plugin.part, P2PRegistryServiceStub(channel), target)


async def until(condition: Callable[[], object], within_s: float = 20) -> None:
    """Wait for a state that nothing announces."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
