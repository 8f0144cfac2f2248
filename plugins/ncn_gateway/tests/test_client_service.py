"""gRPC ``GatewayClientService`` over a real server: its six calls and how each error leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from ncn_framework import digests
from ncn_framework.errors import NoCapacity, PaymentRequired, TaskCancelled, WorkerDied
from ncn_framework.manifests import manifest_from_json
from ncn_framework.payments import TransferAuthorization, Voucher
from ncn_framework.proof import Proof
from ncn_framework.testing.fakes import fake_request
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import chunk_from_pb, receipt_from_pb, request_from_pb, request_to_pb
from ncn_framework.wire.convert_payments import payment_due_from_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceStub, add_GatewayClientServiceServicer_to_server
from ncn_gateway.client_service import ClientService

from .fakes import CLIENT, DOMAIN, MANIFEST, NODE, World, floats, world

LIMIT = 4096


@dataclass
class Served:
    """A gateway that listens, and a client of it."""

    world: World
    stub: Any

    async def updates(self, request_id: bytes) -> list[pb.InferenceResponse]:
        return [update async for update in self.stub.SubscribeToTaskUpdates(pb.TaskID(id=request_id))]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Served]:
    async with world(tmp_path) as found:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
        add_GatewayClientServiceServicer_to_server(ClientService(found.tasks, found.info), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(found, GatewayClientServiceStub(channel))
        await server.stop(None)


def message(**changes: Any) -> pb.InferenceRequest:
    """Return a request; None leaves a field out."""
    fields: dict[str, Any] = {
        "model_name": "echo",
        "inputs": [pb.Tensor(name="x", dtype="FP32", shape=[2], data=floats(1, 2))],
        **changes,
    }
    return pb.InferenceRequest(**{name: value for name, value in fields.items() if value is not None})


async def refused(call: Awaitable[Any], status: str, code: str) -> str:
    """Return the message of a call that must end with this status and this stable code."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert error.code() is grpc.StatusCode[status], error.details()
    assert dict(error.trailing_metadata() or ())["ncn-error"] == code
    return error.details() or ""


async def test_submit_and_follow(gateway: Served) -> None:
    status = await gateway.stub.SubmitInferenceTask(message())
    assert len(status.request_id) == 32
    assert status.model == MANIFEST.digest
    assert (status.payment.mode, status.payment.chain_id, status.payment.contract) == ("free", 31337, DOMAIN.contract)
    updates = await gateway.updates(status.request_id)
    assert {update.request_id for update in updates} == {status.request_id}
    assert [update.state for update in updates] == [
        *("RECEIVED", "ROUTED", "RESERVED", "EXECUTING", "EXECUTING", "EXECUTING"),
        *("EXECUTED", "VALIDATED", "SETTLED"),
    ]
    assert [update.HasField("receipt") for update in updates] == [False] * 8 + [True]
    task = await gateway.world.tasks.get(status.request_id)
    chunks = tuple(chunk_from_pb(chunk) for update in updates for chunk in update.chunks)
    receipt = receipt_from_pb(updates[-1].receipt)
    Proof(DOMAIN, MANIFEST, task.request, chunks, receipt).check(node=NODE.address)
    ended = await gateway.stub.GetTaskStatus(pb.TaskID(id=status.request_id))
    assert (ended.state, ended.node, ended.request_hash) == ("SETTLED", NODE.address, task.request.request_hash)
    assert (ended.payment.state, ended.payment.amount_wei, ended.payment.charged_wei) == ("settled", "0", "0")
    assert ended.created_ms <= ended.updated_ms
    assert not ended.HasField("error")
    assert await gateway.updates(status.request_id) == updates


async def test_submission_returns_before_the_end(gateway: Served) -> None:
    gateway.world.node.go.clear()
    status = await gateway.stub.SubmitInferenceTask(message())
    await gateway.world.node.started.wait()
    stored = await gateway.world.store.get(status.request_id)
    assert stored is not None  # RECEIVED was durable
    assert (await gateway.stub.GetTaskStatus(pb.TaskID(id=status.request_id))).state == "EXECUTING"


async def test_same_request_same_task(gateway: Served) -> None:
    deadline_ms = gateway.world.tasks.lifecycle.clock() + 60_000
    request = message(model_name=None, model=MANIFEST.digest, nonce=b"\x05" * 32, deadline_ms=deadline_ms)
    first = await gateway.stub.SubmitInferenceTask(request)
    await gateway.updates(first.request_id)
    again = await gateway.stub.SubmitInferenceTask(request)
    assert (again.request_id, again.state) == (first.request_id, "SETTLED")
    assert gateway.world.node.executed == 1
    request.limit_units = 9
    await refused(gateway.stub.SubmitInferenceTask(request), "ALREADY_EXISTS", "replay-conflict")


async def test_signed_request(gateway: Served) -> None:
    deadline_ms = gateway.world.tasks.lifecycle.clock() + 60_000
    request = message(client=CLIENT.address, nonce=b"\x06" * 32, deadline_ms=deadline_ms, limit_units=10)
    request.payment = "free"
    await refused(gateway.stub.SubmitInferenceTask(request), "UNAUTHENTICATED", "signature-rejected")
    request.model, request.model_name = MANIFEST.digest, ""
    digest = digests.request_digest(DOMAIN, request_from_pb(request))
    request.signature = CLIENT.sign(digest).value
    status = await gateway.stub.SubmitInferenceTask(request)
    assert (await gateway.updates(status.request_id))[-1].state == "SETTLED"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model_name": "nobody"}, "NOT_FOUND", "unknown-model"),
        ({"model_name": None}, "NOT_FOUND", "unknown-model"),
        ({"model": MANIFEST.digest}, "INVALID_ARGUMENT", "malformed"),
        ({"inputs": []}, "INVALID_ARGUMENT", "invalid-tensor"),
        ({"inputs": [pb.Tensor(name="x", dtype="FP33")]}, "INVALID_ARGUMENT", "invalid-tensor"),
        ({"inputs": [pb.Tensor(name="x", dtype="INT8", shape=[1], data=b"1")]}, "INVALID_ARGUMENT", "invalid-tensor"),
        (
            {"inputs": [pb.Tensor(name="x", dtype="FP32", shape=[3], data=b"1234")]},
            "INVALID_ARGUMENT",
            "invalid-tensor",
        ),
        ({"inputs": [pb.Tensor(name="x", dtype="FP32", shape=[-1])]}, "INVALID_ARGUMENT", "invalid-tensor"),
        ({"inputs": [pb.Tensor(name="x", dtype="FP32", shape=[0])] * 65}, "RESOURCE_EXHAUSTED", "too-large"),
        ({"nonce": b"short"}, "INVALID_ARGUMENT", "malformed"),
        ({"client": b"short", "nonce": bytes(32)}, "INVALID_ARGUMENT", "malformed"),
        ({"request_id": bytes(32), "nonce": bytes(32)}, "INVALID_ARGUMENT", "malformed"),
        ({"limit_units": 2**63}, "RESOURCE_EXHAUSTED", "too-large"),
        ({"deadline_ms": 1}, "DEADLINE_EXCEEDED", "deadline-expired"),
        ({"payment": "gold"}, "INVALID_ARGUMENT", "bad-request"),
        ({"parameters": {"p": pb.Parameter()}}, "INVALID_ARGUMENT", "malformed"),
    ],
)
async def test_refused_request(gateway: Served, changes: dict[str, Any], status: str, code: str) -> None:
    assert await refused(gateway.stub.SubmitInferenceTask(message(**changes)), status, code)
    assert gateway.world.node.executed == 0


async def test_large_message(gateway: Served) -> None:
    large = pb.Tensor(name="x", dtype="FP32", shape=[LIMIT], data=bytes(4 * LIMIT))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.SubmitInferenceTask(message(inputs=[large]))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_draining(gateway: Served) -> None:
    gateway.world.tasks.draining = True
    await refused(gateway.stub.SubmitInferenceTask(message()), "UNAVAILABLE", "draining")


def _confirmation(request_id: bytes, **changes: Any) -> pb.TransactionConfirmation:
    fields = {"request_id": request_id, "transaction_hash": b"\7" * 32, **changes}
    return pb.TransactionConfirmation(**fields)


@pytest.mark.parametrize(
    ("request_id", "status", "code"),
    [(b"\xab" * 32, "NOT_FOUND", "unknown-task"), (b"", "INVALID_ARGUMENT", "malformed")],
)
async def test_unknown_and_malformed_id(gateway: Served, request_id: bytes, status: str, code: str) -> None:
    await refused(gateway.stub.GetTaskStatus(pb.TaskID(id=request_id)), status, code)
    await refused(gateway.stub.CancelTask(pb.TaskID(id=request_id)), status, code)
    await refused(gateway.stub.ConfirmPayment(_confirmation(request_id)), status, code)
    await refused(gateway.updates(request_id), status, code)


@pytest.mark.parametrize(
    ("error", "code"), [(WorkerDied("out of memory"), "worker-died"), (NoCapacity("full"), "no-capacity")]
)
async def test_failure(gateway: Served, error: Exception, code: str) -> None:
    gateway.world.node.error = error
    status = await gateway.stub.SubmitInferenceTask(message())
    *_, last = await gateway.updates(status.request_id)
    assert (last.state, last.error.code, last.error.message) == ("FAILED", code, str(error))
    assert not last.HasField("receipt")
    ended = await gateway.stub.GetTaskStatus(pb.TaskID(id=status.request_id))
    assert (ended.state, ended.error.code) == ("FAILED", code)


async def test_cancel(gateway: Served) -> None:
    gateway.world.node.go.clear()
    status = await gateway.stub.SubmitInferenceTask(message())
    following = asyncio.create_task(gateway.updates(status.request_id))
    await gateway.world.node.started.wait()
    ack = await gateway.stub.CancelTask(pb.TaskID(id=status.request_id))
    assert ack.message
    last = (await following)[-1]
    assert (last.state, last.error.code) == ("CANCELLED", "cancelled")
    with pytest.raises(TaskCancelled):
        await (await gateway.world.tasks.get(status.request_id)).wait()
    again = gateway.stub.CancelTask(pb.TaskID(id=status.request_id))
    assert "CANCELLED" in await refused(again, "FAILED_PRECONDITION", "task-ended")


async def test_follower_that_leaves(gateway: Served) -> None:
    """The task goes on, and its updates can be had again."""
    gateway.world.node.go.clear()
    status = await gateway.stub.SubmitInferenceTask(message())
    call = gateway.stub.SubscribeToTaskUpdates(pb.TaskID(id=status.request_id))
    assert (await call.read()).state == "RECEIVED"
    call.cancel()
    gateway.world.node.go.set()
    assert (await gateway.updates(status.request_id))[-1].state == "SETTLED"


VOUCHER = Voucher(CLIENT.address, CLIENT.address, NODE.address, 2**90, b"\1" * 65)
TRANSFER = TransferAuthorization(CLIENT.address, NODE.address, 2**90, 0, 2**40, b"\2" * 32, b"\3" * 65)


@pytest.mark.parametrize(("paid", "mode"), [(VOUCHER, "voucher"), (TRANSFER, "exact")])
async def test_what_was_signed_pays(gateway: Served, paid: Any, mode: str) -> None:
    given = request_to_pb(fake_request(MANIFEST, authorization=paid))
    authorization = {name.name: value for name, value in given.ListFields() if name.containing_oneof}
    status = await gateway.stub.SubmitInferenceTask(message(**authorization))
    assert status.payment.mode == mode
    assert (await gateway.updates(status.request_id))[-1].state == "SETTLED"
    ended = (await gateway.stub.GetTaskStatus(pb.TaskID(id=status.request_id))).payment
    reference = gateway.world.funds.reference
    assert (ended.state, ended.mode, ended.charged_wei, ended.reference) == ("settled", mode, "0", reference)
    assert (await gateway.world.tasks.get(status.request_id)).request.authorization == paid
    other = gateway.stub.SubmitInferenceTask(message(payment="escrow", **authorization))
    assert f"pays in mode '{mode}', but payment says 'escrow'" in await refused(other, "INVALID_ARGUMENT", "malformed")
    again = await gateway.stub.SubmitInferenceTask(message(**authorization))
    assert (again.request_id == status.request_id) == (mode == "exact"), "a transfer names its request"


async def test_a_refused_payment(gateway: Served) -> None:
    gateway.world.funds.refusal = PaymentRequired("nothing is left")
    await refused(gateway.stub.SubmitInferenceTask(message()), "FAILED_PRECONDITION", "payment-required")


async def test_escrow(gateway: Served) -> None:
    status = await gateway.stub.SubmitInferenceTask(message(payment="escrow"))
    call = gateway.stub.SubscribeToTaskUpdates(pb.TaskID(id=status.request_id))
    moves = [await call.read() for _ in range(4)]
    assert [(m.state, m.HasField("payment")) for m in moves][2:] == [("RESERVED", False), ("AWAITING_PAYMENT", True)]
    due = gateway.world.funds.escrows[status.request_id].due
    assert payment_due_from_pb(moves[-1].payment) == due
    waiting = await gateway.stub.GetTaskStatus(pb.TaskID(id=status.request_id))
    assert (waiting.state, waiting.payment.state) == ("AWAITING_PAYMENT", "due")
    assert payment_due_from_pb(waiting.payment) == due
    for wrong in ({"chain_id": 1}, {"transaction_hash": b""}):
        confirming = gateway.stub.ConfirmPayment(_confirmation(status.request_id, **wrong))
        await refused(confirming, "INVALID_ARGUMENT", "malformed")
    assert not gateway.world.funds.confirmations
    assert (await gateway.stub.ConfirmPayment(_confirmation(status.request_id))).message
    call.cancel()
    assert (await gateway.updates(status.request_id))[-1].state == "SETTLED"
    ended = await gateway.stub.GetTaskStatus(pb.TaskID(id=status.request_id))
    assert (ended.payment.state, ended.payment.mode) == ("settled", "escrow")


async def test_a_refund_is_the_last_update(gateway: Served) -> None:
    gateway.world.funds.prepaid = True
    gateway.world.node.error = WorkerDied("out of memory")
    status = await gateway.stub.SubmitInferenceTask(message(payment="escrow"))
    *_, failed, last = await gateway.updates(status.request_id)
    assert (failed.state, failed.HasField("error")) == ("FAILED", False)
    assert (last.state, last.error.code) == ("REFUNDED", "worker-died")
    ended = await gateway.stub.GetTaskStatus(pb.TaskID(id=status.request_id))
    assert (ended.state, ended.error.code) == ("REFUNDED", "worker-died")


async def test_no_payment_to_confirm(gateway: Served) -> None:
    status = await gateway.stub.SubmitInferenceTask(message())
    call = gateway.stub.ConfirmPayment(_confirmation(status.request_id, chain_id=31337))
    assert "'free'" in await refused(call, "FAILED_PRECONDITION", "task-ended")


async def test_models(gateway: Served) -> None:
    [model] = [model async for model in gateway.stub.GetSupportedModels(pb.Empty())]
    assert (model.digest, model.name, model.nodes) == (MANIFEST.digest, "echo", 1)
    assert manifest_from_json(model.manifest) == MANIFEST
