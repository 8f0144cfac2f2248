"""ONNX: one file that ends in ``.onnx``, executed by ONNX Runtime on one thread.

Inputs and outputs are those of the file, by name and type, as the manifest lists them; an output that the manifest
leaves out is not computed. Unit: a row of the first input (1 where that has no dimensions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime  # type: ignore[import-untyped]

from ncn_framework.errors import ModelError

from .arrays import only_file, to_numpy, to_tensors, zeros
from .model import Model, Result
from .protocol import Array, Load, Scalar

__all__ = ["Onnx", "build"]

_TYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float",
    "FP64": "double",
    "BYTES": "string",
}
"""ONNX's names of the dtypes; numpy has no array for ``BF16`` that ONNX Runtime would take."""


class Onnx(Model):
    """A loaded file.

    Raises:
        ModelError: the manifest's tensors are not the file's.
    """

    def __init__(self, load: Load) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # its warnings would go where nobody reads them
        path = Path(load.directory) / only_file(load.files, ".onnx")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = load.inputs, load.outputs
        self.names = [spec.name for spec in load.outputs]
        if load.parameters:
            raise ModelError(f"parameter {next(iter(load.parameters))!r}: an ONNX file takes none")
        for which, specs, nodes in (
            ("input", load.inputs, self.session.get_inputs()),
            ("output", load.outputs, self.session.get_outputs()),
        ):
            types = {node.name: node.type for node in nodes}
            for spec in specs:
                wanted = f"tensor({_TYPES.get(spec.dtype, 'none')})"
                if types.get(spec.name) != wanted:
                    known = ", ".join(f"{name} {type_}" for name, type_ in types.items())
                    raise ModelError(f"the file has no {which} {spec.name!r} of type {spec.dtype}; it has: {known}")
        if missing := {node.name for node in self.session.get_inputs()} - {spec.name for spec in load.inputs}:
            raise ModelError(f"the file wants input {min(missing)!r}, which the manifest does not list")

    def execute(self, inputs: Sequence[Array], parameters: Mapping[str, Scalar]) -> Result:
        if parameters:
            raise ValueError(f"parameter {next(iter(parameters))!r} is unknown; the model has none")
        given = {array.name: to_numpy(array) for array in inputs}
        first = inputs[0].shape if inputs else ()
        results = self.session.run(self.names, given)
        return first[0] if first else 1, to_tensors(self.outputs, dict(zip(self.names, results, strict=True)))

    def warm_up(self) -> None:
        try:
            self.execute([zeros(spec) for spec in self.inputs], {})
        except RuntimeError:
            if all(size >= 0 for spec in self.inputs for size in spec.shape):
                raise  # nothing but these shapes will ever come


def build(load: Load) -> Onnx:
    """Return the loaded model."""
    return Onnx(load)
