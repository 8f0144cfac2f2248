"""Watchers: each hears what it asked for, in order; a slow one is bounded."""

from __future__ import annotations

import asyncio

import pytest

from ncn_framework.errors import Draining, NoCapacity
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_registry.watching import Watchers


def event(sequence: int) -> pb.WatchEvent:
    return pb.WatchEvent(put=mpb.Record(sequence=sequence))


async def test_events_come_in_order_and_by_kind() -> None:
    watchers = Watchers()
    with watchers.joined(["node"]) as picky, watchers.joined([]) as every:
        waiting = asyncio.create_task(picky.next())
        await asyncio.sleep(0)
        watchers.tell(event(1), "gateway")
        watchers.tell(event(2), "node")
        watchers.tell(event(3), "node")
        assert (await waiting).put.sequence == 2
        assert (await picky.next()).put.sequence == 3
        assert [(await every.next()).put.sequence for _ in range(3)] == [1, 2, 3]
    assert len(watchers) == 0


async def test_a_slow_watcher_is_told_to_begin_again_and_harms_nobody() -> None:
    watchers = Watchers(backlog=2)
    with watchers.joined([]) as slow, watchers.joined([]) as quick:
        for sequence in range(3):
            watchers.tell(event(sequence), "node")
            assert (await quick.next()).put.sequence == sequence
        with pytest.raises(NoCapacity, match="from the beginning"):
            await slow.next()
        watchers.tell(event(9), "node")
        assert (await quick.next()).put.sequence == 9
        with pytest.raises(NoCapacity):
            await slow.next()


async def test_their_number_is_bounded_and_a_drain_ends_all() -> None:
    watchers = Watchers(most=1)
    with watchers.joined([]) as only:
        with pytest.raises(NoCapacity, match="try another"), watchers.joined([]):
            pass
        watchers.drain()
        with pytest.raises(Draining):
            await only.next()
    with watchers.joined([]):
        pass
