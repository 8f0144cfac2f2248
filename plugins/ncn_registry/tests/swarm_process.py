"""A peer in a process of its own, told what to do by lines of JSON; its configuration is JSON, too.

It keeps what it puts and what others store at it in SQLite, and puts it in again when it starts, as a registry does.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from typing import Any

from ncn_registry.swarm import Swarm, SwarmError, Timing

from .swarm_records import Ears, sequence_of


class Records:
    """The records of one process, on disk."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute("CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def write(self, key: str, value: bytes) -> None:
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (key, value))

    def all(self) -> list[tuple[str, bytes]]:
        return list(self._database.execute("SELECT key, value FROM records"))


async def carry_out(swarm: Swarm, records: Records, ears: Ears, order: dict[str, Any]) -> Any:
    """Do what one line says; return what goes into the answer."""
    match order:
        case {"do": "put", "key": key, "value": value}:
            records.write(key, bytes.fromhex(value))
            return await swarm.put(key, bytes.fromhex(value))
        case {"do": "get", "key": key}:
            value = await swarm.get(key)
            return value.hex() if value is not None else None
        case {"do": "connect", "address": address}:
            return await swarm.connect(address)
        case {"do": "peers"}:
            return [peer.peer_id for peer in swarm.peers()]
        case {"do": "subscribe", "topic": topic}:
            return await swarm.subscribe(topic)
        case {"do": "publish", "topic": topic, "data": data}:
            return await swarm.publish(topic, bytes.fromhex(data))
        case {"do": "heard"}:
            heard = []
            while not ears.messages.empty():
                heard.append(ears.messages.get_nowait()[1].hex())
            return heard
        case _:
            raise ValueError(f"no such order: {order}")


async def main(configuration: dict[str, Any]) -> None:
    records, ears = Records(configuration["database"]), Ears()
    swarm = Swarm(
        bytes.fromhex(configuration["key"]),
        [configuration["listen"]],
        bootstrap=configuration["bootstrap"],
        heard=ears,
        validate=sequence_of,
        stored=records.write,
        timing=Timing(**configuration["timing"]),
    )
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with swarm:
        for key, value in records.all():
            await swarm.restore(key, value)
        print(json.dumps({"peer_id": swarm.peer_id, "addresses": swarm.addresses}), flush=True)
        while line := await reader.readline():
            started, answer = time.perf_counter(), {}
            try:
                answer["answer"] = await carry_out(swarm, records, ears, json.loads(line))
            except SwarmError as error:
                answer["error"] = str(error)
            print(json.dumps({**answer, "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
