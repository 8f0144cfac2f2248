"""Inbound connections hold a slot until the program ends, and one that never shakes hands holds it as well.

The library waits for its own end, not the connection's, before it gives the slot back: after 250 connections in all,
none is taken any more. And half-open connections, that cost their sender nothing, take all slots for 10 s.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.yamux.yamux import Yamux

from ..addresses import Multiaddr
from .patch import Patch

__all__ = ["HALF_OPEN", "PATCH", "PER_ADDRESS"]

HALF_OPEN = 16
"""Connections of one address that have not shaken hands yet."""

PER_ADDRESS = 64
"""Connections of one address in all."""

_upgrade = Swarm.upgrade_inbound_raw_conn


class _Admission:
    """Counts the connections of each address, of one swarm."""

    def __init__(self) -> None:
        self.open, self.half_open = Counter[str](), Counter[str]()


async def _admit(self: Swarm, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
    admission: _Admission = vars(self).setdefault("admission", _Admission())
    remote = read_write_closer.get_remote_address()
    address = remote[0] if remote else ""
    # The handler's end closes the socket: no more is needed to refuse.
    if admission.open[address] >= PER_ADDRESS or admission.half_open[address] >= HALF_OPEN:
        return
    if sum(admission.open.values()) >= self.connection_config.max_connections:
        return
    admission.open[address] += 1
    admission.half_open[address] += 1
    half = True
    try:
        muxed = await _upgrade(self, RawConnection(read_write_closer, False), maddr)
        admission.half_open[address] -= 1
        half = False
        if isinstance(muxed, Yamux):
            await muxed.event_closed.wait()
    except Exception:
        with suppress(Exception):
            await read_write_closer.close()
    finally:
        admission.half_open[address] -= half
        admission.open[address] -= 1
        for counter in (admission.open, admission.half_open):
            if not counter[address]:
                del counter[address]


PATCH = Patch(
    "every inbound connection keeps its slot for ever, and half-open ones block all others",
    [(Swarm, "_handle_inbound_connection", _admit)],
)
