"""From Python values to the tensors that a model takes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ncn_framework.errors import InvalidTensor
from ncn_framework.tensors import MAX_RANK, Tensor, TensorSpec, bytes_tensor, check_tensors
from ncn_framework.wire.json import TensorJson, tensor_from_json

__all__ = ["Inputs", "tensors_of"]

Inputs = Mapping[str, Any]
"""Name of an input to its value: a ``Tensor``; a number, string, bytes; a list of these, flat or nested as the shape
is; anything with ``tolist`` (numpy, torch). Bytes for an input that is not ``BYTES`` are its data, little-endian.
A mapping is the JSON form of a tensor: ``data`` or ``data_base64``, with ``dtype`` and ``shape`` where needed."""


def tensors_of(inputs: Inputs, specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Return the tensors of a request, in the order of the model's specification.

    Args:
        inputs: one value for each specification.
        specs: of the model's inputs. A dimension of -1 takes the size of the value.

    Raises:
        InvalidTensor: an input is unknown, missing, or not what its specification says.
    """
    known = {spec.name: spec for spec in specs}
    if unknown := [name for name in inputs if name not in known]:
        raise InvalidTensor(f"input {unknown[0]!r} is unknown; the model takes: {', '.join(known)}")
    tensors = tuple(_tensor(spec, inputs[name]) for name, spec in known.items() if name in inputs)
    check_tensors(tensors, specs)
    return tensors


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value if value.name == spec.name else replace(value, name=spec.name)
    if isinstance(value, Mapping):
        return tensor_from_json(_form(spec, value), [spec])
    if isinstance(value, bytes | bytearray | memoryview) and spec.dtype != "BYTES":
        return tensor_from_json(TensorJson(spec.name, data_base64=b64encode(value).decode()), [spec])
    if hasattr(value, "tolist") and not isinstance(value, memoryview):
        value = value.tolist()
    shape, flat = _flatten(spec.name, value)
    if spec.dtype == "BYTES":
        return replace(_bytes(spec, flat), shape=_shape(spec, shape, len(flat)))
    deep = len(shape) > 1 and len(shape) == len(spec.shape)
    return tensor_from_json(TensorJson(spec.name, shape=list(shape) if deep else None, data=flat), [spec])


def _form(spec: TensorSpec, value: Mapping[str, Any]) -> TensorJson:
    try:
        return msgspec.convert({**value, "name": spec.name}, TensorJson)
    except msgspec.ValidationError as cause:
        raise InvalidTensor(f"input {spec.name!r}: {cause}") from cause


def _bytes(spec: TensorSpec, flat: list[Any]) -> Tensor:
    elements = [value.encode() if isinstance(value, str) else value for value in flat]
    if not all(isinstance(element, bytes | bytearray | memoryview) for element in elements):
        raise InvalidTensor(f"input {spec.name!r} is BYTES: its values must be strings or bytes")
    return bytes_tensor(spec.name, [bytes(element) for element in elements])


def _shape(spec: TensorSpec, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the shape of a value that is nested as deep as the specification, or flat where one size is open."""
    if len(shape) == len(spec.shape):
        return shape
    rest = 1
    for dim in spec.shape:
        rest *= 1 if dim == -1 else dim
    if len(shape) > 1 or spec.shape.count(-1) > 1 or rest == 0:
        raise InvalidTensor(
            f"input {spec.name!r} has {len(shape)} dimensions; nest its lists as the model's shape is, "
            f"{list(spec.shape)} (-1: any size)"
        )
    return tuple(count // rest if dim == -1 else dim for dim in spec.shape)


def _flatten(name: str, value: Any, depth: int = 0) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of nested lists, and what they hold in row-major order."""
    if not isinstance(value, list | tuple):
        return (), [value]
    if depth == MAX_RANK:
        raise InvalidTensor(f"input {name!r} is nested deeper than {MAX_RANK} lists")
    if not any(isinstance(item, list | tuple) for item in value):
        return (len(value),), list(value)
    shapes, flat = set(), []
    for item in value:
        shape, part = _flatten(name, item, depth + 1)
        shapes.add(shape)
        flat += part
    if len(shapes) > 1:
        raise InvalidTensor(f"input {name!r} is ragged: its lists have different lengths")
    return (len(value), *shapes.pop()), flat
