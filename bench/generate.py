"""Tokens per second of the bundled chat model, and time to its first token, beside a bare loop in process.

The bare loop calls the model's own program with one thread. The jail is a pool of workers in strict mode, without a
network; the network is gateway and compute node as two processes, asked by OpenAI's API with streaming: routed,
executed in the jail, chained chunk by chunk, signed, verified, durable. With 8 streams, tokens are those of all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from .network import network

PROMPT = [{"role": "user", "content": "Write a long story about a lighthouse and the people who live there."}]

Ask = Callable[[], AsyncIterator[int]]
"""Yields the number of tokens so far whenever there are more."""


class Stream(NamedTuple):
    """One answer: seconds to its first token and to its last, and how many there were."""

    first_s: float
    last_s: float
    tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes for 8 streams")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement; the median counts")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print the table."""
    from ncn_compute.bundled import materialise

    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        directory = materialise("smollm2", models)
        command = [sys.executable, "-m", "bench.generate", str(directory), str(arguments.tokens), str(arguments.runs)]
        print(f"{'':28}{'ms to first':>12}{'ms a token':>12}{'tokens/s':>10}")
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="")
        asyncio.run(_measure_jail(directory, arguments))
        extra = {"NCN_COMPUTE_WORKERS": str(arguments.workers)}
        with network(Path(folder) / "home", models, extra=extra) as running:
            asyncio.run(_measure_network(running.url, arguments))


def _print(name: str, streams: list[Stream], wall_s: float) -> None:
    first = statistics.median(stream.first_s for stream in streams) * 1000
    pace = statistics.median((s.last_s - s.first_s) / max(1, s.tokens - 1) for s in streams) * 1000
    print(f"{name:28}{first:12.0f}{pace:12.1f}{sum(s.tokens for s in streams) / wall_s:10.1f}", flush=True)


async def _stream(ask: Ask) -> Stream:
    began = time.perf_counter()
    first = last = 0.0
    tokens = 0
    async for count in ask():
        last = time.perf_counter() - began
        first, tokens = first or last, count
    return Stream(first, last, tokens)


async def _measure(name: str, ask: Ask, streams: int, runs: int) -> None:
    await _stream(ask)
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        done = await asyncio.gather(*(_stream(ask) for _ in range(streams)))
        found.append((time.perf_counter() - began, done))
    wall_s, answers = sorted(found, key=lambda one: one[0])[len(found) // 2]
    _print(f"{name}, {streams} stream{'s' if streams > 1 else ''}", answers, wall_s)


async def _measure_jail(directory: Path, arguments: argparse.Namespace) -> None:
    from ncn_compute.manifest import load
    from ncn_compute.workers import WorkerPool
    from ncn_framework.tensors import bytes_tensor, unpack_tensors

    given = bytes_tensor("messages", [json.dumps(PROMPT).encode()])
    manifest = load(directory)
    async with WorkerPool(manifest, directory, mode="strict", size=arguments.workers) as pool:

        async def ask() -> AsyncIterator[int]:
            async for _, data in pool.execute([given], {"max_tokens": arguments.tokens}):
                yield int.from_bytes(unpack_tensors(data)[1].data[8:], "little")

        for streams in (1, 8):
            await _measure("jail", ask, streams, arguments.runs)


async def _measure_network(url: str, arguments: argparse.Namespace) -> None:
    import httpx

    body = {"model": "smollm2", "messages": PROMPT, "stream": True, "temperature": 0, "max_tokens": arguments.tokens}
    body["stream_options"] = {"include_usage": True}
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def ask() -> AsyncIterator[int]:
            count = 0
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise RuntimeError((await answer.aread()).decode())
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        if usage := event.get("usage"):
                            count = usage["completion_tokens"]
                        elif event["choices"] and event["choices"][0]["delta"].get("content"):
                            count += 1
                        else:
                            continue
                        yield count

        for streams in (1, 8):
            await _measure("network", ask, streams, arguments.runs)


def main(directory: Path, tokens: int, runs: int) -> None:
    """Measure the bare loop: ``python -m bench.generate DIRECTORY TOKENS RUNS``."""
    import torch

    from ncn_compute.executors import smollm2

    torch.set_num_threads(1)
    found = []
    with torch.inference_mode():
        model = smollm2.load(directory, {})
        smollm2.warm_up(model)
        for _ in range(runs):
            began = time.perf_counter()
            first = 0.0
            count = 0
            inputs = {"messages": [json.dumps(PROMPT).encode()]}
            for _, outputs in smollm2.execute(model, inputs, {"max_tokens": tokens}):
                first = first or time.perf_counter() - began
                count = int(outputs["tokens"][1])
            found.append(Stream(first, time.perf_counter() - began, count))
    middle = sorted(found, key=lambda stream: stream.last_s)[len(found) // 2]
    _print("bare, 1 stream", [middle], middle.last_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
