"""A gateway without a network: its own tasks and store over one node that is played by a plugin."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig
from starlette import routing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from ncn_framework import digests
from ncn_framework.hookspecs import hookimpl
from ncn_framework.lifecycle import Lifecycle
from ncn_framework.manager import build_manager, loaded_plugin
from ncn_framework.models import (
    FREE,
    Candidates,
    Chunk,
    Domain,
    InferenceRequest,
    Leases,
    ModelFile,
    ModelManifest,
    NodeInfo,
    Route,
    Settlement,
    Signature,
    SignedReceipt,
)
from ncn_framework.payments import ESCROW, EXACT, VOUCHER
from ncn_framework.signing import Signer
from ncn_framework.tensors import Tensor, TensorSpec, pack_tensors
from ncn_framework.testing.funds import FakeFunds
from ncn_framework.wire.convert import node_record
from ncn_gateway.config import GatewaySettings
from ncn_gateway.directory import Directory
from ncn_gateway.http import build_app
from ncn_gateway.info import GatewayInfo
from ncn_gateway.store import Store
from ncn_gateway.tasks import Tasks

NODE = Signer(b"\x11" * 32)
CLIENT = Signer(b"\x22" * 32)
GATEWAY = Signer(b"\x33" * 32)
DOMAIN = Domain(31337, bytes(range(20)))
MANIFEST = ModelManifest(
    name="echo",
    version="1",
    runtime="fake",
    architecture="",
    files=(ModelFile("weights", 1, bytes(32)),),
    inputs=(TensorSpec("x", "FP32", (-1,)),),
    outputs=(TensorSpec("y", "FP32", (-1,)),),
)
MODEL = "0x" + MANIFEST.digest.hex()


@dataclass
class FakeNode:
    """Gives its input back, twice.

    Attributes:
        started: set once a request executes.
        go: cleared, it holds every request between its two chunks.
        error: what executions end with instead of the second chunk.
        executed: requests so far.
    """

    roles = ("gateway",)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    executed: int = 0

    @hookimpl
    def ncn_route(self, candidates: Candidates) -> Awaitable[Route]:
        async def route() -> Route:
            return Route(candidates[0].node, candidates[0].manifest)

        return route()

    @hookimpl
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk | SignedReceipt, None]:
        return self._execute(request)

    async def _execute(self, request: InferenceRequest) -> AsyncGenerator[Chunk | SignedReceipt, None]:
        self.executed += 1
        data = pack_tensors([Tensor("y", "FP32", t.shape, t.data) for t in request.inputs])
        yield Chunk(1, 1, data)
        self.started.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        yield Chunk(2, 2, data)

    @hookimpl
    def ncn_sign(self, receipt: SignedReceipt) -> Awaitable[Signature]:
        async def sign() -> Signature:
            return NODE.sign(digests.receipt_digest(DOMAIN, receipt.receipt))

        return sign()

    @hookimpl
    def ncn_settle(self, request: InferenceRequest) -> Awaitable[Settlement] | None:
        async def settle() -> Settlement:
            return Settlement(FREE)

        return settle() if request.payment == FREE else None


@dataclass
class World:
    """A gateway to be asked.

    Attributes:
        tasks: over a database of its own.
        node: the one that serves ``echo``.
        funds: of whoever pays.
        info: about it; ``unready`` is what its ``ready`` says.
    """

    tasks: Tasks
    node: FakeNode
    funds: FakeFunds
    store: Store
    info: GatewayInfo
    unready: str | None = None


def body(**changes: Any) -> dict[str, Any]:
    """Return a request as JSON knows it; None leaves a field out."""
    form = {"model": "echo", "inputs": [{"name": "x", "data": [1.0, 2.0]}], **changes}
    return {name: value for name, value in form.items() if value is not None}


def floats(*values: float) -> bytes:
    """Return FP32 data."""
    return struct.pack(f"<{len(values)}f", *values)


async def _fail(_: Request) -> PlainTextResponse:
    raise ZeroDivisionError("a secret")


def make_app(gateway: World, limit: int = 4096) -> Starlette:
    """Return the application, with a route of its own and one that has a defect."""
    return build_app(
        gateway.tasks,
        gateway.info,
        max_body_bytes=limit,
        routes=[routing.Route("/extra", lambda _: PlainTextResponse("extra")), routing.Route("/broken", _fail)],
    )


def client_of(gateway: World) -> httpx.AsyncClient:
    """Return a client that needs no socket."""
    transport = httpx.ASGITransport(make_app(gateway), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return a problem document, which is what the answer must be."""
    assert response.headers["content-type"] == "application/problem+json"
    form: dict[str, Any] = response.json()
    assert (response.status_code, form["status"], form["code"]) == (status, status, code)
    assert form["type"] == f"urn:ncn:error:{code}"
    assert form.keys() - {"request_id"} == {"type", "title", "status", "detail", "code", "retryable"}
    return form


def server_sent_events(text: str) -> list[tuple[str, int | None, dict[str, Any]]]:
    """Return kind, id and data of each event of a stream."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], int(fields["id"]) if "id" in fields else None, json.loads(fields["data"])))
    return found


@asynccontextmanager
async def world(folder: Path, default_mode: str = FREE) -> AsyncIterator[World]:
    """Open a gateway whose node answers at once; it accepts every payment mode."""
    node = FakeNode()
    node.go.set()
    funds = FakeFunds()
    plugins = build_manager([loaded_plugin("fake", node), loaded_plugin("funds", funds)])
    modes = dict.fromkeys((default_mode, FREE, VOUCHER, ESCROW, EXACT))
    settings = GatewaySettings(payment_modes=tuple(modes))
    directory = Directory()
    directory.put(node_record(NodeInfo(NODE.address, (MANIFEST,), 4, "strict"), 1, 2**62))
    async with Store(f"sqlite:///{folder / 'gateway.db'}") as store:
        tasks = Tasks(Lifecycle(plugins, DOMAIN), directory, store, settings)
        info = GatewayInfo(GATEWAY.address, DOMAIN, "ncn-gateway test", settings.payment_modes, lambda: found.unready)
        found = World(tasks, node, funds, store, info)
        try:
            yield found
        finally:
            node.go.set()
            for escrow in funds.escrows.values():
                escrow.arrived.set()
            await tasks.drain(5)


@asynccontextmanager
async def served(app: Any, closing: asyncio.Event | None = None) -> AsyncIterator[str]:
    """Serve ``app`` with Hypercorn on a free port of the loopback; yields host and port."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    config = HypercornConfig()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 5
    config.errorlog = None
    stop = asyncio.Event()
    server = asyncio.create_task(hypercorn_serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield f"{host}:{port}"
    finally:
        if closing is not None:
            closing.set()
        stop.set()
        await server
