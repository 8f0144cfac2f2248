"""gRPC of ``P2PRegistryService`` that concerns subnets and their models: decode, ask, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from ncn_framework.errors import MalformedRequest, NcnError, UnknownModel, UnknownNode
from ncn_framework.signing import address_hex
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb, record_to_pb
from ncn_framework.wire.convert_payments import quorum_to_pb, sized
from ncn_framework.wire.convert_subnets import (
    MEMBERSHIP,
    EndorsedSubnet,
    ListedModel,
    descriptor_from_pb,
    descriptor_to_pb,
    subnet_from_record,
)
from ncn_framework.wire.grpc_errors import abort
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceServicer

from .dht import Dht
from .records import is_withdrawal, subnets_of
from .roll import Roll
from .subnets import Subnets

__all__ = ["SubnetService"]

_Context = grpc.aio.ServicerContext[Any, Any]

_MOST_LISTED = 1_000
"""Subnets or models that one call lists, where it gives no limit or a higher one; ``after`` goes on."""


class SubnetService(P2PRegistryServiceServicer):
    """The part of the registry's service for operators of subnets and for nodes that join them.

    Attributes:
        roll: of the network.
        dht: where memberships are looked for that the roll does not have.
        subnets: that are known.
    """

    roll: Roll
    dht: Dht
    subnets: Subnets

    async def GetNetwork(self, request: mpb.Empty, context: _Context) -> pb.Network:  # noqa: N802 - gRPC's name
        """Say which chain and contract signatures are bound to."""
        domain = self.subnets.domain
        return pb.Network(chain_id=domain.chain_id, contract=domain.contract)

    # --- subnets ---

    async def CreateSubnet(self, request: pb.CreateSubnetRequest, context: _Context) -> pb.SubnetMetadata:  # noqa: N802
        """Have a quorum sign a configuration, of a new subnet or the next version; its owner publishes both."""
        try:
            fee = request.fee_transaction and sized(request.fee_transaction, 32, "fee_transaction")
            return self._metadata(await self.subnets.endorse(record_from_pb(request.record), fee))
        except NcnError as error:
            await abort(context, error)

    async def GetSubnet(self, request: pb.SubnetID, context: _Context) -> pb.SubnetMetadata:  # noqa: N802
        """Return a subnet that a quorum has signed."""
        try:
            return self._metadata(await self.subnets.find(request.id))
        except NcnError as error:
            await abort(context, error)

    async def ListSubnets(  # noqa: N802
        self, request: pb.ListRequest, context: _Context
    ) -> AsyncIterator[pb.SubnetMetadata]:
        """Stream the subnets that a quorum has signed, by address in lower case."""
        after, left = request.after.lower(), min(request.limit or _MOST_LISTED, _MOST_LISTED)
        for one in self.subnets.all():
            if left and f"0x{one.subnet.owner.hex()}" > after:
                left -= 1
                yield self._metadata(one)

    def _metadata(self, one: EndorsedSubnet) -> pb.SubnetMetadata:
        subnet = one.subnet
        compute, gateway, validators, treasury = subnet.price_tree
        return pb.SubnetMetadata(
            id=address_hex(subnet.owner),
            name=subnet.name,
            owner=subnet.owner,
            version=one.record.sequence,
            models=map(descriptor_to_pb, subnet.models),
            payment_tree=mpb.PaymentTree(
                compute_bps=compute, gateway_bps=gateway, validators_bps=validators, treasury_bps=treasury
            ),
            members=self.subnets.members(subnet.owner),
            record=record_to_pb(one.record),
            quorum=quorum_to_pb(one.quorum),
            description=subnet.description,
            gateways=subnet.gateways,
            fee_transaction=one.fee_transaction,
        )

    # --- members ---

    async def GetMembership(self, request: mpb.WalletAddress, context: _Context) -> pb.SubnetMembership:  # noqa: N802
        """Return what a node has joined."""
        try:
            node = sized(request.address, 20, "address")
            record = self.roll.get(MEMBERSHIP, node) or await self.dht.find(MEMBERSHIP, node)
            if record is None:
                raise UnknownNode(f"node {address_hex(node)} has joined no subnet that is known here or in the DHT")
        except NcnError as error:
            await abort(context, error)
        return pb.SubnetMembership(record=record_to_pb(record))

    async def JoinSubnet(self, request: pb.SubnetMembership, context: _Context) -> mpb.Ack:  # noqa: N802
        """Take a node's newest membership, in which the subnet is named."""
        return await self._move(request, context, joined=True)

    async def LeaveSubnet(self, request: pb.SubnetMembership, context: _Context) -> mpb.Ack:  # noqa: N802
        """Take a node's newest membership, in which the subnet is named no more."""
        return await self._move(request, context, joined=False)

    async def _move(self, request: pb.SubnetMembership, context: _Context, *, joined: bool) -> mpb.Ack:
        try:
            record = record_from_pb(request.record)
            if record.kind != MEMBERSHIP:
                raise MalformedRequest(f"a record of kind {record.kind[:32]!r} is not a membership")
            subnet = (await self.subnets.find(request.subnet)).subnet
            if (subnet.owner in subnets_of(record)) is not joined:
                raise MalformedRequest(
                    f"the membership {'does not name' if joined else 'still names'} subnet {address_hex(subnet.owner)}"
                )
            await self.roll.put(record, direct=True, alive=not is_withdrawal(record))
        except NcnError as error:
            await abort(context, error)
        verb = "has joined" if joined else "has left"
        return mpb.Ack(message=f"node {address_hex(record.owner)} {verb} subnet {subnet.name}")

    async def ListSubnetMembers(self, request: pb.SubnetID, context: _Context) -> AsyncIterator[mpb.NodeInfo]:  # noqa: N802
        """Stream the nodes that are alive and have joined a subnet."""
        try:
            subnet = (await self.subnets.find(request.id)).subnet
        except NcnError as error:
            await abort(context, error)
        for record in self.subnets.nodes(subnet.owner):
            yield self.roll.info(record)

    # --- models ---

    async def AddModel(self, request: pb.SubnetModel, context: _Context) -> pb.SubnetMetadata:  # noqa: N802
        """As CreateSubnet, for a version that has one model more."""
        return await self._next_version(request, context, added=True)

    async def RemoveModel(self, request: pb.SubnetModel, context: _Context) -> pb.SubnetMetadata:  # noqa: N802
        """As CreateSubnet, for a version that has one model less."""
        return await self._next_version(request, context, added=False)

    async def _next_version(self, request: pb.SubnetModel, context: _Context, *, added: bool) -> pb.SubnetMetadata:
        try:
            record = record_from_pb(request.record)
            known = await self.subnets.find(address_hex(record.owner))
            current = known.subnet
            following = subnet_from_record(record)
            model = descriptor_from_pb(request.model)
            less, more = (current, following) if added else (following, current)
            rest = tuple(one for one in more.models if one.digest != model.digest)
            if len(rest) == len(more.models) or replace(more, models=rest) != less:
                verb = "have one more model than" if added else "lack one model of"
                raise MalformedRequest(
                    f"the new version does not {verb} the current one, 0x{model.digest.hex()}, and differ in nothing "
                    "else; for other changes, call CreateSubnet"
                )
            return self._metadata(await self.subnets.endorse(record, known.fee_transaction))
        except NcnError as error:
            await abort(context, error)

    async def GetModel(self, request: pb.ModelID, context: _Context) -> mpb.ModelDescriptor:  # noqa: N802
        """Return a model that some subnet lists, with the sources that all of them give."""
        try:
            digest = sized(request.digest, 32, "digest")
            model = self._models().get(digest)
            if model is None:
                raise UnknownModel(f"no subnet that is known here lists model 0x{digest.hex()}")
        except NcnError as error:
            await abort(context, error)
        return descriptor_to_pb(model)

    async def ListModels(self, request: pb.ListRequest, context: _Context) -> AsyncIterator[mpb.ModelDescriptor]:  # noqa: N802
        """Stream the models that subnets list, by digest in lower case."""
        after, left = request.after.lower(), min(request.limit or _MOST_LISTED, _MOST_LISTED)
        for digest, model in sorted(self._models().items()):
            if left and f"0x{digest.hex()}" > after:
                left -= 1
                yield descriptor_to_pb(model)

    def _models(self) -> dict[bytes, ListedModel]:
        found: dict[bytes, ListedModel] = {}
        for one in self.subnets.all():
            for model in one.subnet.models:
                known = found.get(model.digest)
                sources = model.sources if known is None else (*known.sources, *model.sources)
                found[model.digest] = replace(model, sources=tuple(dict.fromkeys(sources)))
        return found
