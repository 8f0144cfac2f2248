"""gRPC ``GatewayClientService``: decode, ask the tasks, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, NoReturn

import grpc

from ncn_framework.errors import MalformedRequest, NcnError, TaskEnded, code_of
from ncn_framework.models import Chunk, Event
from ncn_framework.states import TERMINAL, State
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import chunk_to_pb, model_info_to_pb, receipt_to_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceServicer

from .grpc_errors import abort
from .info import GatewayInfo
from .tasks import Task, Tasks

__all__ = ["ClientService"]

_Context = grpc.aio.ServicerContext[Any, Any]


class ClientService(GatewayClientServiceServicer):
    """What clients call.

    Args:
        tasks: of the gateway.
        info: about it.
    """

    def __init__(self, tasks: Tasks, info: GatewayInfo) -> None:
        self.tasks, self.info = tasks, info

    async def SubmitInferenceTask(  # noqa: N802 - gRPC's name, here and below
        self, request: pb.InferenceRequest, context: _Context
    ) -> pb.InferenceTaskStatus:
        """Accept a request and return once it is stored."""
        try:
            task = await self.tasks.submit(self.tasks.admit_pb(request))
            return await self._status(task)
        except NcnError as error:
            await abort(context, error)

    async def SubscribeToTaskUpdates(  # noqa: N802
        self, request: pb.TaskID, context: _Context
    ) -> AsyncIterator[pb.InferenceResponse]:
        """Send each move and each chunk of a task; the last message carries the receipt or the error."""
        try:
            task = await self._task(request.id)
            last = pb.InferenceResponse(request_id=request.id, state=str(task.state), at_ms=task.updated_ms)
            found: Any = task.follow()
            async with aclosing(found):
                held = False
                async for _, update in found:
                    if held:  # an end that was not the last: REFUNDED follows
                        yield last
                    if held := isinstance(update, Event) and update.state in TERMINAL:
                        last = _moved(update)
                    else:
                        yield _moved(update) if isinstance(update, Event) else _gave(request.id, update)
            try:
                last.receipt.CopyFrom(receipt_to_pb((await task.wait()).receipt))
            except NcnError as error:
                last.error.CopyFrom(_error(error))
            yield last
        except NcnError as error:
            await abort(context, error)

    async def GetTaskStatus(self, request: pb.TaskID, context: _Context) -> pb.InferenceTaskStatus:  # noqa: N802
        """Say where a task stands."""
        try:
            return await self._status(await self._task(request.id))
        except NcnError as error:
            await abort(context, error)

    async def CancelTask(self, request: pb.TaskID, context: _Context) -> pb.Ack:  # noqa: N802
        """Cancel a task that still runs."""
        try:
            task = await self._task(request.id)
        except NcnError as error:
            await abort(context, error)
        if task.state in TERMINAL:
            await _refuse(context, f"task 0x{request.id.hex()} rests in {task.state}; there is nothing to cancel")
        task.cancel()
        return pb.Ack(message="cancelling; the task's updates say when it has ended")

    async def ConfirmPayment(self, request: pb.TransactionConfirmation, context: _Context) -> pb.Ack:  # noqa: N802
        """Refuse: no payment mode of this gateway waits for a transaction."""
        try:
            task = await self._task(request.request_id)
        except NcnError as error:
            await abort(context, error)
        await _refuse(
            context,
            f"payment mode {task.request.payment!r} of task 0x{request.request_id.hex()} needs no confirmation; "
            "its updates bring the answer without one",
        )

    async def GetSupportedModels(  # noqa: N802
        self, request: pb.Empty, context: _Context
    ) -> AsyncIterator[pb.ModelInfo]:
        """Send each model that some node serves now."""
        for manifest, nodes in self.tasks.models():
            yield model_info_to_pb(manifest, nodes)

    async def _task(self, request_id: bytes) -> Task:
        if len(request_id) != 32:
            raise MalformedRequest(f"a task's id has 32 bytes; this one has {len(request_id)}")
        return await self.tasks.get(request_id)

    async def _status(self, task: Task) -> pb.InferenceTaskStatus:
        """Return where a task stands, once that it was received, or that it ended, is durable."""
        await task.settled_or_received()
        if task.state in TERMINAL:
            with suppress(NcnError):
                await task.wait()
        request = task.request
        return pb.InferenceTaskStatus(
            request_id=request.request_id,
            request_hash=request.request_hash,
            state=str(task.state),
            model=request.model,
            node=task.node or b"",
            error=None if task.error is None else _error(task.error),
            created_ms=task.created_ms,
            updated_ms=task.updated_ms,
            payment=self._payment(task),
        )

    def _payment(self, task: Task) -> pb.PaymentStatus:
        domain = self.info.domain
        status = pb.PaymentStatus(mode=task.request.payment, contract=domain.contract, chain_id=domain.chain_id)
        if task.outcome is not None:
            settlement = task.outcome.settlement
            status.state = str(State.SETTLED)
            status.amount_wei = str(task.outcome.receipt.receipt.fee_wei)
            status.charged_wei, status.reference = str(settlement.charged_wei), settlement.reference
        return status


def _moved(event: Event) -> pb.InferenceResponse:
    return pb.InferenceResponse(request_id=event.request_id, state=str(event.state), at_ms=event.at_ms)


def _gave(request_id: bytes, chunk: Chunk) -> pb.InferenceResponse:
    return pb.InferenceResponse(
        request_id=request_id, state=str(State.EXECUTING), chunks=[chunk_to_pb(request_id, chunk)]
    )


def _error(error: NcnError) -> pb.Error:
    return pb.Error(code=code_of(error).code, message=str(error))


async def _refuse(context: _Context, message: str) -> NoReturn:
    """End the call: the request is well formed, but the task is not in a state for it."""
    await abort(context, TaskEnded(message))
