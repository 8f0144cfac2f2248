"""Questions of commands about subnets to a running registry, over gRPC."""

from __future__ import annotations

from dataclasses import replace

from ncn_framework.errors import MalformedRequest, UnknownNode
from ncn_framework.models import Domain, ModelManifest, Record
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import node_info_from_record, record_from_pb, record_to_pb
from ncn_framework.wire.convert_payments import quorum_from_pb, sized
from ncn_framework.wire.convert_subnets import (
    EndorsedSubnet,
    ListedModel,
    descriptor_to_pb,
    membership_from_record,
    subnet_from_record,
)

from .asking import Asked
from .forms import NodeForm, node_form

__all__ = ["AskedSubnets", "Found"]

_LIMIT_S = 15.0
_ENDORSED_S = 60.0
"""For a quorum to sign and, for what is published, to be checked."""

Found = tuple[EndorsedSubnet, int]
"""A subnet, and how many members it has."""


class AskedSubnets(Asked):
    """A registry to ask about subnets."""

    def network(self) -> Domain:
        """Return what signatures are bound to."""
        with self._stub() as stub:
            network = stub.GetNetwork(mpb.Empty(), timeout=_LIMIT_S)
            return Domain(network.chain_id, sized(network.contract, 20, "contract"))

    def subnets(self) -> list[Found]:
        """Return all subnets."""
        found: list[Found] = []
        with self._stub() as stub:
            while True:
                after = f"0x{found[-1][0].subnet.owner.hex()}" if found else ""
                page = [_found(one) for one in stub.ListSubnets(pb.ListRequest(after=after), timeout=_LIMIT_S)]
                if not page or (found and page[0][0].subnet.owner <= found[-1][0].subnet.owner):
                    return found
                found += page

    def subnet(self, name: str) -> Found:
        """Return a subnet by its name or its owner's address.

        Raises:
            UnknownSubnet: none that a quorum has signed is known.
        """
        with self._stub() as stub:
            return _found(stub.GetSubnet(pb.SubnetID(id=name), timeout=_LIMIT_S))

    def members(self, name: str) -> list[NodeForm]:
        """Return the nodes that are alive and have joined a subnet."""
        with self._stub() as stub:
            forms = []
            for one in stub.ListSubnetMembers(pb.SubnetID(id=name), timeout=_LIMIT_S):
                record, heard_ms = record_from_pb(one.record), one.last_heard_ms
                info = node_info_from_record(record)
                forms.append(node_form(record, info, one.in_flight, heard_ms, heard_ms > 0))
            return sorted(forms, key=lambda form: form.node)

    def manifest(self, digest: bytes) -> ModelManifest | None:
        """Return the manifest of a model that some node serves."""
        with self._stub() as stub:
            for one in stub.DiscoverNodes(pb.DiscoverNodesRequest(model=digest, limit=1), timeout=_LIMIT_S):
                info = node_info_from_record(record_from_pb(one.record))
                return next((manifest for manifest in info.models if manifest.digest == digest), None)
        return None

    # --- an operator's ---

    def endorse(self, record: Record, fee_transaction: bytes) -> EndorsedSubnet:
        """Have a quorum sign a configuration.

        Raises:
            EndorsementRefused: too few validators agree.
        """
        request = pb.CreateSubnetRequest(record=record_to_pb(record), fee_transaction=fee_transaction)
        with self._stub() as stub:
            return _signed(record, fee_transaction, stub.CreateSubnet(request, timeout=_ENDORSED_S))

    def change_model(
        self, record: Record, model: ListedModel, fee_transaction: bytes, *, added: bool
    ) -> EndorsedSubnet:
        """Have a quorum sign a version that differs from the last by one model.

        Raises:
            EndorsementRefused: too few validators agree.
        """
        request = pb.SubnetModel(record=record_to_pb(record), model=descriptor_to_pb(model))
        with self._stub() as stub:
            call = stub.AddModel if added else stub.RemoveModel
            return _signed(record, fee_transaction, call(request, timeout=_ENDORSED_S))

    def publish(self, record: Record) -> None:
        """Have a signed record kept and passed on."""
        with self._stub() as stub:
            stub.RegisterNode(mpb.NodeInfo(record=record_to_pb(record)), timeout=_ENDORSED_S)

    def withdraw(self, record: Record) -> None:
        """Have a record withdrawn by ``record``, a newer one without a payload."""
        with self._stub() as stub:
            message = mpb.WalletAddress(address=record.owner, withdrawal=record_to_pb(record))
            stub.DeregisterNode(message, timeout=_LIMIT_S)

    # --- a node's ---

    def membership(self, node: bytes) -> tuple[int, tuple[bytes, ...]]:
        """Return the sequence of a node's newest membership, and what it has joined; 0 and nothing without one."""
        try:
            with self._stub() as stub:
                message = stub.GetMembership(mpb.WalletAddress(address=node), timeout=_LIMIT_S)
        except UnknownNode:
            return 0, ()
        record = record_from_pb(message.record)
        return record.sequence, membership_from_record(record)

    def move(self, subnet: str, record: Record, *, joined: bool) -> str:
        """Give a node's newest membership to the registry, and return what it says."""
        with self._stub() as stub:
            call = stub.JoinSubnet if joined else stub.LeaveSubnet
            request = pb.SubnetMembership(subnet=subnet, record=record_to_pb(record))
            return str(call(request, timeout=_LIMIT_S).message)


def _found(message: pb.SubnetMetadata) -> Found:
    record = record_from_pb(message.record)
    endorsed = EndorsedSubnet(
        record, subnet_from_record(record), quorum_from_pb(message.quorum), message.fee_transaction
    )
    return endorsed, message.members


def _signed(record: Record, fee_transaction: bytes, message: pb.SubnetMetadata) -> EndorsedSubnet:
    """Return what a quorum has signed, which is what it was asked to sign, whatever the registry says."""
    endorsed, _ = _found(message)
    if endorsed.record != record:
        raise MalformedRequest("the registry returned another configuration than it was to have signed")
    return replace(endorsed, fee_transaction=fee_transaction)
