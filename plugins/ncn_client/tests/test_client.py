"""Both clients: what they send and what they return."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ncn_client import AsyncClient, Client, Task
from ncn_client.answers import Answer
from ncn_framework.errors import (
    InvalidTensor,
    MalformedRequest,
    NcnError,
    OutputRejected,
    ReplayConflict,
    RequestError,
    UnknownModel,
    UnknownTask,
)
from ncn_framework.models import ANONYMOUS, Receipt
from ncn_framework.proof import verify
from ncn_framework.signing import address_hex
from ncn_framework.tensors import Tensor
from ncn_framework.wire.json import StatusJson

from .fakes import ADDER, CLIENT, DOMAIN, EMBEDDER, NODE, FakeGateway

NODE_HEX = address_hex(NODE.address)
TEXTS = {"text": ["one", "three"]}


# --- answers ---


def test_infer(client: Client, gateway: FakeGateway) -> None:
    answer = client.infer("minilm", TEXTS, parameters={"t": 0.5}, limit_units=50, timeout_s=9)
    assert (
        answer.values("embedding") == answer.vectors == [[3 + i / 8 for i in range(8)], [5 + i / 8 for i in range(8)]]
    )
    assert answer.outputs["embedding"].shape == (2, 8)
    assert answer.receipt.receipt.node == NODE.address
    assert answer.proof.domain == DOMAIN
    assert answer.settlement is not None
    assert answer.settlement.mode == "free"
    (body,) = gateway.bodies
    assert (body.encoding, body.client, body.signature, body.limit_units) == ("base64", None, None, 50)
    assert body.parameters == {"t": 0.5}
    assert body.model == "0x" + EMBEDDER.digest.hex()
    assert gateway.seen == ["GET /api/v1/models", "GET /api/v1/network", "POST /api/v1/inference"]


async def test_infer_without_blocking(asking: AsyncClient) -> None:
    answer = await asking.infer("minilm", TEXTS)
    assert [vector[0] for vector in answer.vectors] == [3, 5]
    assert [vector[0] for vector in (await asking.embed("four")).vectors] == [4]


def test_embed_one_and_many(client: Client) -> None:
    assert [vector[0] for vector in client.embed("four").vectors] == [4]
    assert [vector[0] for vector in client.embed(["a", "bb"]).vectors] == [1, 2]
    with pytest.raises(InvalidTensor, match="adder"):
        client.embed("x", model="adder")


def test_embed_that_gives_too_few_vectors(client: Client, gateway: FakeGateway) -> None:
    gateway.cut = lambda tensors: [Tensor("embedding", "FP32", (1, 8), bytes(32))]
    with pytest.raises(OutputRejected, match="1 vectors for 2 texts"):
        client.embed(["a", "b"])


def test_a_saved_answer_verifies(client: Client, tmp_path: Path) -> None:
    answer = client.embed("four")
    answer.save(tmp_path / "answer.json")
    assert verify((tmp_path / "answer.json").read_bytes(), node=NODE.address) == answer.proof


def test_a_signer_signs(gateway: FakeGateway) -> None:
    with Client("http://gateway", signer=CLIENT, transport=httpx.MockTransport(gateway)) as client:
        answer = client.infer("minilm", TEXTS, payment="voucher")
    assert answer.proof.request.client == CLIENT.address
    assert gateway.bodies[0].client == address_hex(CLIENT.address)
    assert answer.receipt.receipt.fee_wei == 25
    assert answer.settlement is not None
    assert answer.settlement.charged_wei == 25


def test_streamed_answers(client: Client, gateway: FakeGateway) -> None:
    gateway.pieces = 3
    answer = client.infer("adder", {"x": [[1, 2], [3, 4]], "n": 1})
    assert len(answer.parts) == 3
    assert answer.values("sum") == [3, 7, 4, 8, 5, 9]
    assert answer.values("note") == [b"\xffpart 0", b"\xffpart 1", b"\xffpart 2"]
    with pytest.raises(NcnError, match="3 chunks"):
        _ = answer.outputs
    with pytest.raises(NcnError, match="no output 'other'"):
        answer.values("other")
    with pytest.raises(NcnError, match="0 outputs"):
        _ = answer.vectors


def test_models_by_name_and_digest(client: Client, gateway: FakeGateway) -> None:
    assert [model.name for model in client.models()] == ["minilm", "adder"]
    for wanted in ("adder", ADDER.digest, "0x" + ADDER.digest.hex()):
        assert client.model(wanted).manifest == ADDER
    assert gateway.seen == ["GET /api/v1/models"]
    with pytest.raises(UnknownModel, match="served: adder, minilm"):
        client.model("other")


def test_two_models_of_one_name(client: Client, gateway: FakeGateway) -> None:
    gateway.catalogue = lambda models: models.append(models[0])
    with pytest.raises(RequestError, match="0x"):
        client.model("minilm")


def test_health(client: Client) -> None:
    assert client.health() == {"status": "ok"}


def test_a_model_that_left_is_looked_up_again(client: Client, gateway: FakeGateway) -> None:
    client.models()
    prepared = client.prepare("minilm", TEXTS)
    gone = replace(prepared, request=replace(prepared.request, model=b"\x01" * 32))
    with pytest.raises(UnknownModel):
        client.send(gone)
    client.model("minilm")
    assert gateway.seen.count("GET /api/v1/models") == 2


# --- tasks ---


def test_submit_get_cancel(client: Client, gateway: FakeGateway) -> None:
    task = client.submit("minilm", TEXTS)
    assert isinstance(task, Task)
    assert task.status.state == "RECEIVED"
    gateway.settled = False
    status = client.get(task)
    assert isinstance(status, StatusJson)
    assert status.state == "EXECUTING"
    gateway.settled = True
    for named in (task, task.prepared, task.id, bytes.fromhex(task.id[2:])):
        answer = client.get(named)
        assert isinstance(answer, Answer)
        assert answer.proof == client.proof(named)
        assert answer.settlement is not None
    assert client.cancel(task).state == "CANCELLED"
    with pytest.raises(UnknownTask):
        client.get(bytes(32))
    with pytest.raises(MalformedRequest):
        client.get("0x12")


async def test_submit_get_cancel_without_blocking(asking: AsyncClient) -> None:
    task = await asking.submit("minilm", TEXTS)
    answer = await asking.get(task)
    assert isinstance(answer, Answer)
    assert await asking.proof(task) == answer.proof
    assert (await asking.cancel(task)).id == task.id
    assert len(await asking.models()) == 2
    assert (await asking.model("adder")).nodes == 2
    assert (await asking.health())["status"] == "ok"
    assert (await asking.send(task.prepared)).proof == answer.proof


def test_sent_twice_is_executed_once(client: Client, gateway: FakeGateway) -> None:
    prepared = client.prepare("minilm", TEXTS)
    assert client.send(prepared).proof == client.send(prepared).proof
    assert gateway.executed == 1
    same: Any = {"nonce": b"\x09" * 32, "deadline_ms": prepared.request.deadline_ms}
    assert client.infer("minilm", TEXTS, **same).proof == client.infer("minilm", TEXTS, **same).proof
    with pytest.raises(ReplayConflict):
        client.infer("minilm", {"text": "other"}, **same)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"limit_units": 0}, "limit_units is 0"),
        ({"limit_units": 2**63}, "limit_units"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"nonce": b"1"}, "nonce"),
        ({"parameters": {"t": float("nan")}}, "'t' is nan"),
        ({"parameters": {"t": 2**63}}, "'t' is"),
    ],
)
def test_bad_options(client: Client, options: Any, what: str) -> None:
    with pytest.raises(MalformedRequest, match=what):
        client.prepare("minilm", TEXTS, **options)


def test_waiting_time_follows_the_deadline(gateway: FakeGateway) -> None:
    waits: list[float] = []

    def handler(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return gateway(request)

    with Client("http://gateway", timeout_s=30, transport=httpx.MockTransport(handler)) as client:
        client.infer("minilm", TEXTS, timeout_s=100)
    assert 104 < waits[-1] <= 105


def test_receipts_are_of_the_kernel(client: Client) -> None:
    receipt = client.embed("x").receipt.receipt
    assert isinstance(receipt, Receipt)
    assert client.prepare("minilm", TEXTS).request.client == ANONYMOUS
    assert json.loads(client.embed("x").proof.to_json())["schema"] == "ncn.proof.v1"


def test_examples_of_the_readme_run(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIENT_KEY", "33" * 32)
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(gateway))
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda **_: httpx.MockTransport(gateway))
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        exec(block, {})  # noqa: S102 - our own README
    assert (tmp_path / "answer.json").exists()
    assert NODE_HEX in capsys.readouterr().out
