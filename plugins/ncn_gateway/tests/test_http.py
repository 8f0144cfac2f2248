"""The HTTP API: what it takes, what it gives, and the one envelope of everything that goes wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from ncn_framework.errors import TABLE, NoCapacity, TaskCancelled, WorkerDied
from ncn_framework.proof import verify
from ncn_framework.signing import address_hex

from .fakes import (
    CLIENT,
    DOMAIN,
    GATEWAY,
    MANIFEST,
    MODEL,
    NODE,
    World,
    body,
    client_of,
    floats,
    make_app,
    problem,
    served,
    server_sent_events,
    world,
)

INFERENCE = "/api/v1/inference"
LIMIT = 4096


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        yield found


@pytest.fixture
async def api(gateway: World) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(gateway) as client:
        yield client


async def started(gateway: World, api: httpx.AsyncClient, **changes: Any) -> str:
    """Return the id of a task that executes and is held there."""
    gateway.node.go.clear()
    response = await api.post(INFERENCE, params={"async": "1"}, json=body(**changes))
    assert response.status_code == 202
    await gateway.node.started.wait()
    return str(response.json()["id"])


# --- running a request ---


async def test_answer(gateway: World, api: httpx.AsyncClient) -> None:
    response = await api.post(INFERENCE, json=body())
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert (answer["state"], answer["model"]) == ("SETTLED", MODEL)
    assert [chunk["outputs"][0]["data"] for chunk in answer["chunks"]] == [[1.0, 2.0]] * 2
    assert answer["receipt"]["node"] == address_hex(NODE.address)
    assert answer["receipt"]["request_id"] == answer["id"]
    assert answer["settlement"] == {"mode": "free", "charged_wei": "0", "reference": ""}
    assert (await api.get(f"{INFERENCE}/{answer['id']}")).json() == answer


async def test_answer_in_base64(api: httpx.AsyncClient) -> None:
    encoded = {"name": "x", "data_base64": base64.b64encode(floats(1, 2)).decode()}
    answer = (await api.post(INFERENCE, json=body(model=MODEL, inputs=[encoded], encoding="base64"))).json()
    assert base64.b64decode(answer["chunks"][0]["outputs"][0]["data_base64"]) == floats(1, 2)
    assert (await api.get(f"{INFERENCE}/{answer['id']}?encoding=base64")).json() == answer
    problem(await api.get(f"{INFERENCE}/{answer['id']}?encoding=hex"), 400, "malformed")


@pytest.mark.parametrize(
    ("query", "headers"), [("?async=1", {}), ("?async=true", {}), ("", {"prefer": "wait=5, Respond-Async"})]
)
async def test_start_only(gateway: World, api: httpx.AsyncClient, query: str, headers: dict[str, str]) -> None:
    gateway.node.go.clear()
    response = await api.post(INFERENCE + query, json=body(), headers=headers)
    assert response.status_code == 202
    where = response.headers["location"]
    assert where == f"{INFERENCE}/{response.json()['id']}"
    await gateway.node.started.wait()
    status = (await api.get(where)).json()
    assert (status["state"], status["node"]) == ("EXECUTING", address_hex(NODE.address))
    assert "error" not in status
    gateway.node.go.set()
    task = await gateway.tasks.get(bytes.fromhex(status["id"][2:]))
    await task.wait()
    assert (await api.get(where)).json()["state"] == "SETTLED"


async def test_same_key_same_task(gateway: World, api: httpx.AsyncClient) -> None:
    form = body(deadline_ms=int(time.time() * 1000) + 60_000)
    headers = {"idempotency-key": "order 66"}
    first = await api.post(INFERENCE, json=form, headers=headers)
    again = await api.post(INFERENCE, json=form, headers=headers)
    assert first.status_code == 200
    assert first.json() == again.json()
    assert gateway.node.executed == 1
    problem(await api.post(INFERENCE, json=form, headers={"idempotency-key": ""}), 400, "malformed")
    problem(await api.post(INFERENCE, json=form, headers={"idempotency-key": "k" * 256}), 400, "malformed")


async def test_replay_with_other_content(gateway: World, api: httpx.AsyncClient) -> None:
    form = body(nonce="0x" + "07" * 32, deadline_ms=int(time.time() * 1000) + 60_000)
    assert (await api.post(INFERENCE, json=form)).status_code == 200
    other = {**form, "limit_units": 5}
    problem(await api.post(INFERENCE, json=other), 409, "replay-conflict")
    assert gateway.node.executed == 1


async def test_failure_names_the_task(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.node.error = WorkerDied("the worker was out of memory")
    form = problem(await api.post(INFERENCE, json=body()), 502, "worker-died")
    status = (await api.get(f"{INFERENCE}/{form['request_id']}")).json()
    assert (status["state"], status["error"], form["retryable"]) == ("FAILED", form, True)


async def test_retry_after(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.node.error = NoCapacity("full")
    response = await api.post(INFERENCE, json=body())
    problem(response, 503, "no-capacity")
    assert response.headers["retry-after"] == "1"


async def test_draining(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.tasks.draining = True
    problem(await api.post(INFERENCE, json=body()), 503, "draining")


async def test_extra_route_and_defect(api: httpx.AsyncClient) -> None:
    assert (await api.get("/extra")).text == "extra"
    form = problem(await api.get("/broken"), 500, "internal")
    assert "secret" not in json.dumps(form)


# --- bad input ---


def _input(**changes: Any) -> dict[str, Any]:
    return body(inputs=[{"name": "x", "data": [1.0], **changes}])


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        (body(model="nobody"), 404, "unknown-model"),
        (body(model="0x" + "ab" * 32), 404, "unknown-model"),
        (body(model="0xzz"), 400, "malformed"),
        (body(model=None), 400, "malformed"),
        (body(inputs=None), 400, "malformed"),
        (body(surprise=1), 400, "malformed"),
        (body(inputs=[{"name": "x", "data": [1.0], "surprise": 1}]), 400, "malformed"),
        (body(inputs=[]), 400, "invalid-tensor"),
        (body(inputs=[{"name": "z", "data": [1.0]}]), 400, "invalid-tensor"),
        (body(inputs=[{"name": "x"}]), 400, "invalid-tensor"),
        (_input(dtype="INT64", data=[1]), 400, "invalid-tensor"),
        (_input(dtype="FP33"), 400, "invalid-tensor"),
        (_input(shape=[2]), 400, "invalid-tensor"),
        (_input(shape=[1, 1]), 400, "invalid-tensor"),
        (_input(shape=[-1]), 400, "invalid-tensor"),
        (_input(data=["a"]), 400, "invalid-tensor"),
        (_input(data=None, data_base64="!"), 400, "invalid-tensor"),
        (body(nonce="0x00"), 400, "malformed"),
        (body(limit_units=0), 413, "too-large"),
        (body(limit_units=2**70), 400, "malformed"),
        (body(deadline_ms=1), 408, "deadline-expired"),
        (body(payment="gold"), 400, "bad-request"),
        (body(encoding="hex"), 400, "malformed"),
        (body(client=address_hex(CLIENT.address), nonce="0x" + "01" * 32), 401, "signature-rejected"),
        (body(parameters={f"p{i}": i for i in range(65)}), 413, "too-large"),
    ],
)
async def test_refused_form(
    gateway: World, api: httpx.AsyncClient, form: dict[str, Any], status: int, code: str
) -> None:
    problem(await api.post(INFERENCE, json=form), status, code)
    assert gateway.node.executed == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"model": "echo", "inputs": []} {}',
        b'{"model": "\xff", "inputs": []}',
        b"\xff\xfe",
        b'{"model": "\\ud800", "inputs": []}',
        b'{"model": "echo", "inputs": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"model": "echo", "inputs": [], "parameters": {"p": ' + b'{"p":' * 500 + b"1" + b"}" * 500 + b"}}",
    ],
)
async def test_malformed_content(api: httpx.AsyncClient, content: bytes) -> None:
    problem(await api.post(INFERENCE, content=content), 400, "malformed")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""])
async def test_other_content_type(api: httpx.AsyncClient, kind: str) -> None:
    response = await api.post(INFERENCE, content=json.dumps(body()), headers={"content-type": kind})
    problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize("kind", [None, "application/json; charset=utf-8", "Application/JSON", "application/ncn+json"])
async def test_content_types_of_json(api: httpx.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert (await api.post(INFERENCE, content=json.dumps(body()), headers=headers)).status_code == 200


async def test_compressed_body(api: httpx.AsyncClient) -> None:
    response = await api.post(INFERENCE, content=b"x", headers={"content-encoding": "gzip"})
    problem(response, 415, "unsupported-media-type")
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("declared", [str(LIMIT + 1), "9" * 30, None, "1"])
async def test_large_body_is_not_read_on(api: httpx.AsyncClient, declared: str | None) -> None:
    """Whether its length is declared, absent or a lie."""
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield b" " * 1000

    headers = {} if declared is None else {"content-length": declared}
    response = await api.post(INFERENCE, content=pieces(), headers=headers)
    form = problem(response, 413, "too-large")
    assert str(LIMIT) in form["detail"]
    assert read <= LIMIT + 1000


@pytest.mark.parametrize(
    ("head", "sent"),
    [(b"Content-Length: 100000000", b""), (b"Transfer-Encoding: chunked", (b"800\r\n" + b" " * 0x800 + b"\r\n") * 3)],
)
async def test_large_body_over_a_socket(gateway: World, head: bytes, sent: bytes) -> None:
    """The answer comes while the client would still send, and the connection ends."""
    async with served(make_app(gateway)) as where:
        host, port = where.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/v1/inference HTTP/1.1\r\nHost: gateway\r\n" + head + b"\r\n\r\n" + sent)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too-large"


# --- tasks by id ---


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("0x" + "ab" * 32, 404, "unknown-task"), ("0xab", 400, "malformed"), ("me", 400, "malformed")],
)
async def test_unknown_and_malformed_id(api: httpx.AsyncClient, name: str, status: int, code: str) -> None:
    problem(await api.get(f"{INFERENCE}/{name}"), status, code)
    problem(await api.delete(f"{INFERENCE}/{name}"), status, code)
    problem(await api.get(f"{INFERENCE}/{name}/receipt"), status, code)


async def test_cancel(gateway: World, api: httpx.AsyncClient) -> None:
    name = await started(gateway, api)
    waiting = await gateway.tasks.get(bytes.fromhex(name[2:]))
    response = await api.delete(f"{INFERENCE}/{name}")
    assert (response.status_code, response.json()["id"]) == (202, name)
    with pytest.raises(TaskCancelled):
        await waiting.wait()
    status = (await api.get(f"{INFERENCE}/{name}")).json()
    assert (status["state"], status["error"]["code"]) == ("CANCELLED", "cancelled")
    assert problem(await api.delete(f"{INFERENCE}/{name}"), 409, "task-ended")["detail"].endswith("nothing to cancel")
    problem(await api.get(f"{INFERENCE}/{name}/receipt"), 409, "task-ended")


async def test_receipt_is_a_proof(gateway: World, api: httpx.AsyncClient) -> None:
    name = await started(gateway, api)
    problem(await api.get(f"{INFERENCE}/{name}/receipt"), 409, "task-ended")
    gateway.node.go.set()
    await (await gateway.tasks.get(bytes.fromhex(name[2:]))).wait()
    response = await api.get(f"{INFERENCE}/{name}/receipt")
    assert response.headers["content-type"] == "application/json"
    assert verify(response.content, node=NODE.address).domain == DOMAIN


async def test_tasks_outlive_the_gateway(tmp_path: Path) -> None:
    async with world(tmp_path) as before, client_of(before) as client:
        answer = (await client.post(INFERENCE, json=body())).json()
    async with world(tmp_path) as after, client_of(after) as client:
        assert (await client.get(f"{INFERENCE}/{answer['id']}")).json() == answer


# --- server-sent events ---


async def test_event_stream(api: httpx.AsyncClient) -> None:
    accept = {"accept": "text/event-stream"}
    response = await api.post(INFERENCE, json=body(), headers=accept)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = server_sent_events(response.text)
    assert [index for _, index, _ in events] == [*range(1, len(events)), None]
    kinds = [data["state"] if kind == "event" else kind for kind, _, data in events]
    assert kinds == [
        *("RECEIVED", "ROUTED", "RESERVED", "EXECUTING", "chunk", "chunk"),
        *("EXECUTED", "VALIDATED", "SETTLED", "answer"),
    ]
    answer = events[-1][2]["answer"]
    assert [data["chunk"] for kind, _, data in events if kind == "chunk"] == answer["chunks"]
    where = f"{INFERENCE}/{answer['id']}"
    assert server_sent_events((await api.get(where, headers={**accept, "last-event-id": "5"})).text) == events[5:]
    problem(await api.get(where, headers={**accept, "last-event-id": "-1"}), 400, "malformed")


async def test_event_stream_of_a_failure(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.node.error = WorkerDied("out of memory")
    events = server_sent_events((await api.post(INFERENCE, json=body(), headers={"accept": "text/event-stream"})).text)
    assert events[-2][2]["state"] == "FAILED"
    assert (events[-1][0], events[-1][2]["code"], events[-1][2]["error"]["code"]) == ("error", 4502, "worker-died")


# --- the gateway ---


async def test_models(api: httpx.AsyncClient) -> None:
    [model] = (await api.get("/api/v1/models")).json()["models"]
    assert (model["digest"], model["name"], model["nodes"]) == (MODEL, MANIFEST.name, 1)
    assert model["manifest"]["inputs"] == [{"name": "x", "dtype": "FP32", "shape": [-1]}]


async def test_network(api: httpx.AsyncClient) -> None:
    assert (await api.get("/api/v1/network")).json() == {
        "chain_id": DOMAIN.chain_id,
        "contract": address_hex(DOMAIN.contract),
        "gateway": address_hex(GATEWAY.address),
        "software": "ncn-gateway test",
        "payment_modes": ["free", "voucher", "escrow", "exact"],
    }


async def test_health_and_readiness(gateway: World, api: httpx.AsyncClient) -> None:
    assert (await api.get("/ready")).json() == {"status": "ready"}
    gateway.unready = "no node is connected"
    response = await api.get("/ready")
    assert problem(response, 503, "unavailable")["detail"] == "no node is connected"
    assert "retry-after" in response.headers
    assert (await api.get("/health")).json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/nowhere", INFERENCE + "/", "/api/v1/models/"])
async def test_unknown_path(api: httpx.AsyncClient, path: str) -> None:
    problem(await api.get(path), 404, "not-found")


async def test_other_method(api: httpx.AsyncClient) -> None:
    response = await api.put(f"{INFERENCE}/0x{'ab' * 32}")
    problem(response, 405, "method-not-allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}


async def test_head(gateway: World) -> None:
    async with served(make_app(gateway)) as where, httpx.AsyncClient(base_url=f"http://{where}") as client:
        for path in ("/health", "/api/v1/models", "/openapi.json"):
            whole, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (whole.status_code, b"")
            assert head.headers["content-length"] == str(len(whole.content))


async def test_openapi_is_complete(gateway: World, api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    routes = [r for r in make_app(gateway).routes if isinstance(r, Route) and r.path not in ("/extra", "/broken")]
    assert described == {(r.path, method) for r in routes for method in (r.methods or set()) - {"HEAD"}}
    responses = document["paths"][INFERENCE]["post"]["responses"]
    assert {str(row.http) for row in TABLE.values()} | {"200", "202", "415"} <= responses.keys()
    text = json.dumps(document)
    for name in ("SubmitJson", "AnswerJson", "StatusJson", "ErrorJson", "ModelJson"):
        assert f'"#/components/schemas/{name}"' in text
        assert name in document["components"]["schemas"]
