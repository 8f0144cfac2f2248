"""Closed-loop load: so many requests in flight, each answered before the next; HTTP on bare sockets, or gRPC.

Runs as a process of its own (``python -m bench.load``), so that its CPU time is not the gateway's. The HTTP client
is as thin as can be (one asyncio protocol, keep-alive), so that the table shows the server.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Load", "Result", "cpu_s", "drive"]


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        protocol: ``http`` or ``grpc``.
        port: on loopback.
        body: the HTTP body; for gRPC, the same request in JSON, converted once.
        concurrency: requests in flight.
        seconds: how long, after ``warm_up`` requests for each in flight.
        key: file of the client's key; with one, each request is a new and signed one, made within the time measured.
        payment: mode of those.
    """

    protocol: str
    port: int
    body: str
    concurrency: int
    seconds: float
    warm_up: int = 20
    path: str = "/api/v1/inference"
    key: str = ""
    payment: str = ""


@dataclass(frozen=True)
class Result:
    """What came back: latencies in ms, requests per second, the client's CPU seconds, answers counted."""

    p50_ms: float
    p99_ms: float
    per_second: float
    client_cpu_s: float
    count: int

    @classmethod
    def of(cls, latencies_s: list[float], wall_s: float, cpu: float) -> Result:
        """Return the result of calls that took ``latencies_s`` one by one and ``wall_s`` together."""
        ordered = sorted(latencies_s)
        return cls(
            p50_ms=ordered[len(ordered) // 2] * 1000,
            p99_ms=ordered[int(len(ordered) * 0.99)] * 1000,
            per_second=len(ordered) / wall_s,
            client_cpu_s=cpu,
            count=len(ordered),
        )


def cpu_s() -> float:
    """Return the CPU seconds that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def drive(load: Load) -> Result:
    """Send ``load`` from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(load)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the load generator failed:\n{done.stderr}")
    return Result(**json.loads(done.stdout))


class _Http(asyncio.Protocol):
    """One keep-alive connection that sends a request whenever the one before is answered."""

    def __init__(self, path: str, body: Callable[[], bytes]) -> None:
        self.path, self.body, self.buffer = path.encode(), body, b""
        self.waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length or self.waiter is None:
            return
        self.buffer = b""
        if head.startswith(b"HTTP/1.1 200"):
            self.waiter.set_result(None)
        else:
            self.waiter.set_exception(RuntimeError(f"{head.decode()}\n{body[:500].decode()}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(ConnectionError("the server closed the connection"))

    async def ask(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        body = self.body()
        self.transport.write(
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (self.path, len(body), body)
        )
        await self.waiter


async def _http_askers(load: Load) -> list[Any]:
    same = load.body.encode()
    body: Callable[[], bytes] = lambda: same  # noqa: E731 - or the payer's method
    if load.key:
        from .payer import Payer

        body = Payer.of(f"http://127.0.0.1:{load.port}", Path(load.key), load.body, load.payment).body
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(load.concurrency):
        _, protocol = await loop.create_connection(lambda: _Http(load.path, body), "127.0.0.1", load.port)
        made.append(protocol.ask)
    return made


async def _grpc_askers(load: Load) -> list[Any]:
    import grpc

    from ncn_framework.wire import messages_pb2 as pb
    from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceStub

    stub = GatewayClientServiceStub(grpc.aio.insecure_channel(f"127.0.0.1:{load.port}"))
    request = pb.InferenceRequest()
    request.ParseFromString(bytes.fromhex(load.body))

    async def ask() -> None:
        status = await stub.SubmitInferenceTask(request)
        state = ""
        async for update in stub.SubscribeToTaskUpdates(pb.TaskID(id=status.request_id)):
            state = update.state or state
        if state != "SETTLED":
            raise RuntimeError(f"the task ended in {state}")

    return [ask] * load.concurrency


async def _main(load: Load) -> Result:
    askers = await (_http_askers(load) if load.protocol == "http" else _grpc_askers(load))
    latencies: list[float] = []
    end = 0.0

    async def client(ask: Any, limit: int | None) -> None:
        count = 0
        while count < limit if limit is not None else time.perf_counter() < end:
            began = time.perf_counter()
            await ask()
            latencies.append(time.perf_counter() - began)
            count += 1

    await asyncio.gather(*(client(ask, load.warm_up) for ask in askers))
    latencies.clear()
    used = cpu_s()
    began = time.perf_counter()
    end = began + load.seconds
    await asyncio.gather(*(client(ask, None) for ask in askers))
    wall = time.perf_counter() - began
    return Result.of(latencies, wall, cpu_s() - used)


if __name__ == "__main__":
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(_main(Load(**json.load(sys.stdin))))
    except ImportError:
        result = asyncio.run(_main(Load(**json.load(sys.stdin))))
    json.dump(asdict(result), sys.stdout)
