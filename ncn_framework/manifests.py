"""A model's manifest as JSON: its one canonical form, which is hashed, and how one is read from anybody."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from .errors import ModelError
from .models import ModelFile, ModelManifest
from .tensors import DTYPE_SIZES, MAX_RANK, TensorSpec

__all__ = ["ManifestFile", "canonical_json", "manifest_from_json", "manifest_json"]

_TOLERANCES = (0.0001, 1_000_000.0)
"""Within these, Python and ECMAScript write a float alike; a tolerance has one canonical form."""


def canonical_json(value: Any) -> bytes:
    """Return RFC 8785's form for values of strings, ints, bools, lists and objects with ASCII keys.

    Floats are written as Python and ECMAScript both do for the shortest round trip; RFC 8785's exponent form
    for very large and very small ones is not produced, so manifests should avoid them.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def manifest_json(manifest: ModelManifest) -> bytes:
    """Return the canonical JSON of a manifest: sorted keys, no white space, hashes and prices as strings."""
    found: dict[str, Any] = {
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
    if manifest.tolerance:  # left out where there is none: digests are those of manifests that do not know of it
        tolerance = manifest.tolerance
        found["tolerance"] = int(tolerance) if tolerance.is_integer() else tolerance
    return canonical_json(found)


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
    tolerance: float = 0.0


_manifest_decoder = msgspec.json.Decoder(ManifestFile)


def manifest_from_json(data: bytes) -> ModelManifest:
    """Return the manifest in ``data``, which need not be canonical; safe on bytes from anybody.

    Raises:
        ModelError: not JSON, a field missing, unknown or of a wrong type or value.
    """
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
        if raw.tolerance and not _TOLERANCES[0] <= raw.tolerance <= _TOLERANCES[1]:
            raise ValueError(
                f"tolerance {raw.tolerance} lies outside {_TOLERANCES[0]} to {_TOLERANCES[1]}, and is not 0"
            )
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
            tolerance=raw.tolerance,
        )
    except (ValueError, msgspec.DecodeError, RecursionError) as cause:
        raise ModelError(f"manifest is not valid: {cause}") from cause


def _hash_from_hex(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != 32:
        raise ValueError(f"sha256 {text!r} is not 64 hex digits")
    return value
