"""TorchScript: an archive that ``torch.jit.save`` wrote, which is a program as much as it is weights.

The manifest lists one file that ends in ``.pt``, ``.pth`` or ``.jit``. The arguments of the model's ``forward`` are
found by their names: tensors are the manifest's inputs, scalars are parameters, of the request before those of the
manifest. What it returns, a tensor, a tuple of tensors or a dictionary, are the manifest's outputs, in order or by
name. Unit: a row of the first input (1 where that has no dimensions).

Two parameters of the manifest are for models that remember what they saw, such as those of audio and video:

- ``reset_method``: name of a method without arguments that makes the model forget; called before each request.
- ``row_by_row`` (bool): ``forward`` takes one row of each input at a time, as a batch of one; the rows of a request
  are given in order, and the rows of what it gives are put together in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ncn_framework.errors import ModelError

from .arrays import only_file, to_tensors, zeros
from .model import Model, Result
from .protocol import Array, Load, Scalar

__all__ = ["TorchScript", "build"]

_DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
_OWN = ("reset_method", "row_by_row")
_SCALARS: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


class TorchScript(Model):
    """A loaded archive.

    Raises:
        ModelError: the manifest does not fit the model's ``forward``.
    """

    def __init__(self, load: Load) -> None:
        for spec in (*load.inputs, *load.outputs):
            if spec.dtype not in _DTYPES:
                raise ModelError(f"tensor {spec.name!r} is {spec.dtype}, which TorchScript does not have")
        self.inputs, self.outputs = load.inputs, load.outputs
        path = Path(load.directory) / only_file(load.files, ".pt", ".pth", ".jit")
        self.model = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        self.row_by_row = load.parameters.get("row_by_row") is True
        self.reset = None
        if name := load.parameters.get("reset_method"):
            self.reset = getattr(self.model, str(name), None)
            if self.reset is None:
                raise ModelError(f"the model has no method {name!r}, which 'reset_method' names")
        self.arguments = [argument for argument in self.model.forward.schema.arguments if argument.name != "self"]
        self.scalars = {name: value for name, value in load.parameters.items() if name not in _OWN}
        self._check_arguments()

    def _check_arguments(self) -> None:
        have = {argument.name for argument in self.arguments}
        given = {*self.scalars, *(spec.name for spec in self.inputs)}
        if unknown := sorted(given - have):
            raise ModelError(f"the model's forward has no argument {unknown[0]!r}; it has: {', '.join(sorted(have))}")
        for argument in self.arguments:
            if argument.name not in given and not argument.has_default_value():
                raise ModelError(
                    f"the model's forward wants argument {argument.name!r}: {argument.type}, which is neither an input "
                    "of the manifest nor one of its parameters"
                )

    def execute(self, inputs: Sequence[Array], parameters: Mapping[str, Scalar]) -> Result:
        arguments = {**self.scalars, **self._checked(parameters)}
        tensors = {array.name: _tensor(array) for array in inputs}
        first = inputs[0].shape if inputs else ()
        units = first[0] if first else 1
        if self.reset is not None:
            self.reset()
        if not self.row_by_row:
            return units, to_tensors(self.outputs, self._named(self.model(**tensors, **arguments)))
        if any(array.shape[:1] != first[:1] or not array.shape for array in inputs):
            raise ValueError("inputs that are taken row by row must have the same number of rows")
        if not units:
            raise ValueError("a model that takes its input row by row wants at least one row")
        rows = [
            self._named(self.model(**{name: tensor[n : n + 1] for name, tensor in tensors.items()}, **arguments))
            for n in range(units)
        ]
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return units, to_tensors(self.outputs, {s.name: _squeezed(joined[s.name], len(s.shape)) for s in self.outputs})

    def _checked(self, parameters: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return a request's parameters, which must be scalar arguments of the model."""
        tensors = {spec.name for spec in self.inputs}
        types = {argument.name: str(argument.type) for argument in self.arguments if argument.name not in tensors}
        for name, value in parameters.items():
            if name not in types:
                raise ValueError(f"parameter {name!r} is unknown; the model has: {', '.join(types) or 'none'}")
            wanted = _SCALARS.get(types[name])
            if wanted is not None and type(value) is not wanted:
                raise ValueError(f"parameter {name!r} is {value!r}; the model wants {types[name]}")
        return parameters

    def _named(self, given: Any) -> Mapping[str, torch.Tensor]:
        """Return what ``forward`` gave, by the manifest's names."""
        if isinstance(given, dict):
            missing = [spec.name for spec in self.outputs if spec.name not in given]
            if missing:
                raise ModelError(f"the model gave no output {missing[0]!r}; it gave: {', '.join(map(str, given))}")
            return {spec.name: given[spec.name] for spec in self.outputs}
        several = given if isinstance(given, tuple | list) else (given,)
        if len(several) != len(self.outputs) or not all(isinstance(one, torch.Tensor) for one in several):
            count = len(self.outputs)
            raise ModelError(f"the model gave {len(several)} outputs; the manifest has {count}, all of them tensors")
        return {spec.name: one for spec, one in zip(self.outputs, several, strict=True)}

    def warm_up(self) -> None:
        try:
            self.execute([zeros(spec) for spec in self.inputs], {})
        except (RuntimeError, torch.jit.Error):
            if all(size >= 0 for spec in self.inputs for size in spec.shape):
                raise  # nothing but these shapes will ever come


def _tensor(array: Array) -> torch.Tensor:
    dtype = _DTYPES[array.dtype]
    if not array.data.nbytes:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(array.data, dtype=dtype).view(array.shape)


def _squeezed(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """Drop dimensions of size 1 from the end until ``rank`` are left: [n, 1] is a row of n where that is wanted."""
    while tensor.dim() > rank and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    return tensor


def build(load: Load) -> TorchScript:
    """Return the loaded model."""
    return TorchScript(load)
