"""The time of a route decision among 100 to 100,000 nodes (budget: 50 us, flat)."""

from __future__ import annotations

import argparse
import asyncio
import time

from ncn_framework.models import ModelManifest, NodeInfo
from ncn_gateway.directory import Entry, Serving
from ncn_gateway.routing import choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--rounds", type=int, default=20_000)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print the table."""
    asyncio.run(_run(arguments.rounds))


async def _run(rounds: int) -> None:
    manifest = ModelManifest("m", "1", "echo", "", (), (), ())
    print(f"{'nodes':>8} {'us a decision':>14} {'ratio to 100':>13}")
    first = 0.0
    for nodes in (100, 1_000, 10_000, 100_000):
        serving = Serving(manifest)
        for number in range(nodes):
            entry = Entry(NodeInfo(number.to_bytes(20, "big"), (manifest,), 8, "strict"), 1)
            entry.latency_ms = 1 + number % 7
            serving.add(entry)
        began = time.perf_counter()
        for _ in range(rounds):
            await choose(serving)
        each = (time.perf_counter() - began) / rounds * 1e6
        first = first or each
        print(f"{nodes:>8,} {each:>14.2f} {each / first:>13.2f}")
