"""The one place that judges a record or a heartbeat, whether it came by gRPC, out of the DHT or by gossip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from ncn_framework import digests
from ncn_framework.errors import DeadlineExpired, MalformedRequest, ReplayConflict, RequestTooLarge
from ncn_framework.models import Domain, NodeInfo, Record
from ncn_framework.signing import address_hex, check_signature
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import node_info_from_record, record_from_pb, record_to_pb
from ncn_framework.wire.convert_records import GATEWAY, gateway_info_from_record, heartbeat_record
from ncn_framework.wire.convert_subnets import (
    ENDORSED_SUBNET,
    MEMBERSHIP,
    endorsed_from_record,
    membership_from_record,
)

from .config import MOST_PAYLOAD_BYTES
from .identity import REGISTRY, registry_info_from_record
from .validators import VALIDATOR, validator_info_from_record

__all__ = [
    "KINDS",
    "NODE",
    "Bounds",
    "Judge",
    "dht_key",
    "is_withdrawal",
    "models_of",
    "subnets_of",
    "to_bytes",
    "withdrawal",
]

NODE = "node"
"""Kind of a compute node's record."""


@dataclass(frozen=True)
class Kind:
    """A kind of record that is kept, one for each owner.

    Attributes:
        place: its part of a key in the DHT. A key has at most 50 bytes with its leading slash, of which the
            owner's address takes 40, so that a place has four.
        check: raises MalformedRequest unless a record's payload is what it should be.
        shows_life: a new one shows that its owner is alive, because the owner's process signs and publishes it.
        endorsed: it is kept and shown only once a quorum's signatures in it were checked, and then whether its owner
            is alive or not.
        lifetime_ms: farthest expiry from now, where it lies beyond that of others.
    """

    place: str
    check: Callable[[Record], object]
    shows_life: bool = True
    endorsed: bool = False
    lifetime_ms: int = 0


_YEAR_MS = 366 * 86_400_000
"""How long a subnet, and a membership, may count: people renew them, not processes."""


KINDS = {
    NODE: Kind("node", node_info_from_record),
    GATEWAY: Kind("gate", gateway_info_from_record),
    REGISTRY: Kind("peer", registry_info_from_record),
    VALIDATOR: Kind("vali", validator_info_from_record),
    ENDORSED_SUBNET: Kind("subn", endorsed_from_record, shows_life=False, endorsed=True, lifetime_ms=_YEAR_MS),
    MEMBERSHIP: Kind("memb", membership_from_record, shows_life=False, lifetime_ms=_YEAR_MS),
}

_PREFIX = "ncn"


@dataclass(frozen=True)
class Bounds:
    """What a record or heartbeat must keep within.

    Attributes:
        payload_bytes: largest payload.
        lifetime_ms: farthest expiry from now.
        skew_ms: by how much a heartbeat's time may differ from now.
    """

    payload_bytes: int = MOST_PAYLOAD_BYTES
    lifetime_ms: int = 86_400_000
    skew_ms: int = 30_000


class Judge:
    """Says whether a record counts. It keeps nothing, so that any thread may ask it.

    Args:
        domain: that signatures are bound to.
        clock: milliseconds since the epoch.
        bounds: of records and heartbeats.
    """

    def __init__(self, domain: Domain, clock: Callable[[], int], bounds: Bounds | None = None) -> None:
        self.domain, self.clock = domain, clock
        self.bounds = bounds or Bounds()

    def check(self, record: Record, newest: int = 0) -> None:
        """Raise unless ``record`` counts now.

        Args:
            record: from anybody.
            newest: highest sequence that was seen of its owner and kind.

        Raises:
            MalformedRequest: an unknown kind, a payload that is not this kind's, or an expiry too far away.
            RequestTooLarge: the payload passes the bound.
            DeadlineExpired: it has expired.
            ReplayConflict: this one, or a newer one, was seen before.
            SignatureRejected: not signed by its owner.
        """
        bounds, now = self.bounds, self.clock()
        if record.kind not in KINDS:
            raise MalformedRequest(f"records of kind {record.kind[:32]!r} are unknown here; known: {', '.join(KINDS)}")
        what = f"the {record.kind} record of 0x{record.owner.hex()}"
        if len(record.owner) != 20 or not 0 < record.sequence < 2**63:
            raise MalformedRequest(f"{what} has no address of 20 bytes, or its sequence is not a positive 63-bit int")
        if len(record.payload) > bounds.payload_bytes:
            raise RequestTooLarge(f"{what} has {len(record.payload)} bytes; at most {bounds.payload_bytes}")
        if record.expires_ms <= now:
            raise DeadlineExpired(f"{what} expired at {record.expires_ms} ms; now is {now} ms: sign a fresh one")
        lifetime_ms = max(bounds.lifetime_ms, KINDS[record.kind].lifetime_ms)
        if record.expires_ms > now + lifetime_ms + bounds.skew_ms:
            raise MalformedRequest(
                f"{what} expires at {record.expires_ms} ms, more than {lifetime_ms} ms from now; "
                "sign one that expires sooner"
            )
        if record.sequence <= newest:
            raise ReplayConflict(
                f"{what} has sequence {record.sequence}; {newest} was seen: sign one with a higher sequence"
            )
        digest = digests.record_digest(self.domain, record)
        check_signature(digest, record.signature, record.owner, f"the {record.kind} record")
        if not is_withdrawal(record):
            KINDS[record.kind].check(record)

    def check_heartbeat(self, message: pb.HeartbeatRequest, newest_ms: int = 0) -> Record:
        """Return a heartbeat as the record that its owner signed, or raise unless it is fresh.

        Args:
            message: from anybody.
            newest_ms: time of the last one that was heard.

        Raises:
            MalformedRequest: the time differs too much from now.
            ReplayConflict: it is not newer than the last one.
            SignatureRejected: not signed by its owner.
        """
        beat = heartbeat_record(message)
        now = self.clock()
        if abs(beat.sequence - now) > self.bounds.skew_ms:
            raise MalformedRequest(
                f"the heartbeat of {address_hex(beat.owner)} is of {beat.sequence} ms; now is {now} ms, and at most "
                f"{self.bounds.skew_ms} ms of difference are allowed: set the clock right"
            )
        if beat.sequence <= newest_ms:
            raise ReplayConflict(f"heartbeat {beat.sequence} is not newer than {newest_ms}")
        check_signature(digests.record_digest(self.domain, beat), beat.signature, beat.owner, "the heartbeat")
        return beat

    def open(self, key: str, value: bytes) -> Record:
        """Return the record that the DHT holds under ``key``.

        Raises:
            NcnError: it is no record, not that key's, or does not count.
        """
        if len(value) > self.bounds.payload_bytes + 1_024:
            raise RequestTooLarge(f"the value of {key[:64]!r} has {len(value)} bytes")
        try:
            record = record_from_pb(pb.Record.FromString(value))
        except DecodeError as cause:
            raise MalformedRequest(f"the value of {key[:64]!r} is no record") from cause
        if record.kind not in KINDS or dht_key(record.kind, record.owner) != key.removeprefix("/"):
            raise MalformedRequest(f"a {record.kind[:32]!r} record of 0x{record.owner.hex()} lies under {key[:64]!r}")
        self.check(record)
        return record

    def sequence(self, key: str, value: bytes) -> int | None:
        """Return the sequence of a good value of the DHT; None for a bad one."""
        try:
            return self.open(key, value).sequence
        except Exception:  # whatever a stranger's bytes bring about, they are not good
            return None


def dht_key(kind: str, owner: bytes) -> str:
    """Return the DHT's key of a record: ``ncn/node/<40 hex>``."""
    return f"{_PREFIX}/{KINDS[kind].place}/{owner.hex()}"


def to_bytes(record: Record) -> bytes:
    """Return the encoding of a record in the DHT and in gossip; deterministic."""
    return record_to_pb(record).SerializeToString(deterministic=True)


def is_withdrawal(record: Record) -> bool:
    """Return whether a record says that its owner is no longer there: it has no payload."""
    return not record.payload


def withdrawal(record: Record, now_ms: int) -> Record:
    """Return the unsigned record that withdraws ``record``. It lives as long, so that nobody can bring that back."""
    return Record(record.kind, record.owner, max(now_ms, record.sequence + 1), record.expires_ms, b"")


def models_of(record: Record) -> frozenset[bytes]:
    """Return the digests of the models that a node's checked record names; none for another kind."""
    if record.kind != NODE or is_withdrawal(record):
        return frozenset()
    info: NodeInfo = node_info_from_record(record)
    return frozenset(manifest.digest for manifest in info.models)


def subnets_of(record: Record) -> frozenset[bytes]:
    """Return the owners of the subnets that a checked membership names; none for another kind."""
    if record.kind != MEMBERSHIP or is_withdrawal(record):
        return frozenset()
    return frozenset(membership_from_record(record))
