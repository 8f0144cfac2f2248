"""Runtimes: how a model's files become a model, and whether the libraries for it are installed.

Nothing is imported to find out: the libraries are loaded in the jail alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from ncn_framework.errors import ModelError

__all__ = ["RUNTIMES", "Runtime", "available", "require"]


class Runtime(NamedTuple):
    """What a runtime needs.

    Attributes:
        modules: modules that the worker imports.
        install: what to give to ``pip install`` where one is missing.
    """

    modules: tuple[str, ...]
    install: str


RUNTIMES: Mapping[str, Runtime] = {
    "safetensors": Runtime(("torch", "safetensors", "tokenizers"), "ncn-compute"),
    "torchscript": Runtime(("torch", "numpy"), "ncn-compute"),
    "onnx": Runtime(("onnxruntime", "numpy"), "ncn-compute[onnx]"),
    "executor": Runtime(("torch", "numpy"), "ncn-compute"),
}
"""What ``manifest.runtime`` may say: a safetensors file with an architecture that the worker knows, a TorchScript
archive, an ONNX file, or a Python program of the model's own (``worker/executor.py`` describes it)."""


def _missing(runtime: Runtime) -> list[str]:
    return [name for name in runtime.modules if importlib.util.find_spec(name) is None]


@cache
def available() -> tuple[str, ...]:
    """Return the runtimes whose libraries are installed."""
    return tuple(name for name, runtime in RUNTIMES.items() if not _missing(runtime))


def require(name: str) -> None:
    """Raise ``ModelError`` where ``name`` is no runtime, or one of its libraries is missing."""
    runtime = RUNTIMES.get(name)
    if runtime is None:
        raise ModelError(f"runtime {name!r} is unknown; known: {', '.join(RUNTIMES)}")
    if missing := _missing(runtime):
        raise ModelError(f"runtime {name!r} needs {missing[0]}, which is missing; try: pip install '{runtime.install}'")
