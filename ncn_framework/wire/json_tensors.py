"""The JSON form of tensors: data as a flat row-major list, or as base64 of the little-endian elements."""

from __future__ import annotations

import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from ..errors import InvalidTensor, RequestTooLarge
from ..tensors import DTYPE_SIZES, MAX_RANK, MAX_TENSORS, Tensor, TensorSpec, bytes_tensor, split_bytes

__all__ = ["CODES", "Encoding", "Form", "TensorJson", "inputs_from_json", "tensor_from_json", "tensor_json"]

Encoding = Literal["json", "base64"]
"""How the data of answered tensors is written."""

CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""dtype to the code of Python's ``struct``; BF16 has none and travels as base64 only."""


class Form(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all JSON forms: unknown fields are errors, and what is as the default is left out."""


class TensorJson(Form):
    """A tensor. In a request, ``dtype`` and ``shape`` may be left out where the model's specification settles them."""

    name: str
    dtype: str = ""
    shape: list[int] | None = None
    data: list[bool | int | float | str] | None = None
    data_base64: str | None = None


def tensor_json(tensor: Tensor, encoding: Encoding) -> TensorJson:
    """Return the JSON form of ``tensor``. A float that JSON cannot hold (NaN, infinity) makes it base64."""
    form = TensorJson(tensor.name, tensor.dtype, list(tensor.shape))
    if encoding == "json":
        form.data = _as_list(tensor)
    if form.data is None:
        form.data_base64 = b64encode(tensor.data).decode()
    return form


def _as_list(tensor: Tensor) -> list[Any] | None:
    if tensor.dtype == "BYTES":
        try:
            return [element.decode() for element in split_bytes(tensor)]
        except UnicodeDecodeError:
            return None
    code = CODES.get(tensor.dtype)
    if code is None:
        return None
    count = len(tensor.data) // DTYPE_SIZES[tensor.dtype]
    values = list(struct.unpack(f"<{count}{code}", tensor.data))
    return None if code in "efd" and not all(map(math.isfinite, values)) else values


def tensor_from_json(form: TensorJson, specs: Sequence[TensorSpec]) -> Tensor:
    """Return the tensor; what ``form`` leaves out comes from the specification of the same name.

    Raises:
        InvalidTensor: no such tensor in ``specs``, data missing, twice or not of its dtype, a shape that cannot
            be inferred. Whether the shape is the model's is checked by ``check_tensors``.
    """
    spec = next((s for s in specs if s.name == form.name), None)
    if spec is None:
        raise InvalidTensor(f"tensor {form.name!r} is unknown; the model has: {', '.join(s.name for s in specs)}")
    dtype = form.dtype or spec.dtype
    if dtype not in DTYPE_SIZES:
        raise InvalidTensor(f"tensor {form.name!r} has dtype {dtype!r}; known: {', '.join(DTYPE_SIZES)}")
    if (form.data is None) == (form.data_base64 is None):
        raise InvalidTensor(f"tensor {form.name!r} needs either data or data_base64")
    if form.data_base64 is not None:
        try:
            data = b64decode(form.data_base64, validate=True)
        except ValueError as cause:  # binascii.Error is one; text beyond ASCII raises another
            raise InvalidTensor(f"tensor {form.name!r}: data_base64 is not base64: {cause}") from cause
        count = len(data) // (DTYPE_SIZES[dtype] or 1)
    else:
        values = form.data or []
        data, count = _from_list(form.name, dtype, values), len(values)
    if form.shape is None and dtype == "BYTES" and form.data_base64 is not None:
        raise InvalidTensor(f"tensor {form.name!r}: BYTES in base64 needs its shape")
    shape = tuple(form.shape) if form.shape is not None else _infer_shape(form.name, spec.shape, count)
    if len(shape) > MAX_RANK or any(not 0 <= dim < 2**48 for dim in shape):
        raise InvalidTensor(f"tensor {form.name!r} has shape {list(shape)[:9]}; at most {MAX_RANK}, none negative")
    return Tensor(form.name, dtype, shape, data)


def _from_list(name: str, dtype: str, values: list[Any]) -> bytes:
    if dtype == "BYTES":
        if set(map(type, values)) - {str}:
            raise InvalidTensor(f"tensor {name!r} is BYTES: its data must be strings")
        return bytes_tensor(name, [value.encode() for value in values]).data
    code = CODES.get(dtype)
    if code is None:
        raise InvalidTensor(f"tensor {name!r} is {dtype}, which JSON numbers cannot hold; give data_base64")
    kinds = set(map(type, values))
    if dtype == "BOOL" and kinds - {bool}:
        raise InvalidTensor(f"tensor {name!r} is BOOL: its data must be true and false")
    if dtype != "BOOL" and kinds & {bool, str}:
        raise InvalidTensor(f"tensor {name!r} is {dtype}: its data must be numbers")
    try:
        return struct.pack(f"<{len(values)}{code}", *values)
    except (struct.error, OverflowError) as cause:
        raise InvalidTensor(f"tensor {name!r}: its data does not fit {dtype}: {cause}") from cause


def _infer_shape(name: str, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    rest = math.prod(dim for dim in shape if dim != -1)
    if shape.count(-1) > 1 or (shape.count(-1) == 1 and rest == 0):
        raise InvalidTensor(f"tensor {name!r} needs its shape; the model wants {list(shape)}")
    return tuple(count // rest if dim == -1 else dim for dim in shape)


def inputs_from_json(forms: Sequence[TensorJson], specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Return all input tensors of a request."""
    if len(forms) > MAX_TENSORS:
        raise RequestTooLarge(f"{len(forms)} tensors in one request; at most {MAX_TENSORS}")
    return tuple(tensor_from_json(form, specs) for form in forms)
