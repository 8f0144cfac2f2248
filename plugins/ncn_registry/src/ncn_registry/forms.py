"""Records, nodes and peers as JSON, for commands and HTTP alike."""

from __future__ import annotations

import msgspec

from ncn_framework.models import NodeInfo, Record
from ncn_framework.signing import address_hex
from ncn_framework.statements import BatchStatement, CompletionStatement, FailureStatement, Statement
from ncn_framework.wire import registry_pb2 as pb

from .contradiction_store import Found

__all__ = [
    "ContradictionForm",
    "DisputeForm",
    "ModelForm",
    "NodeForm",
    "PeerForm",
    "RecordForm",
    "ReputationForm",
    "ValidatorForm",
    "contradiction_form",
    "node_form",
    "peer_form",
    "record_form",
    "reputation_form",
    "validator_form",
]


class ModelForm(msgspec.Struct):
    """A model that a node serves; prices in base units (wei)."""

    digest: str
    name: str
    version: str
    runtime: str
    base_fee_wei: str
    unit_fee_wei: str


class NodeForm(msgspec.Struct):
    """A compute node; times in milliseconds since the epoch, ``last_heard_ms`` 0 where nothing was heard lately, and
    why it may be given no work (``out``), where that is so."""

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
    out: str = ""


class ContradictionForm(msgspec.Struct):
    """Two statements that a validator signed, of which one must be untrue.

    ``about`` is what may be decided only once; ``first`` and ``second`` say how it was. ``detail`` is the transaction
    that slashed the validator, or why there is none.
    """

    found_ms: int
    validator: str
    state: str
    about: str
    first: str
    second: str
    first_signature: str
    second_signature: str
    detail: str


class DisputeForm(msgspec.Struct):
    """A node accused of a wrong result; ``detail`` is the transaction that slashed it, or why there is none."""

    found_ms: int
    node: str
    receipt: str
    state: str
    reason: str
    detail: str


class RecordForm(msgspec.Struct):
    """A record without its content."""

    kind: str
    owner: str
    sequence: int
    expires_ms: int
    size_bytes: int


class PeerForm(msgspec.Struct):
    """A registry that another one is connected to; ``registry`` is None where no record says who it
    is, and ``validators`` are those that it speaks for."""

    peer_id: str
    multiaddrs: list[str]
    registry: str | None
    grpc_addr: str
    software: str
    validators: list[str]


class ValidatorForm(msgspec.Struct):
    """A validator of the current epoch: its stake in wei, whether it is active, silent or jailed, and where the
    registry that speaks for it listens."""

    validator: str
    state: str
    stake_wei: str
    epoch: int
    multiaddrs: list[str]


class ReputationForm(msgspec.Struct):
    """How a validator or a compute node (``role``) has conducted itself: points all together, of which the chain has
    ``on_chain``; of a validator, what was not reported yet, and of a node, its receipts that were settled."""

    account: str
    role: str
    points: int
    on_chain: int
    done: int
    failed: int
    timeouts: int
    receipts: int


def contradiction_form(found: Found) -> ContradictionForm:
    """Return what a validator contradicted itself in as JSON has it."""
    proof = found.proof
    match proof.first:
        case BatchStatement(batch):
            about = f"batch {batch.nonce} of gateway {address_hex(batch.gateway)}"
        case CompletionStatement() | FailureStatement():
            about = f"escrow 0x{proof.first.escrow_id.hex()}"
        case _:
            about = f"0x{found.subject.hex()}"
    signatures = "0x" + proof.first_signature.hex(), "0x" + proof.second_signature.hex()
    return ContradictionForm(
        found.found_ms,
        address_hex(proof.validator),
        found.state,
        about,
        _said(proof.first),
        _said(proof.second),
        *signatures,
        found.detail,
    )


def _said(statement: Statement) -> str:
    match statement:
        case BatchStatement(batch):
            return f"{batch.count} receipts with root 0x{batch.receipts_root.hex()}, data 0x{batch.da_hash.hex()}"
        case CompletionStatement():
            receipt = statement.receipt.receipt
            return f"completed with output 0x{receipt.output_hash.hex()} for {receipt.fee_wei} wei"
        case FailureStatement():
            return "failed"
        case _:
            return type(statement).__name__


def node_form(
    record: Record, info: NodeInfo, in_flight: int, last_heard_ms: int, alive: bool, out: str = ""
) -> NodeForm:
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
        out=out,
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
        [address_hex(validator) for validator in peer.validators],
    )


def validator_form(validator: pb.ValidatorInfo) -> ValidatorForm:
    """Return a validator as JSON has it."""
    return ValidatorForm(
        address_hex(validator.validator),
        validator.state,
        validator.stake_wei,
        validator.epoch,
        list(validator.multiaddrs),
    )


def reputation_form(one: pb.Reputation) -> ReputationForm:
    """Return a reputation as JSON has it."""
    account, counts = address_hex(one.account), (one.done, one.failed, one.timeouts, one.receipts)
    return ReputationForm(account, one.role, one.points, one.on_chain, *counts)
