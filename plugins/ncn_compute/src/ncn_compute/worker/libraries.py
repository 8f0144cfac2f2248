"""Libraries: what a runtime needs is imported before the walls go up, and a model is made with it afterwards."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator

from ncn_framework.errors import ModelError

from .model import Model
from .protocol import Load

__all__ = ["build", "loaded"]

_BUILDERS = {
    "safetensors": "architectures",
    "torchscript": "torchscript",
    "onnx": "onnx",
    "executor": "executor",
}
"""The module of this package for each runtime; its ``build`` makes the model."""


@contextlib.contextmanager
def loaded(runtime: str) -> Iterator[None]:
    """Import everything that ``runtime`` needs, and work with it until the context is left.

    Raises:
        ModelError: the runtime is unknown.
    """
    if runtime not in _BUILDERS:
        raise ModelError(f"runtime {runtime!r} is unknown; known: {', '.join(_BUILDERS)}")
    module = f"{__package__}.{_BUILDERS[runtime]}"
    if runtime == "onnx":
        importlib.import_module(module)
        yield
        return
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    importlib.import_module(module)
    with torch.inference_mode():
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))
        yield


def build(load: Load) -> Model:
    """Return the loaded model.

    Raises:
        ModelError: the model's files are not what its runtime needs, or its own code failed.
    """
    module = importlib.import_module(f"{__package__}.{_BUILDERS[load.runtime]}")
    try:
        model: Model = module.build(load)
        model.warm_up()
    except ModelError:
        raise
    except Exception as error:
        kind = repr(load.architecture) if load.architecture else f"runtime {load.runtime!r}"
        raise ModelError(f"{load.directory} cannot be loaded as {kind}: {type(error).__name__}: {error}") from error
    return model
