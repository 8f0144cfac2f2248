"""Between records and what they say: gateways, and heartbeats. Nodes' records are in ``convert``."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ..errors import MalformedRequest
from ..models import Record
from . import messages_pb2 as pb
from .convert_payments import sized

__all__ = [
    "GATEWAY",
    "GatewayInfo",
    "gateway_info_from_record",
    "gateway_record",
    "heartbeat_record",
    "host_and_port",
]

GATEWAY = "gateway"
"""Kind of a gateway's record."""

_LONGEST_ADDRESS = 262  # characters: a name of 253 (RFC 1035), brackets, colon and port


@dataclass(frozen=True)
class GatewayInfo:
    """What a gateway says of itself, inside a signed record.

    Attributes:
        gateway: its address, which is its identity.
        grpc_addr: HOST:PORT that compute nodes dial.
        software: name and version of the program.
    """

    gateway: bytes
    grpc_addr: str
    software: str = ""


class _GatewayPayload(msgspec.Struct, forbid_unknown_fields=True):
    grpc_addr: str
    software: str


_gateway_decoder = msgspec.msgpack.Decoder(_GatewayPayload)


def gateway_record(info: GatewayInfo, sequence: int, expires_ms: int) -> Record:
    """Return the unsigned record of what a gateway says of itself."""
    payload = msgspec.msgpack.encode(_GatewayPayload(info.grpc_addr, info.software))
    return Record(GATEWAY, info.gateway, sequence, expires_ms, payload)


def gateway_info_from_record(record: Record) -> GatewayInfo:
    """Return what a gateway's record says; safe on records from anybody.

    Raises:
        MalformedRequest: not a gateway's record, not well encoded, or its address is not HOST:PORT.
    """
    if record.kind != GATEWAY:
        raise MalformedRequest(f"a record of kind {record.kind[:32]!r} is not a gateway's")
    try:
        payload = _gateway_decoder.decode(record.payload)
        host_and_port(payload.grpc_addr)
    except (msgspec.DecodeError, ValueError) as cause:
        raise MalformedRequest(f"the record of gateway 0x{record.owner.hex()} is malformed: {cause}") from cause
    return GatewayInfo(record.owner, payload.grpc_addr, payload.software[:128])


def host_and_port(text: str) -> tuple[str, int]:
    """Return the parts of HOST:PORT or [IPV6]:PORT.

    Raises:
        ValueError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    plain = all(c in "0123456789abcdefABCDEF:." if bracketed else c.isalnum() or c in "-._" for c in bare)
    if not (colon and bare and plain and len(text) <= _LONGEST_ADDRESS and port.isascii() and port.isdecimal()):
        raise ValueError(f"{text[:_LONGEST_ADDRESS]!r} is not HOST:PORT")
    if int(port) >= 65_536:
        raise ValueError(f"{text!r} has port {port}; the highest is 65535")
    return bare, int(port)


def heartbeat_record(message: pb.HeartbeatRequest) -> Record:
    """Return what the owner of a heartbeat signs, as a record; unchecked but for form.

    Raises:
        MalformedRequest: the address is not 20 bytes.
    """
    owner, at_ms = sized(message.node, 20, "node"), message.at_ms
    return Record("heartbeat", owner, at_ms, at_ms, message.in_flight.to_bytes(8, "big"), message.signature)
