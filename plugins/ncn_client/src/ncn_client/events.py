"""The moves of a task, read from a gateway's stream of server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import msgspec

from ncn_framework.errors import MalformedRequest, VerificationError
from ncn_framework.wire.json import decode

__all__ = ["Move", "Moves"]

_LONGEST_LINE = 1 << 16
_MOST = 64
"""Moves of one task; a life has a dozen."""


class Move(msgspec.Struct, frozen=True):
    """A task moved into a state.

    Attributes:
        state: such as ``EXECUTING``.
        at_ms: when, by the gateway's clock.
        detail: of a failure.
    """

    state: str
    at_ms: int
    detail: str = ""


class Moves:
    """Takes a stream in parts of any size and keeps its moves in ``found``; chunks and answers pass by unkept."""

    def __init__(self) -> None:
        self.found: list[Move] = []
        self._line = bytearray()
        self._kind = b""

    def feed(self, part: bytes) -> None:
        """Take a part.

        Raises:
            VerificationError: a move is malformed, or there are more than any task has.
        """
        while part:
            line, newline, part = part.partition(b"\n")
            self._line += line[: _LONGEST_LINE - len(self._line)]
            if newline:
                self._take(bytes(self._line).rstrip(b"\r"))
                self._line.clear()

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b": ")
        if field == b"event":
            self._kind = value
        elif field == b"data" and self._kind == b"event":
            try:
                self.found.append(decode(value, Move))
            except MalformedRequest as cause:
                raise VerificationError("event", f"is no move of a task: {cause}") from cause
            if len(self.found) > _MOST:
                raise VerificationError("event", f"comes more than {_MOST} times; no task moves so often")
