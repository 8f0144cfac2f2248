"""What a gateway shows to validators: a request with its whole answer, from memory and from disk, or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ncn_framework import digests
from ncn_framework.models import Chunk, Lease, SignedReceipt
from ncn_framework.payments import Voucher
from ncn_framework.statements import Evidence
from ncn_framework.wire.json import SubmitJson, decode, encode
from ncn_gateway.directory import Directory
from ncn_gateway.links import Execution, NodeLink
from ncn_gateway.tasks import Tasks

from .fakes import MANIFEST, NODE, World, body, world


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as opened:
        yield opened


def admitted(gateway: World, **changes: object) -> object:
    """Return the request ``body(**changes)``, admitted."""
    return gateway.tasks.admit(decode(encode(body(**changes)), SubmitJson))


def recomputed(evidence: Evidence) -> bytes:
    """Return the output hash that the chunks have."""
    request, receipt = evidence.request, evidence.receipt.receipt
    link = digests.chain_start(request.request_hash, request.model, receipt.node)
    for chunk in evidence.chunks:
        link = digests.chunk_link(link, chunk)
    return link


async def test_a_settled_request_is_shown_from_memory_and_from_disk(gateway: World) -> None:
    task = await gateway.tasks.submit(admitted(gateway))  # type: ignore[arg-type]
    outcome = await task.wait()
    shown = task.evidence()
    assert shown == Evidence(task.request, outcome.chunks, outcome.receipt, MANIFEST)
    assert recomputed(shown) == shown.receipt.receipt.output_hash
    tasks = gateway.tasks
    restarted = Tasks(tasks.lifecycle, tasks.directory, tasks.store, tasks.settings)
    assert (await restarted.get(task.request.request_id)).evidence() == shown


async def test_a_request_in_flight_is_shown_once_its_node_has_signed(gateway: World) -> None:
    """As a validator needs it before it signs for an escrow."""
    gateway.node.go.clear()
    task = await gateway.tasks.submit(admitted(gateway))  # type: ignore[arg-type]
    await gateway.node.started.wait()
    assert task.evidence() is None
    link = NodeLink(Directory(), NODE.address)
    execution = Execution(link, task.request, Lease("capacity", 1, 1))
    gateway.tasks.executing(task.request.request_id, execution)
    assert task.evidence() is None
    gateway.node.go.set()
    outcome = await task.wait()
    assert task.execution is None, "nothing of its node is kept"
    execution.give(Chunk(1, 1, b""))
    assert execution.receipt is None
    execution.give(SignedReceipt(outcome.receipt.receipt, ()))
    task.outcome, task.execution = None, execution  # as it is while it settles
    signed = SignedReceipt(outcome.receipt.receipt, ())
    assert task.evidence() == Evidence(task.request, outcome.chunks, signed, MANIFEST)


async def test_what_paid_for_a_request_is_not_shown(gateway: World) -> None:
    task = await gateway.tasks.submit(admitted(gateway))  # type: ignore[arg-type]
    await task.wait()
    task.request = replace(task.request, authorization=Voucher(bytes(20), bytes(20), bytes(20), 1, bytes(65)))
    shown = task.evidence()
    assert shown is not None
    assert shown.request.authorization is None
    assert shown.request.request_hash == task.request.request_hash


async def test_a_request_that_failed_has_nothing_to_show(gateway: World) -> None:
    gateway.node.error = ZeroDivisionError()
    task = await gateway.tasks.submit(admitted(gateway))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="a plugin failed"):
        await task.wait()
    assert task.evidence() is None
