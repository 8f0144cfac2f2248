"""An exception that leaves the handler of one stream cancels the nursery of all: the host is gone."""

from __future__ import annotations

import logging
from contextlib import suppress

from libp2p.abc import IMuxedStream
from libp2p.network.connection.swarm_connection import SwarmConn

from .patch import Patch

__all__ = ["PATCH"]

log = logging.getLogger("ncn_registry.swarm")

_handle = SwarmConn._handle_muxed_stream


async def _contained(self: SwarmConn, muxed_stream: IMuxedStream) -> None:
    try:
        await _handle(self, muxed_stream)
    except Exception as error:
        # Its message may hold what the peer sent: the class alone is logged.
        log.warning("peer %s: a stream's handler ended with %s", self.muxed_conn.peer_id, type(error).__name__)
        with suppress(Exception):
            await muxed_stream.reset()


PATCH = Patch(
    "an exception in one stream's handler, that any peer can cause, takes the host down",
    [(SwarmConn, "_handle_muxed_stream", _contained)],
)
