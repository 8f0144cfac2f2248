"""The gateway's side of compute nodes: each is a ``NodeLink``, whichever of the two ways it came by gRPC.

``Session`` carries everything over one stream; what gathers while a frame is being written goes into the next,
so that under load many messages share the cost of one. The reference's separate calls end in the same link.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from ncn_framework import digests
from ncn_framework.errors import (
    Draining,
    MalformedRequest,
    NcnError,
    NodeLost,
    SignatureRejected,
    UnknownTask,
)
from ncn_framework.lifecycle import Lifecycle
from ncn_framework.models import Domain, Record
from ncn_framework.signing import address_hex, check_signature
from ncn_framework.wire import gateway_pb2 as pb
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import (
    chunk_from_pb,
    node_info_from_record,
    receipt_from_pb,
    record_from_pb,
    request_to_pb,
)
from ncn_framework.wire.gateway_pb2_grpc import GatewayComputeServiceServicer
from ncn_framework.wire.grpc_errors import abort

from .directory import Directory
from .links import NodeLink

__all__ = ["ComputeService"]

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_MISSED_HEARTBEATS = 3
_CALL_AGE_MS = 30_000


class ComputeService(GatewayComputeServiceServicer):
    """gRPC ``GatewayComputeService``.

    Args:
        lifecycle: publishes the records that arrive.
        directory: of the nodes that are connected here; what a registry tells of others does not enter it.
        address: of this gateway, which nodes sign.
        domain: of all signatures.
        heartbeat_interval_ms: what nodes are asked for.
        software: name and version, for the welcome.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        directory: Directory,
        address: bytes,
        domain: Domain,
        heartbeat_interval_ms: int,
        software: str,
    ) -> None:
        self.lifecycle, self.directory = lifecycle, directory
        self.address, self.domain = address, domain
        self.interval_s = heartbeat_interval_ms / 1000
        self.software = software
        self.links: set[NodeLink] = set()
        self.draining = False
        self._called_ms: dict[bytes, int] = {}  # last ReceiveTask of each node, as long as it could be repeated

    def drain(self, deadline_ms: int) -> None:
        """Tell every node that this gateway stops, and take no new ones."""
        self.draining = True
        for link in self.links:
            link.send(pb.GatewayMessage(drain=pb.Drain(deadline_ms=deadline_ms)))

    async def close(self) -> None:
        """End every link."""
        for link in list(self.links):
            link.close("the gateway stops")

    async def _join(self, record: Record) -> NodeLink:
        """Publish a node's record and return its fresh link; an older one of the same node ends."""
        await self.lifecycle.register(record)
        entry = self.directory.put(record)
        link = NodeLink(self.directory, record.owner)
        link.entry = entry
        previous, entry.link, entry.draining = entry.link, link, False
        if previous is not None:
            previous.close("it connected anew")
        self.links.add(link)
        log.info("node %s serves %s", address_hex(record.owner), ", ".join(m.name for m in entry.info.models))
        return link

    # --- the stream ---

    async def Session(  # type: ignore[override]  # noqa: N802 - gRPC's name; its type knows generators only
        self, request_iterator: AsyncIterator[pb.NodeFrame], context: _Context
    ) -> None:
        """Speak with one node until one side hangs up."""
        challenge = secrets.token_bytes(32)
        welcome = pb.Welcome(
            gateway=self.address,
            challenge=challenge,
            chain_id=self.domain.chain_id,
            contract=self.domain.contract,
            heartbeat_interval_ms=int(self.interval_s * 1000),
            software=self.software,
        )
        link: NodeLink | None = None
        try:
            if self.draining:
                raise Draining("this gateway is shutting down; dial again soon")
            await context.write(pb.GatewayFrame(messages=[pb.GatewayMessage(welcome=welcome)]))
            link = await self._greet(await _first_frame(context), challenge)
            await self._converse(link, context)
        except NcnError as error:
            await abort(context, error)
        finally:
            if link is not None:
                link.close("its stream broke")
                self.links.discard(link)
                log.info("node %s is gone", address_hex(link.node))

    async def _greet(self, hello: pb.Hello, challenge: bytes) -> NodeLink:
        record = record_from_pb(hello.record)
        digest = digests.session_digest(self.domain, record.owner, self.address, challenge)
        check_signature(digest, hello.challenge_signature, record.owner, "the answer to the challenge")
        return await self._join(record)

    async def _converse(self, link: NodeLink, context: _Context) -> None:
        """Read, write and watch until one of the three ends; the first failure is raised."""
        tasks = [asyncio.create_task(part) for part in (self._read(link, context), _write(link, context))]
        tasks.append(asyncio.create_task(self._watch(link)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, link: NodeLink, context: _Context) -> None:
        loop = asyncio.get_running_loop()
        while isinstance(frame := await context.read(), pb.NodeFrame):
            link.heard_at = loop.time()
            for message in frame.messages:
                kind = message.WhichOneof("message")
                if kind == "chunk":
                    link.on_chunk(message.chunk)
                elif kind == "result":
                    link.on_result(message.result)
                elif kind == "heartbeat":
                    link.on_heartbeat(message.heartbeat)
                elif kind == "hello":
                    await self._renew(link, record_from_pb(message.hello.record))

    async def _renew(self, link: NodeLink, record: Record) -> None:
        if record.owner != link.node:
            raise SignatureRejected(
                f"node {address_hex(link.node)} sent a record of {address_hex(record.owner)}; dial once for each node"
            )
        await self.lifecycle.register(record)
        self.directory.put(record)

    async def _watch(self, link: NodeLink) -> None:
        """Return when the node has missed its heartbeats, or the link was closed from this side."""
        loop = asyncio.get_running_loop()
        limit = _MISSED_HEARTBEATS * self.interval_s
        while not link.closed and (left := link.heard_at + limit - loop.time()) > 0:
            await asyncio.sleep(left)
        if not link.closed:
            link.close(f"no heartbeat for {limit:.1f} s")

    # --- the reference's separate calls ---

    async def RegisterComputeNode(self, request: mpb.NodeInfo, context: _Context) -> mpb.Ack:  # noqa: N802
        """Check a node's record and say whether it would be taken; it serves once it calls ReceiveTask."""
        try:
            record = record_from_pb(request.record)
            digest = digests.record_digest(self.domain, record)
            check_signature(digest, record.signature, record.owner, "the node record")
            node_info_from_record(record)
        except NcnError as error:
            await abort(context, error)
        return mpb.Ack(message=f"node {address_hex(record.owner)} may call ReceiveTask")

    async def ReceiveTask(  # noqa: N802
        self, request: mpb.NodeInfo, context: _Context
    ) -> AsyncIterator[mpb.InferenceRequest]:
        """Stream tasks to a node that answers with SubmitResult and keeps itself alive with UpdateHeartbeat."""
        link: NodeLink | None = None
        watch: asyncio.Task[None] | None = None
        try:
            if self.draining:
                raise Draining("this gateway is shutting down; dial again soon")
            self._check_call(request)
            link = await self._join(record_from_pb(request.record))
            watch = asyncio.create_task(self._watch(link))
            while (frame := await link.frame()) is not None:
                for message in frame.messages:
                    if message.HasField("task"):
                        yield message.task.request
        except NcnError as error:
            await abort(context, error)
        finally:
            if watch is not None:
                watch.cancel()
            if link is not None:
                link.close("its stream broke")
                self.links.discard(link)

    def _check_call(self, request: mpb.NodeInfo) -> None:
        """Raise unless it is the node itself that calls, now: its record is known to others as well."""
        node, at_ms, now = request.record.owner, request.at_ms, self.lifecycle.clock()
        if not abs(now - at_ms) <= _CALL_AGE_MS or at_ms <= self._called_ms.get(node, 0):
            raise MalformedRequest(
                f"at_ms is {at_ms}, now is {now}; a call must be of the last {_CALL_AGE_MS} ms, and newer than the last"
            )
        digest = digests.session_digest(self.domain, node, self.address, digests.receive_challenge(at_ms))
        check_signature(digest, request.session_signature, node, "the call")
        self._called_ms = {known: at for known, at in self._called_ms.items() if now - at <= _CALL_AGE_MS}
        self._called_ms[node] = at_ms

    async def UpdateHeartbeat(self, request: mpb.HeartbeatRequest, context: _Context) -> mpb.Ack:  # noqa: N802
        """Note that a node lives; signed, and each no older than the one before."""
        try:
            link = self._link_of(request.node)
            record = Record(
                "heartbeat",
                request.node,
                request.at_ms,
                request.at_ms,
                request.in_flight.to_bytes(8, "big"),
                request.signature,
            )
            check_signature(digests.record_digest(self.domain, record), record.signature, record.owner, "the heartbeat")
            if record.sequence <= link.last_heartbeat_ms:
                raise MalformedRequest(f"heartbeat {record.sequence} is not newer than {link.last_heartbeat_ms}")
            link.last_heartbeat_ms = record.sequence
            link.heard_at = asyncio.get_running_loop().time()
        except NcnError as error:
            await abort(context, error)
        return mpb.Ack()

    async def SubmitResult(self, request: mpb.InferenceResponse, context: _Context) -> mpb.Ack:  # noqa: N802
        """Take a whole answer: its chunks and its receipt, whose signature says who it is from; or an error."""
        try:
            found = [link for link in self.links if request.request_id in link.executions]
            if not found:
                raise UnknownTask(f"no node has the task 0x{request.request_id.hex()} now")
            execution = found[0].executions[request.request_id]
            if not request.HasField("receipt"):
                raise MalformedRequest("a result needs a receipt, by whose signature its sender is known")
            signed = receipt_from_pb(request.receipt)
            digest = digests.receipt_digest(self.domain, signed.receipt)
            check_signature(digest, signed.signature_of(found[0].node), found[0].node, "the receipt")
            for chunk in request.chunks:
                execution.give(chunk_from_pb(chunk))
            execution.give(signed)
        except NcnError as error:
            await abort(context, error)
        return mpb.Ack()

    async def GetTask(self, request: mpb.TaskID, context: _Context) -> mpb.InferenceRequest:  # noqa: N802
        """Return a task that some node has now, to whoever knows its id; what was signed to pay for it is left out."""
        for link in self.links:
            if request.id in link.executions:
                return request_to_pb(replace(link.executions[request.id].request, authorization=None))
        await abort(context, UnknownTask(f"no node has the task 0x{request.id.hex()} now"))

    def _link_of(self, node: bytes) -> NodeLink:
        entry = self.directory.nodes.get(node)
        if entry is None or entry.link is None:
            raise NodeLost(f"node 0x{node.hex()[:40]} is not connected; call ReceiveTask first")
        return entry.link


async def _first_frame(context: _Context) -> pb.Hello:
    try:
        async with asyncio.timeout(10):
            frame = await context.read()
    except TimeoutError as cause:
        raise MalformedRequest("no hello came within 10 s") from cause
    if not isinstance(frame, pb.NodeFrame) or len(frame.messages) != 1 or not frame.messages[0].HasField("hello"):
        raise MalformedRequest("a session begins with a frame that holds the node's hello and nothing else")
    return frame.messages[0].hello


async def _write(link: NodeLink, context: _Context) -> None:
    while (frame := await link.frame()) is not None:
        await context.write(frame)
