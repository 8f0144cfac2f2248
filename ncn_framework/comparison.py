"""Whether two answers to one request are the same, as far as machines that compute it can agree."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence

from .errors import OutputRejected
from .models import Chunk
from .tensors import Tensor, unpack_tensors

__all__ = ["difference"]

_FORMATS = {"FP16": "<e", "FP32": "<f", "FP64": "<d"}
"""``struct`` formats of the dtypes that may differ within a tolerance; BF16 beside them is the upper half of FP32."""


def difference(given: Sequence[Chunk], repeated: Sequence[Chunk], tolerance: float) -> str:
    """Return how an answer differs from another execution of the same request, in words; empty where it does not.

    The words tell distances, places and shapes, and nothing of what the answer says: they go into logs.

    Chunks must be as many, with the same units and tensors. Elements must be the same byte for byte, but floats may
    differ by ``tolerance``. Not-a-number equals itself alone, an infinity that of the same sign.

    Args:
        given: chunks from anybody.
        repeated: chunks to hold them against.
        tolerance: of the model's manifest, absolute.
    """
    if len(given) != len(repeated):
        return f"{len(given)} chunks, not {len(repeated)}"
    for one, other in zip(given, repeated, strict=True):
        where = f"chunk {one.sequence}"
        if one.sequence != other.sequence or one.units != other.units:
            return f"{where} with {one.units} units, not chunk {other.sequence} with {other.units}"
        if one.data != other.data and (found := _of_chunks(one, other, tolerance)):
            return f"{where}: {found}"
    return ""


def _of_chunks(one: Chunk, other: Chunk, tolerance: float) -> str:
    try:
        tensors, expected = unpack_tensors(one.data, error=OutputRejected), unpack_tensors(other.data)
    except OutputRejected as cause:
        return str(cause)
    if len(tensors) != len(expected):
        return f"{len(tensors)} tensors, not {len(expected)}"
    for have, want in zip(tensors, expected, strict=True):
        if (have.name, have.dtype, have.shape) != (want.name, want.dtype, want.shape):
            return (
                f"tensor {have.name[:64]!r} is {have.dtype}{list(have.shape)}, "
                f"not {want.name[:64]!r} of {want.dtype}{list(want.shape)}"
            )
        if have.data != want.data and (found := _of_tensors(have, want, tolerance)):
            return f"tensor {have.name[:64]!r} {found}"
    return ""


def _of_tensors(have: Tensor, want: Tensor, tolerance: float) -> str:
    if have.dtype not in _FORMATS and have.dtype != "BF16":
        return "has other elements"
    if len(have.data) != len(want.data):
        return f"has {len(have.data)} bytes, not {len(want.data)}"
    for place, (a, b) in enumerate(zip(_floats(have), _floats(want), strict=True)):
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        if not abs(a - b) <= tolerance or math.isinf(a) or math.isinf(b):  # "not": a number and NaN have no distance
            return f"differs by {abs(a - b):.6g} at element {place} (tolerance {tolerance})"
    return ""


def _floats(tensor: Tensor) -> Iterator[float]:
    data, form = tensor.data, _FORMATS.get(tensor.dtype)
    if form is None:  # BF16
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
        form = "<f"
    for (value,) in struct.iter_unpack(form, data):
        yield value
