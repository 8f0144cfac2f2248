"""The JSON forms of HTTP, WebSocket and proof files: typed structs, strictly decoded, and conversions to models.

Bytes are 0x-hex (addresses with EIP-55's checksum), tensors' data a flat row-major list or base64, money a decimal
string of wei, times milliseconds since the epoch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from ..errors import MalformedRequest, NcnError, RequestTooLarge, code_of
from ..models import ANONYMOUS, Chunk, InferenceRequest, ModelManifest, Receipt, Settlement, Signature
from ..models import SignedReceipt as SignedReceiptModel
from ..signing import address_hex
from ..tensors import unpack_tensors
from .convert import MAX_PARAMETERS
from .json_payments import (
    PaymentJson,
    VoucherJson,
    address_bytes,
    hash_bytes,
    voucher_from_json,
    wei_from_json,
)
from .json_tensors import Encoding, Form, TensorJson, inputs_from_json, tensor_from_json, tensor_json

__all__ = [
    "MAX_BRACKETS",
    "MAX_DEPTH",
    "AnswerJson",
    "ChunkJson",
    "Encoding",
    "ErrorJson",
    "ModelJson",
    "ReceiptJson",
    "SettlementJson",
    "SignatureJson",
    "StatusJson",
    "SubmitJson",
    "TensorJson",
    "address_bytes",
    "answer_json",
    "chunk_json",
    "decode",
    "encode",
    "error_json",
    "hash_bytes",
    "inputs_from_json",
    "receipt_from_json",
    "receipt_json",
    "tensor_from_json",
    "tensor_json",
]

encode = msgspec.json.Encoder().encode
"""Return the JSON of any struct here, as UTF-8 bytes."""

MAX_DEPTH = 64
"""Deepest nesting of a JSON body."""

_NESTING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{\]}]', re.DOTALL)  # strings as a whole, and brackets

MAX_BRACKETS = 65_536
"""Most brackets of a request's body; going through so many takes a tenth of a second at the most."""


class SubmitJson(Form):
    """A request. Only ``model`` (name or digest) and ``inputs`` are needed; the gateway fills in the rest."""

    model: str
    inputs: list[TensorJson]
    parameters: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    client: str | None = None
    nonce: str | None = None
    limit_units: int | None = None
    deadline_ms: int | None = None
    payment: str | None = None
    signature: str | None = None
    voucher: VoucherJson | None = None
    encoding: Encoding = "json"


class SignatureJson(Form, omit_defaults=False):
    """A signature over the receipt."""

    signer: str
    value: str


class ReceiptJson(Form, omit_defaults=False):
    """EIP-712 Receipt with its signatures."""

    request_id: str
    request_hash: str
    model: str
    output_hash: str
    chunks: int
    units: int
    fee_wei: str
    node: str
    started_ms: int
    finished_ms: int
    signatures: list[SignatureJson]


class SettlementJson(Form, omit_defaults=False):
    """How the fee was settled."""

    mode: str
    charged_wei: str
    reference: str


class ChunkJson(Form, omit_defaults=False):
    """One chunk of an answer with its tensors; ``link`` hashes ``pack_tensors(outputs)``."""

    sequence: int
    units: int
    link: str
    outputs: list[TensorJson]


class ErrorJson(Form):
    """A problem (RFC 9457): ``type`` ends in the stable code."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    request_id: str | None = None


class StatusJson(Form):
    """Where a task stands."""

    id: str
    state: str
    model: str
    created_ms: int
    updated_ms: int
    node: str | None = None
    error: ErrorJson | None = None
    payment: PaymentJson | None = None


class AnswerJson(Form):
    """A settled task. With the request's inputs and the model's manifest it can be verified."""

    id: str
    state: str
    model: str
    chunks: list[ChunkJson]
    receipt: ReceiptJson
    settlement: SettlementJson
    client: str
    nonce: str
    limit_units: int
    deadline_ms: int
    payment: str


class ModelJson(Form, omit_defaults=False):
    """A model that some node serves; SHA-256 of the canonical ``manifest`` is ``digest``."""

    digest: str
    name: str
    nodes: int
    manifest: dict[str, Any]


def _too_deep(data: bytes, max_brackets: int) -> bool:
    """Return whether JSON nests deeper than ``MAX_DEPTH``.

    The decoder has Python's recursion limit as its only bound, and a library that raises it (py_ecc does, when
    eth_account is imported) makes deep nesting end the process.
    """
    brackets = data.count(b"[") + data.count(b"{")
    if brackets <= MAX_DEPTH:
        return False
    if brackets > max_brackets:
        return True
    depth = 0
    for token in _NESTING.finditer(data):
        if token[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif token[0] in b"]}":
            depth -= 1
    return False


def decode(data: bytes, kind: Any, *, max_brackets: int = MAX_BRACKETS, what: str = "the body") -> Any:
    """Return ``data`` as a value of the struct type ``kind``; ``what`` it is, for messages.

    Raises:
        MalformedRequest: not UTF-8, not JSON, a field unknown, missing or of a wrong type, or nested too deep.
    """
    if _too_deep(data, max_brackets):
        raise MalformedRequest(f"{what} is nested too deep: more than {MAX_DEPTH} levels, or {max_brackets} brackets")
    try:
        return msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as cause:
        raise MalformedRequest(f"{what} is not UTF-8") from cause
    except RecursionError as cause:
        raise MalformedRequest(f"{what} is nested too deep") from cause
    except msgspec.DecodeError as cause:
        raise MalformedRequest(f"{what} is not what is expected: {cause}") from cause


def request_from_json(
    form: SubmitJson, manifest: ModelManifest, *, nonce: bytes, limit_units: int, deadline_ms: int, payment: str
) -> InferenceRequest:
    """Return the request; the keyword arguments are what to take where ``form`` is silent.

    Raises:
        RequestError: a field is malformed.
    """
    if len(form.parameters) > MAX_PARAMETERS:
        raise RequestTooLarge(f"{len(form.parameters)} parameters; at most {MAX_PARAMETERS}")
    numbers = [v for v in form.parameters.values() if isinstance(v, int)]
    numbers += [n for n in (form.limit_units, form.deadline_ms) if n is not None]
    if any(not -(2**63) <= n < 2**63 for n in numbers):
        raise MalformedRequest("a number passes 63 bits")
    return InferenceRequest(
        model=manifest.digest,
        inputs=inputs_from_json(form.inputs, manifest.inputs),
        parameters=form.parameters,
        client=ANONYMOUS if form.client is None else address_bytes(form.client, "client"),
        nonce=nonce if form.nonce is None else hash_bytes(form.nonce, "nonce"),
        limit_units=limit_units if form.limit_units is None else form.limit_units,
        deadline_ms=deadline_ms if form.deadline_ms is None else form.deadline_ms,
        payment=payment if form.payment is None else form.payment,
        signature=b"" if not form.signature else hash_bytes(form.signature, "signature", 65),
        authorization=None if form.voucher is None else voucher_from_json(form.voucher),
    )


# --- answers ---


def receipt_json(signed: SignedReceiptModel) -> ReceiptJson:
    """Return the JSON form of a receipt."""
    receipt = signed.receipt
    return ReceiptJson(
        request_id="0x" + receipt.request_id.hex(),
        request_hash="0x" + receipt.request_hash.hex(),
        model="0x" + receipt.model.hex(),
        output_hash="0x" + receipt.output_hash.hex(),
        chunks=receipt.chunks,
        units=receipt.units,
        fee_wei=str(receipt.fee_wei),
        node=address_hex(receipt.node),
        started_ms=receipt.started_ms,
        finished_ms=receipt.finished_ms,
        signatures=[SignatureJson(address_hex(s.signer), "0x" + s.value.hex()) for s in signed.signatures],
    )


def receipt_from_json(form: ReceiptJson) -> SignedReceiptModel:
    """Return the receipt and its signatures, unchecked but for form.

    Raises:
        MalformedRequest: a field is malformed.
    """
    if not all(0 <= n < 2**63 for n in (form.chunks, form.units, form.started_ms, form.finished_ms)):
        raise MalformedRequest("a number of the receipt is negative or passes 63 bits")
    return SignedReceiptModel(
        Receipt(
            request_id=hash_bytes(form.request_id, "receipt.request_id"),
            request_hash=hash_bytes(form.request_hash, "receipt.request_hash"),
            model=hash_bytes(form.model, "receipt.model"),
            output_hash=hash_bytes(form.output_hash, "receipt.output_hash"),
            chunks=form.chunks,
            units=form.units,
            fee_wei=wei_from_json(form.fee_wei, "receipt.fee_wei"),
            node=address_bytes(form.node, "receipt.node"),
            started_ms=form.started_ms,
            finished_ms=form.finished_ms,
        ),
        tuple(
            Signature(address_bytes(s.signer, "signer"), hash_bytes(s.value, "signature", 65)) for s in form.signatures
        ),
    )


def chunk_json(chunk: Chunk, encoding: Encoding) -> ChunkJson:
    """Return the JSON form of a chunk, its tensors unpacked."""
    tensors = [tensor_json(tensor, encoding) for tensor in unpack_tensors(chunk.data)]
    return ChunkJson(chunk.sequence, chunk.units, "0x" + chunk.link.hex(), tensors)


def answer_json(
    request: InferenceRequest,
    chunks: Sequence[Chunk],
    receipt: SignedReceiptModel,
    settlement: Settlement,
    encoding: Encoding,
) -> AnswerJson:
    """Return the JSON form of a settled task."""
    forms = [chunk_json(chunk, encoding) for chunk in chunks]
    return AnswerJson(
        id="0x" + request.request_id.hex(),
        state="SETTLED",
        model="0x" + request.model.hex(),
        chunks=forms,
        receipt=receipt_json(receipt),
        settlement=SettlementJson(settlement.mode, str(settlement.charged_wei), settlement.reference),
        client=address_hex(request.client),
        nonce="0x" + request.nonce.hex(),
        limit_units=request.limit_units,
        deadline_ms=request.deadline_ms,
        payment=request.payment,
    )


def error_json(error: BaseException, request_id: bytes | None = None) -> ErrorJson:
    """Return the problem document of an error; what is outside the tree is shown as ``internal`` and no more."""
    row = code_of(error)
    return ErrorJson(
        type=f"urn:ncn:error:{row.code}",
        title=row.code.replace("-", " "),
        status=row.http,
        detail=str(error) if isinstance(error, NcnError) else "an error inside; the log has the cause",
        code=row.code,
        retryable=row.retryable,
        request_id=None if request_id is None else "0x" + request_id.hex(),
    )
