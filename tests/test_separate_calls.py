"""The reference's separate calls of ``GatewayComputeService``, by a node that uses nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from ncn_framework import digests
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Record, SignedReceipt
from ncn_framework.wire import gateway_pb2 as pb
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import chunk_to_pb, receipt_to_pb, record_to_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayComputeServiceStub
from tests.nodes import OTHER, SIGNER, World, a_world, honest, node_record_now


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, connect=False) as world:
        yield world


@pytest.fixture
async def stub(gateway: World) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.node.port}") as channel:
        yield cast(Any, GatewayComputeServiceStub(channel))


def heartbeat(gateway: World, at_ms: int) -> mpb.HeartbeatRequest:
    """Return a signed heartbeat."""
    record = Record("heartbeat", SIGNER.address, at_ms, at_ms, (0).to_bytes(8, "big"))
    signature = SIGNER.sign(digests.record_digest(gateway.gateway.domain, record)).value
    return mpb.HeartbeatRequest(node=SIGNER.address, in_flight=0, at_ms=at_ms, signature=signature)


def result(gateway: World, request: mpb.InferenceRequest, **changes: Any) -> mpb.InferenceResponse:
    """Return the honest answer to a task, signed; ``changes`` are made to the receipt before."""
    reply = honest(pb.Task(request=request))
    receipt = replace(reply.receipt, **changes)
    signature = SIGNER.sign(digests.receipt_digest(gateway.gateway.domain, receipt))
    return mpb.InferenceResponse(
        request_id=request.request_id,
        chunks=[chunk_to_pb(request.request_id, chunk) for chunk in reply.chunks],
        receipt=receipt_to_pb(SignedReceipt(receipt, (signature,))),
    )


def calling(gateway: World, record: mpb.Record | None = None, at_ms: int = 0) -> mpb.NodeInfo:
    """Return what a node calls ReceiveTask with, signed for this gateway and moment."""
    at_ms = at_ms or now_ms()
    own, domain = gateway.gateway.signer.address, gateway.gateway.domain
    digest = digests.session_digest(domain, SIGNER.address, own, digests.receive_challenge(at_ms))
    record = record or record_to_pb(node_record_now(gateway.gateway))
    return mpb.NodeInfo(record=record, at_ms=at_ms, session_signature=SIGNER.sign(digest).value)


async def refused(call: Any, status: str, code: str) -> None:
    """Check that a call ends with an error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code().name == status
    assert dict(caught.value.trailing_metadata() or ())["ncn-error"] == code


async def test_a_task_from_beginning_to_end(gateway: World, stub: Any) -> None:
    info = mpb.NodeInfo(record=record_to_pb(node_record_now(gateway.gateway)))
    assert "ReceiveTask" in (await stub.RegisterComputeNode(info)).message
    await refused(stub.ReceiveTask(info).read(), "INVALID_ARGUMENT", "malformed")  # a record alone is anybody's
    tasks = stub.ReceiveTask(calling(gateway, info.record))
    coming = asyncio.ensure_future(tasks.read())
    while SIGNER.address not in gateway.directory.nodes:
        await asyncio.sleep(0.01)
    asked = asyncio.create_task(gateway.ask())
    request = await coming
    assert (await stub.GetTask(mpb.TaskID(id=request.request_id))).nonce == request.nonce
    await stub.UpdateHeartbeat(heartbeat(gateway, now_ms()))
    await stub.SubmitResult(result(gateway, request))
    assert await asked == [1.0, 2.0]
    await refused(stub.SubmitResult(result(gateway, request)), "NOT_FOUND", "unknown-task")
    tasks.cancel()


async def test_a_result_of_another_key_is_refused_and_the_task_goes_on(gateway: World, stub: Any) -> None:
    tasks = stub.ReceiveTask(calling(gateway))
    coming = asyncio.ensure_future(tasks.read())
    while SIGNER.address not in gateway.directory.nodes:
        await asyncio.sleep(0.01)
    asked = asyncio.create_task(gateway.ask())
    request = await coming
    forged = result(gateway, request)
    other = OTHER.sign(bytes(32))
    forged.receipt.signatures[0].value = other.value
    await refused(stub.SubmitResult(forged), "UNAUTHENTICATED", "signature-rejected")
    await stub.SubmitResult(result(gateway, request))
    assert await asked == [1.0, 2.0]
    tasks.cancel()


async def test_a_call_that_is_repeated_late_or_of_another_key_is_refused(gateway: World, stub: Any) -> None:
    call = calling(gateway)
    tasks = stub.ReceiveTask(call)
    coming = asyncio.ensure_future(tasks.read())
    while SIGNER.address not in gateway.directory.nodes:
        await asyncio.sleep(0.01)
    await refused(stub.ReceiveTask(call).read(), "INVALID_ARGUMENT", "malformed")
    await refused(stub.ReceiveTask(calling(gateway, at_ms=now_ms() - 60_000)).read(), "INVALID_ARGUMENT", "malformed")
    forged = calling(gateway, at_ms=now_ms() + 1)
    forged.at_ms += 1
    await refused(stub.ReceiveTask(forged).read(), "UNAUTHENTICATED", "signature-rejected")
    coming.cancel()
    tasks.cancel()


async def test_replayed_and_forged_heartbeats_are_refused(gateway: World, stub: Any) -> None:
    tasks = stub.ReceiveTask(calling(gateway))
    coming = asyncio.ensure_future(tasks.read())
    while SIGNER.address not in gateway.directory.nodes:
        await asyncio.sleep(0.01)
    beat = heartbeat(gateway, now_ms())
    await stub.UpdateHeartbeat(beat)
    await refused(stub.UpdateHeartbeat(beat), "INVALID_ARGUMENT", "malformed")
    beat.at_ms += 1
    await refused(stub.UpdateHeartbeat(beat), "UNAUTHENTICATED", "signature-rejected")
    coming.cancel()
    tasks.cancel()


async def test_a_forged_or_repeated_record_is_refused(gateway: World, stub: Any) -> None:
    record = record_to_pb(node_record_now(gateway.gateway))
    forged = mpb.Record()
    forged.CopyFrom(record)
    forged.owner = OTHER.address
    await refused(stub.RegisterComputeNode(mpb.NodeInfo(record=forged)), "UNAUTHENTICATED", "signature-rejected")
    tasks = stub.ReceiveTask(calling(gateway, record))
    coming = asyncio.ensure_future(tasks.read())
    while SIGNER.address not in gateway.directory.nodes:
        await asyncio.sleep(0.01)
    await refused(stub.ReceiveTask(calling(gateway, record)).read(), "INVALID_ARGUMENT", "malformed")
    coming.cancel()
    tasks.cancel()


async def test_a_session_with_a_wrong_answer_to_the_challenge_is_refused(gateway: World, stub: Any) -> None:
    call = stub.Session()
    welcome = (await call.read()).messages[0].welcome
    digest = digests.session_digest(gateway.gateway.domain, SIGNER.address, welcome.gateway, bytes(32))
    hello = pb.Hello(
        record=record_to_pb(node_record_now(gateway.gateway)), challenge_signature=SIGNER.sign(digest).value
    )
    await call.write(pb.NodeFrame(messages=[pb.NodeMessage(hello=hello)]))
    await refused(call.read(), "UNAUTHENTICATED", "signature-rejected")
    assert not gateway.directory.nodes
