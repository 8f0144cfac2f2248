"""The channel: the owner's end of a worker's socket, without a task or thread of its own.

Frames go out at once where the socket takes them, else when it does; frames that arrive are decoded against the
worker's message types and handed to a callback, several for each wake-up.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from ncn_framework.errors import NcnError, OutputRejected, WorkerDied

from .worker import protocol

__all__ = ["Channel", "ConnectionClosed", "Message"]

logger = logging.getLogger(__name__)

Message = protocol.Started | protocol.Loaded | protocol.Piece | protocol.Done | protocol.Failure
"""What a worker sends."""

_decode = msgspec.msgpack.Decoder(protocol.WORKER_MESSAGES).decode


class ConnectionClosed(WorkerDied):
    """The worker's end is closed: it ended, or is about to, and how it ended says why."""


class Channel:
    """One connection to a worker that is not trusted.

    Args:
        sock: connected stream socket; the channel closes it.
        max_frame: longest frame that the worker may send, in bytes.
        on_message: called with each message, in order.
        on_broken: called once, when no more messages will come: ``ConnectionClosed``, ``OutputRejected``
            where the worker broke the protocol, or what ``on_message`` raised.
    """

    def __init__(
        self,
        sock: socket.socket,
        max_frame: int,
        on_message: Callable[[Message], None],
        on_broken: Callable[[NcnError], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._frames = protocol.FrameBuffer(max_frame)
        self._on_message = on_message
        self._on_broken = on_broken
        self._unsent: deque[memoryview] = deque()
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def send(self, frame: bytearray) -> None:
        """Send ``frame``, now or as soon as the socket takes it; nothing happens on a closed channel."""
        if not self._open:
            return
        if self._unsent:
            self._unsent.append(memoryview(frame))
            return
        try:
            sent = self._sock.send(frame)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # the reader sees the same, and what the worker had said before
        if sent < len(frame):
            self._unsent.append(memoryview(frame)[sent:])
            self._loop.add_writer(self._sock, self._writable)

    def close(self) -> None:
        """Close the socket, which also ends a worker that waits for work. Harmless twice."""
        if self._open:
            self._open = False
            self._unsent.clear()
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _writable(self) -> None:
        try:
            while self._unsent:
                part = self._unsent[0]
                sent = self._sock.send(part)
                if sent < len(part):
                    self._unsent[0] = part[sent:]
                    return
                self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._unsent.clear()
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        frames = self._frames
        try:
            count = frames.receive(self._sock)
            if not count:
                raise ConnectionClosed("the worker closed its connection")
            while (body := frames.next()) is not None:
                self._on_message(_decode(body))
                if not self._open:
                    return
            body = None
            frames.shrink()
        except (BlockingIOError, InterruptedError):
            return
        except (msgspec.DecodeError, protocol.FrameError, RecursionError) as error:
            self._break(OutputRejected(f"the worker sent what is not a message: {error}"), error)
        except OSError as error:
            self._break(ConnectionClosed(f"the worker's connection broke: {error.strerror}"), error)
        except NcnError as error:
            self._break(error, error.__cause__)

    def _break(self, error: NcnError, cause: BaseException | None) -> None:
        error.__cause__ = cause
        self.close()
        self._on_broken(error)
