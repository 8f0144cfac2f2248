"""Peers in processes, started and told what to do."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ncn_registry.swarm import Timing

ROOT = Path(__file__).parents[3]
PROGRAM = "plugins.ncn_registry.tests.swarm_process"
LOCAL = "/ip4/127.0.0.1/tcp/0"


class Refused(Exception):
    """A child's swarm raised SwarmError."""


class Child:
    """One peer's process.

    Args:
        number: its key.
        folder: where its records are.
        timing: of its swarm.
        within: words before the command, such as those that enter a network namespace.
    """

    def __init__(self, number: int, folder: Path, timing: Timing, within: Sequence[str] = ()) -> None:
        self.number, self._timing, self._within = number, timing, within
        self._database = folder / f"{number}.sqlite"
        self._lock = asyncio.Lock()
        self.listen = LOCAL
        self.addresses: list[str] = []
        self.last_s = 0.0

    async def start(self, bootstrap: Sequence[str] = ()) -> None:
        configuration = {
            "key": self.number.to_bytes(32, "big").hex(),
            "listen": self.listen,
            "bootstrap": list(bootstrap),
            "database": str(self._database),
            "timing": asdict(self._timing),
        }
        self._process = await asyncio.create_subprocess_exec(
            *self._within,
            sys.executable,
            "-m",
            PROGRAM,
            json.dumps(configuration),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        ready = await self._read(60)
        self.peer_id, self.addresses = ready["peer_id"], ready["addresses"]
        self.listen = self.addresses[0].split("/p2p/")[0]  # after a restart the same port

    async def ask(self, do: str, within_s: float = 60, **arguments: Any) -> Any:
        """Give an order; return the answer."""
        async with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            await self._process.stdin.drain()
            reply = await self._read(within_s)
        self.last_s = reply["seconds"]
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["answer"]

    async def put(self, key: str, value: bytes) -> int:
        return int(await self.ask("put", key=key, value=value.hex()))

    async def get(self, key: str) -> bytes | None:
        value = await self.ask("get", key=key)
        return bytes.fromhex(value) if value is not None else None

    async def until_peers(self, least: int, most: int = 1000, within_s: float = 60) -> None:
        """Wait until it is connected to so many peers."""
        async with asyncio.timeout(within_s):
            while not least <= len(await self.ask("peers")) <= most:
                await asyncio.sleep(0.1)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._ended()

    async def close(self) -> None:
        """End it in good order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._ended()

    async def _ended(self) -> None:
        assert self._process.stdout is not None
        await asyncio.wait_for(self._process.stdout.read(), 30)
        await asyncio.wait_for(self._process.wait(), 30)

    async def _read(self, within_s: float) -> Any:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        if not line:
            raise AssertionError(f"peer {self.number} ended; its error output is above")
        return json.loads(line)


@asynccontextmanager
async def children(count: int, folder: Path, timing: Timing) -> AsyncIterator[list[Child]]:
    """Run so many peers, each with the first as bootstrap; kill what is left of them at the end."""
    all_of_them = [Child(number, folder, timing) for number in range(1, count + 1)]
    first, *others = all_of_them
    try:
        await first.start()
        # Two at a time: an import takes 1.4 s of a processor.
        gate = asyncio.Semaphore(2)

        async def start(child: Child) -> None:
            async with gate:
                await child.start(first.addresses)

        await asyncio.gather(*map(start, others))
        yield all_of_them
    finally:
        for child in all_of_them:
            if hasattr(child, "_process"):
                await child.kill()
