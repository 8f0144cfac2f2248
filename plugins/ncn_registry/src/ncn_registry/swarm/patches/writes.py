"""A cancellation in the middle of a frame leaves a gap in noise's nonces, and the peer drops the connection.

Each time-out of a query is such a cancellation, so the frame is written to its end all the same. Where the peer takes
nothing any more, waiting has a limit, and then the connection is closed: half a frame can't be taken back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.stream_muxer.yamux.yamux import Yamux

from .patch import Patch

__all__ = ["PATCH"]

_WRITE_S = 10
_CLOSE_S = 5

_write_frame = Yamux._write_frame


async def _whole_frame(self: Yamux, data: bytes) -> None:
    with trio.move_on_after(_WRITE_S) as scope:
        scope.shield = True
        await _write_frame(self, data)
        return
    await self.secured_conn.close()
    raise MuxedConnUnavailable(f"peer {self.peer_id} took no data for {_WRITE_S} s: its connection was closed")


def _finished(method: Callable[[NetStream], Awaitable[None]]) -> Any:
    async def finished(self: NetStream) -> None:
        # Both send a frame. Left out because of a cancellation, the peer would keep its half open.
        with trio.move_on_after(_CLOSE_S) as scope:
            scope.shield = True
            await method(self)

    return finished


PATCH = Patch(
    "a time-out in the middle of a write kills the connection",
    [
        (Yamux, "_write_frame", _whole_frame),
        (NetStream, "close", _finished(NetStream.close)),
        (NetStream, "reset", _finished(NetStream.reset)),
    ],
)
