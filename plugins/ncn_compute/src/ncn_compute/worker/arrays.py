"""Arrays: a message's tensors as numpy sees them, and back, held against what the manifest says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ncn_framework.errors import ModelError
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor, split_bytes

from .protocol import Array, Spec

__all__ = ["DTYPES", "from_numpy", "only_file", "to_numpy", "to_tensors", "zeros"]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no such type: the bits of each element, as they are
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
"""numpy's type for each dtype; ``BYTES`` are arrays of ``bytes`` objects."""


def to_numpy(array: Array) -> NDArray[Any]:
    """Return an input as an array, which may not be written to and lives as long as the request."""
    if array.dtype == "BYTES":
        elements = split_bytes(Tensor(array.name, array.dtype, array.shape, bytes(array.data)))
        made = np.empty(len(elements), dtype=object)
        made[:] = elements
        return made.reshape(array.shape)
    return np.frombuffer(array.data, dtype=DTYPES[array.dtype]).reshape(array.shape)


def zeros(spec: Spec) -> Array:
    """Return an input that the manifest allows, to warm a model up with: zeros, or empty strings; -1 becomes 1."""
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    size = 4 if spec.dtype == "BYTES" else DTYPES[spec.dtype].itemsize  # an empty string is its length alone
    return Array(spec.name, spec.dtype, shape, memoryview(bytearray(size * math.prod(shape))))


def from_numpy(spec: Spec, value: Any) -> Tensor:
    """Return an output as a tensor.

    Args:
        spec: what the manifest says of it.
        value: an array, a torch tensor, a number, or for ``BYTES`` also ``bytes``, ``str`` or a sequence of those.

    Raises:
        ModelError: its dtype or shape is another one; nothing is converted silently.
    """
    name, dtype = spec.name, spec.dtype
    if dtype == "BYTES":
        array = np.array(value, dtype=object)
        found = bytes_tensor(name, [_bytes(name, element) for element in array.flat])
        found = replace(found, shape=array.shape)
    else:
        array = _from_torch(value) if hasattr(value, "detach") else np.asarray(value)
        if array.dtype != DTYPES[dtype]:
            raise ModelError(f"the model gave output {name!r} as {array.dtype}; the manifest says {dtype}")
        found = Tensor(name, dtype, array.shape, array.tobytes())
    if not TensorSpec(name, dtype, spec.shape).accepts(found):
        raise ModelError(
            f"the model gave output {name!r} of shape {list(found.shape)}; the manifest says {list(spec.shape)}"
        )
    return found


def to_tensors(specs: Sequence[Spec], outputs: Mapping[str, Any]) -> list[Tensor]:
    """Return a chunk's tensors in the manifest's order.

    Raises:
        ModelError: one is missing, one too many, or not what the manifest says.
    """
    names = [spec.name for spec in specs]
    if set(outputs) != set(names):
        raise ModelError(f"the model gave outputs {', '.join(map(str, outputs))}; the manifest says {', '.join(names)}")
    return [from_numpy(spec, outputs[spec.name]) for spec in specs]


def only_file(files: Sequence[str], *suffixes: str) -> str:
    """Return the one of a model's files that ends in one of ``suffixes``.

    Raises:
        ModelError: there is none, or several.
    """
    found = [file for file in files if file.endswith(suffixes)]
    if len(found) != 1:
        raise ModelError(f"the manifest lists {len(found)} files that end in {' or '.join(suffixes)}; it must list one")
    return found[0]


def _bytes(name: str, element: Any) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes):
        return element
    raise ModelError(f"the model gave output {name!r} with a {type(element).__name__}; the manifest says BYTES")


def _from_torch(tensor: Any) -> NDArray[Any]:
    import torch  # the model has it already, or it could not have made a tensor

    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
