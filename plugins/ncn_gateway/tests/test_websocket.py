"""The WebSocket: several tasks over one connection, and nothing a client sends ends it but what is too large."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ncn_framework.errors import PaymentRequired, WorkerDied
from ncn_framework.states import State
from ncn_framework.wire.json import decode, encode
from ncn_framework.wire.json_payments import PaymentJson, payment_from_json
from ncn_gateway.http import build_app

from .fakes import World, body, served, world

LIMIT = 4096
FOLLOWED = 3


@dataclass
class Peer:
    """A connected client."""

    socket: ClientConnection

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def hear(self, *expected: str) -> dict[str, Any]:
        """Return the next message, which must be of a type in ``expected`` where any are given."""
        message: dict[str, Any] = json.loads(await self.socket.recv())
        assert not expected or message["type"] in expected, message
        return message

    async def hear_until(self, *kinds: str) -> list[dict[str, Any]]:
        """Return all messages up to the first of a type in ``kinds``."""
        found = [await self.hear()]
        while found[-1]["type"] not in kinds:
            found.append(await self.hear())
        return found

    async def submit(self, ref: str = "r", **changes: Any) -> str:
        """Submit a request and return its id."""
        await self.send("submit", ref=ref, request=body(**changes))
        accepted = await self.hear("accepted")
        assert accepted["ref"] == ref
        return str(accepted["id"])

    async def hang_up_code(self) -> int:
        """Return the code that the gateway ends the connection with."""
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                await self.socket.recv()
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code


@dataclass
class Served:
    """A gateway that listens."""

    world: World
    app: Starlette
    where: str
    closing: asyncio.Event

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        async with connect(f"ws://{self.where}/ws", max_size=None) as socket:
            yield Peer(socket)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Served]:
    async with world(tmp_path) as found:
        closing = asyncio.Event()
        app = build_app(
            found.tasks,
            found.info,
            max_body_bytes=LIMIT,
            closing=closing,
            max_followed=FOLLOWED,
        )
        async with served(app, closing) as where:
            yield Served(found, app, where, closing)


@pytest.fixture
async def peer(gateway: Served) -> AsyncIterator[Peer]:
    async with gateway.peer() as found:
        yield found


async def test_submission_streams(gateway: Served, peer: Peer) -> None:
    name = await peer.submit("first")
    messages = await peer.hear_until("answer")
    assert {m["id"] for m in messages} == {name}
    assert [m.get("state", m["type"]) for m in messages] == [
        *("RECEIVED", "ROUTED", "RESERVED", "EXECUTING", "chunk", "chunk"),
        *("EXECUTED", "VALIDATED", "SETTLED", "answer"),
    ]
    assert [m["index"] for m in messages[:-1]] == list(range(1, len(messages)))
    answer = messages[-1]["answer"]
    assert [m["chunk"] for m in messages if m["type"] == "chunk"] == answer["chunks"]
    assert answer["receipt"]["output_hash"] == answer["chunks"][-1]["link"]
    async with httpx.AsyncClient(base_url=f"http://{gateway.where}") as client:
        assert (await client.get(f"/api/v1/inference/{name}")).json() == answer


async def test_moves_come_as_they_happen(gateway: Served, peer: Peer) -> None:
    gateway.world.node.go.clear()
    await peer.submit()
    messages = await peer.hear_until("chunk")
    assert messages[-2]["state"] == "EXECUTING"
    gateway.world.node.go.set()
    await peer.hear_until("answer")


async def test_an_event_says_what_is_due(gateway: Served, peer: Peer) -> None:
    name = await peer.submit(payment="escrow")
    moved = [await peer.hear("event") for _ in range(4)]
    assert [("payment" in m, m["state"]) for m in moved][2:] == [(False, "RESERVED"), (True, "AWAITING_PAYMENT")]
    escrow = gateway.world.funds.escrows[bytes.fromhex(name[2:])]
    assert payment_from_json(decode(encode(moved[-1]["payment"]), PaymentJson)) == escrow.due
    escrow.arrived.set()
    assert (await peer.hear_until("answer"))[-1]["answer"]["payment"] == "escrow"


async def test_a_refused_payment_ends_nothing(gateway: Served, peer: Peer) -> None:
    gateway.world.funds.refusal = PaymentRequired("nothing was signed")
    await peer.send("submit", ref="mine", request=body())
    error = await peer.hear("error")
    assert (error["ref"], error["code"], error["error"]["code"]) == ("mine", 4402, "payment-required")
    gateway.world.funds.refusal = None
    await peer.submit()


async def test_several_tasks_at_once(gateway: Served, peer: Peer) -> None:
    gateway.world.node.go.clear()
    for ref in ("a", "b", "c"):
        await peer.send("submit", ref=ref, request=body())
    names: dict[str, str] = {}
    while len(names) < 3:
        accepted = (await peer.hear_until("accepted"))[-1]
        names[accepted["ref"]] = accepted["id"]
    gateway.world.node.go.set()
    ended = [(await peer.hear_until("answer"))[-1]["id"] for _ in names]
    assert sorted(ended) == sorted(names.values())


async def test_resume_behind_an_index(peer: Peer) -> None:
    name = await peer.submit()
    first = await peer.hear_until("answer")
    await peer.send("subscribe", id=name, after=4)
    assert await peer.hear_until("answer") == first[4:]
    await peer.send("subscribe", id=name, encoding="base64")
    chunk = (await peer.hear_until("chunk"))[-1]["chunk"]
    assert "data_base64" in chunk["outputs"][0]


async def test_another_connection_may_follow(gateway: Served, peer: Peer) -> None:
    gateway.world.node.go.clear()
    name = await peer.submit()
    async with gateway.peer() as other:
        await other.send("subscribe", id=name)
        await other.hear_until("chunk")
        gateway.world.node.go.set()
        theirs, mine = (await other.hear_until("answer"))[-1], (await peer.hear_until("answer"))[-1]
    assert theirs == mine


async def test_same_submission_streams_once(gateway: Served, peer: Peer) -> None:
    gateway.world.node.go.clear()
    changes = {"nonce": "0x" + "09" * 32, "deadline_ms": gateway.world.tasks.lifecycle.clock() + 60_000}
    name = await peer.submit("a", **changes)
    await peer.hear_until("chunk")
    assert await peer.submit("b", **changes) == name
    await peer.send("subscribe", id=name)
    assert (await peer.hear("error"))["error"]["code"] == "bad-request"
    await peer.send("submit", ref="c", request=body(**{**changes, "limit_units": 7}))
    conflict = await peer.hear("error")
    assert (conflict["ref"], conflict["code"], conflict["error"]["code"]) == ("c", 4409, "replay-conflict")
    gateway.world.node.go.set()
    rest = await peer.hear_until("answer")
    assert [m["type"] for m in rest].count("chunk") == 1
    assert gateway.world.node.executed == 1


async def test_cancel(gateway: Served, peer: Peer) -> None:
    gateway.world.node.go.clear()
    name = await peer.submit()
    await peer.hear_until("chunk")
    await peer.send("cancel", id=name)
    moved, failed = await peer.hear("event"), await peer.hear("error")
    assert moved["state"] == "CANCELLED"
    assert (failed["id"], failed["code"], failed["error"]["code"]) == (name, 4409, "cancelled")
    await peer.send("cancel", id=name)
    again = await peer.hear("error")
    assert (again["id"], again["code"], again["error"]["code"]) == (name, 4409, "task-ended")


async def test_failed_task(gateway: Served, peer: Peer) -> None:
    gateway.world.node.error = WorkerDied("out of memory")
    name = await peer.submit()
    *_, moved, failed = await peer.hear_until("error")
    assert (moved["state"], moved["detail"]) == ("FAILED", "worker-died: out of memory")
    assert (failed["id"], failed["code"], failed["error"]["code"]) == (name, 4502, "worker-died")


@pytest.mark.parametrize(
    ("fields", "code", "slug"),
    [
        ({"model": "nobody"}, 4404, "unknown-model"),
        ({"inputs": [{"name": "x", "dtype": "INT8", "data": [1]}]}, 4400, "invalid-tensor"),
        ({"inputs": [{"name": "x", "shape": [3], "data": [1.0]}]}, 4400, "invalid-tensor"),
        ({"deadline_ms": 1}, 4408, "deadline-expired"),
        ({"nonce": "0x12"}, 4400, "malformed"),
        ({"surprise": 1}, 4400, "malformed"),
        ({"inputs": None}, 4400, "malformed"),
    ],
)
async def test_refused_submission(peer: Peer, fields: dict[str, Any], code: int, slug: str) -> None:
    await peer.send("submit", ref="mine", request=body(**fields))
    error = await peer.hear("error")
    assert (error["ref"], error["code"], error["error"]["code"]) == ("mine", code, slug)
    await peer.send("ping")
    await peer.hear("pong")


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "null",
        '{"type":"ping"} {}',
        '{"type":"shout"}',
        '{"ref":"a"}',
        '{"type":"ping","extra":1}',
        '{"type":"submit","ref":"a"}',
        '{"type":"subscribe","id":"0x00","after":-1}',
        '{"type":"submit","ref":"' + "r" * 129 + '","request":{"model":"echo","inputs":[]}}',
        '{"type":"submit","ref":"\\ud800"}',
        "[" * 2000,
        '{"type":"submit","ref":"a","request":' + '{"a":' * 500 + "1" + "}" * 501,
        b'{"type":"ping"}',
        b"\xff\xfe",
    ],
)
async def test_malformed_message_ends_nothing(peer: Peer, message: str | bytes) -> None:
    await peer.socket.send(message)
    error = await peer.hear("error")
    assert (error["code"], error["error"]["code"]) == (4400, "malformed")
    await peer.send("ping")
    await peer.hear("pong")


@pytest.mark.parametrize(
    ("name", "code"), [("0x" + "ab" * 32, "unknown-task"), ("0xab", "malformed"), ("", "malformed")]
)
@pytest.mark.parametrize("kind", ["subscribe", "cancel"])
async def test_unknown_and_malformed_id(peer: Peer, kind: str, name: str, code: str) -> None:
    await peer.send(kind, id=name)
    error = await peer.hear("error")
    assert (error["id"], error["error"]["code"]) == (name, code)


async def test_large_message(gateway: Served, peer: Peer) -> None:
    await peer.socket.send(json.dumps({"type": "ping", "extra": "x" * LIMIT}))
    assert await peer.hang_up_code() == 1009
    async with gateway.peer() as other:
        await other.send("ping")
        await other.hear("pong")


async def test_bound_on_followed_tasks(gateway: Served, peer: Peer) -> None:
    gateway.world.node.go.clear()
    for number in range(FOLLOWED):
        await peer.send("submit", ref=str(number), request=body())
    for _ in range(FOLLOWED):
        await peer.hear_until("accepted")
    await peer.send("submit", ref="late", request=body())
    error = (await peer.hear_until("error"))[-1]
    assert (error["ref"], error["code"], error["error"]["retryable"]) == ("late", 4503, True)
    gateway.world.node.go.set()
    for _ in range(FOLLOWED):
        await peer.hear_until("answer")
    await peer.submit("now")


async def test_task_goes_on_without_its_client(gateway: Served) -> None:
    gateway.world.node.go.clear()
    async with gateway.peer() as peer:
        name = await peer.submit()
        await peer.hear_until("chunk")
        peer.socket.transport.abort()
    gateway.world.node.go.set()
    task = await gateway.world.tasks.get(bytes.fromhex(name[2:]))
    await task.wait()
    assert task.state is State.SETTLED
    async with gateway.peer() as other:
        await other.send("subscribe", id=name)
        assert (await other.hear_until("answer"))[-1]["id"] == name


async def test_client_that_does_not_read(gateway: Served) -> None:
    """It is told to go once too many replies wait for it, and its messages are still taken, so that it can go."""
    sent: list[dict[str, Any]] = []
    told, stuck = asyncio.Event(), asyncio.Event()
    coming = [{"type": "websocket.connect"}] + [{"type": "websocket.receive", "text": '{"type":"ping"}'}] * 1000

    async def receive() -> dict[str, Any]:
        if coming:
            return coming.pop(0)
        await told.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "websocket.close":
            told.set()
        if message["type"] != "websocket.accept":
            await stuck.wait()

    await gateway.app({"type": "websocket", "path": "/ws", "headers": [], "query_string": b""}, receive, send)
    assert not coming
    assert sent[-1]["code"] == 1008


async def test_client_that_says_nothing(gateway: Served, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    await peer.send("ping")
    await peer.hear("pong")
    monkeypatch.setattr("ncn_gateway.websocket._FIRST_MESSAGE_S", 0.001)
    async with gateway.peer() as silent:
        assert await silent.hang_up_code() == 1008
    await peer.send("ping")
    await peer.hear("pong")


async def test_shutdown(gateway: Served, peer: Peer) -> None:
    gateway.world.node.go.clear()
    await peer.submit()
    gateway.closing.set()
    assert await peer.hang_up_code() == 1012
    assert not gateway.world.tasks.draining


async def test_no_orphans(gateway: Served) -> None:
    async def converse() -> None:
        async with gateway.peer() as peer:
            await peer.submit()
            await peer.hear_until("answer")

    await converse()  # the server has its own tasks by now
    before = asyncio.all_tasks()
    await converse()
    left = asyncio.all_tasks() - before
    if left:  # what the server still does about the closed socket
        await asyncio.wait(left, timeout=5)
    assert all(task.done() for task in left)


async def test_schema(gateway: Served) -> None:
    async with httpx.AsyncClient(base_url=f"http://{gateway.where}") as client:
        response = await client.get("/ws/schema.json")
    assert response.headers["content-type"] == "application/schema+json"
    assert response.json()["discriminator"]["mapping"].keys() == {
        *("submit", "subscribe", "cancel", "ping"),
        *("accepted", "event", "chunk", "answer", "error", "pong"),
    }
