"""What is hashed and what is signed, in one place.

Content hashes are SHA-256 (FIPS 180-4) over MessagePack arrays in shortest form, each with a tag of its own as
first element, so that no encoding of one kind is an encoding of another. Signatures are over EIP-712 digests
(keccak-256), bound to a chain id and a contract. ``tests/vectors/digests.json`` pins every function here for
implementations in other languages, Solidity among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .models import Chunk, Domain, InferenceRequest, ModelManifest, Parameter, Receipt, Record
    from .tensors import Tensor

__all__ = [
    "TYPES",
    "canonical_json",
    "chain_start",
    "chunk_link",
    "inputs_hash",
    "keccak",
    "manifest_from_json",
    "manifest_json",
    "model_digest",
    "receipt_digest",
    "record_digest",
    "request_digest",
    "request_hash",
    "request_id",
    "session_digest",
]

_encode = msgspec.msgpack.Encoder().encode


def keccak(data: bytes) -> bytes:
    """Return keccak-256 of ``data`` (the original padding, as Ethereum uses it; not SHA3-256)."""
    from sha3 import keccak_256

    return bytes(keccak_256(data).digest())


# --- content hashes ---


def canonical_json(value: Any) -> bytes:
    """Return RFC 8785's form for values of strings, ints, bools, lists and objects with ASCII keys.

    Floats are written as Python and ECMAScript both do for the shortest round trip; RFC 8785's exponent form
    for very large and very small ones is not produced, so manifests should avoid them.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def manifest_json(manifest: ModelManifest) -> bytes:
    """Return the canonical JSON of a manifest: sorted keys, no white space, hashes and prices as strings."""
    return canonical_json(
        {
            "schema": 1,
            "name": manifest.name,
            "version": manifest.version,
            "runtime": manifest.runtime,
            "architecture": manifest.architecture,
            "files": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256.hex()} for f in manifest.files],
            "inputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in manifest.inputs],
            "outputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in manifest.outputs],
            "parameters": dict(manifest.parameters),
            "price": {"base_fee_wei": str(manifest.base_fee_wei), "unit_fee_wei": str(manifest.unit_fee_wei)},
            "resources": {"memory_bytes": manifest.memory_bytes, "time_limit_ms": manifest.time_limit_ms},
        }
    )


class _File(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    size_bytes: int
    sha256: str


class _Spec(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Price(msgspec.Struct, forbid_unknown_fields=True):
    base_fee_wei: str = "0"
    unit_fee_wei: str = "0"


class _Resources(msgspec.Struct, forbid_unknown_fields=True):
    memory_bytes: int = 2 << 30
    time_limit_ms: int = 60_000


class ManifestFile(msgspec.Struct, forbid_unknown_fields=True):
    """``manifest.json`` as it is written; the source of its JSON schema."""

    name: str
    version: str
    runtime: str
    files: list[_File]
    inputs: list[_Spec]
    outputs: list[_Spec]
    schema: int = 1
    architecture: str = ""
    parameters: dict[str, bool | int | float | str] = {}
    price: _Price = msgspec.field(default_factory=_Price)
    resources: _Resources = msgspec.field(default_factory=_Resources)


_manifest_decoder = msgspec.json.Decoder(ManifestFile)


def manifest_from_json(data: bytes) -> ModelManifest:
    """Return the manifest in ``data``, which need not be canonical; safe on bytes from anybody.

    Raises:
        ModelError: not JSON, a field missing, unknown or of a wrong type or value.
    """
    from .errors import ModelError
    from .models import ModelFile, ModelManifest
    from .tensors import DTYPE_SIZES, MAX_RANK, TensorSpec

    try:
        raw = _manifest_decoder.decode(data)
        if raw.schema != 1:
            raise ValueError(f"schema {raw.schema} is unknown; this version reads schema 1")
        for spec in (*raw.inputs, *raw.outputs):
            if spec.dtype not in DTYPE_SIZES or len(spec.shape) > MAX_RANK or any(d < -1 for d in spec.shape):
                raise ValueError(f"tensor {spec.name!r} has a bad dtype or shape: {spec.dtype}{list(spec.shape)}")
        prices = [int(p) for p in (raw.price.base_fee_wei, raw.price.unit_fee_wei)]
        limits = (raw.resources.memory_bytes, raw.resources.time_limit_ms)
        if min(prices) < 0 or max(prices) >= 2**96 or min(limits) <= 0 or max(limits) >= 2**63:
            raise ValueError("a price lies outside 0 to 2^96-1 wei, or a resource limit is not a positive 63-bit int")
        return ModelManifest(
            name=raw.name,
            version=raw.version,
            runtime=raw.runtime,
            architecture=raw.architecture,
            files=tuple(ModelFile(f.path, f.size_bytes, _hash_from_hex(f.sha256)) for f in raw.files),
            inputs=tuple(TensorSpec(s.name, s.dtype, s.shape) for s in raw.inputs),
            outputs=tuple(TensorSpec(s.name, s.dtype, s.shape) for s in raw.outputs),
            parameters=raw.parameters,
            base_fee_wei=prices[0],
            unit_fee_wei=prices[1],
            memory_bytes=raw.resources.memory_bytes,
            time_limit_ms=raw.resources.time_limit_ms,
        )
    except (ValueError, msgspec.DecodeError, RecursionError) as cause:
        raise ModelError(f"manifest is not valid: {cause}") from cause


def _hash_from_hex(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != 32:
        raise ValueError(f"sha256 {text!r} is not 64 hex digits")
    return value


def model_digest(manifest: ModelManifest) -> bytes:
    """Return SHA-256 of the manifest's canonical JSON, 32 bytes."""
    return sha256(manifest_json(manifest)).digest()


def request_id(client: bytes, nonce: bytes) -> bytes:
    """Return the id of a request: SHA-256 of ``["ncn.id.v1", client, nonce]``, 32 bytes."""
    return sha256(_encode(("ncn.id.v1", client, nonce))).digest()


def inputs_hash(inputs: Sequence[Tensor]) -> bytes:
    """Return SHA-256 of ``["ncn.inputs.v1", [[name, dtype, shape, SHA-256(data)]...]]``, sorted by name."""
    rows = sorted((t.name, t.dtype, t.shape, sha256(t.data).digest()) for t in inputs)
    return sha256(_encode(("ncn.inputs.v1", rows))).digest()


def parameters_hash(parameters: Mapping[str, Parameter]) -> bytes:
    """Return SHA-256 of ``["ncn.parameters.v1", [[name, value]...]]``, sorted by name."""
    return sha256(_encode(("ncn.parameters.v1", sorted(parameters.items())))).digest()


def request_hash(request: InferenceRequest) -> bytes:
    """Return the hash that stands for all of a request's content but its signature, 32 bytes."""
    return sha256(
        _encode(
            (
                "ncn.request.v1",
                request.model,
                inputs_hash(request.inputs),
                parameters_hash(request.parameters),
                request.client,
                request.nonce,
                request.limit_units,
                request.deadline_ms,
                request.payment,
            )
        )
    ).digest()


def chain_start(request_hash: bytes, model: bytes, node: bytes) -> bytes:
    """Return h0 = SHA-256(tag, request hash, model digest, node), the link before the first chunk."""
    return sha256(b"ncn.chain.v1" + request_hash + model + node).digest()


def chunk_link(previous: bytes, chunk: Chunk) -> bytes:
    """Return hi = SHA-256(h(i-1), sequence, cumulative units, SHA-256(data)); numbers as 8 bytes, big-endian."""
    return sha256(
        previous + chunk.sequence.to_bytes(8, "big") + chunk.units.to_bytes(8, "big") + sha256(chunk.data).digest()
    ).digest()


# --- EIP-712 ---

TYPES = {
    "EIP712Domain": "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
    "Request": "Request(bytes32 requestId,bytes32 requestHash)",
    "Receipt": (
        "Receipt(bytes32 requestId,bytes32 requestHash,bytes32 model,bytes32 outputHash,uint64 chunks,"
        "uint64 units,uint96 fee,address node,uint64 startedMs,uint64 finishedMs)"
    ),
    "Record": "Record(string kind,address owner,uint64 sequence,uint64 expiresMs,bytes32 payloadHash)",
    "Session": "Session(address node,address gateway,bytes32 challenge)",
}
"""One type per purpose, never shared: a signature for one purpose means nothing for another."""

_TYPE_HASH = {name: keccak(text.encode()) for name, text in TYPES.items()}


@lru_cache(maxsize=64)
def _domain_separator(domain: Domain) -> bytes:
    return keccak(
        _TYPE_HASH["EIP712Domain"]
        + keccak(b"NCN InferencePayment")
        + keccak(b"1")
        + domain.chain_id.to_bytes(32, "big")
        + _address(domain.contract)
    )


def _address(value: bytes) -> bytes:
    return value.rjust(32, b"\0")


def _uint(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _typed(domain: Domain, type_name: str, *words: bytes) -> bytes:
    return keccak(b"\x19\x01" + _domain_separator(domain) + keccak(_TYPE_HASH[type_name] + b"".join(words)))


def request_digest(domain: Domain, request: InferenceRequest) -> bytes:
    """Return what a client signs: EIP-712 ``Request``."""
    return _typed(domain, "Request", request.request_id, request.request_hash)


def receipt_digest(domain: Domain, receipt: Receipt) -> bytes:
    """Return what a node (and later a committee) signs: EIP-712 ``Receipt``."""
    return _typed(
        domain,
        "Receipt",
        receipt.request_id,
        receipt.request_hash,
        receipt.model,
        receipt.output_hash,
        _uint(receipt.chunks),
        _uint(receipt.units),
        _uint(receipt.fee_wei),
        _address(receipt.node),
        _uint(receipt.started_ms),
        _uint(receipt.finished_ms),
    )


def record_digest(domain: Domain, record: Record) -> bytes:
    """Return what the owner of a record signs: EIP-712 ``Record``; the payload enters by its keccak-256."""
    return _typed(
        domain,
        "Record",
        keccak(record.kind.encode()),
        _address(record.owner),
        _uint(record.sequence),
        _uint(record.expires_ms),
        keccak(record.payload),
    )


def session_digest(domain: Domain, node: bytes, gateway: bytes, challenge: bytes) -> bytes:
    """Return what a node signs to open a session: EIP-712 ``Session`` over the gateway's fresh challenge."""
    return _typed(domain, "Session", _address(node), _address(gateway), challenge)
