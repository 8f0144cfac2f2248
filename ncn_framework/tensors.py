"""Tensors as they travel: named, typed, little-endian bytes; and the one encoding that is hashed.

The dtype names and the layout of ``BYTES`` elements are those of the Open Inference Protocol, version 2.
The encoding is MessagePack arrays in shortest form, so that any language's library reproduces it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from .errors import InvalidTensor

__all__ = [
    "DTYPE_SIZES",
    "MAX_RANK",
    "MAX_TENSORS",
    "Tensor",
    "TensorSpec",
    "bytes_tensor",
    "check_tensors",
    "pack_tensors",
    "split_bytes",
    "unpack_tensors",
]

DTYPE_SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}
"""Bytes per element; 0 for ``BYTES``, whose elements are of any length."""

MAX_TENSORS = 64
"""Most tensors in one message."""

MAX_RANK = 8
"""Most dimensions of one tensor."""


@dataclass(frozen=True)
class Tensor:
    """One named tensor.

    Attributes:
        name: the name in the model's specification.
        dtype: a key of ``DTYPE_SIZES``.
        shape: dimensions, each >= 0.
        data: elements in row-major order, little-endian; for ``BYTES`` each element is a 4-byte
            little-endian length followed by that many bytes (Open Inference Protocol, version 2).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class TensorSpec:
    """What a model takes or gives: a dimension of -1 may have any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def accepts(self, tensor: Tensor) -> bool:
        return (
            tensor.dtype == self.dtype
            and len(tensor.shape) == len(self.shape)
            and all(want in (-1, have) for want, have in zip(self.shape, tensor.shape, strict=True))
        )


def check_tensors(
    tensors: Sequence[Tensor], specs: Sequence[TensorSpec], *, error: type[Exception] = InvalidTensor
) -> None:
    """Raise ``error`` unless ``tensors`` are exactly the ones in ``specs``, each well formed.

    Args:
        tensors: in any order.
        specs: of the model's inputs or outputs.
        error: class to raise, for outputs ``OutputRejected``.
    """
    by_name = {spec.name: spec for spec in specs}
    for tensor in tensors:
        spec = by_name.pop(tensor.name, None)
        if spec is None:
            known = ", ".join(s.name for s in specs)
            raise error(f"tensor {tensor.name!r} is unknown or given twice; the model has: {known}")
        if not spec.accepts(tensor):
            raise error(
                f"tensor {tensor.name!r} is {tensor.dtype}{list(tensor.shape)}; "
                f"the model wants {spec.dtype}{list(spec.shape)} (-1: any size)"
            )
        _check_size(tensor, error)
    if by_name:
        raise error(f"tensor {next(iter(by_name))!r} is missing; the model wants: {', '.join(s.name for s in specs)}")


def _check_size(tensor: Tensor, error: type[Exception]) -> None:
    count = math.prod(tensor.shape)
    if tensor.dtype == "BYTES":
        have = sum(1 for _ in _elements(tensor.data, tensor.name, error))
        if have != count:
            raise error(f"tensor {tensor.name!r} has {have} elements; its shape {list(tensor.shape)} wants {count}")
        return
    if len(tensor.data) != count * DTYPE_SIZES[tensor.dtype]:
        raise error(
            f"tensor {tensor.name!r} has {len(tensor.data)} bytes; {tensor.dtype}{list(tensor.shape)} "
            f"wants {count * DTYPE_SIZES[tensor.dtype]}"
        )
    if tensor.dtype == "BOOL" and tensor.data.translate(None, b"\0\1"):
        raise error(f"tensor {tensor.name!r} is BOOL and has a byte that is neither 0 nor 1")


def _elements(data: bytes, name: str, error: type[Exception]) -> Iterable[bytes]:
    offset, end = 0, len(data)
    while offset < end:
        start = offset + 4
        offset = start + int.from_bytes(data[offset:start], "little")
        if start > end or offset > end:
            raise error(f"tensor {name!r} has a BYTES element that ends {offset - end} bytes behind the data")
        yield data[start:offset]


def bytes_tensor(name: str, elements: Sequence[bytes]) -> Tensor:
    """Return a ``BYTES`` tensor of shape [len(elements)]."""
    return Tensor(name, "BYTES", (len(elements),), b"".join(len(e).to_bytes(4, "little") + e for e in elements))


def split_bytes(tensor: Tensor) -> list[bytes]:
    """Return the elements of a ``BYTES`` tensor in row-major order.

    Raises:
        InvalidTensor: an element's length points behind the data.
    """
    return list(_elements(tensor.data, tensor.name, InvalidTensor))


_Row = tuple[str, str, tuple[int, ...], bytes]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Row])


def pack_tensors(tensors: Sequence[Tensor]) -> bytes:
    """Return the one encoding of ``tensors``: MessagePack ``[[name, dtype, [dim...], data]...]``."""
    return _encoder.encode([(t.name, t.dtype, t.shape, t.data) for t in tensors])


def unpack_tensors(data: bytes, *, error: type[Exception] = InvalidTensor) -> tuple[Tensor, ...]:
    """Return the tensors that ``pack_tensors`` encoded; safe on bytes from anybody.

    Raises:
        error: not that encoding, an unknown dtype, a negative dimension, or a bound passed. Sizes against
            shapes are checked by ``check_tensors``.
    """
    try:
        rows = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as cause:
        raise error(f"tensors are not well encoded: {cause}") from cause
    if len(rows) > MAX_TENSORS:
        raise error(f"{len(rows)} tensors in one message; at most {MAX_TENSORS}")
    for name, dtype, shape, _ in rows:
        if dtype not in DTYPE_SIZES:
            raise error(f"tensor {name!r} has dtype {dtype!r}; known: {', '.join(DTYPE_SIZES)}")
        if len(shape) > MAX_RANK or any(not 0 <= dim < 2**48 for dim in shape):
            raise error(f"tensor {name!r} has shape {list(shape)[:9]}; at most {MAX_RANK} dimensions, none negative")
    return tuple(Tensor(*row) for row in rows)
