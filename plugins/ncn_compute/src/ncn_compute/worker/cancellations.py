"""Cancellations: requests whose answers nobody wants any more, told over a pipe beside the control socket.

The pipe carries request ids, 8 bytes each, big-endian. A worker looks between the pieces of an answer, so that it
never stops to listen; an answer of one piece ends by itself.
"""

from __future__ import annotations

import os
import struct

__all__ = ["ID", "Cancellations"]

ID = struct.Struct(">Q")
"""A request's id on the pipe; a write of one is never torn (pipe(7))."""


class Cancellations:
    """The reading end.

    Args:
        descriptor: of the pipe.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._ids: set[int] = set()

    def __contains__(self, id_: int) -> bool:
        """Return whether the request, which is the one being answered, was cancelled."""
        try:
            while data := os.read(self._descriptor, 512 * ID.size):
                self._ids.update(found for (found,) in ID.iter_unpack(data))
        except BlockingIOError:
            pass
        if not self._ids:
            return False
        self._ids = {other for other in self._ids if other >= id_}  # ids rise: what is older was answered
        return id_ in self._ids
