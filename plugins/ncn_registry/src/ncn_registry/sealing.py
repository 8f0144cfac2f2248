"""Signatures of owners under what they tell the network: records and heartbeats."""

from __future__ import annotations

from dataclasses import replace

from ncn_framework import digests
from ncn_framework.models import Domain, Record
from ncn_framework.signing import Signer
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_records import heartbeat_record

__all__ = ["heartbeat", "sealed"]


def sealed(record: Record, signer: Signer, domain: Domain) -> Record:
    """Return the record with its owner's signature."""
    return replace(record, signature=signer.sign(digests.record_digest(domain, record)).value)


def heartbeat(signer: Signer, domain: Domain, at_ms: int, in_flight: int = 0) -> pb.HeartbeatRequest:
    """Return a signed heartbeat.

    Args:
        signer: of the owner of records.
        domain: that it is bound to.
        at_ms: now, in milliseconds since the epoch.
        in_flight: requests that the owner has at the moment.
    """
    message = pb.HeartbeatRequest(node=signer.address, in_flight=in_flight, at_ms=at_ms)
    message.signature = signer.sign(digests.record_digest(domain, heartbeat_record(message))).value
    return message
