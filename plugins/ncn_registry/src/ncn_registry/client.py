"""A gateway's or compute node's side of a registry: says what it is, that it lives, and hears who else is there.

A registry that is away, or slow, harms nothing: what was to be said is said when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from ncn_framework.errors import CapacityError, ConfigError, NcnError, ReplayConflict, UnknownNode
from ncn_framework.models import Event, Record
from ncn_framework.payments import Quorum
from ncn_framework.signing import address_hex
from ncn_framework.statements import Evidence, Statement
from ncn_framework.states import TERMINAL, State
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb, record_to_pb
from ncn_framework.wire.convert_records import GATEWAY, GatewayInfo, gateway_record, host_and_port
from ncn_framework.wire.grpc_errors import error_from_rpc

from . import __version__
from .channel import connected
from .config import LOCAL, RegistrySettings
from .endorsing import ENDORSED, Endorser
from .known import Known
from .presence import MISSED
from .records import NODE, Bounds, Judge, withdrawal
from .sealing import heartbeat, sealed
from .subnets_heard import SubnetsHeard

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ncn_framework.node import Node

__all__ = ["RegistryClient"]

log = logging.getLogger(__name__)

_EVERY_ADDRESS = ("0.0.0.0", "[::]")
_CALL_S = 5.0
_LEAVE_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

_BELIEVED = Bounds(payload_bytes=1 << 20, lifetime_ms=2**62)
"""Size and lifetime of records are the registry's to bound."""

_WATCHED = {"gateway": NODE, "compute": GATEWAY}
"""What each role wants to know of the others."""


class RegistryClient:
    """What the hooks of the plugin stand for in a gateway's or compute node's process.

    Args:
        node: whose settings, key and life cycle it uses.

    Attributes:
        known: what the registry told of others.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings(RegistrySettings)
        local = self.settings.grpc_addr == LOCAL
        self.target = self.settings.grpc_listen_addr if local else self.settings.grpc_addr
        self.known = Known(node.lifecycle.clock, (MISSED + 1) * self.settings.heartbeat_interval_ms)
        self._own: dict[str, Record] = {}
        self._unsaid: dict[str, Record] = {}  # kinds whose newest record the registry does not have yet
        self._more = asyncio.Event()
        self._interval_s = self.settings.heartbeat_interval_ms / 1000
        self._in_flight = 0
        self._endorser = Endorser(node, self.target, self.settings.limits)

    # --- hooks ---

    def register(self, record: Record) -> None:
        """Publish a record of this node's own; those of others are no business of its registry."""
        if self.target and record.owner == self.node.signer.address:
            self._own[record.kind] = self._unsaid[record.kind] = record
            self._more.set()

    def endorse(self, statement: Statement) -> Awaitable[Quorum] | None:
        """Have validators sign a gateway's statement, or that of a node that settles itself; without a registry,
        decline."""
        asked = bool(self.target) and isinstance(statement, ENDORSED)
        return self._endorser.endorse(statement) if asked else None

    def inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        """Validators of a gateway's process check by themselves what they can."""

    def stand(self, account: bytes, out: bool, reason: str) -> None:
        """Note whom a gateway may give no work, for those who ask it; its router heeds that by itself."""
        if out:
            self.known.out[account] = reason
        else:
            self.known.out.pop(account, None)

    def event(self, event: Event) -> None:
        """Count the requests that run here."""
        if event.state is State.RECEIVED:
            self._in_flight += 1
        elif event.state in TERMINAL:
            self._in_flight = max(0, self._in_flight - 1)

    def routes(self) -> Sequence[BaseRoute]:
        """Return what a gateway serves about the nodes of its registry."""
        from .routes import node_routes

        return node_routes(self.known)

    # --- the service ---

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Keep the registry informed until the context is left, then withdraw; without a registry, do nothing."""
        if not self.target:
            yield
            return
        try:
            host_and_port(self.target)
        except ValueError as cause:
            raise ConfigError(f"setting registry.grpc_addr (REGISTRY_GRPC_ADDR): {cause}") from cause
        self.node.endpoints["registry"] = self.target
        async with connected(self.target) as stub:
            self._endorser.stub = stub
            parts: list[Callable[[Any], Awaitable[None]]] = [self._say, self._beat, self._watch]
            if self.node.role == "compute":
                parts.append(SubnetsHeard(self.node, self._judge()).watch)
            tasks = [asyncio.create_task(self._keep(part, stub)) for part in parts]
            if self.node.role == "gateway":
                tasks.append(asyncio.create_task(self._announce_gateway()))
            for task in tasks:
                task.add_done_callback(self._ended)
            try:
                yield
            finally:
                self._endorser.stub = None
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._leave(stub)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.node.fail(error)

    async def _keep(self, part: Callable[[Any], Awaitable[None]], stub: Any) -> None:
        """Run ``part`` for ever; after a failure again, with a pause that grows, and differs from node to node."""
        loop, pause_s = asyncio.get_running_loop(), _FIRST_PAUSE_S
        while True:
            began = loop.time()
            try:
                await part(stub)
            except (grpc.aio.AioRpcError, NcnError) as cause:
                error = error_from_rpc(cause, self._peer) if isinstance(cause, grpc.aio.AioRpcError) else cause
                if loop.time() - began > _LONGEST_PAUSE_S:
                    pause_s = _FIRST_PAUSE_S
                level = logging.WARNING if pause_s == _FIRST_PAUSE_S else logging.DEBUG
                log.log(level, "registry %s: %s", self.target, error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    @property
    def _peer(self) -> str:
        return f"registry {self.target}"

    # --- what this node says ---

    async def _say(self, stub: Any) -> None:
        while True:
            while not self._unsaid:
                self._more.clear()
                await self._more.wait()
            kind, record = next(iter(self._unsaid.items()))
            try:
                message = mpb.NodeInfo(record=record_to_pb(record), in_flight=self._in_flight)
                ack = await stub.RegisterNode(message, timeout=_CALL_S)
            except grpc.aio.AioRpcError as cause:
                error = error_from_rpc(cause, self._peer)
                if isinstance(error, CapacityError):
                    raise error from cause
                if not isinstance(error, ReplayConflict):  # that one it has; of others, it would refuse them again
                    log.error("registry %s refused the %s record of this node: %s", self.target, kind, error)
            else:
                log.info("registered %s %s with registry %s", kind, address_hex(record.owner), self.target)
                self._heed(ack)
            if self._unsaid.get(kind) is record:
                del self._unsaid[kind]

    async def _beat(self, stub: Any) -> None:
        while True:
            if self._own and not self._unsaid:
                node = self.node
                beat = heartbeat(node.signer, node.domain, node.lifecycle.clock(), self._in_flight)
                try:
                    self._heed(await stub.UpdateNodeHeartbeat(beat, timeout=_CALL_S))
                except grpc.aio.AioRpcError as cause:
                    error = error_from_rpc(cause, self._peer)
                    if not isinstance(error, UnknownNode):
                        raise error from cause
                    self._unsaid.update(self._own)  # it has lost them, or they have expired
                    self._more.set()
            await asyncio.sleep(self._interval_s)

    def _heed(self, ack: mpb.Ack) -> None:
        if 100 <= ack.heartbeat_interval_ms <= 600_000:
            self._interval_s = ack.heartbeat_interval_ms / 1000

    async def _announce_gateway(self) -> None:
        """Keep a record of this gateway published; compute nodes may find it by that."""
        node, lifetime_ms = self.node, self.settings.record_lifetime_ms
        address = self.settings.announce_gateway_addr or node.endpoints.get("grpc", "")
        if not address:
            return  # no plugin serves nodes in this process
        if address.rpartition(":")[0] in _EVERY_ADDRESS:
            log.warning(
                "this gateway is not announced: it listens on %s, where nobody else can dial; "
                "set NCN_REGISTRY_ANNOUNCE_GATEWAY_ADDR",
                address,
            )
            return
        info = GatewayInfo(node.signer.address, address, f"ncn-registry {__version__}")
        while True:
            now = node.lifecycle.clock()
            known = self._own.get(GATEWAY)
            sequence = now if known is None else max(now, known.sequence + 1)
            await node.lifecycle.register(self._signed(gateway_record(info, sequence, now + lifetime_ms)))
            await asyncio.sleep(lifetime_ms / 2000)

    async def _leave(self, stub: Any) -> None:
        """Withdraw what was published, if the registry takes it at once."""
        for record in self._own.values():
            withdrawn = self._signed(withdrawal(record, self.node.lifecycle.clock()))
            message = mpb.WalletAddress(address=record.owner, withdrawal=record_to_pb(withdrawn))
            try:
                await stub.DeregisterNode(message, timeout=_LEAVE_S)
            except grpc.aio.AioRpcError as error:
                log.info("registry %s did not take the withdrawal: %s", self.target, error.details())
                return

    def _signed(self, record: Record) -> Record:
        return sealed(record, self.node.signer, self.node.domain)

    # --- what it hears ---

    def _judge(self) -> Judge:
        return Judge(self.node.domain, self.node.lifecycle.clock, _BELIEVED)

    async def _watch(self, stub: Any) -> None:
        judge = self._judge()
        kinds: Sequence[str] = (_WATCHED[self.node.role],)
        call = stub.Watch(pb.WatchRequest(kinds=kinds), wait_for_ready=True)
        try:
            seen: set[bytes] | None = set()
            async for event in call:
                kind = event.WhichOneof("event")
                if kind == "put":
                    record = record_from_pb(event.put)
                    if seen is not None:
                        seen.add(record.owner)
                    await self._take(judge, record)
                elif kind == "gone":
                    self.known.gone(event.gone.owner)
                elif kind == "heartbeats":
                    for presence in event.heartbeats.presences:
                        self.known.heard(presence.heartbeat)
                elif kind == "synced" and seen is not None:
                    self.known.keep_only(seen)
                    log.info("registry %s knows %d of kind %s", self.target, len(seen), kinds[0])
                    seen = None
        finally:
            call.cancel()
        raise CapacityError(f"{self._peer} ended the watch")

    async def _take(self, judge: Judge, record: Record) -> None:
        """Believe a record that its owner signed, and pass a newer one on to the plugins of this process."""
        try:
            if (known := self.known.get(record.owner)) is not None and known.record == record:
                self.known.put(record)
                return
            judge.check(record, 0 if known is None else known.record.sequence)
            self.known.put(record)
            if record.owner != self.node.signer.address:
                await self.node.lifecycle.register(record)
        except NcnError as error:
            log.warning("registry %s sent a record that does not count: %s", self.target, error)
