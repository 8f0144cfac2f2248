"""A model as the worker sees it, whatever its runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from ncn_framework.tensors import Tensor

from .protocol import Array, Scalar

__all__ = ["Model", "Result"]

Result = tuple[int, list[Tensor]]
"""Cumulative units, and a chunk's output tensors."""


class Model(ABC):
    """A loaded model."""

    @abstractmethod
    def execute(self, inputs: Sequence[Array], parameters: Mapping[str, Scalar]) -> Iterator[Result] | Result:
        """Return the one result, or an iterator of several. Inputs are what the manifest says."""

    @abstractmethod
    def warm_up(self) -> None:
        """Run once, where that can be done, so that the first request is not the slow one."""
