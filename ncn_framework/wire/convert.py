"""Between protobuf messages and the kernel's models. What comes from outside is checked here for form and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from ..errors import InvalidTensor, MalformedRequest, ModelError, ReceiptRejected, RequestTooLarge
from ..manifests import manifest_from_json, manifest_json
from ..models import (
    ANONYMOUS,
    Chunk,
    InferenceRequest,
    ModelManifest,
    NodeInfo,
    Parameter,
    Receipt,
    Record,
    Signature,
    SignedReceipt,
)
from ..payments import TransferAuthorization, Voucher
from ..tensors import DTYPE_SIZES, MAX_RANK, MAX_TENSORS, Tensor, TensorSpec
from . import messages_pb2 as pb
from .convert_payments import authorization_from_pb, sized, transfer_to_pb, voucher_to_pb, wei_from_pb

__all__ = [
    "MAX_PARAMETERS",
    "chunk_from_pb",
    "chunk_to_pb",
    "model_info_to_pb",
    "node_info_from_record",
    "node_record",
    "receipt_from_pb",
    "receipt_to_pb",
    "record_from_pb",
    "record_to_pb",
    "request_from_pb",
    "request_to_pb",
]

MAX_PARAMETERS = 64
"""Most parameters of one request."""


# --- requests ---


def request_to_pb(request: InferenceRequest) -> pb.InferenceRequest:
    """Return the message of a complete request."""
    message = pb.InferenceRequest(
        request_id=request.request_id,
        model=request.model,
        inputs=[pb.Tensor(name=t.name, dtype=t.dtype, shape=t.shape, data=t.data) for t in request.inputs],
        client=request.client,
        nonce=request.nonce,
        limit_units=request.limit_units,
        deadline_ms=request.deadline_ms,
        payment=request.payment,
        signature=request.signature,
    )
    match request.authorization:
        case Voucher() as voucher:
            message.voucher.CopyFrom(voucher_to_pb(voucher))
        case TransferAuthorization() as transfer:
            message.transfer.CopyFrom(transfer_to_pb(transfer))
    for name, value in request.parameters.items():
        _set_parameter(message.parameters[name], value)
    return message


def _set_parameter(message: pb.Parameter, value: Parameter) -> None:
    if isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    else:
        message.string_value = value


def tensors_from_pb(messages: Sequence[pb.Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors, checked for form; sizes against shapes are checked against the model's specification.

    Raises:
        RequestTooLarge, InvalidTensor: a bound is passed; an unknown dtype, a bad shape.
    """
    if len(messages) > MAX_TENSORS:
        raise RequestTooLarge(f"{len(messages)} tensors in one request; at most {MAX_TENSORS}")
    tensors = tuple(Tensor(m.name, m.dtype, tuple(m.shape), m.data) for m in messages)
    for tensor in tensors:
        if tensor.dtype not in DTYPE_SIZES:
            raise InvalidTensor(f"tensor {tensor.name!r} has dtype {tensor.dtype!r}; known: {', '.join(DTYPE_SIZES)}")
        if len(tensor.shape) > MAX_RANK or any(dim < 0 for dim in tensor.shape):
            raise InvalidTensor(f"tensor {tensor.name!r} has a negative dimension or more than {MAX_RANK} of them")
    return tensors


def parameters_from_pb(message: pb.InferenceRequest) -> dict[str, Parameter]:
    """Return the parameters, checked for form and count."""
    if len(message.parameters) > MAX_PARAMETERS:
        raise RequestTooLarge(f"{len(message.parameters)} parameters; at most {MAX_PARAMETERS}")
    found: dict[str, Parameter] = {}
    for name, value in message.parameters.items():
        kind = value.WhichOneof("value")
        if kind is None:
            raise MalformedRequest(f"parameter {name!r} has no value")
        found[name] = getattr(value, kind)
        if kind == "double_value" and not math.isfinite(value.double_value):
            raise MalformedRequest(f"parameter {name!r} is {value.double_value}; it must be finite")
    return found


def request_from_pb(message: pb.InferenceRequest) -> InferenceRequest:
    """Return a complete request, such as a gateway sends to a node.

    Raises:
        RequestError: a field is missing or malformed, or ``request_id`` is not the id of client and nonce.
    """
    request = InferenceRequest(
        model=sized(message.model, 32, "model"),
        inputs=tensors_from_pb(message.inputs),
        parameters=parameters_from_pb(message),
        client=sized(message.client or ANONYMOUS, 20, "client"),
        nonce=sized(message.nonce, 32, "nonce"),
        limit_units=message.limit_units,
        deadline_ms=message.deadline_ms,
        payment=message.payment,
        signature=message.signature,
        authorization=authorization_from_pb(message),
    )
    if message.request_id and message.request_id != request.request_id:
        raise MalformedRequest(
            f"request_id 0x{message.request_id.hex()} is not the id of this client and nonce, "
            f"0x{request.request_id.hex()}; leave it out"
        )
    return request


# --- answers ---


def chunk_to_pb(request_id: bytes, chunk: Chunk) -> pb.Chunk:
    """Return the message of a chunk with its link."""
    return pb.Chunk(request_id=request_id, sequence=chunk.sequence, units=chunk.units, data=chunk.data, link=chunk.link)


def chunk_from_pb(message: pb.Chunk) -> Chunk:
    """Return the chunk; a link of a wrong size stays wrong and breaks the chain later."""
    return Chunk(message.sequence, message.units, message.data, message.link or b"\0")


def receipt_to_pb(signed: SignedReceipt) -> pb.Receipt:
    """Return the message of a receipt with all its signatures."""
    receipt = signed.receipt
    return pb.Receipt(
        request_id=receipt.request_id,
        request_hash=receipt.request_hash,
        model=receipt.model,
        output_hash=receipt.output_hash,
        chunks=receipt.chunks,
        units=receipt.units,
        fee_wei=str(receipt.fee_wei),
        node=receipt.node,
        started_ms=receipt.started_ms,
        finished_ms=receipt.finished_ms,
        signatures=[pb.Signature(signer=s.signer, value=s.value) for s in signed.signatures],
    )


def receipt_from_pb(message: pb.Receipt) -> SignedReceipt:
    """Return the receipt and its signatures, unchecked but for form.

    Raises:
        ReceiptRejected: the fee is not a number of at most 96 bits, or there are more than 64 signatures.
    """
    try:
        fee = wei_from_pb(message.fee_wei, "fee_wei")
    except MalformedRequest as cause:
        raise ReceiptRejected(str(cause)) from cause
    if len(message.signatures) > 64:
        raise ReceiptRejected("there are more than 64 signatures")
    return SignedReceipt(
        Receipt(
            request_id=message.request_id,
            request_hash=message.request_hash,
            model=message.model,
            output_hash=message.output_hash,
            chunks=message.chunks,
            units=message.units,
            fee_wei=fee,
            node=message.node,
            started_ms=message.started_ms,
            finished_ms=message.finished_ms,
        ),
        tuple(Signature(s.signer, s.value) for s in message.signatures),
    )


# --- records ---


class _NodePayload(msgspec.Struct, forbid_unknown_fields=True):
    models: list[bytes]
    capacity: int
    sandbox: str
    software: str


_node_decoder = msgspec.msgpack.Decoder(_NodePayload)

MAX_RECORD_BYTES = 1 << 20
"""Largest payload of a record."""


def node_record(info: NodeInfo, sequence: int, expires_ms: int) -> Record:
    """Return the unsigned record of what a node says of itself; manifests enter as canonical JSON."""
    payload = msgspec.msgpack.encode(
        _NodePayload([manifest_json(m) for m in info.models], info.capacity, info.sandbox, info.software)
    )
    return Record("node", info.node, sequence, expires_ms, payload)


def node_info_from_record(record: Record) -> NodeInfo:
    """Return what a node's record says; safe on records from anybody.

    Raises:
        MalformedRequest: not a node's record, too large, or not well encoded.
    """
    if record.kind != "node" or len(record.payload) > MAX_RECORD_BYTES:
        raise MalformedRequest(
            f"a record of kind {record.kind[:32]!r} with {len(record.payload)} bytes is not a node's, "
            f"of at most {MAX_RECORD_BYTES} bytes"
        )
    try:
        payload = _node_decoder.decode(record.payload)
        models = tuple(manifest_from_json(data) for data in payload.models)
    except (msgspec.DecodeError, RecursionError, ModelError) as cause:
        raise MalformedRequest(f"the record of node 0x{record.owner.hex()} is malformed: {cause}") from cause
    if not 0 < payload.capacity <= 65_536 or payload.sandbox not in ("strict", "permissive", "disabled"):
        raise MalformedRequest(
            f"the record of node 0x{record.owner.hex()} has capacity {payload.capacity} (1 to 65536) "
            f"and sandbox {payload.sandbox[:32]!r} (strict, permissive, disabled)"
        )
    return NodeInfo(record.owner, models, payload.capacity, payload.sandbox, payload.software[:128])


def record_to_pb(record: Record) -> pb.Record:
    """Return the message of a record."""
    return pb.Record(
        kind=record.kind,
        owner=record.owner,
        sequence=record.sequence,
        expires_ms=record.expires_ms,
        payload=record.payload,
        signature=record.signature,
    )


def record_from_pb(message: pb.Record) -> Record:
    """Return the record, unchecked but for form."""
    return Record(
        message.kind,
        sized(message.owner, 20, "owner"),
        message.sequence,
        message.expires_ms,
        message.payload,
        message.signature,
    )


def model_info_to_pb(manifest: ModelManifest, nodes: int) -> pb.ModelInfo:
    """Return the message that describes a model and how many nodes serve it."""

    def specs(of: Sequence[TensorSpec]) -> list[pb.TensorSpec]:
        return [pb.TensorSpec(name=s.name, dtype=s.dtype, shape=s.shape) for s in of]

    return pb.ModelInfo(
        digest=manifest.digest,
        name=manifest.name,
        version=manifest.version,
        runtime=manifest.runtime,
        inputs=specs(manifest.inputs),
        outputs=specs(manifest.outputs),
        base_fee_wei=str(manifest.base_fee_wei),
        unit_fee_wei=str(manifest.unit_fee_wei),
        nodes=nodes,
        manifest=manifest_json(manifest),
    )
