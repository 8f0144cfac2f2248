"""Outputs: what a worker sends as a chunk's tensors, held against what the manifest promises."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ncn_framework.errors import OutputRejected
from ncn_framework.tensors import DTYPE_SIZES, TensorSpec, check_tensors, unpack_tensors

__all__ = ["OutputCheck"]

_decode = msgspec.msgpack.Decoder(list[tuple[str, str, tuple[int, ...], bytes]]).decode


class OutputCheck:
    """Refuses encoded tensors that are not exactly the ones specified.

    One tensor of fixed-size elements, the usual case, is checked in a microsecond; all else, and all that is
    refused, goes through the kernel's functions, which say what is wrong.

    Args:
        specs: of a chunk's tensors.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = tuple(specs)
        self._only = self._specs[0] if len(self._specs) == 1 and DTYPE_SIZES[self._specs[0].dtype] else None

    def __call__(self, data: bytes) -> None:
        """Raise ``OutputRejected`` unless ``data`` is an encoding (``pack_tensors``) of the tensors specified."""
        if self._only is None or not self._is_the_only(data, self._only):
            check_tensors(unpack_tensors(data, error=OutputRejected), self._specs, error=OutputRejected)

    @staticmethod
    def _is_the_only(data: bytes, spec: TensorSpec) -> bool:
        try:
            ((name, dtype, shape, elements),) = _decode(data)
        except (ValueError, RecursionError):
            return False
        if name != spec.name or dtype != spec.dtype or len(shape) != len(spec.shape):
            return False
        size = DTYPE_SIZES[dtype]
        for want, have in zip(spec.shape, shape, strict=True):
            if (want not in (-1, have)) or not 0 <= have < 1 << 48:
                return False
            size *= have
        return size == len(elements)
