"""What a validator says of itself: which registry speaks for it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ncn_framework.errors import MalformedRequest
from ncn_framework.models import Record

from .identity import LONGEST, MOST_ADDRESSES

__all__ = ["VALIDATOR", "ValidatorInfo", "validator_info_from_record", "validator_record"]

VALIDATOR = "validator"
"""Kind of a validator's record."""


@dataclass(frozen=True)
class ValidatorInfo:
    """What a validator says of itself, inside a record that it signed.

    Attributes:
        validator: its address.
        registry: address of the registry whose process has its key.
        peer_id: of that registry's libp2p host, base58: that this one may answer for it, the validator itself says.
        multiaddrs: where that listens; here as well, so that one record is enough to ask it.
    """

    validator: bytes
    registry: bytes
    peer_id: str
    multiaddrs: tuple[str, ...]


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    registry: bytes
    peer_id: str
    multiaddrs: tuple[str, ...]


_decoder = msgspec.msgpack.Decoder(_Payload)


def validator_record(info: ValidatorInfo, sequence: int, expires_ms: int) -> Record:
    """Return the unsigned record of what a validator says of itself."""
    payload = msgspec.msgpack.encode(_Payload(info.registry, info.peer_id, info.multiaddrs))
    return Record(VALIDATOR, info.validator, sequence, expires_ms, payload)


def validator_info_from_record(record: Record) -> ValidatorInfo:
    """Return what a validator's record says; safe on records from anybody.

    Raises:
        MalformedRequest: not a validator's record, not well encoded, or a bound is passed.
    """
    if record.kind != VALIDATOR:
        raise MalformedRequest(f"a record of kind {record.kind[:32]!r} is not a validator's")
    try:
        payload = _decoder.decode(record.payload)
        if len(payload.registry) != 20:
            raise ValueError(f"its registry's address has {len(payload.registry)} bytes, not 20")
        if len(payload.multiaddrs) > MOST_ADDRESSES or any(
            not text or len(text) > LONGEST for text in (payload.peer_id, *payload.multiaddrs)
        ):
            raise ValueError("it has too many addresses, or an empty or too long one")
    except (msgspec.DecodeError, ValueError) as cause:
        raise MalformedRequest(f"the record of validator 0x{record.owner.hex()} is malformed: {cause}") from cause
    return ValidatorInfo(record.owner, payload.registry, payload.peer_id, payload.multiaddrs)
