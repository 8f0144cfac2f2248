"""A node that overstates its speed gets work for as long as it takes to measure it, and no longer."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest

from ncn_framework.lifecycle import now_ms
from ncn_framework.models import NodeInfo
from ncn_framework.testing.fakes import fake_signer
from ncn_framework.wire.convert import node_record
from ncn_gateway.directory import Directory, Entry
from ncn_gateway.routing import choose

from .fakes import MANIFEST

BOASTER, HONEST = fake_signer("boaster").address, [fake_signer(f"honest {i}").address for i in range(3)]


def node(directory: Directory, address: bytes, capacity: int) -> Entry:
    info = NodeInfo(address, (MANIFEST,), capacity, "strict")
    return directory.put(node_record(info, 1, now_ms() + 60_000))


@pytest.mark.parametrize("claimed", [2, 1_000, 65_536])
async def test_a_claimed_capacity_does_not_keep_a_slow_node_busy(claimed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node works on one request at a time, 50 ms each, and claims to have room for any number; three take 5 ms."""
    chance = random.Random(7)
    monkeypatch.setattr("ncn_gateway.routing.random", chance)
    directory = Directory()
    boaster = node(directory, BOASTER, claimed)
    for address in HONEST:
        node(directory, address, 2)
    free_at, now, running = 0.0, 0.0, list[tuple[float, bytes, float]]()
    chosen = Counter[bytes]()
    for _ in range(2_000):
        now += chance.expovariate(1 / 4)  # a request every 4 ms
        while running and running[0][0] <= now:
            done, address, began = heapq.heappop(running)
            entry = directory.nodes[address]
            entry.in_flight -= 1
            entry.observe(done - began)
        address = (await choose(directory.find(MANIFEST.digest))).node
        directory.nodes[address].in_flight += 1
        free_at = max(free_at, now) + 50 if address == BOASTER else free_at
        heapq.heappush(running, (free_at if address == BOASTER else now + 5, address, now))
        chosen[address] += 1
    fair = 2_000 / 4
    assert chosen[BOASTER] < fair / 4
    assert boaster.latency_ms >= 50
    assert min(chosen[address] for address in HONEST) > fair
