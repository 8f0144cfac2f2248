"""The protocol between a worker and the process that owns it: framed MessagePack over a stream socket.

A frame is a 4-byte big-endian length and that many bytes: one message, a MessagePack array whose first element
says which. Both sides bound the length before they make room. The worker is not trusted: its messages are decoded
against the types below, and everything in them is checked again by the receiver.

The owner sends ``Load`` once and ``Request`` as often as it likes; the worker answers ``Started``, ``Loaded``, then
for each request, in order: any number of ``Piece``, of which the final one may say ``last``, and ``Done`` where none
did; or ``Failure``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from ncn_framework.errors import NcnError

if TYPE_CHECKING:
    from ncn_framework.models import ModelManifest

__all__ = [
    "MAX_MESSAGE",
    "MAX_REQUEST_BYTES",
    "MAX_UNITS",
    "OWNER_MESSAGES",
    "WORKER_MESSAGES",
    "Array",
    "Done",
    "Failure",
    "FrameBuffer",
    "FrameError",
    "Load",
    "Loaded",
    "Piece",
    "Request",
    "Scalar",
    "Spec",
    "Started",
    "frame",
    "load_message",
]

Scalar = bool | int | float | str
"""What a parameter may be; the same as ``ncn_framework.models.Parameter``, without loading that module."""

MAX_REQUEST_BYTES = 256 << 20
"""Longest frame that a worker takes."""

MAX_UNITS = 1 << 40
"""Most units that a worker may claim for one request."""

MAX_MESSAGE = 300
"""Most characters of a worker's error message."""

_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Units = Annotated[int, msgspec.Meta(ge=0, le=MAX_UNITS)]
_Text = Annotated[str, msgspec.Meta(max_length=2 * MAX_MESSAGE)]


class Array(msgspec.Struct, array_like=True, frozen=True):
    """An input tensor inside a ``Request``; ``data`` is a view of the frame and lives as long as it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class Spec(msgspec.Struct, array_like=True, frozen=True):
    """What the manifest says of an input or output: a dimension of -1 may have any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Load(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Load the model in ``directory``; everything else is the manifest's, ``files`` the paths that it lists."""

    directory: str
    runtime: str
    architecture: str
    parameters: dict[str, Scalar]
    inputs: list[Spec]
    outputs: list[Spec]
    files: list[str]


class Request(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Execute the model once."""

    id: int
    inputs: list[Array]
    parameters: Mapping[str, Scalar]


class Started(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """Libraries are loaded and the walls that the worker puts up itself stand: their names."""

    walls: Annotated[list[_Text], msgspec.Meta(max_length=8)]


class Loaded(msgspec.Struct, array_like=True, tag=12, frozen=True):
    """The model is loaded and has run once."""


class Piece(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """Outputs of a request: cumulative units, and tensors as ``pack_tensors`` encodes them."""

    id: _Id
    units: _Units
    data: bytes
    last: bool


class Done(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """A request has no more pieces."""

    id: _Id


class Failure(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """A request, or with id 0 the loading, failed; the worker goes on."""

    id: _Id
    message: _Text


OWNER_MESSAGES = Load | Request
"""What a worker receives."""

WORKER_MESSAGES = Started | Loaded | Piece | Done | Failure
"""What a worker sends."""

_encoder = msgspec.msgpack.Encoder()


def load_message(directory: Path, manifest: ModelManifest) -> Load:
    """Return the message that loads the model of ``manifest``, whose files are in ``directory``."""
    return Load(
        directory=str(directory),
        runtime=manifest.runtime,
        architecture=manifest.architecture,
        parameters=dict(manifest.parameters),
        inputs=[Spec(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs],
        outputs=[Spec(spec.name, spec.dtype, spec.shape) for spec in manifest.outputs],
        files=[file.path for file in manifest.files],
    )


class FrameError(NcnError):
    """A frame is longer than allowed."""


def frame(message: msgspec.Struct) -> bytearray:
    """Return ``message`` as a frame, ready to be sent."""
    buffer = bytearray(4)
    _encoder.encode_into(message, buffer, 4)
    buffer[:4] = (len(buffer) - 4).to_bytes(4, "big")
    return buffer


class FrameBuffer:
    """Collects what a socket gives and hands out whole frames.

    Args:
        limit: longest frame in bytes, without its length.
        size: bytes to have room for at first; it grows to what a frame needs and shrinks back.
    """

    def __init__(self, limit: int, size: int = 256 << 10) -> None:
        self._limit = limit
        self._size = size
        self._view = memoryview(bytearray(size))
        self._start = 0
        self._end = 0

    def receive(self, sock: socket.socket, spin_s: float = 0.0) -> int:
        """Take what ``sock`` has, once; 0 means that the other end is closed. ``OSError`` passes through.

        Frames handed out before must no longer be in use.

        Args:
            sock: a stream socket.
            spin_s: how long to keep looking before the system is asked to wake this process up.
        """
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._view):
            self._make_room()
        room = self._view[self._end :]
        if spin_s:
            until = time.perf_counter() + spin_s
            while time.perf_counter() < until:
                try:
                    count = sock.recv_into(room, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    os.sched_yield()  # the other end may want this very processor
                    continue
                self._end += count
                return count
        count = sock.recv_into(room)
        self._end += count
        return count

    def next(self) -> memoryview | None:
        """Return the next whole frame, valid until the next ``receive``, or None.

        Raises:
            FrameError: its length passes the limit.
        """
        body = self._start + 4
        if body > self._end:
            return None
        size = int.from_bytes(self._view[self._start : body], "big")
        if size > self._limit:
            raise FrameError(f"a frame of {size} bytes; at most {self._limit}")
        stop = body + size
        if stop > self._end:
            if stop - self._start > len(self._view):
                self._make_room(stop - self._start)
            return None
        self._start = stop
        return self._view[body:stop]

    def _make_room(self, wanted: int = 0) -> None:
        """Move what is left to the front of a buffer with ``wanted`` bytes; a new one, since views may be held."""
        left = self._view[self._start : self._end]
        buffer = memoryview(bytearray(max(self._size, wanted, 2 * len(left))))
        buffer[: len(left)] = left
        self._view, self._start, self._end = buffer, 0, len(left)

    def shrink(self) -> None:
        """Give back the room that a large frame took, once nothing waits."""
        if self._start == self._end and len(self._view) > self._size:
            self._view = memoryview(bytearray(self._size))
            self._start = self._end = 0
