"""Peers that did not answer in time: left out until a probe succeeds, dialled ever more seldom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from libp2p.peer.id import ID

from .limits import Timing

__all__ = ["Silence"]

_REMEMBERED = 1024


class Silence:
    """Which peers are silent, and when each may be dialled again.

    Without it a hung peer costs every put and get its whole time limit, again and again: other peers keep naming it.
    One late answer is no reason to drop a connection, though. A machine that is busy for a moment is late with all of
    them, and connecting anew would make it busier.

    Args:
        timing: the pauses.
        connected: returns the connected peers.
        probe: called with a peer that has just been late, to find out.
    """

    def __init__(self, timing: Timing, connected: Callable[[], Sequence[ID]], probe: Callable[[ID], None]) -> None:
        self._timing, self._connected, self._probe = timing, connected, probe
        self._peers: dict[ID, tuple[int, float]] = {}

    def suspect(self, peer: ID) -> None:
        """Note that a peer was late, and have it probed."""
        if peer not in self._peers:
            self._set(peer, 0, 0.0)
            self._probe(peer)

    def confirm(self, peer: ID) -> None:
        """Note that a peer cannot be reached, or gave no sign of life: it is left alone for a while."""
        failures = self._peers.pop(peer, (0, 0.0))[0]
        pause = min(self._timing.backoff_s * 2 ** min(failures, 16), self._timing.backoff_cap_s)
        self._set(peer, failures + 1, trio.current_time() + pause)

    def clear(self, peer: ID) -> None:
        """Note that a peer answered."""
        self._peers.pop(peer, None)

    def leaves_out(self, peer: ID) -> bool:
        """Tell whether not to ask a peer: it is silent, and there is another to ask."""
        if peer not in self._peers:
            return False
        connected = self._connected()
        return peer not in connected or any(other not in self._peers for other in connected)

    def due(self, peer: ID) -> bool:
        """Tell whether a peer may be dialled: it is not silent, or its pause is over."""
        return peer not in self._peers or trio.current_time() >= self._peers[peer][1]

    def _set(self, peer: ID, failures: int, until: float) -> None:
        while len(self._peers) >= _REMEMBERED:
            del self._peers[next(iter(self._peers))]
        self._peers[peer] = failures, until
