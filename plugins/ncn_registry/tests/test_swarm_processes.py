"""Swarms of whole processes: killed, hung, restarted."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from ncn_registry.swarm import Timing

from .swarm_children import Child, children
from .swarm_records import Owner, sequence_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TIMING = Timing(rpc_s=3.0, probe_s=3.0, backoff_s=0.5, backoff_cap_s=4.0)
PATIENT = Timing(rpc_s=6.0, probe_s=3.0, backoff_s=0.5, backoff_cap_s=4.0)


async def missing(readers: list[Child], owners: list[Owner], sequence: int) -> list[tuple[int, str]]:
    """Return which reader does not find which record, with at least this sequence."""
    lost = []

    async def read(reader: Child) -> None:
        for owner in owners:
            value = await reader.get(owner.key)
            if value is None or (sequence_of(owner.key, value) or 0) < sequence:
                lost.append((reader.number, owner.key))

    await asyncio.gather(*map(read, readers))
    return lost


async def test_ten_processes_lose_half_and_then_all_and_no_record(tmp_path: Path) -> None:
    owners = [Owner(number) for number in range(1, 9)]
    async with children(10, tmp_path, TIMING) as peers:
        for child in peers:
            await child.until_peers(4)
        for index, owner in enumerate(owners):
            assert await peers[index].put(owner.key, owner.record(1)) >= 5
        assert await missing([peers[3], peers[8]], owners, 1) == []

        # Half of them end without a word: among them the bootstrap peer.
        dead, alive = peers[:5], peers[5:]
        for child in dead:
            await child.kill()
        assert await missing(alive, owners, 1) == []
        for owner in owners[:3]:
            assert await alive[0].put(owner.key, owner.record(2)) >= 1

        # All of them end, and start again at their old addresses, from what they have on disk.
        for child in alive:
            await child.kill()
        addresses = [child.addresses[0] for child in peers]
        await asyncio.gather(*(child.start(addresses) for child in alive))
        await asyncio.gather(*(child.start(addresses) for child in dead))
        for child in peers:
            await child.until_peers(4)
        assert await missing(peers, owners[3:], 1) == []
        assert await missing(peers, owners[:3], 2) == []


async def test_a_hung_process_holds_nobody_up(tmp_path: Path) -> None:
    async with children(4, tmp_path, PATIENT) as peers:
        first, second, third, hung = peers
        for child in peers:
            await child.until_peers(3)
        hung.signal(signal.SIGSTOP)
        try:
            # The first to meet it waits for its time limits, look-up and put; from then on it is left out.
            await first.put(Owner(1).key, Owner(1).record(1))
            await first.until_peers(2, most=2, within_s=120)
            await second.until_peers(2, most=2, within_s=120)
            for number in range(2, 8):
                owner = Owner(number)
                # Waiting for the hung peer would take one time limit at least.
                async with asyncio.timeout(PATIENT.rpc_s - 1):
                    assert await first.put(owner.key, owner.record(1)) >= 2
                assert await third.get(owner.key) is not None
        finally:
            hung.signal(signal.SIGCONT)
        await first.until_peers(3)
        await hung.until_peers(3)
        assert await hung.get(Owner(2).key) is not None


async def test_a_process_ends_in_good_order(tmp_path: Path) -> None:
    async with children(2, tmp_path, TIMING) as peers:
        await peers[1].until_peers(1)
        await peers[0].close()
        await peers[1].until_peers(0, most=0)
