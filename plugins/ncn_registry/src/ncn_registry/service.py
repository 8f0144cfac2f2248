"""gRPC ``P2PRegistryService``: decode, ask the roll, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from ncn_framework.errors import MalformedRequest, NcnError, UnknownNode
from ncn_framework.signing import address_hex
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb, record_to_pb
from ncn_framework.wire.convert_payments import sized
from ncn_framework.wire.grpc_errors import abort

from .collector import Collector
from .dht import Dht
from .records import KINDS, NODE, is_withdrawal
from .reputation_service import ReputationService
from .reputations import Reputations
from .roll import Roll
from .speakers import Speakers
from .subnets import Subnets
from .subnets_service import SubnetService
from .validation_service import ValidationService

__all__ = ["RegistryService"]

_Context = grpc.aio.ServicerContext[Any, Any]

_MOST_NODES = 10_000
"""Nodes that one DiscoverNodes names, where it gives no limit or a higher one."""


class RegistryService(SubnetService, ValidationService, ReputationService):
    """What gateways and compute nodes call.

    Args:
        roll: of the network.
        dht: where nodes are looked for that the roll does not have.
        peers: returns the registries that this one is connected to.
        heartbeat_interval_ms: how often owners of records shall be heard of.
        subnets: that are known.
        collector: asks validators.
        speakers: knows who speaks for them.
        reputations: of validators and nodes.
    """

    def __init__(
        self,
        roll: Roll,
        dht: Dht,
        peers: Callable[[], Sequence[pb.RegistryPeer]],
        heartbeat_interval_ms: int,
        subnets: Subnets,
        collector: Collector,
        speakers: Speakers,
        reputations: Reputations,
    ) -> None:
        self.roll, self.dht, self.peers, self.subnets = roll, dht, peers, subnets
        self.collector, self.speakers, self.reputations = collector, speakers, reputations
        self.heartbeat_interval_ms = heartbeat_interval_ms

    async def RegisterNode(self, request: mpb.NodeInfo, context: _Context) -> mpb.Ack:  # noqa: N802 - gRPC's name
        """Take a record of its owner's, of any kind; answered once it is durable."""
        try:
            record = record_from_pb(request.record)
            if is_withdrawal(record):
                raise MalformedRequest("this record has no payload; to withdraw one, call DeregisterNode")
            await self.roll.put(record, direct=True, alive=True)
        except NcnError as error:
            await abort(context, error)
        return mpb.Ack(
            message=f"{record.kind} {address_hex(record.owner)} is registered",
            heartbeat_interval_ms=self.heartbeat_interval_ms,
        )

    async def UpdateNodeHeartbeat(self, request: mpb.HeartbeatRequest, context: _Context) -> mpb.Ack:  # noqa: N802
        """Note that a record's owner lives; signed, and each newer than the one before."""
        try:
            self.roll.beat(request, direct=True)
        except NcnError as error:
            await abort(context, error)
        return mpb.Ack(heartbeat_interval_ms=self.heartbeat_interval_ms)

    async def DeregisterNode(self, request: mpb.WalletAddress, context: _Context) -> mpb.Ack:  # noqa: N802
        """Withdraw a record, by a newer one of the same kind without a payload, signed as well."""
        try:
            record = record_from_pb(request.withdrawal)
            if record.owner != request.address or not is_withdrawal(record):
                raise MalformedRequest(
                    "a withdrawal is a record of the address with a higher sequence and an empty payload"
                )
            await self.roll.put(record, direct=True, alive=False)
        except NcnError as error:
            await abort(context, error)
        return mpb.Ack(message=f"{record.kind} {address_hex(record.owner)} is withdrawn")

    async def DiscoverNodes(  # noqa: N802
        self, request: pb.DiscoverNodesRequest, context: _Context
    ) -> AsyncIterator[mpb.NodeInfo]:
        """Stream the nodes that are alive: of all, or those that serve a model and have joined a subnet."""
        try:
            subnet = (await self.subnets.find(request.subnet)).subnet.owner if request.subnet else b""
            model = sized(request.model, 32, "model") if request.model else b""
        except NcnError as error:
            await abort(context, error)
        left = min(request.limit or _MOST_NODES, _MOST_NODES)
        for record in self.roll.nodes(model, subnet):
            if left == 0:
                return
            left -= 1
            yield self.roll.info(record)

    async def GetNode(self, request: mpb.WalletAddress, context: _Context) -> mpb.NodeInfo:  # noqa: N802
        """Return one node's record, from the DHT where need be; ``last_heard_ms`` is 0 for one that is not alive."""
        try:
            owner = sized(request.address, 20, "address")
            record = self.roll.get(NODE, owner) or await self.dht.find(NODE, owner)
            if record is None:
                raise UnknownNode(f"no record of node {address_hex(owner)} is known here or in the DHT")
        except NcnError as error:
            await abort(context, error)
        return self.roll.info(record)

    async def Watch(self, request: pb.WatchRequest, context: _Context) -> AsyncIterator[pb.WatchEvent]:  # noqa: N802
        """Stream the records of all who are alive, then ``synced``, then every change; of all, or of a subnet: its
        own, its gateways' and its members'."""
        try:
            subnet = (await self.subnets.find(request.subnet)).subnet.owner if request.subnet else b""
            if unknown := [kind for kind in request.kinds if kind not in KINDS]:
                raise MalformedRequest(f"records of kind {unknown[0][:32]!r} are unknown; known: {', '.join(KINDS)}")

            def within(owner: bytes) -> bool:
                return not subnet or self.subnets.belongs(subnet, owner)

            with self.roll.watchers.joined(request.kinds, subnet, within) as watcher:
                for record in self.roll.shown(request.kinds):
                    if within(record.owner):
                        yield pb.WatchEvent(put=record_to_pb(record))
                yield pb.WatchEvent(synced=mpb.Empty())
                while True:
                    yield await watcher.next()
        except NcnError as error:
            await abort(context, error)

    async def ListPeers(self, request: mpb.Empty, context: _Context) -> AsyncIterator[pb.RegistryPeer]:  # noqa: N802
        """Stream the registries that this one is connected to."""
        for peer in self.peers():
            yield peer
