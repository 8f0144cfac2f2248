"""Who is alive: heard of within three heartbeats."""

from __future__ import annotations

from ncn_framework.testing.fakes import ManualClock
from ncn_registry.presence import Presence

from .network import NODE, OTHER, a_heartbeat


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_noticed_and_a_heartbeat_outlives_it() -> None:
    seconds = Seconds()
    presence = Presence(6, seconds, ManualClock(1_000))
    assert presence.hear(NODE.address)
    seconds.now += 3
    assert presence.hear(OTHER.address, a_heartbeat(OTHER, 500, in_flight=3))
    seconds.now += 2.9
    assert presence.lost() == []
    assert not presence.hear(OTHER.address)
    seconds.now += 0.1
    assert presence.lost() == [NODE.address]
    assert NODE.address not in presence
    heard = presence.get(OTHER.address)
    assert heard is not None
    assert (heard.in_flight, heard.wall_ms) == (3, 1_000)
    seconds.now += 6
    assert presence.lost() == [OTHER.address]
    assert presence.newest_ms(OTHER.address) == 500, "or else the old heartbeat would count again"
    presence.forget(OTHER.address)
    assert presence.newest_ms(OTHER.address) == 0


def test_who_leaves_is_gone_at_once() -> None:
    presence = Presence(6, Seconds(), ManualClock())
    presence.hear(NODE.address)
    assert presence.leave(NODE.address)
    assert not presence.leave(NODE.address)
    assert presence.lost() == []
