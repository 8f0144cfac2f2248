"""The registry as a service: store, libp2p, gossip, and the gRPC in front of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ncn_framework.errors import ConfigError, EndorsementRefused, NcnError
from ncn_framework.models import Event, Record
from ncn_framework.payments import Quorum
from ncn_framework.signing import address_hex
from ncn_framework.statements import Evidence, PerformancesStatement, Statement, SubnetStatement
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert_records import host_and_port
from ncn_framework.wire.registry_pb2_grpc import add_P2PRegistryServiceServicer_to_server

from . import __version__
from .anchors import Anchors, speakers_of
from .collector import Collector
from .config import RegistrySettings
from .contradictions import Contradictions
from .dht import Dht
from .disputes import Disputes
from .gossip import INTERVAL_S, Gossip
from .identity import REGISTRY, RegistryInfo, peer_key, registry_info_from_record, registry_record
from .inspection import Inspector
from .limits import MOST_BYTES
from .noticeboard import NOTICES, Noticeboard
from .performances import Performances
from .presence import MISSED, Presence
from .records import Bounds, Judge, withdrawal
from .reputations import Reputations
from .roll import Roll
from .sealing import heartbeat, sealed
from .service import RegistryService
from .size_limit import SizeLimit
from .speakers import Speakers
from .store import RecordStore
from .subnets import Subnets
from .tallies import Tallies
from .watching import Watchers

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ncn_framework.node import Node

    from .swarm import Swarm

__all__ = ["Registry", "multiaddr_of"]

log = logging.getLogger(__name__)

_MOST_CALLS = 1_024
"""Calls at once, beside those who watch; gRPC refuses more with RESOURCE_EXHAUSTED."""
_LARGE = ("RequestPreprocessingValidation", "RequestCompletionValidation", "RequestBatchValidation")
"""Methods whose requests may be as large as a statement with its evidence."""
_PATIENCE = 0.75
"""Part of the time limit of statements with answers that inspecting them may take."""
_LOOK = 5
"""Heartbeats' intervals between two looks at whether an epoch is over."""
_TICKS = 20
"""How often time is looked at, in parts of a heartbeat's interval."""

_LOOKS_AROUND = 15
"""How often a registry looks whether it is in the network, in heartbeats."""

SwarmMaker = Callable[..., "Swarm"]


class Registry:
    """What the hooks of the plugin stand for in a registry's process.

    Args:
        node: whose settings and key it uses.
        make_swarm: makes its libp2p; another one in tests.
    """

    def __init__(self, node: Node, make_swarm: SwarmMaker | None = None) -> None:
        self.node = node
        self.settings = node.settings(RegistrySettings)
        self._make_swarm = make_swarm
        self.roll: Roll | None = None
        self.subnets: Subnets | None = None
        self.collector: Collector | None = None
        self.inspector: Inspector | None = None
        self.performances: Performances | None = None
        self.reputations: Reputations | None = None
        self._out: dict[bytes, str] = {}
        self._ever_out: set[bytes] = set()
        self._own: Record | None = None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listen until the context is left; then say goodbye, and close."""
        node, settings, clock = self.node, self.settings, self.node.lifecycle.clock
        _own_address(settings.grpc_listen_addr, "grpc_listen_addr")
        listen = multiaddr_of(settings.p2p_listen_addr)
        bounds = Bounds(settings.max_record_bytes, settings.max_lifetime_ms, settings.max_skew_ms)
        judge = Judge(node.domain, clock, bounds)
        key = peer_key(node.home / "keys" / "registry-peer.key")
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                RecordStore(
                    node.home / "registry.db", node.domain, clock(), settings.max_records, settings.max_store_bytes
                )
            )
            presence = Presence(MISSED * settings.heartbeat_interval_ms / 1000, loop.time, clock)
            watchers = Watchers(settings.max_watchers, settings.watcher_backlog)
            roll = self.roll = Roll(store, judge, presence, watchers, clock)
            for account, reason in self._out.items():  # heard of before there was a roll
                roll.stand(account, True, reason)
            tallies = await stack.enter_async_context(Tallies(node.home / "tallies.db", node.domain))
            contradictions = Contradictions(node.home / "contradictions.db", node)
            await stack.enter_async_context(contradictions.running())
            look_s = _LOOK * settings.heartbeat_interval_ms / 1000
            reputations = self.reputations = Reputations(node, tallies, look_s)
            for account in self._ever_out:
                reputations.slashed(account)
            roll.reputation = reputations.of_node
            dht: Dht
            gossip: Gossip
            board: Noticeboard
            collector: Collector
            make_swarm = self._make_swarm
            if make_swarm is None:
                make_swarm = await asyncio.to_thread(_load_swarm)
            swarm = make_swarm(
                key,
                [listen],
                announce=settings.announce,
                bootstrap=settings.bootstrap,
                heard=lambda topic, data, peer: (
                    board.heard(data, peer) if topic == NOTICES else gossip.heard(topic, data, peer)
                ),
                stored=lambda key, value: dht.stored(key, value),
                validate=judge.sequence,
                admit=lambda topic, data, peer: (
                    board.admit(data) if topic == NOTICES else gossip.admit(topic, data, peer)
                ),
                asked=lambda question, peer: collector.answer(question, peer),
            )
            dht = Dht(swarm, roll, settings.dht_renew_interval_ms / 1000, settings.dht_timeout_ms / 1000)
            gossip = Gossip(swarm, roll, dht, min(INTERVAL_S, settings.heartbeat_interval_ms / 2000))
            subnets = self.subnets = Subnets(roll, dht.find, node.validation.epoch, node.validation.endorse)
            interval_s = settings.heartbeat_interval_ms / 1000
            speakers = Speakers(node, roll, dht, swarm, settings.record_lifetime_ms, interval_s)
            board = Noticeboard(node, swarm, tallies, settings.max_skew_ms, signed=contradictions.note)
            self.collector = collector = Collector(
                node, speakers.of, swarm, settings.limits, contradictions, board.told
            )
            performances = self.performances = Performances(node, tallies, collector.endorse, look_s)
            for part in (subnets, swarm, dht, gossip, board):
                await stack.enter_async_context(part)

            def published(record: Record) -> None:
                gossip.publish(record)
                dht.put(record)

            roll.published = published
            disputes = Disputes(node.home / "disputes.db", node, collector.endorse)
            await stack.enter_async_context(disputes.running())
            patience_s = _PATIENCE * settings.limits.repeat_s
            self.inspector = inspector = Inspector(
                node, roll, settings.sample_rate, patience_s, disputes.begin, disputes.wrong()
            )
            stack.push_async_callback(inspector.close)
            service = RegistryService(
                roll,
                dht,
                lambda: _peers(swarm, roll),
                settings.heartbeat_interval_ms,
                subnets,
                collector,
                speakers,
                reputations,
            )
            bound = await stack.enter_async_context(self._grpc(service, watchers))
            announced = settings.announce_grpc_addr or bound
            info = RegistryInfo(
                node.signer.address, swarm.peer_id, tuple(swarm.addresses), announced, f"ncn-registry {__version__}"
            )
            await self._announce(info)
            node.endpoints["address"] = address_hex(node.signer.address)
            node.endpoints["grpc"] = bound
            for address in swarm.addresses:
                node.endpoints["p2p"] = address
            anchors = Anchors(node, roll, swarm, _LOOKS_AROUND * interval_s)
            kept = (speakers.keep(), performances.keep(), reputations.keep(), anchors.keep())
            parts = (self._tick(roll), self._beat(roll, info), *kept, swarm.wait_down())
            tasks = [asyncio.create_task(part) for part in parts]
            for task in tasks:
                task.add_done_callback(self._ended)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                watchers.drain()
                speakers.leave()
                self._leave(roll)
                with suppress(TimeoutError):  # the last word to the others, if they take it at once
                    await asyncio.wait_for(gossip.flush(), 1)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.node.fail(error)

    # --- its own record ---

    async def _announce(self, info: RegistryInfo) -> None:
        now = self.node.lifecycle.clock()
        known = self.roll.store.get(REGISTRY, info.registry) if self.roll is not None else None
        sequence = now if known is None else max(now, known.record.sequence + 1)
        unsigned = registry_record(info, sequence, now + self.settings.record_lifetime_ms)
        self._own = sealed(unsigned, self.node.signer, self.node.domain)
        await self.node.lifecycle.register(self._own)

    def event(self, event: Event) -> None:
        """Requests do not pass here."""

    def routes(self) -> Sequence[BaseRoute]:
        """A registry serves no HTTP."""
        return ()

    def endorse(self, statement: Statement) -> Awaitable[Quorum] | None:
        """Have validators sign a statement of this process."""
        return None if self.collector is None else self.collector.endorse(statement)

    async def inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        """Raise unless this registry knows nothing against a statement.

        Raises:
            EndorsementRefused: what is wrong, or which answers are wanted.
        """
        if self.inspector is None or self.subnets is None or self.performances is None:
            raise EndorsementRefused("this registry is not up yet; ask again soon")
        match statement:
            case SubnetStatement():
                await self.subnets.inspect(statement)
            case PerformancesStatement():
                await self.performances.inspect(statement)
            case _:
                await self.inspector.inspect(statement, evidence)

    def stand(self, account: bytes, out: bool, reason: str) -> None:
        """Hide a node that may be given no work, or show it again."""
        self._ever_out.add(account)
        if self.reputations is not None:
            self.reputations.slashed(account)
        if out:
            self._out[account] = reason
        else:
            self._out.pop(account, None)
        if self.roll is not None:
            self.roll.stand(account, out, reason)

    def register(self, record: Record) -> asyncio.Future[None] | None:
        """Take a record that this process made."""
        return None if self.roll is None else self.roll.put(record, direct=True, alive=True)

    def _leave(self, roll: Roll) -> None:
        if self._own is not None:
            with suppress(NcnError):
                gone = withdrawal(self._own, self.node.lifecycle.clock())
                record = sealed(gone, self.node.signer, self.node.domain)
                roll.put(record, direct=True, alive=False).add_done_callback(lambda written: written.exception())

    async def _beat(self, roll: Roll, info: RegistryInfo) -> None:
        interval_s, clock = self.settings.heartbeat_interval_ms / 1000, self.node.lifecycle.clock
        while True:
            with suppress(NcnError):  # the clock was set back; the next one is newer
                roll.beat(heartbeat(self.node.signer, self.node.domain, clock()), direct=True)
            await asyncio.sleep(interval_s)
            if self._own is None or self._own.expires_ms - clock() < self.settings.record_lifetime_ms / 2:
                await self._announce(info)

    async def _tick(self, roll: Roll) -> None:
        while True:
            await asyncio.sleep(self.settings.heartbeat_interval_ms / 1000 / _TICKS)
            roll.tick()

    # --- gRPC ---

    @asynccontextmanager
    async def _grpc(self, service: RegistryService, watchers: Watchers) -> AsyncIterator[str]:
        address = self.settings.grpc_listen_addr
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MOST_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
            interceptors=[SizeLimit(4 * self.settings.max_record_bytes, _LARGE)],
            maximum_concurrent_rpcs=self.settings.max_watchers + _MOST_CALLS,
        )
        add_P2PRegistryServiceServicer_to_server(service, server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = [of.full_name for of in pb.DESCRIPTOR.services_by_name.values()]
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as cause:
            raise ConfigError(
                f"cannot listen on {address} (registry.grpc_listen_addr); stop the program that does, or choose "
                "another port: `ss -ltnp` shows who listens"
            ) from cause
        await server.start()
        for name in ("", *names):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            yield f"{address.rpartition(':')[0]}:{port}"
        finally:
            watchers.drain()
            await checks.enter_graceful_shutdown()
            await server.stop(grace=1)


def _load_swarm() -> SwarmMaker:
    """Import libp2p, which takes more than a second."""
    from .swarm import Swarm

    return Swarm


def _peers(swarm: Swarm, roll: Roll) -> Sequence[pb.RegistryPeer]:
    """Return the connected peers, each with the registry that says it is this peer."""
    said = {info.peer_id: info for info in map(registry_info_from_record, roll.shown((REGISTRY,)))}
    found, speaking = [], speakers_of(roll)
    for peer in swarm.peers():
        validators = speaking.get(peer.peer_id, ())
        message = pb.RegistryPeer(peer_id=peer.peer_id, multiaddrs=peer.addresses, validators=validators)
        if (info := said.get(peer.peer_id)) is not None:
            message.registry, message.grpc_addr, message.software = info.registry, info.grpc_addr, info.software
        found.append(message)
    return found


def _own_address(text: str, setting: str) -> None:
    try:
        host_and_port(text)
    except ValueError as cause:
        raise ConfigError(f"setting registry.{setting}: {cause}") from cause


def multiaddr_of(text: str) -> str:
    """Return a multiaddress as it is, and HOST:PORT as the multiaddress of TCP there.

    Raises:
        ConfigError: it is neither.
    """
    if text.startswith("/"):
        return text
    try:
        host, port = host_and_port(text)
    except ValueError as cause:
        raise ConfigError(f"setting registry.p2p_listen_addr: {cause}, nor a multiaddress") from cause
    protocol = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdecimal() else "dns"
    return f"/{protocol}/{host}/tcp/{port}"
