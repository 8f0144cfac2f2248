"""Which owners are alive: those that were heard of within three heartbeats."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ncn_framework.wire import messages_pb2 as pb

__all__ = ["MISSED", "Heard", "Presence"]

MISSED = 3
"""Heartbeats in a row that may be missed."""


@dataclass
class Heard:
    """What was last heard of an owner that is alive.

    Attributes:
        at: when, by this machine's clock that only moves forward, in seconds.
        wall_ms: when, in milliseconds since the epoch.
        beat: its last heartbeat; None where only its record came.
    """

    at: float
    wall_ms: int
    beat: pb.HeartbeatRequest | None = None

    @property
    def in_flight(self) -> int:
        """Requests that it said it has."""
        return 0 if self.beat is None else self.beat.in_flight


class Presence:
    """Who is alive.

    Args:
        timeout_s: silence after which an owner is gone.
        monotonic: seconds, by a clock that only moves forward.
        clock: milliseconds since the epoch.
    """

    def __init__(self, timeout_s: float, monotonic: Callable[[], float], clock: Callable[[], int]) -> None:
        self.timeout_s = timeout_s
        self._monotonic, self._clock = monotonic, clock
        self._alive: OrderedDict[bytes, Heard] = OrderedDict()  # longest silent first
        self._newest_ms: dict[bytes, int] = {}  # outlives presence: a heartbeat counts once

    def __contains__(self, owner: bytes) -> bool:
        return owner in self._alive

    def get(self, owner: bytes) -> Heard | None:
        """Return what was last heard of an owner; None where it is gone."""
        return self._alive.get(owner)

    def newest_ms(self, owner: bytes) -> int:
        """Return the time of the newest heartbeat of an owner, alive or not; 0 where none was heard."""
        return self._newest_ms.get(owner, 0)

    def hear(self, owner: bytes, beat: pb.HeartbeatRequest | None = None) -> bool:
        """Note that an owner is alive; return whether it was not before."""
        known = self._alive.pop(owner, None)
        if beat is not None:
            self._newest_ms[owner] = beat.at_ms
        elif known is not None:
            beat = known.beat
        self._alive[owner] = Heard(self._monotonic(), self._clock(), beat)
        return known is None

    def leave(self, owner: bytes) -> bool:
        """Note that an owner is gone; return whether it was alive."""
        return self._alive.pop(owner, None) is not None

    def forget(self, owner: bytes) -> None:
        """Forget an owner altogether."""
        self._alive.pop(owner, None)
        self._newest_ms.pop(owner, None)

    def lost(self) -> list[bytes]:
        """Return the owners that have been silent for too long, and take them for gone."""
        found = []
        limit = self._monotonic() - self.timeout_s
        while self._alive:
            owner, heard = next(iter(self._alive.items()))
            if heard.at > limit:
                break
            del self._alive[owner]
            found.append(owner)
        return found
