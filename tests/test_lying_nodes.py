"""A real gateway against a compute node that lies, breaks or hangs: each its own error, no lease left, life goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ncn_framework import digests
from ncn_framework.errors import (
    ChainBroken,
    DeadlineExpired,
    ModelFailed,
    NcnError,
    NodeError,
    NodeLost,
    OutputRejected,
    ReceiptRejected,
    StageTimeout,
)
from ncn_framework.models import Chunk
from ncn_framework.tensors import Tensor, pack_tensors
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import request_from_pb
from tests.nodes import OTHER, SIGNER, Reply, a_world


def _other_fields(reply: Reply) -> None:
    reply.receipt = replace(reply.receipt, units=3)


def _overcharges(reply: Reply) -> None:
    reply.receipt = replace(reply.receipt, fee_wei=reply.receipt.fee_wei + 1)


def _other_key(reply: Reply) -> None:
    reply.signer = OTHER


def _broken_link(reply: Reply) -> None:
    reply.chunks[1] = replace(reply.chunks[1], link=bytes(32))


def _dropped_chunk(reply: Reply) -> None:
    del reply.chunks[0]


def _reordered(reply: Reply) -> None:
    reply.chunks.reverse()


def _altered_data(reply: Reply) -> None:
    data = pack_tensors([Tensor("y", "FP32", (2,), bytes(8))])
    reply.chunks[0] = replace(reply.chunks[0], data=data)


def _relinked(reply: Reply, data: bytes) -> None:
    """Send ``data`` in a chain and a receipt that are right about it."""
    request = request_from_pb(reply.task.request)
    chunk = Chunk(1, 1, data)
    link = digests.chunk_link(digests.chain_start(request.request_hash, request.model, SIGNER.address), chunk)
    reply.chunks = [replace(chunk, link=link)]
    reply.receipt = replace(reply.receipt, chunks=1, units=1, output_hash=link)


def _lying_shape(reply: Reply) -> None:
    _relinked(reply, pack_tensors([Tensor("y", "FP32", (1000,), bytes(8))]))


def _lying_dtype(reply: Reply) -> None:
    _relinked(reply, pack_tensors([Tensor("y", "FP64", (1,), bytes(8))]))


def _no_tensors(reply: Reply) -> None:
    _relinked(reply, b"\xc1 this is no encoding")


def _no_output(reply: Reply) -> None:
    reply.chunks = []


def _error_of_the_model(reply: Reply) -> None:
    reply.chunks, reply.error = [], mpb.Error(code="model-failed", message="the model divided by zero")


def _blames_the_client(reply: Reply) -> None:
    reply.chunks, reply.error = [], mpb.Error(code="signature-rejected", message="the client is a thief")


def _hangs_up(reply: Reply) -> None:
    reply.hang_up = True


LIES: list[tuple[Callable[[Reply], None], type[NcnError]]] = [
    (_other_fields, ReceiptRejected),
    (_overcharges, ReceiptRejected),
    (_other_key, ReceiptRejected),
    (_broken_link, ChainBroken),
    (_dropped_chunk, ChainBroken),
    (_reordered, ChainBroken),
    (_altered_data, ChainBroken),
    (_lying_shape, OutputRejected),
    (_lying_dtype, OutputRejected),
    (_no_tensors, OutputRejected),
    (_no_output, OutputRejected),
    (_error_of_the_model, ModelFailed),
    (_blames_the_client, NodeError),
    (_hangs_up, NodeLost),
]


@pytest.mark.parametrize(("lie", "expected"), LIES, ids=[lie.__name__.strip("_") for lie, _ in LIES])
async def test_a_lie_is_its_own_error(lie: Callable[[Reply], None], expected: type[NcnError], tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        assert await world.ask() == [1.0, 2.0]
        world.node.lie = lie
        world.node.connected.clear()
        with pytest.raises(NcnError) as caught:
            await world.ask()
        assert type(caught.value) is expected
        assert world.in_flight() == 0
        world.node.lie = lambda reply: None
        if lie is _hangs_up:
            await world.node.connected.wait()
            while SIGNER.address not in world.directory.nodes:
                await asyncio.sleep(0.01)
        assert await world.ask() == [1.0, 2.0]


async def test_a_node_that_hangs_is_cancelled_at_the_stage_limit(tmp_path: Path) -> None:
    async with a_world(tmp_path, NCN_EXECUTE_TIMEOUT_MS="200") as world:
        world.node.lie = _silent
        with pytest.raises(StageTimeout):
            await world.ask()
        await world.node.cancelled.wait()
        assert world.in_flight() == 0
        world.node.lie = lambda reply: None
        assert await world.ask() == [1.0, 2.0]


async def test_a_node_that_hangs_is_cancelled_at_the_deadline(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.node.lie = _silent
        with pytest.raises(DeadlineExpired):
            await world.ask(timeout_s=0.3)
        await world.node.cancelled.wait()
        assert world.in_flight() == 0


async def test_a_node_without_heartbeats_is_gone(tmp_path: Path) -> None:
    async with a_world(tmp_path, NCN_GATEWAY_HEARTBEAT_INTERVAL_MS="100") as world:
        world.node.lie = _silent
        with pytest.raises(NodeLost, match="heartbeat"):
            await world.ask()


def _silent(reply: Reply) -> None:
    reply.silent = True
