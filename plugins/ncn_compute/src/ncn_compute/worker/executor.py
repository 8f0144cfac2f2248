"""Executors: a model that brings its own program, a Python file called ``executor.py``.

It is executed in the jail, after the walls are up: it reads the model's folder and the libraries, and nothing else.
Other files of the folder can be imported from it. It defines:

``load(directory, parameters)``
    Called once. ``directory`` (``pathlib.Path``) holds the model's files, ``parameters`` (dict) is the manifest's.
    Returns the model, of any type. May be left out: then the model is None.

``execute(model, inputs, parameters)``
    Called for each request, one after the other. ``inputs`` is a dict of numpy arrays by name, read-only and valid
    for the time of the request; ``BYTES`` are arrays of ``bytes``, ``BF16`` are the bits as ``uint16``.
    ``parameters`` (dict) is the request's. Returns one result, or yields several (a generator), each of which is sent
    at once. A result is a pair: the units of work done so far in this request, an int that never falls, and a dict of
    all outputs by name, each a numpy array or torch tensor of the manifest's dtype and shape, for ``BYTES`` also
    ``bytes``, ``str`` or a list of those. What it raises fails the request with the text of the error, and nothing
    else: the next request comes to the same process. Where nobody wants the rest of an answer, the generator is closed
    after its next piece (``GeneratorExit`` at the ``yield``). It must give the same for the same inputs and parameters,
    whenever it is asked: a validator may execute it again.

``warm_up(model)``
    Called once after ``load``; may be left out.

torch (one thread, inference mode) and numpy are loaded already.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ncn_framework.errors import ModelError

from .arrays import to_numpy, to_tensors
from .model import Model, Result
from .protocol import MAX_UNITS, Array, Load, Scalar

__all__ = ["FILE_NAME", "Executor", "build"]

FILE_NAME = "executor.py"
_REQUIREMENTS = "requirements.txt"


class Executor(Model):
    """A loaded program.

    Raises:
        ModelError: the program is missing, or lacks what it must define.
    """

    def __init__(self, load: Load) -> None:
        if FILE_NAME not in load.files:
            raise ModelError(f"the manifest lists no {FILE_NAME}, which runtime 'executor' executes")
        if _REQUIREMENTS in load.files:
            raise ModelError(f"the manifest lists {_REQUIREMENTS}; programs with requirements are not executed here")
        self.outputs = load.outputs
        directory = Path(load.directory)
        sys.path.insert(0, load.directory)
        module = _import(directory / FILE_NAME)
        execute = getattr(module, "execute", None)
        if not callable(execute):
            raise ModelError(f"{FILE_NAME} defines no function execute(model, inputs, parameters)")
        self._execute: Callable[[Any, Mapping[str, Any], Mapping[str, Scalar]], Any] = execute
        self._warm_up: Callable[[Any], object] | None = getattr(module, "warm_up", None)
        loader = getattr(module, "load", None)
        self.model = None if loader is None else loader(directory, dict(load.parameters))

    def execute(self, inputs: Sequence[Array], parameters: Mapping[str, Scalar]) -> Iterator[Result] | Result:
        given = {array.name: to_numpy(array) for array in inputs}
        results = self._execute(self.model, given, dict(parameters))
        if isinstance(results, tuple):
            return self._checked(results)
        return map(self._checked, results)

    def _checked(self, result: Any) -> Result:
        try:
            units, outputs = result
        except (TypeError, ValueError):
            kind = type(result).__name__
            raise ModelError(f"{FILE_NAME} gave a {kind}; a result is a pair of units and outputs") from None
        if not isinstance(units, int) or not 0 <= units <= MAX_UNITS or not isinstance(outputs, Mapping):
            raise ModelError(f"{FILE_NAME} gave units {units!r} and outputs of type {type(outputs).__name__}")
        return units, to_tensors(self.outputs, outputs)

    def warm_up(self) -> None:
        if self._warm_up is not None:
            self._warm_up(self.model)


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("executor", path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["executor"] = module
    spec.loader.exec_module(module)
    return module


def build(load: Load) -> Executor:
    """Return the loaded model."""
    return Executor(load)
