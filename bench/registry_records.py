"""How many records a second a registry takes, and what they take of its memory."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from ncn_framework.group_commit import sqlite_pragmas
from ncn_framework.models import ModelManifest
from ncn_framework.wire import messages_pb2 as mpb

from .network import Network
from .registry_fleet import ALONE, Member, fleet, node_records

__all__ = ["records"]

_ALONE_PART = 20
"""So much smaller is the number of records that are registered one at a time."""
_BATCH = 32


async def records(folder: Path, manifest: ModelManifest, count: int) -> None:
    """Register so many nodes at one registry, and print the tables.

    Args:
        folder: for homes and logs.
        manifest: of the model that every node serves.
        count: of records in the end.
    """
    extra = ALONE | {"NCN_REGISTRY_MAX_RECORDS": str(2 * count), "NCN_REGISTRY_MAX_STORE_BYTES": str(2**31)}
    async with fleet(Network(folder / "records", folder / "models"), extra) as running:
        (member,) = await running.grow({})
        before = member.process.rss_bytes()
        made = node_records(count, await running.domain(), manifest)
        alone, rest = made[: count // _ALONE_PART], made[count // _ALONE_PART :]
        size = sum(node.record.ByteSize() for node in made) / count
        print(f"records: RegisterNode over gRPC of {count:,} nodes, {size:.0f} bytes each; a bare insert into SQLite")
        print(f"{'at once':>8} {'registered/s':>14} {'inserted/s':>12} {'ratio':>7}")
        for at_once, nodes in ((1, alone), (_BATCH, rest)):
            rate = await _registered(member, nodes, at_once)
            bare = await asyncio.to_thread(_inserted, folder / f"bare-{at_once}.db", nodes, at_once)
            print(f"{at_once:>8} {rate:>14,.0f} {bare:>12,.0f} {rate / bare:>7.3f}", flush=True)
        grown = member.process.rss_bytes() - before
        print(
            f"memory: {before / 1e6:.0f} MB without records, {grown / 1e6:.0f} MB more with {count:,}: "
            f"{grown / count:,.0f} bytes a record, {grown / count / size:.1f} times its size\n"
        )


async def _registered(member: Member, nodes: Sequence[mpb.NodeInfo], at_once: int) -> float:
    waiting = iter(nodes)

    async def client() -> None:
        for node in waiting:
            await member.stub.RegisterNode(node, timeout=60)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return len(nodes) / (time.perf_counter() - began)


def _inserted(path: Path, nodes: Sequence[mpb.NodeInfo], at_once: int) -> float:
    """Return how many of the same bytes a second a bare database takes, as durably, so many in each transaction."""
    database = sqlite3.connect(path, isolation_level=None)
    sqlite_pragmas(database)
    database.execute("CREATE TABLE records (owner BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID")
    rows = [(node.record.owner, node.record.SerializeToString(deterministic=True)) for node in nodes]
    began = time.perf_counter()
    for start in range(0, len(rows), at_once):
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO records VALUES (?, ?)", rows[start : start + at_once])
        database.execute("COMMIT")
    took = time.perf_counter() - began
    database.close()
    return len(rows) / took
