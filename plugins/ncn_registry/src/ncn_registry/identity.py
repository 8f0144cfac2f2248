"""What a registry says of itself, and the key by which its libp2p peers know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ncn_framework.errors import MalformedRequest
from ncn_framework.models import Record
from ncn_framework.signing import load_or_create_signer
from ncn_framework.wire.convert_records import host_and_port

__all__ = [
    "LONGEST",
    "MOST_ADDRESSES",
    "REGISTRY",
    "RegistryInfo",
    "peer_key",
    "registry_info_from_record",
    "registry_record",
]

REGISTRY = "registry"
"""Kind of a registry's record."""

MOST_ADDRESSES = 16
LONGEST = 256  # characters of a peer id or multiaddress


@dataclass(frozen=True)
class RegistryInfo:
    """What a registry says of itself, inside a signed record, which binds its libp2p peer to its address.

    Attributes:
        registry: its address.
        peer_id: of its libp2p host, base58.
        multiaddrs: where that listens.
        grpc_addr: HOST:PORT of its gRPC.
        software: name and version of the program.
    """

    registry: bytes
    peer_id: str
    multiaddrs: tuple[str, ...]
    grpc_addr: str
    software: str = ""


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    peer_id: str
    multiaddrs: tuple[str, ...]
    grpc_addr: str
    software: str


_decoder = msgspec.msgpack.Decoder(_Payload)


def registry_record(info: RegistryInfo, sequence: int, expires_ms: int) -> Record:
    """Return the unsigned record of what a registry says of itself."""
    payload = _Payload(info.peer_id, info.multiaddrs, info.grpc_addr, info.software)
    return Record(REGISTRY, info.registry, sequence, expires_ms, msgspec.msgpack.encode(payload))


def registry_info_from_record(record: Record) -> RegistryInfo:
    """Return what a registry's record says; safe on records from anybody.

    Raises:
        MalformedRequest: not a registry's record, not well encoded, or a bound is passed.
    """
    if record.kind != REGISTRY:
        raise MalformedRequest(f"a record of kind {record.kind[:32]!r} is not a registry's")
    try:
        payload = _decoder.decode(record.payload)
        host_and_port(payload.grpc_addr)
        if len(payload.multiaddrs) > MOST_ADDRESSES or any(
            not text or len(text) > LONGEST for text in (payload.peer_id, *payload.multiaddrs)
        ):
            raise ValueError("it has too many addresses, or an empty or too long one")
    except (msgspec.DecodeError, ValueError) as cause:
        raise MalformedRequest(f"the record of registry 0x{record.owner.hex()} is malformed: {cause}") from cause
    return RegistryInfo(record.owner, payload.peer_id, payload.multiaddrs, payload.grpc_addr, payload.software[:128])


def peer_key(path: Path) -> bytes:
    """Return the 32 bytes of the libp2p host's secp256k1 key in ``path``, made where there is none.

    It is another one than the registry's own, which signs records and, of a validator, controls stake.

    Raises:
        ConfigError: the file is not a key.
    """
    load_or_create_signer(path)
    return bytes.fromhex(path.read_text().strip().removeprefix("0x"))
