"""From process start to the first answer, and the time of ``ncn --help`` beside a bare Python start."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .load import Load, drive
from .network import network
from .overhead import workloads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--runs", type=int, default=5)


def _median_ms(command: list[str], runs: int) -> float:
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[1:])


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    bare = _median_ms([sys.executable, "-c", "pass"], arguments.runs)
    help_ms = _median_ms([sys.executable, "-m", "ncn_framework.cli", "--help"], arguments.runs)
    print(f"python -c pass {bare:.0f} ms, ncn --help {help_ms:.0f} ms (budget 150), ratio {help_ms / bare:.1f}")
    from ncn_compute.bundled import materialise

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        materialise("minilm", models)
        began = time.perf_counter()
        with network(Path(folder) / "home", models, (("gateway", "compute"),)) as running:
            drive(Load("http", running.http_port, workloads()[1].body, 1, 0.05, warm_up=1))
            print(
                f"one process: ready after {running.started_s:.1f} s, first answer after "
                f"{time.perf_counter() - began:.1f} s (budget 5)"
            )
