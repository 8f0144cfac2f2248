"""A network that falls into two halves and heals, in two network namespaces with a cable between them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ncn_registry.swarm import Timing

from .swarm_children import Child
from .swarm_records import Owner, sequence_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TIMING = Timing(rpc_s=2.0, probe_s=1.0, backoff_s=0.5, backoff_cap_s=4.0)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Cable:
    """Two namespaces, and one with the switch between them."""

    def __init__(self) -> None:
        self.left, self.right, self._switch = (f"ncn-{name}-{os.getpid()}" for name in ("left", "right", "switch"))

    def lay(self) -> None:
        for name in (self.left, self.right, self._switch):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for name, port, address in ((self.left, "left", "10.77.0.1/24"), (self.right, "right", "10.77.0.2/24")):
            ip("link", "add", "ncn0", "netns", name, "type", "veth", "peer", "name", port, "netns", self._switch)
            ip("-n", name, "addr", "add", address, "dev", "ncn0")
            ip("-n", name, "link", "set", "ncn0", "up")
            ip("-n", self._switch, "link", "set", port, "up")
        self.mend()

    def mend(self) -> None:
        for port in ("left", "right"):
            ip("-n", self._switch, "link", "set", port, "master", "bridge")

    def cut(self) -> None:
        # Links, addresses and routes stay up; packets are lost without an error: a partition as it looks from inside.
        ip("-n", self._switch, "link", "set", "right", "nomaster")

    def remove(self) -> None:
        for name in (self.left, self.right, self._switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None:
        pytest.skip("needs `ip`, of the package iproute2")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    made = Cable()
    try:
        try:
            made.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield made
    finally:
        made.remove()


@pytest.fixture
async def halves(cable: Cable, tmp_path: Path) -> AsyncIterator[tuple[list[Child], list[Child]]]:
    sides: list[list[Child]] = []
    try:
        for base, name, address in ((0, cable.left, "10.77.0.1"), (2, cable.right, "10.77.0.2")):
            side = []
            for number in (base + 1, base + 2):
                child = Child(number, tmp_path, TIMING, ["ip", "netns", "exec", name])
                child.listen = f"/ip4/{address}/tcp/0"
                side.append(child)
            sides.append(side)
        started: list[str] = []
        for child in sides[0] + sides[1]:
            await child.start(started)
            started += child.addresses
        yield sides[0], sides[1]
    finally:
        for child in (child for side in sides for child in side):
            if child.addresses:
                await child.kill()


async def test_a_partition_heals(cable: Cable, halves: tuple[list[Child], list[Child]]) -> None:
    left, right = halves
    everyone = left + right
    before, here, there = Owner(1), Owner(2), Owner(3)
    for child in everyone:
        await child.until_peers(3)
        await child.ask("subscribe", topic="ncn/test")
    for owner in (before, here, there):
        assert await left[0].put(owner.key, owner.record(1)) == 3

    cable.cut()
    for child in everyone:
        await child.until_peers(1, most=1, within_s=90)
    # Both halves go on, each with what it had and its own news.
    assert await left[1].get(before.key) is not None
    assert await right[1].get(before.key) is not None
    assert await left[0].put(here.key, here.record(2)) == 1
    assert await right[0].put(there.key, there.record(2)) == 1
    assert sequence_of(here.key, await right[1].get(here.key) or b"") == 1

    cable.mend()
    for child in everyone:
        await child.until_peers(3, within_s=90)
    for child in everyone:
        for owner in (here, there):
            assert sequence_of(owner.key, await child.get(owner.key) or b"") == 2
    heard: set[str] = set()
    async with asyncio.timeout(60):
        while b"healed".hex() not in heard:
            await left[0].ask("publish", topic="ncn/test", data=b"healed".hex())
            await asyncio.sleep(0.2)
            heard |= set(await right[1].ask("heard"))
