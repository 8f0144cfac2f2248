"""gRPC ``GatewayClientService``: decode, ask the tasks, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from ncn_framework.errors import MalformedRequest, NcnError, TaskEnded, code_of
from ncn_framework.models import Chunk, Event
from ncn_framework.payments import PaymentConfirmation
from ncn_framework.states import TERMINAL, State
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import chunk_to_pb, model_info_to_pb, receipt_to_pb
from ncn_framework.wire.convert_payments import payment_due_to_pb, sized
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceServicer
from ncn_framework.wire.grpc_errors import abort

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
            if task.state in TERMINAL:
                raise TaskEnded(f"task 0x{request.id.hex()} rests in {task.state}; there is nothing to cancel")
        except NcnError as error:
            await abort(context, error)
        task.cancel()
        return pb.Ack(message="cancelling; the task's updates say when it has ended")

    async def ConfirmPayment(self, request: pb.TransactionConfirmation, context: _Context) -> pb.Ack:  # noqa: N802
        """Take a client's word that it has paid into escrow."""
        try:
            chain_id = self.info.domain.chain_id
            if request.chain_id not in (0, chain_id):
                raise MalformedRequest(f"chain_id is {request.chain_id}; this gateway's chain is {chain_id}")
            transaction = sized(request.transaction_hash, 32, "transaction_hash")
            await self.tasks.confirm_payment(PaymentConfirmation(_id(request.request_id), transaction))
        except NcnError as error:
            await abort(context, error)
        return pb.Ack(message="heard; the task's updates say when the payment has arrived")

    async def GetSupportedModels(  # noqa: N802
        self, request: pb.Empty, context: _Context
    ) -> AsyncIterator[pb.ModelInfo]:
        """Send each model that some node serves now."""
        for manifest, nodes in self.tasks.models():
            yield model_info_to_pb(manifest, nodes)

    async def _task(self, request_id: bytes) -> Task:
        return await self.tasks.get(_id(request_id))

    async def _status(self, task: Task) -> pb.InferenceTaskStatus:
        await task.told()
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
        if task.due is not None:
            return payment_due_to_pb(task.due)
        domain = self.info.domain
        status = pb.PaymentStatus(mode=task.request.payment, contract=domain.contract, chain_id=domain.chain_id)
        if task.outcome is not None:
            settlement = task.outcome.settlement
            status.state = "settled"
            status.amount_wei = str(task.outcome.receipt.receipt.fee_wei)
            status.charged_wei, status.reference = str(settlement.charged_wei), settlement.reference
        return status


def _id(request_id: bytes) -> bytes:
    return sized(request_id, 32, "a task's id")


def _moved(event: Event) -> pb.InferenceResponse:
    return pb.InferenceResponse(
        request_id=event.request_id,
        state=str(event.state),
        at_ms=event.at_ms,
        payment=None if event.payment is None else payment_due_to_pb(event.payment),
    )


def _gave(request_id: bytes, chunk: Chunk) -> pb.InferenceResponse:
    return pb.InferenceResponse(
        request_id=request_id, state=str(State.EXECUTING), chunks=[chunk_to_pb(request_id, chunk)]
    )


def _error(error: NcnError) -> pb.Error:
    return pb.Error(code=code_of(error).code, message=str(error))
