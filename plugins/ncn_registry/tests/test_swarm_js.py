"""A peer of another implementation, js-libp2p, among ours: records both ways, and gossip."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ncn_registry.swarm import Swarm

from .swarm_records import Ears, Owner, peer, sequence_of, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FOLDER = Path(__file__).with_name("js")


class ForeignPeer:
    """A js-libp2p process."""

    peer_id: str

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def read(self) -> Any:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        if not line:
            raise AssertionError("the js-libp2p process ended; its error output is above")
        return json.loads(line)

    async def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        reply = await self.read()
        assert "error" not in reply, reply
        return reply["answer"]


@pytest.fixture(scope="module")
def installed() -> Path:
    """Install what the lock file names, once."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node 20 or newer and npm")
    if not (FOLDER / "node_modules" / ".package-lock.json").exists():
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=200, check=False)
        if result.returncode:
            pytest.skip(f"npm cannot install js-libp2p: {result.stderr[-300:]}")
    return Path(node)


@pytest.fixture
async def foreign(installed: Path) -> AsyncIterator[ForeignPeer]:
    process = await asyncio.create_subprocess_exec(
        installed,
        "--import",
        "./polyfill.mjs",
        "peer.mjs",
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"]},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    made = ForeignPeer(process)
    try:
        made.peer_id = (await made.read())["peer_id"]
        yield made
    finally:
        process.kill()
        assert process.stdout is not None
        await process.stdout.read()
        await process.wait()


async def joined(foreign: ForeignPeer, first: Swarm, second: Swarm) -> None:
    await foreign.ask("connect", address=first.addresses[0])
    await foreign.ask("connect", address=second.addresses[0])

    def everywhere() -> bool:
        return all(foreign.peer_id in [known.peer_id for known in each.peers()] for each in (first, second))

    await until(everywhere, "it joined")


async def test_it_reads_our_record_and_we_read_its(foreign: ForeignPeer) -> None:
    ours = Owner(1)
    async with peer(1) as first, peer(2, first) as second:
        await joined(foreign, first, second)
        record = ours.record(3, "from python")
        assert await first.put(ours.key, record) >= 1
        assert bytes.fromhex(await foreign.ask("get", key=ours.key)) == record

        written = await foreign.ask("write", sequence=7, body="from javascript")
        found = await second.get(written["key"])
        assert found is not None
        assert sequence_of(written["key"], found) == 7, "its signature was checked by ours"
        assert json.loads(found)["body"] == "from javascript"

        await foreign.ask("write", sequence=8, body="newer")
        renewed = await first.get(written["key"])
        assert renewed is not None
        assert sequence_of(written["key"], renewed) == 8


async def test_our_newer_record_replaces_the_copy_it_has(foreign: ForeignPeer) -> None:
    ours = Owner(2)
    async with peer(1) as first, peer(2, first) as second:
        await joined(foreign, first, second)
        for sequence in (1, 2):
            await first.put(ours.key, ours.record(sequence))
            assert sequence_of(ours.key, bytes.fromhex(await foreign.ask("get", key=ours.key))) == sequence


async def test_gossip_goes_both_ways(foreign: ForeignPeer) -> None:
    ears = Ears()
    async with peer(1, heard=ears) as first, peer(2, first) as second:
        await joined(foreign, first, second)
        await first.subscribe("ncn/test")
        await foreign.ask("subscribe", topic="ncn/test")
        heard: list[str] = []
        async with asyncio.timeout(60):
            while not heard or ears.messages.empty():
                await first.publish("ncn/test", b"from python")
                await foreign.ask("publish", topic="ncn/test", data=b"from javascript".hex())
                heard += await foreign.ask("heard")
                await asyncio.sleep(0.2)
        assert b"from python".hex() in heard
        assert ears.messages.get_nowait() == ("ncn/test", b"from javascript", foreign.peer_id)
