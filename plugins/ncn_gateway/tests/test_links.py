"""What a leased node is sent, and what of it others are shown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ncn_framework.models import Lease
from ncn_framework.payments import TransferAuthorization, Voucher
from ncn_framework.testing.fakes import fake_request
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import request_from_pb
from ncn_gateway.directory import Directory
from ncn_gateway.links import Execution, NodeLink
from ncn_gateway.sessions import ComputeService

from .fakes import DOMAIN, GATEWAY, MANIFEST, NODE

OWN = TransferAuthorization(b"\1" * 20, b"\2" * 20, 5, 6, 7, b"\3" * 32, b"\4" * 65)
SHOWN = Voucher(GATEWAY.address, GATEWAY.address, NODE.address, 2**90, b"\5" * 65)


@pytest.mark.parametrize(("shown", "seen"), [(None, OWN), (SHOWN, SHOWN)])
async def test_the_node_sees_the_leases_authorization_in_place_of_the_requests(shown: Any, seen: Any) -> None:
    request = fake_request(MANIFEST, authorization=OWN, payment="exact")
    link = NodeLink(Directory(), NODE.address)
    execution = Execution(link, request, Lease("capacity", 3, 1), shown)
    waiting = asyncio.ensure_future(anext(execution))
    frame = await link.frame()
    assert frame is not None
    [sent] = frame.messages
    received = request_from_pb(sent.task.request)
    assert (received.authorization, sent.task.lease_token) == (seen, 3)
    assert received.request_hash == request.request_hash
    assert link.executions[request.request_id].request is request
    waiting.cancel()


async def test_who_knows_the_id_is_not_shown_what_was_signed() -> None:
    request = fake_request(MANIFEST, authorization=SHOWN)
    service = ComputeService(None, Directory(), GATEWAY.address, DOMAIN, 1000, "test")  # type: ignore[arg-type]
    link = NodeLink(Directory(), NODE.address)
    service.links.add(link)
    link.executions[request.request_id] = Execution(link, request, Lease("capacity", 3, 1))
    found = await service.GetTask(mpb.TaskID(id=request.request_id), None)  # type: ignore[arg-type]
    assert found.nonce == request.nonce
    assert found.WhichOneof("authorization") is None
