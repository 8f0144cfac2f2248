"""The node's side of a gateway: dial out, answer its challenge, work on what it sends, one stream for everything."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc

from ncn_framework import digests
from ncn_framework.errors import ConfigError, Draining, NcnError, code_of
from ncn_framework.models import Chunk, Event, Record
from ncn_framework.signing import Signer, address_hex
from ncn_framework.wire import gateway_pb2 as pb
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import chunk_to_pb, receipt_to_pb, record_to_pb, request_from_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayComputeServiceStub

if TYPE_CHECKING:
    from .service import Compute

__all__ = ["GatewaySession"]

_Call = grpc.aio.StreamStreamCall[Any, Any]

log = logging.getLogger(__name__)

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # the gateway bounds requests, and its own bound is not known here
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class GatewaySession:
    """Keeps one gateway connected until it is closed.

    Args:
        compute: the node.
        target: HOST:PORT of the gateway.
        gateway: address that the gateway there must have; None: any, it is the operator's choice.
    """

    def __init__(self, compute: Compute, target: str, gateway: bytes | None = None) -> None:
        self.compute, self.target, self.expected = compute, target, gateway
        self.gateway: bytes | None = None  # to which it is connected
        self._superfluous = False
        self.connected = False
        self.draining = False
        self._outbox: deque[pb.NodeMessage] = deque()
        self._more = asyncio.Event()
        self._works: dict[bytes, asyncio.Task[None]] = {}

    def announce(self, record: Record) -> None:
        """Tell the gateway of a newer record, if it is connected."""
        if self.connected:
            self._send(pb.NodeMessage(hello=pb.Hello(record=record_to_pb(record))))

    async def run(self) -> None:
        """Dial, converse, and dial again; gRPC spaces its attempts to connect with back-off and jitter."""
        async with grpc.aio.insecure_channel(self.target, options=_CHANNEL_OPTIONS) as channel:
            stub = GatewayComputeServiceStub(channel)
            while not (self.draining or self._superfluous):
                try:
                    await self._converse(stub)
                    log.info("gateway %s hung up", self.target)
                except grpc.aio.AioRpcError as error:
                    log.warning("gateway %s: %s: %s", self.target, error.code().name, error.details())
                except NcnError as error:
                    log.error("gateway %s: %s", self.target, error)
                await asyncio.sleep(random.uniform(0.1, 0.5))  # a gateway that refuses at once is not to be hammered

    async def _converse(self, stub: GatewayComputeServiceStub) -> None:
        call: _Call = cast(Any, stub).Session(wait_for_ready=True)  # its type is the synchronous one
        try:
            welcome = _welcome(await call.read())
            signer, domain = self.compute.signer, self.compute.node.domain
            if (welcome.chain_id, welcome.contract) != (domain.chain_id, domain.contract):
                raise ConfigError(
                    f"it belongs to chain {welcome.chain_id} with contract 0x{welcome.contract.hex()}, this node to "
                    f"{domain.chain_id} with 0x{domain.contract.hex()}; set NCN_CHAIN_ID and NCN_CONTRACT alike"
                )
            if self.expected is not None and self._is_superfluous(welcome.gateway):
                return
            hello = await self._hello(welcome, signer)
            await call.write(pb.NodeFrame(messages=[pb.NodeMessage(hello=hello)]))
            self.connected, self.gateway = True, welcome.gateway
            log.info("connected to gateway %s (%s)", address_hex(welcome.gateway), self.target)
            self.compute.on_connected()
            interval_s = welcome.heartbeat_interval_ms / 1000
            tasks = [
                asyncio.create_task(part) for part in (self._read(call), self._write(call), self._beat(interval_s))
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                self.connected, self.gateway = False, None
                await _cancel(tasks)
        finally:
            call.cancel()
            await _cancel(list(self._works.values()))
            self._outbox.clear()

    def _is_superfluous(self, gateway: bytes) -> bool:
        """Return whether a gateway that was found is another one than its record says, or connected by another name:
        two sessions with one gateway would end each other for ever."""
        if gateway != self.expected:
            log.warning("gateway %s says it is %s; the registry says another", self.target, address_hex(gateway))
            self._superfluous = True
        else:
            self._superfluous = any(other.gateway == gateway for other in self.compute.sessions)
        return self._superfluous

    async def _hello(self, welcome: pb.Welcome, signer: Signer) -> pb.Hello:
        record = await self.compute.renew()
        digest = digests.session_digest(self.compute.node.domain, signer.address, welcome.gateway, welcome.challenge)
        return pb.Hello(record=record_to_pb(record), challenge_signature=signer.sign(digest).value)

    # --- the three loops of a conversation ---

    async def _read(self, call: _Call) -> None:
        while isinstance(frame := await call.read(), pb.GatewayFrame):
            for message in frame.messages:
                kind = message.WhichOneof("message")
                if kind == "task":
                    self._accept(message.task)
                elif kind == "cancel":
                    if (work := self._works.get(message.cancel.request_id)) is not None:
                        work.cancel()
                elif kind == "drain":
                    log.info("gateway %s drains", self.target)

    async def _write(self, call: _Call) -> None:
        while True:
            while not self._outbox:
                self._more.clear()
                await self._more.wait()
            frame = pb.NodeFrame(messages=self._outbox)
            self._outbox.clear()
            await call.write(frame)

    async def _beat(self, interval_s: float) -> None:
        while True:
            self._heartbeat()
            await asyncio.sleep(interval_s)

    def _heartbeat(self) -> None:
        now = self.compute.node.lifecycle.clock()
        beat = pb.Heartbeat(in_flight=self.compute.in_flight, at_ms=now, draining=self.draining)
        self._send(pb.NodeMessage(heartbeat=beat))

    def _send(self, message: pb.NodeMessage) -> None:
        self._outbox.append(message)
        self._more.set()

    # --- work ---

    def _accept(self, task: pb.Task) -> None:
        request_id = task.request.request_id
        work = asyncio.create_task(self._work(task))
        self._works[request_id] = work

        def forget(done: asyncio.Task[None]) -> None:
            if self._works.get(request_id) is done:
                del self._works[request_id]

        work.add_done_callback(forget)

    async def _work(self, task: pb.Task) -> None:
        request_id = task.request.request_id
        result = pb.Result(request_id=request_id, lease_token=task.lease_token)

        def observe(update: Event | Chunk) -> None:
            if isinstance(update, Chunk):
                self._send(pb.NodeMessage(chunk=chunk_to_pb(request_id, update)))

        try:
            if self.draining:
                raise Draining(f"node {address_hex(self.compute.signer.address)} is shutting down")
            request = request_from_pb(task.request)
            route = self.compute.route(request)
            self.compute.node.lifecycle.check(request, route.manifest)
            outcome = await self.compute.node.lifecycle.run(request, observe, route=route)
            result.receipt.CopyFrom(receipt_to_pb(outcome.receipt))
        except NcnError as error:
            result.error.CopyFrom(mpb.Error(code=code_of(error).code, message=str(error)))
        self._send(pb.NodeMessage(result=result))

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, finish what runs within ``timeout_s``, and see that the results are sent."""
        self.draining = True
        if self.connected:
            self._heartbeat()
        if self._works:
            await asyncio.wait(self._works.values(), timeout=timeout_s)
        while self.connected and self._outbox:
            await asyncio.sleep(0.01)


def _welcome(frame: Any) -> pb.Welcome:
    if not isinstance(frame, pb.GatewayFrame) or not frame.messages or not frame.messages[0].HasField("welcome"):
        raise ConfigError("it does not speak NCN's session protocol; check GATEWAY_ADDR")
    return frame.messages[0].welcome


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
