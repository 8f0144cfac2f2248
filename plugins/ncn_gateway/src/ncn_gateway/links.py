"""What is sent to a connected compute node, and the executions that wait for its answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from ncn_framework.errors import (
    CapacityError,
    DeadlineExpired,
    NcnError,
    NodeError,
    NodeLost,
    NoHandlerError,
    StageTimeout,
    error_from_code,
)
from ncn_framework.models import Chunk, InferenceRequest, Lease, SignedReceipt
from ncn_framework.payments import Authorization
from ncn_framework.signing import address_hex
from ncn_framework.wire import gateway_pb2 as pb
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import chunk_from_pb, receipt_from_pb, request_to_pb

from .directory import Directory, Entry

__all__ = ["Execution", "NodeLink"]


class Execution(AsyncGenerator[Chunk | SignedReceipt, None]):
    """What a node sends for one request: chunks, then a signed receipt; an asynchronous generator.

    Closing it before its end tells the node to stop.

    Args:
        link: to the node.
        request: to be executed.
        lease: of the node's slot.
        authorization: what the node is shown of the payment, where that is not the request's own.

    Attributes:
        receipt: what the node signed, once it came.
    """

    def __init__(
        self, link: NodeLink, request: InferenceRequest, lease: Lease, authorization: Authorization | None = None
    ) -> None:
        self.link, self.request, self.lease = link, request, lease
        self.authorization = authorization
        self.receipt: SignedReceipt | None = None
        self._items: deque[Chunk | SignedReceipt] = deque()
        self._error: NcnError | None = None
        self._ended = self._started = False
        self._waiter: asyncio.Future[None] | None = None

    def give(self, item: Chunk | SignedReceipt) -> None:
        """Take what the node sent."""
        self._items.append(item)
        if isinstance(item, SignedReceipt):
            self.receipt, self._ended = item, True
        self._wake()

    def fail(self, error: NcnError) -> None:
        """End it with ``error`` once what came before has been read."""
        self._error, self._ended = error, True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Execution:
        return self

    async def __anext__(self) -> Chunk | SignedReceipt:
        if not self._started:
            self._started = True
            self.link.start(self)
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()

    async def asend(self, value: None) -> Chunk | SignedReceipt:
        return await self.__anext__()

    async def athrow(self, *error: Any) -> Chunk | SignedReceipt:
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        """Forget the execution; a node that still works on it is told to stop."""
        if self._started:
            self.link.finish(self, cancel=not self._ended)
            self._ended = True


class NodeLink:
    """A connected node: what is sent to it, and the executions that wait for its answers."""

    def __init__(self, directory: Directory, node: bytes) -> None:
        self.directory, self.node = directory, node
        self.executions: dict[bytes, Execution] = {}
        self.outbox: deque[pb.GatewayMessage] = deque()
        self.entry: Entry | None = None
        self.closed = False
        self.last_heartbeat_ms = 0
        self.heard_at = asyncio.get_running_loop().time()
        self._more = asyncio.Event()

    def send(self, message: pb.GatewayMessage) -> None:
        """Send with the next frame."""
        self.outbox.append(message)
        self._more.set()

    async def frame(self) -> pb.GatewayFrame | None:
        """Return everything that waits to be sent, as soon as there is something; None once the link is closed."""
        while not self.outbox:
            if self.closed:
                return None
            self._more.clear()
            await self._more.wait()
        frame = pb.GatewayFrame(messages=self.outbox)
        self.outbox.clear()
        return frame

    def start(self, execution: Execution) -> None:
        """Give the node a task.

        Raises:
            NodeLost: the link is closed.
        """
        if self.closed:
            raise NodeLost(f"node {address_hex(self.node)} left before the request reached it")
        self.executions[execution.request.request_id] = execution
        request = execution.request
        if execution.authorization is not None:
            request = replace(request, authorization=execution.authorization)
        task = pb.Task(request=request_to_pb(request), lease_token=execution.lease.token)
        self.send(pb.GatewayMessage(task=task))

    def finish(self, execution: Execution, *, cancel: bool) -> None:
        """Forget a task, and with ``cancel`` tell the node to stop working on it."""
        request_id = execution.request.request_id
        if self.executions.get(request_id) is execution:
            del self.executions[request_id]
            if cancel and not self.closed:
                message = pb.Cancel(request_id=request_id, lease_token=execution.lease.token)
                self.send(pb.GatewayMessage(cancel=message))

    def on_chunk(self, message: mpb.Chunk) -> None:
        """Pass a chunk to its execution; one of a task that this node does not have is dropped."""
        execution = self.executions.get(message.request_id)
        if execution is not None:
            execution.give(chunk_from_pb(message))

    def on_result(self, message: pb.Result) -> None:
        """Pass a receipt or an error to its execution; a stale lease token makes it nobody's."""
        execution = self.executions.get(message.request_id)
        if execution is None or execution.lease.token != message.lease_token:
            return
        try:
            if message.HasField("receipt"):
                execution.give(receipt_from_pb(message.receipt))
            else:
                execution.fail(_node_error(self.node, message.error))
        except NcnError as error:
            execution.fail(error)

    def on_heartbeat(self, message: pb.Heartbeat) -> None:
        """Take the node's own word on whether it drains; its load is counted here, not believed."""
        if self.entry is not None:
            self.entry.draining = message.draining

    def close(self, reason: str) -> None:
        """End the link; what runs on it fails with ``NodeLost``."""
        if self.closed:
            return
        self.closed = True
        self._more.set()
        if self.entry is not None and self.entry.link is self:
            self.directory.remove(self.node)
        for execution in list(self.executions.values()):
            execution.fail(NodeLost(f"node {address_hex(self.node)} was lost with the request in flight: {reason}"))
        self.executions.clear()


def _node_error(node: bytes, error: mpb.Error) -> NcnError:
    """Return what a node reports; it can blame itself or its load, never the caller or this gateway."""
    found = error_from_code(error.code[:64], error.message[:1024])
    if isinstance(found, NodeError | CapacityError | DeadlineExpired | StageTimeout | NoHandlerError):
        return found
    return NodeError(f"node {address_hex(node)} failed: {error.code[:64]}: {error.message[:1024]}")
