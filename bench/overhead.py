"""What the network adds to a bare model call: latency, throughput and CPU, over HTTP and gRPC.

Whole path: routed, reserved, executed in the strict jail, chained, signed, verified, durable on disk before the
answer; gateway and compute node are two processes, the load comes from a third. Payment mode is ``free``.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .load import Load, Result, drive
from .network import Network, network
from .peers import PEERS, peers

# PERFORMANCE.md, workload W1 (the tiny MLP), column "first": the peer's figure on a machine of this kind
W1_TARGETS = "W1 targets: p50 at c=1 below 1.40 ms (LitServe default); above 1,473 requests/s at c=32 (LitServe best)"


@dataclass(frozen=True)
class Workload:
    """A model, and the JSON of one request to it."""

    name: str
    model: str
    body: str


def workloads() -> list[Workload]:
    """Return W1 (256 floats in, 16 out) and W2 (one sentence of 16 words)."""
    numbers = [round(random.Random(1).uniform(-1, 1), 6) for _ in range(256)]
    words = "the quick brown fox jumps over the lazy dog while seven small birds watch from above"
    return [
        Workload(
            "W1", "mlp", json.dumps({"model": "mlp", "inputs": [{"name": "x", "shape": [1, 256], "data": numbers}]})
        ),
        Workload("W2", "minilm", json.dumps({"model": "minilm", "inputs": [{"name": "text", "data": [words]}]})),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--workload", choices=["W1", "W2"], help="only this one")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--one-process", action="store_true", help="gateway and compute node in one process")
    parser.add_argument("--peer", choices=sorted(PEERS), help="measure this server beside ours, on W1 by HTTP")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has the peer installed")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        for name in ("minilm", "mlp"):
            _materialise(name, models)
        roles = (("gateway", "compute"),) if arguments.one_process else (("gateway",), ("compute",))
        with (
            peers(arguments.peer, arguments.peer_python) as others,
            network(Path(folder) / "home", models, roles) as running,
        ):
            print(f"network ready {running.started_s:.1f} s after process start\n")
            for workload in workloads():
                if arguments.workload in (None, workload.name):
                    _measure(workload, running, models, arguments, others if workload.name == "W1" else {})
            memory = sum(process.rss_bytes() for process in running.processes) / 1e6
            print(f"resident memory of gateway and node without workers: {memory:.0f} MB (target W1: below 400)")
    print(W1_TARGETS)


def _materialise(name: str, models: Path) -> None:
    from ncn_compute.bundled import materialise

    materialise(name, models)


def _measure(
    workload: Workload, running: Network, models: Path, arguments: argparse.Namespace, others: dict[str, int]
) -> None:
    print(f"{workload.name}: {workload.model}, one request a call, {arguments.seconds:g} s each")
    print(f"{'path':<16} {'c':>3} {'p50 ms':>8} {'p99 ms':>8} {'req/s':>8}   CPU s per 1,000 requests")
    bare = bare_call(models / workload.model, workload, arguments.seconds)
    print(f"{'bare model':<16} {1:>3} {bare.p50_ms:>8.3f} {bare.p99_ms:>8.3f} {bare.per_second:>8.0f}   {_share(bare)}")
    for protocol, port in (("http", running.http_port), ("grpc", running.grpc_port)):
        body = workload.body if protocol == "http" else _grpc_body(workload)
        for concurrency in arguments.concurrency:
            before = _cpu(running)
            result = drive(Load(protocol, port, body, concurrency, arguments.seconds))
            used = {name: value - before.get(name, 0) for name, value in _cpu(running).items()}
            used["client"] = result.client_cpu_s
            shares = ", ".join(f"{name} {value / result.count * 1000:.2f}" for name, value in used.items())
            added = result.p50_ms - bare.p50_ms
            print(
                f"{protocol:<16} {concurrency:>3} {result.p50_ms:>8.3f} {result.p99_ms:>8.3f} "
                f"{result.per_second:>8.0f}   {shares}" + (f"; adds {added:.3f} ms" if concurrency == 1 else "")
            )
            if protocol == "http":
                for name, other in others.items():
                    _compare(
                        name, drive(Load("http", other, body, concurrency, arguments.seconds)), result, concurrency
                    )
    print()


def _compare(name: str, peer: Result, ours: Result, concurrency: int) -> None:
    print(
        f"{name:<16} {concurrency:>3} {peer.p50_ms:>8.3f} {peer.p99_ms:>8.3f} {peer.per_second:>8.0f}   "
        f"ours/peer: p50 {ours.p50_ms / peer.p50_ms:.2f}, req/s {ours.per_second / peer.per_second:.2f}"
    )


def _share(result: Result) -> str:
    return f"in process {result.client_cpu_s / result.count * 1000:.2f}"


def _cpu(running: Network) -> dict[str, float]:
    used: dict[str, float] = {}
    for process in running.processes:
        used.update(process.cpu_s())
    return used


def _grpc_body(workload: Workload) -> str:
    """Return the request as the hex of its protobuf message."""
    from ncn_framework.tensors import TensorSpec
    from ncn_framework.wire import messages_pb2 as pb
    from ncn_framework.wire.json import SubmitJson, decode, inputs_from_json

    form: SubmitJson = decode(workload.body.encode(), SubmitJson)
    specs = [TensorSpec("x", "FP32", (-1, 256)), TensorSpec("text", "BYTES", (-1,))]
    inputs = [
        pb.Tensor(name=t.name, dtype=t.dtype, shape=t.shape, data=t.data) for t in inputs_from_json(form.inputs, specs)
    ]
    return pb.InferenceRequest(model_name=workload.model, inputs=inputs).SerializeToString().hex()


def bare_call(directory: Path, workload: Workload, seconds: float) -> Result:
    """Return what the same model, in process and with nothing around it, takes for the same input."""
    command = [sys.executable, "-m", "bench.bare", str(directory), str(seconds)]
    done = subprocess.run(command, input=workload.body, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the bare model failed:\n{done.stderr}")
    return Result(**json.loads(done.stdout))
