"""What a registry tells the others of a statement that a quorum signed: who did, who did not, whose receipts are in it.

A notice travels as a signed record that nobody keeps as one. The signatures in it are validators' own, so that what it
says in somebody's favour is proven; what it says against somebody is its teller's word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from ncn_framework import digests
from ncn_framework.errors import DeadlineExpired, MalformedRequest
from ncn_framework.models import Domain, Record, Signature
from ncn_framework.signing import Signer, check_signature
from ncn_framework.statements import BatchStatement, CompletionStatement, Statement

from .sealing import sealed

__all__ = ["MOST_BYTES", "NOTICE", "Notice", "notice_from_record", "notice_record", "receipts_of"]

NOTICE = "notice"
"""Kind of a notice's record."""

MOST_BYTES = 25 << 10
"""Of its payload; gossip takes 32 KiB. 256 members' signatures have 23 KiB."""

_MOST_MEMBERS = 256
_MOST_NODES = 64
"""Whose receipts are named, those with most of them first."""
_MOST_RECEIPTS = 65_536
"""In one statement, which has at most 16 MiB."""
_AGE_MS = 600_000
"""How old a notice may be when it arrives."""


@dataclass(frozen=True)
class Notice:
    """What came of one statement.

    Attributes:
        teller: address of who says so: a validator of the registry that asked, or that registry.
        at_ms: when, in milliseconds since the epoch.
        digest: of the statement, that validators signed.
        epoch: of the statement.
        signatures: of members of the epoch, a quorum of them or more.
        refused: members that refused it.
        silent: members that gave no answer in time.
        receipts: by compute node, how many of its receipts the statement settles.
    """

    teller: bytes
    at_ms: int
    digest: bytes
    epoch: int
    signatures: tuple[Signature, ...]
    refused: tuple[bytes, ...] = ()
    silent: tuple[bytes, ...] = ()
    receipts: tuple[tuple[bytes, int], ...] = ()


class _Payload(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    digest: bytes
    epoch: int
    signatures: tuple[tuple[bytes, bytes], ...]
    refused: tuple[bytes, ...]
    silent: tuple[bytes, ...]
    receipts: tuple[tuple[bytes, int], ...]


_decoder = msgspec.msgpack.Decoder(_Payload)


def receipts_of(statement: Statement) -> tuple[tuple[bytes, int], ...]:
    """Return, by compute node, how many receipts a statement settles; of many nodes, those with most."""
    match statement:
        case BatchStatement():
            found = Counter(charge.receipt.receipt.node for charge in statement.charges)
        case CompletionStatement():
            found = Counter([statement.receipt.receipt.node])
        case _:
            return ()
    return tuple(sorted(found.items(), key=lambda one: (-one[1], one[0]))[:_MOST_NODES])


def notice_record(notice: Notice, signer: Signer, domain: Domain) -> Record:
    """Return a notice as its teller, whose key ``signer`` has, gives it to others."""
    payload = _Payload(
        notice.digest,
        notice.epoch,
        tuple((one.signer, one.value) for one in notice.signatures),
        notice.refused,
        notice.silent,
        notice.receipts,
    )
    encoded = msgspec.msgpack.encode(payload)
    return sealed(Record(NOTICE, notice.teller, notice.at_ms, notice.at_ms + _AGE_MS, encoded), signer, domain)


def notice_from_record(record: Record, domain: Domain, now_ms: int, skew_ms: int) -> Notice:
    """Return what a record from anybody says, once form, age and the teller's signature were checked.

    The validators' signatures are not: who checks those must know the epoch.

    Args:
        record: unchecked.
        domain: that it must be signed for.
        now_ms: milliseconds since the epoch.
        skew_ms: by how much clocks may differ.

    Raises:
        MalformedRequest: it is no notice, or a bound is passed.
        DeadlineExpired: it is too old, or from the future.
        SignatureRejected: its teller did not sign it.
    """
    if record.kind != NOTICE or len(record.payload) > MOST_BYTES:
        raise MalformedRequest(f"a record of kind {record.kind[:32]!r} with {len(record.payload)} bytes is no notice")
    if record.expires_ms != record.sequence + _AGE_MS or not -skew_ms <= now_ms - record.sequence <= _AGE_MS:
        raise DeadlineExpired(f"a notice of {record.sequence} ms does not count at {now_ms} ms")
    try:
        payload = _decoder.decode(record.payload)
        _check(payload)
    except (msgspec.DecodeError, ValueError) as cause:
        raise MalformedRequest(f"the notice of 0x{record.owner.hex()} is malformed: {cause}") from cause
    check_signature(digests.record_digest(domain, record), record.signature, record.owner, "the notice")
    signatures = tuple(Signature(signer, value) for signer, value in payload.signatures)
    said = payload.refused, payload.silent, payload.receipts
    return Notice(record.owner, record.sequence, payload.digest, payload.epoch, signatures, *said)


def _check(payload: _Payload) -> None:
    signers = [signer for signer, _ in payload.signatures]
    nodes = [node for node, _ in payload.receipts]
    if len(payload.digest) != 32 or not 0 < payload.epoch < 2**32:
        raise ValueError("it names no digest of 32 bytes and no epoch")
    if any(len(value) != 65 for _, value in payload.signatures):
        raise ValueError("a signature does not have 65 bytes")
    _distinct("validators", [*signers, *payload.refused, *payload.silent], _MOST_MEMBERS)
    _distinct("nodes", nodes, _MOST_NODES)
    counts: Sequence[int] = [count for _, count in payload.receipts]
    if any(count < 1 for count in counts) or sum(counts) > _MOST_RECEIPTS:
        raise ValueError(f"a node's receipts are none, or all together more than {_MOST_RECEIPTS}")


def _distinct(what: str, addresses: Iterable[bytes], most: int) -> None:
    found = list(addresses)
    if len(found) > most or len(set(found)) != len(found) or any(len(one) != 20 for one in found):
        raise ValueError(f"its {what} are not at most {most} different addresses")
