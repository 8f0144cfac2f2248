"""Records, nodes and peers as JSON, for commands and HTTP alike."""

from __future__ import annotations

import msgspec

from ncn_framework.models import NodeInfo, Record
from ncn_framework.signing import address_hex
from ncn_framework.wire import registry_pb2 as pb

__all__ = ["ModelForm", "NodeForm", "PeerForm", "RecordForm", "node_form", "peer_form", "record_form"]


class ModelForm(msgspec.Struct):
    """A model that a node serves; prices in base units (wei)."""

    digest: str
    name: str
    version: str
    runtime: str
    base_fee_wei: str
    unit_fee_wei: str


class NodeForm(msgspec.Struct):
    """A compute node; times in milliseconds since the epoch, ``last_heard_ms`` 0 where nothing was heard lately."""

    node: str
    alive: bool
    models: list[ModelForm]
    capacity: int
    in_flight: int
    sandbox: str
    software: str
    sequence: int
    expires_ms: int
    last_heard_ms: int


class RecordForm(msgspec.Struct):
    """A record without its content."""

    kind: str
    owner: str
    sequence: int
    expires_ms: int
    size_bytes: int


class PeerForm(msgspec.Struct):
    """A registry that another one is connected to; ``registry`` is None where no record says who it is."""

    peer_id: str
    multiaddrs: list[str]
    registry: str | None
    grpc_addr: str
    software: str


def node_form(record: Record, info: NodeInfo, in_flight: int, last_heard_ms: int, alive: bool) -> NodeForm:
    """Return a node as JSON has it."""
    return NodeForm(
        node=address_hex(info.node),
        alive=alive,
        models=[
            ModelForm("0x" + m.digest.hex(), m.name, m.version, m.runtime, str(m.base_fee_wei), str(m.unit_fee_wei))
            for m in info.models
        ],
        capacity=info.capacity,
        in_flight=in_flight,
        sandbox=info.sandbox,
        software=info.software,
        sequence=record.sequence,
        expires_ms=record.expires_ms,
        last_heard_ms=last_heard_ms,
    )


def record_form(record: Record) -> RecordForm:
    """Return a record as JSON has it."""
    return RecordForm(record.kind, address_hex(record.owner), record.sequence, record.expires_ms, len(record.payload))


def peer_form(peer: pb.RegistryPeer) -> PeerForm:
    """Return a peer as JSON has it."""
    return PeerForm(
        peer.peer_id,
        list(peer.multiaddrs),
        address_hex(peer.registry) if peer.registry else None,
        peer.grpc_addr,
        peer.software,
    )
