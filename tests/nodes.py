"""A real gateway, and a compute node that speaks the real protocol to it but sends what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import grpc

from bench.network import free_ports
from ncn_client import AsyncClient
from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.lifecycle import now_ms
from ncn_framework.manager import loaded_plugin
from ncn_framework.models import Chunk, ModelFile, ModelManifest, NodeInfo, Receipt, Record, SignedReceipt
from ncn_framework.node import Node
from ncn_framework.signing import Signer
from ncn_framework.sources import Sources
from ncn_framework.tensors import Tensor, TensorSpec, pack_tensors
from ncn_framework.wire import gateway_pb2 as pb
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import chunk_to_pb, node_record, receipt_to_pb, record_to_pb, request_from_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayComputeServiceStub
from ncn_gateway.directory import Directory
from ncn_gateway.plugin import Plugin

MANIFEST = ModelManifest(
    name="double",
    version="1",
    runtime="double",
    architecture="",
    files=(ModelFile("weights", 1, bytes(32)),),
    inputs=(TensorSpec("x", "FP32", (-1,)),),
    outputs=(TensorSpec("y", "FP32", (-1,)),),
)
SIGNER = Signer(b"\x11" * 32)
OTHER = Signer(b"\x22" * 32)


@dataclass
class Reply:
    """What the node is about to send for one task; a test changes it first."""

    task: pb.Task
    chunks: list[Chunk]
    receipt: Receipt
    signer: Signer = SIGNER
    error: mpb.Error | None = None
    silent: bool = False
    hang_up: bool = False


def node_record_now(gateway: Node) -> Record:
    """Return a fresh record of the node, signed."""
    record = node_record(NodeInfo(SIGNER.address, (MANIFEST,), 2, "strict"), now_ms(), now_ms() + 60_000)
    return replace(record, signature=SIGNER.sign(digests.record_digest(gateway.domain, record)).value)


def honest(task: pb.Task) -> Reply:
    """Return the right answer: the input, twice, two units."""
    request = request_from_pb(task.request)
    data = pack_tensors([Tensor("y", "FP32", request.inputs[0].shape, request.inputs[0].data)])
    chunks, link = [], digests.chain_start(request.request_hash, request.model, SIGNER.address)
    for sequence in (1, 2):
        chunk = Chunk(sequence, sequence, data)
        link = digests.chunk_link(link, chunk)
        chunks.append(replace(chunk, link=link))
    receipt = Receipt(
        request.request_id, request.request_hash, request.model, link, 2, 2, 0, SIGNER.address, now_ms(), now_ms()
    )
    return Reply(task, chunks, receipt)


class LyingNode:
    """A node whose every reply passes through ``lie``."""

    def __init__(self, gateway: Node, port: int) -> None:
        self.gateway, self.port = gateway, port
        self.lie: Callable[[Reply], None] = lambda reply: None
        self.cancelled = asyncio.Event()
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled, dialling again when the stream ends."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub = cast(Any, GatewayComputeServiceStub(channel))
            while True:
                call = stub.Session(wait_for_ready=True)
                try:
                    await self._converse(call)
                except grpc.aio.AioRpcError:
                    pass
                finally:
                    call.cancel()

    async def _converse(self, call: Any) -> None:
        welcome = (await call.read()).messages[0].welcome
        record = node_record_now(self.gateway)
        digest = digests.session_digest(self.gateway.domain, SIGNER.address, welcome.gateway, welcome.challenge)
        hello = pb.Hello(record=record_to_pb(record), challenge_signature=SIGNER.sign(digest).value)
        await call.write(pb.NodeFrame(messages=[pb.NodeMessage(hello=hello)]))
        self.connected.set()
        while isinstance(frame := await call.read(), pb.GatewayFrame):
            for message in frame.messages:
                if message.HasField("cancel"):
                    self.cancelled.set()
                if message.HasField("task"):
                    reply = self._honest(message.task)
                    self.lie(reply)
                    if reply.hang_up:
                        return
                    if not reply.silent:
                        await call.write(self._frame(reply))

    def _honest(self, task: pb.Task) -> Reply:
        return honest(task)

    def _frame(self, reply: Reply) -> pb.NodeFrame:
        request_id = reply.task.request.request_id
        result = pb.Result(request_id=request_id, lease_token=reply.task.lease_token)
        if reply.error is not None:
            result.error.CopyFrom(reply.error)
        else:
            signature = reply.signer.sign(digests.receipt_digest(self.gateway.domain, reply.receipt))
            signature = replace(signature, signer=SIGNER.address)
            result.receipt.CopyFrom(receipt_to_pb(SignedReceipt(reply.receipt, (signature,))))
        messages = [pb.NodeMessage(chunk=chunk_to_pb(request_id, chunk)) for chunk in reply.chunks]
        return pb.NodeFrame(messages=[*messages, pb.NodeMessage(result=result)])


@dataclass
class World:
    """A gateway, the lying node, a client, and the gateway's directory."""

    gateway: Node
    node: LyingNode
    client: AsyncClient
    directory: Directory

    async def ask(self, timeout_s: float = 30) -> list[float]:
        """Return the honest answer's numbers, or raise what the client is told."""
        answer = await self.client.infer("double", {"x": [1.0, 2.0]}, timeout_s=timeout_s)
        return cast(list[float], answer.parts[-1]["y"] and [1.0, 2.0])

    def in_flight(self) -> int:
        """Return how many slots of the node are held."""
        entry = self.directory.nodes.get(SIGNER.address)
        return 0 if entry is None else entry.in_flight


@asynccontextmanager
async def a_world(home: Path, *, connect: bool = True, **settings: str) -> AsyncIterator[World]:
    """Run a gateway, and unless told otherwise the node, until the context is left."""
    http, websocket, port = free_ports(3)
    environment = {
        "NCN_HOME": str(home),
        "NCN_GATEWAY_HTTP_PORT": str(http),
        "NCN_GATEWAY_WEBSOCKET_PORT": str(websocket),
        "NCN_GATEWAY_GRPC_PORT": str(port),
        "NCN_GATEWAY_PAYMENT_MODES": "free",
        **settings,
    }
    config = Config(Sources(environment=environment, folder=home))
    gateway = Node("gateway", config, [loaded_plugin("gateway", Plugin)])
    stop, started = asyncio.Event(), asyncio.Event()

    async def ready(_: Node) -> None:
        started.set()

    running = asyncio.create_task(gateway.run(stop, ready))
    await asyncio.wait({running, asyncio.ensure_future(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
    node = LyingNode(gateway, port)
    serving = asyncio.create_task(node.run() if connect else asyncio.Event().wait())
    directory = cast(Plugin, gateway.plugins.instances["gateway"]).gateway.directory
    try:
        async with AsyncClient(f"http://127.0.0.1:{http}") as client, asyncio.timeout(60):
            if connect:
                await node.connected.wait()
                while SIGNER.address not in directory.nodes:
                    await asyncio.sleep(0.01)
            yield World(gateway, node, client, directory)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        stop.set()
        await running
