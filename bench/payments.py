"""What payments add to a request, and how many requests a second are settled on chain.

One gateway and one compute node, two processes, embedded chain; the load comes from a third. The three ways to ask
take turns in one run, so that the machine's mood is the same for all: anonymous and free; signed and free; signed and
paid by voucher (the client signs it within the time measured; gateway and node check it; the ledger is durable before
the answer). Then everything that was charged is settled, and the time from the first of these requests to the
confirmed batch counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from .load import Load, drive
from .network import Network, network
from .overhead import workloads

TARGET_MS = 0.5  # p50 that payments may add at concurrency 1
WAYS = ("anonymous, free", "signed, free", "signed, voucher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--settle", type=int, default=32, help="concurrency of the requests that are settled; 0: none")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print the tables."""
    from ncn_compute.bundled import materialise

    body = next(w for w in workloads() if w.name == "W1").body
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir(mode=0o755)
        Path(folder).chmod(0o755)
        materialise("mlp", models)
        extra = {"NCN_GATEWAY_PAYMENT_MODES": "voucher,free", "NCN_PAYMENTS_BATCH_AGE_MS": "3600000"}
        extra |= {"NCN_PAYMENTS_BATCH_COUNT": "100000"}
        with network(Path(folder) / "home", models, extra=extra) as running:
            _added(running, body, arguments)
            if arguments.settle:
                _settled(running, body, arguments)


def _load(running: Network, body: str, way: str, concurrency: int, seconds: float) -> Load:
    key = "" if way == WAYS[0] else str(running.home / "keys" / "client.key")
    payment = "voucher" if way == WAYS[2] else "free"
    if not key:
        body = body.replace("{", '{"payment": "free", ', 1)
    return Load("http", running.http_port, body, concurrency, seconds, key=key, payment=payment)


def _added(running: Network, body: str, arguments: argparse.Namespace) -> None:
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            result = drive(_load(running, body, way, 1, arguments.seconds))
            found[way].append((result.p50_ms, result.p99_ms))
    print(f"W1, concurrency 1, median of {arguments.rounds} turns of {arguments.seconds:g} s each")
    print(f"{'':<18}{'p50 ms':>9}{'p99 ms':>9}{'added p50':>11}")
    middle = {way: statistics.median(p50 for p50, _ in rows) for way, rows in found.items()}
    for way, rows in found.items():
        p99 = statistics.median(p99 for _, p99 in rows)
        print(f"{way:<18}{middle[way]:>9.2f}{p99:>9.2f}{middle[way] - middle[WAYS[0]]:>+11.2f}")
    added = statistics.median(
        voucher - signed for (voucher, _), (signed, _) in zip(found[WAYS[2]], found[WAYS[1]], strict=True)
    )
    print(f"payments add {added:.2f} ms to a signed request at p50; target: at most {TARGET_MS} ms\n")


def _settled(running: Network, body: str, arguments: argparse.Namespace) -> None:
    _settle(running)  # what the first part has charged
    began = time.perf_counter()
    result = drive(_load(running, body, WAYS[2], arguments.settle, arguments.seconds * 2))
    served = time.perf_counter()
    done = _settle(running)
    wall = time.perf_counter() - began
    count = sum(batch["receipts"] for batch in done)
    gas = sum(batch["gas"] for batch in done)
    print(f"settled: {count} requests, concurrency {arguments.settle}, {len(done)} batches, {gas / count:.0f} gas each")
    print(f"{result.per_second:>8.0f} requests/s served and charged")
    print(f"{count / (time.perf_counter() - served):>8.0f} requests/s from ledger to confirmed batch")
    print(f"{count / wall:>8.0f} requests/s from the first request to the confirmed batch")


def _settle(running: Network) -> list[dict[str, Any]]:
    """Have the gateway settle whatever is charged, as ``ncn payments settle`` does."""
    token = (running.home / "keys" / "operator.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{running.url}/api/v1/batches", b"", headers, method="POST")
    with urllib.request.urlopen(request, timeout=600) as answer:
        return list(json.load(answer))
