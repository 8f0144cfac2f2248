"""Between records and what they say of subnets: a configuration, one that a quorum has signed, and a membership.

A subnet is known by its owner's address: one key has one subnet. Its configuration is a record of kind ``subnet``,
signed by the owner, which is never published by itself: a quorum of validators signs it
(``statements.SubnetStatement``), and the owner publishes both together in a record of kind ``endorsed-subnet``. So
nobody can spread a configuration without its quorum, or with another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from ..errors import MalformedRequest
from ..models import Record
from ..payments import Quorum
from . import messages_pb2 as pb

__all__ = [
    "ENDORSED_SUBNET",
    "MAX_CONFIGURATION_BYTES",
    "MAX_MODELS",
    "MAX_SUBNETS",
    "MEMBERSHIP",
    "PRICE_TREE",
    "SUBNET",
    "EndorsedSubnet",
    "ListedModel",
    "Subnet",
    "descriptor_from_pb",
    "descriptor_to_pb",
    "endorsed_from_record",
    "endorsed_record",
    "membership_from_record",
    "membership_record",
    "subnet_from_record",
    "subnet_record",
]

SUBNET = "subnet"
"""Kind of the record of a subnet's configuration."""

ENDORSED_SUBNET = "endorsed-subnet"
"""Kind of the record that holds a configuration and its quorum."""

MEMBERSHIP = "membership"
"""Kind of the record in which a compute node says which subnets it has joined."""

PRICE_TREE = (8_000, 1_000, 500, 500)
"""Basis points of a fee for compute, gateway, validators and treasury: the contract's, which no subnet can change."""

MAX_CONFIGURATION_BYTES = 13 << 10
"""Largest payload of a configuration: 27 signatures fit beside it into what the DHT takes (53 validators)."""
MAX_MODELS = 100
MAX_GATEWAYS = 64
MAX_SUBNETS = 16
"""Subnets that one compute node may join."""
_MOST_SOURCES = 4
_LONGEST_SOURCE = 512
_LONGEST_DESCRIPTION = 280
_NAME = re.compile(r"(?!0x)[a-z0-9](?:-?[a-z0-9]){0,39}")
_LONGEST_MODEL_NAME = 128
_MOST_SIGNATURES = 256  # members of an epoch


@dataclass(frozen=True)
class ListedModel:
    """A model that a subnet lists. Its price is part of the manifest, and so of the digest.

    Attributes:
        digest: of the manifest.
        name: for people.
        runtime: which executes it.
        size_bytes: of all its files.
        sources: URLs (http, https, file) of folders that hold ``manifest.json`` and the files that it names.
    """

    digest: bytes
    name: str
    runtime: str
    size_bytes: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subnet:
    """The configuration of a subnet.

    Attributes:
        owner: address of the operator who runs it, which is its identity.
        name: 1 to 40 lower-case letters, digits and single hyphens between them; not one that begins like an address.
        models: that it serves, each once.
        gateways: addresses; where each can be dialled, its own record says.
        description: one line for people.
        price_tree: basis points for compute, gateway, validators and treasury.
    """

    owner: bytes
    name: str
    models: tuple[ListedModel, ...]
    gateways: tuple[bytes, ...]
    description: str = ""
    price_tree: tuple[int, int, int, int] = PRICE_TREE


@dataclass(frozen=True)
class EndorsedSubnet:
    """A configuration, with a quorum's signatures over it.

    Attributes:
        record: of kind ``subnet``, signed by the owner; its sequence is the subnet's version.
        subnet: what it says.
        quorum: unchecked.
        fee_transaction: hash of the transaction that paid for the subnet, once and for all its versions.
    """

    record: Record
    subnet: Subnet
    quorum: Quorum
    fee_transaction: bytes = b""


class _Model(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    digest: bytes
    name: str
    runtime: str
    size_bytes: int
    sources: list[str]


class _Configuration(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    description: str
    models: list[_Model]
    gateways: list[bytes]
    price_tree: tuple[int, int, int, int]


class _Endorsed(msgspec.Struct, forbid_unknown_fields=True):
    expires_ms: int
    payload: bytes
    signature: bytes
    epoch: int
    bitmap: bytes
    signatures: list[bytes]
    fee_transaction: bytes


class _Membership(msgspec.Struct, forbid_unknown_fields=True):
    subnets: list[bytes]


_configurations = msgspec.msgpack.Decoder(_Configuration)
_endorsed = msgspec.msgpack.Decoder(_Endorsed)
_memberships = msgspec.msgpack.Decoder(_Membership)


# --- configurations ---


def subnet_record(subnet: Subnet, sequence: int, expires_ms: int) -> Record:
    """Return the unsigned record of a configuration.

    Raises:
        MalformedRequest: a bound is passed, or a part is not what it should be; see ``subnet_from_record``.
    """
    models = [_Model(m.digest, m.name, m.runtime, m.size_bytes, list(m.sources)) for m in subnet.models]
    payload = _Configuration(subnet.name, subnet.description, models, list(subnet.gateways), subnet.price_tree)
    record = Record(SUBNET, subnet.owner, sequence, expires_ms, msgspec.msgpack.encode(payload))
    subnet_from_record(record)
    return record


def subnet_from_record(record: Record) -> Subnet:
    """Return what a record of a configuration says; safe on records from anybody.

    Raises:
        MalformedRequest: not of this kind, not well encoded, too large, a name or source that is none, a model or
            gateway twice, or another price tree than the contract's.
    """
    if record.kind != SUBNET:
        raise MalformedRequest(f"a record of kind {record.kind[:32]!r} is not a subnet's configuration")
    try:
        if len(record.payload) > MAX_CONFIGURATION_BYTES:
            raise ValueError(f"it has {len(record.payload)} bytes; at most {MAX_CONFIGURATION_BYTES} are allowed")
        raw = _configurations.decode(record.payload)
        if not _NAME.fullmatch(raw.name):
            raise ValueError(f"name {raw.name[:64]!r} is not of 1 to 40 letters a-z, digits and single hyphens, nor 0x")
        if len(raw.description) > _LONGEST_DESCRIPTION or not raw.description.isprintable():
            raise ValueError(f"the description is not one line of at most {_LONGEST_DESCRIPTION} characters")
        if raw.price_tree != PRICE_TREE:
            raise ValueError(f"price tree {raw.price_tree} is not the contract's, {PRICE_TREE}")
        _count("models", [model.digest for model in raw.models], MAX_MODELS, 32)
        _count("gateways", raw.gateways, MAX_GATEWAYS, 20)
        models = tuple(map(_listed, raw.models))
    except (msgspec.DecodeError, ValueError) as cause:
        raise MalformedRequest(f"the configuration of subnet 0x{record.owner.hex()} is malformed: {cause}") from cause
    return Subnet(record.owner, raw.name, models, tuple(raw.gateways), raw.description, raw.price_tree)


def _count(what: str, values: list[bytes], most: int, size: int) -> None:
    if len(values) > most or len(set(values)) != len(values) or any(len(value) != size for value in values):
        raise ValueError(f"its {what} are more than {most}, one is there twice, or one does not have {size} bytes")


def _listed(raw: _Model) -> ListedModel:
    for text in (raw.name, raw.runtime):
        if not text or len(text) > _LONGEST_MODEL_NAME or not text.isprintable():
            raise ValueError(f"name and runtime of a model have 1 to {_LONGEST_MODEL_NAME} printable characters")
    if not 0 <= raw.size_bytes < 2**63:
        raise ValueError(f"model {raw.name!r} has a size of {raw.size_bytes} bytes")
    if len(raw.sources) > _MOST_SOURCES:
        raise ValueError(f"model {raw.name!r} has {len(raw.sources)} sources; at most {_MOST_SOURCES}")
    for source in raw.sources:
        _check_source(source)
    return ListedModel(raw.digest, raw.name, raw.runtime, raw.size_bytes, tuple(raw.sources))


def _check_source(source: str) -> None:
    parts = urlsplit(source)
    plain = source.isascii() and source.isprintable() and " " not in source and len(source) <= _LONGEST_SOURCE
    placed = parts.path.startswith("/") if parts.scheme == "file" else bool(parts.hostname)
    if not plain or parts.scheme not in ("http", "https", "file") or not placed or parts.query or parts.fragment:
        raise ValueError(f"source {source[:80]!r} is not the URL of a folder (http, https or file, no query)")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a source names a user or password; everybody reads this configuration")


# --- with a quorum ---


def endorsed_record(record: Record, quorum: Quorum, fee_transaction: bytes = b"") -> Record:
    """Return the unsigned record that publishes a signed configuration together with its quorum.

    Its sequence and expiry are the configuration's.
    """
    bitmap = quorum.bitmap.to_bytes(32, "big").lstrip(b"\0")
    signatures = list(quorum.signatures)
    payload = _Endorsed(
        record.expires_ms, record.payload, record.signature, quorum.epoch, bitmap, signatures, fee_transaction
    )
    encoded = msgspec.msgpack.encode(payload)
    return Record(ENDORSED_SUBNET, record.owner, record.sequence, record.expires_ms, encoded)


def endorsed_from_record(record: Record) -> EndorsedSubnet:
    """Return what a published subnet's record says; safe on records from anybody. Signatures are not checked.

    Raises:
        MalformedRequest: not of this kind, not well encoded, or its configuration is malformed or counts for longer
            or shorter than the record.
    """
    if record.kind != ENDORSED_SUBNET:
        raise MalformedRequest(f"a record of kind {record.kind[:32]!r} is not a published subnet's")
    try:
        raw = _endorsed.decode(record.payload)
        if raw.expires_ms != record.expires_ms:
            raise ValueError(f"the configuration expires at {raw.expires_ms} ms, the record at {record.expires_ms} ms")
        if len(raw.bitmap) > 32 or not 0 <= raw.epoch < 2**32 or len(raw.signatures) > _MOST_SIGNATURES:
            raise ValueError("its quorum is of no epoch, or of more members than one has")
        if len(raw.fee_transaction) not in (0, 32):
            raise ValueError(f"the hash of its fee's transaction has {len(raw.fee_transaction)} bytes, not 32")
    except (msgspec.DecodeError, ValueError) as cause:
        raise MalformedRequest(f"the record of subnet 0x{record.owner.hex()} is malformed: {cause}") from cause
    inner = Record(SUBNET, record.owner, record.sequence, raw.expires_ms, raw.payload, raw.signature)
    quorum = Quorum(raw.epoch, int.from_bytes(raw.bitmap, "big"), tuple(raw.signatures))
    return EndorsedSubnet(inner, subnet_from_record(inner), quorum, raw.fee_transaction)


# --- memberships ---


def membership_record(node: bytes, subnets: tuple[bytes, ...], sequence: int, expires_ms: int) -> Record:
    """Return the unsigned record of which subnets a node has joined.

    Raises:
        MalformedRequest: there are too many, or one is there twice.
    """
    payload = msgspec.msgpack.encode(_Membership(list(subnets)))
    record = Record(MEMBERSHIP, node, sequence, expires_ms, payload)
    membership_from_record(record)
    return record


def membership_from_record(record: Record) -> tuple[bytes, ...]:
    """Return the owners of the subnets that a node has joined; safe on records from anybody.

    Raises:
        MalformedRequest: not of this kind, not well encoded, too many subnets, or one twice.
    """
    if record.kind != MEMBERSHIP:
        raise MalformedRequest(f"a record of kind {record.kind[:32]!r} is not a membership")
    try:
        raw = _memberships.decode(record.payload)
        _count("subnets", raw.subnets, MAX_SUBNETS, 20)
    except (msgspec.DecodeError, ValueError) as cause:
        raise MalformedRequest(f"the membership of node 0x{record.owner.hex()} is malformed: {cause}") from cause
    return tuple(raw.subnets)


# --- messages ---


def descriptor_to_pb(model: ListedModel) -> pb.ModelDescriptor:
    """Return the message of a model that a subnet lists."""
    return pb.ModelDescriptor(**vars(model))


def descriptor_from_pb(message: pb.ModelDescriptor) -> ListedModel:
    """Return the model, unchecked: whoever puts it into a configuration checks that."""
    return ListedModel(message.digest, message.name, message.runtime, message.size_bytes, tuple(message.sources))
