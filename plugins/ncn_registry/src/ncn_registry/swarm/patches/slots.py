"""Twelve DHT streams that say nothing occupy the whole DHT, for ever.

The library handles at most twelve inbound streams of all peers together and waits on each without a limit. Here a
peer has a share of its own, all together have more, and a stream ends after a time.
"""

from __future__ import annotations

from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.peer.id import ID

from ..limits import STREAM_S
from .patch import Patch

__all__ = ["PATCH", "PEER_SLOTS", "SLOTS"]

SLOTS = 256
PEER_SLOTS = 16

_init, _handle = KadDHT.__init__, KadDHT._do_handle_stream


def _init_with_slots(self: KadDHT, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    self._inbound_limiter = trio.CapacityLimiter(SLOTS)
    vars(self)["streams_of"] = dict[ID, int]()


async def _handle_for_a_while(self: KadDHT, stream: INetStream) -> None:
    peer, taken = stream.muxed_conn.peer_id, vars(self)["streams_of"]
    if taken.get(peer, 0) >= PEER_SLOTS:
        await stream.reset()
        return
    taken[peer] = taken.get(peer, 0) + 1
    try:
        with trio.move_on_after(STREAM_S) as scope:
            await _handle(self, stream)
        if scope.cancelled_caught:
            await stream.reset()
    finally:
        taken[peer] -= 1
        if not taken[peer]:
            del taken[peer]


PATCH = Patch(
    "twelve idle streams of one peer block the DHT for everybody",
    [(KadDHT, "__init__", _init_with_slots), (KadDHT, "_do_handle_stream", _handle_for_a_while)],
)
