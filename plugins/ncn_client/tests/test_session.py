"""No lie of a gateway or of a node gets through, and what is refused is named."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest

from ncn_client import Client
from ncn_framework.errors import VerificationError
from ncn_framework.models import Domain
from ncn_framework.signing import address_hex
from ncn_framework.tensors import Tensor
from ncn_framework.wire.json import AnswerJson, TensorJson

from .fakes import EMBEDDER, NODE, OTHER, FakeGateway, resigned

TEXTS = {"text": ["one", "three"]}


def _flip(text: str) -> str:
    return text[:-1] + ("0" if text[-1] != "0" else "1")


def _data(form: AnswerJson) -> None:
    form.chunks[0].outputs[0] = TensorJson("embedding", "FP32", [2, 8], data=[0.0] * 16)


def _link(form: AnswerJson) -> None:
    form.chunks[0].link = _flip(form.chunks[0].link)


def _signature(form: AnswerJson) -> None:
    value = form.receipt.signatures[0].value
    form.receipt.signatures[0].value = value[:10] + _flip(value[10:12]) + value[12:]


def _unsigned(form: AnswerJson) -> None:
    form.receipt.signatures = []


def _by_another(form: AnswerJson) -> None:
    form.receipt.signatures[0].signer = address_hex(OTHER.address)


def _impostor(form: AnswerJson) -> None:
    resigned(form, OTHER)
    form.receipt.signatures[0].signer = address_hex(NODE.address)


def _shape(form: AnswerJson) -> None:
    form.chunks[0].outputs[0].shape = [2**70, 0]


LIES: list[tuple[str, Callable[[AnswerJson], object]]] = [
    ("id", lambda form: setattr(form, "id", _flip(form.id))),
    ("chunks[0]", _data),
    ("chunks[0]", _link),
    ("chunks[0]", _shape),
    ("chunks", lambda form: form.chunks.clear()),
    ("chunks[1].sequence", lambda form: form.chunks.append(form.chunks[0])),
    ("receipt.signatures[0]", _signature),
    ("receipt.signatures", _unsigned),
    ("receipt.signatures", _by_another),
    ("receipt.signatures[0]", _impostor),
    ("receipt.units", lambda form: setattr(form.receipt, "units", 6)),
    ("receipt.fee_wei", lambda form: resigned(form, NODE, fee_wei="7")),
    ("receipt.units", lambda form: resigned(form, NODE, units=6)),
    ("receipt.output_hash", lambda form: resigned(form, NODE, output_hash="0x" + "00" * 32)),
    ("receipt.request_hash", lambda form: resigned(form, NODE, request_hash="0x" + "00" * 32)),
    ("receipt.request_id", lambda form: resigned(form, NODE, request_id="0x" + "00" * 32)),
    ("receipt.model", lambda form: resigned(form, NODE, model="0x" + "00" * 32)),
    ("receipt.finished_ms", lambda form: resigned(form, NODE, finished_ms=1)),
    ("receipt.signatures[0]", lambda form: setattr(form.receipt, "started_ms", 1)),
    ("chunks[0]", lambda form: resigned(form, OTHER, node=address_hex(OTHER.address))),
    ("receipt", lambda form: setattr(form.receipt, "node", "0x12")),
    ("settlement.charged_wei", lambda form: setattr(form.settlement, "charged_wei", "-1")),
]


@pytest.mark.parametrize(("place", "lie"), LIES)
def test_a_lying_gateway(client: Client, gateway: FakeGateway, place: str, lie: Callable[[AnswerJson], object]) -> None:
    gateway.lie = lie
    with pytest.raises(VerificationError) as caught:
        client.infer("minilm", TEXTS)
    assert caught.value.where == place


def test_a_node_that_signs_a_wrong_receipt(client: Client, gateway: FakeGateway) -> None:
    gateway.change = lambda receipt: replace(receipt, units=4)
    with pytest.raises(VerificationError, match=r"receipt\.units"):
        client.infer("minilm", TEXTS)


def test_a_node_that_takes_more_units_than_allowed(client: Client) -> None:
    with pytest.raises(VerificationError, match=r"chunks\[0\]\.units"):
        client.infer("minilm", TEXTS, limit_units=4)


def test_a_receipt_by_another_key(client: Client, gateway: FakeGateway) -> None:
    gateway.signer = OTHER
    with pytest.raises(VerificationError, match=r"receipt\.signatures\[0\]"):
        client.infer("minilm", TEXTS)


def test_outputs_that_the_manifest_does_not_promise(client: Client, gateway: FakeGateway) -> None:
    gateway.cut = lambda tensors: [Tensor("embedding", "FP32", (2, 4), struct.pack("<8f", *range(8)))]
    with pytest.raises(VerificationError, match=r"chunks\[0\]\.outputs"):
        client.infer("minilm", TEXTS)


def test_a_manifest_of_another_model(client: Client, gateway: FakeGateway) -> None:
    gateway.catalogue = lambda models: models[0].manifest.update(version="2")
    with pytest.raises(VerificationError, match=r"models\[0\]\.digest"):
        client.models()
    gateway.catalogue = lambda models: models[1].manifest.update(runtime=1)
    with pytest.raises(VerificationError, match=r"models\[1\]\.manifest"):
        client.models()


def test_a_required_node_and_domain(gateway: FakeGateway) -> None:
    transport = httpx.MockTransport(gateway)
    with (
        Client("http://gateway", node=OTHER.address, transport=transport) as client,
        pytest.raises(VerificationError, match=r"receipt\.node"),
    ):
        client.infer("minilm", TEXTS)
    with Client("http://gateway", domain=Domain(1), transport=transport) as client:
        with pytest.raises(VerificationError, match=r"receipt\.signatures\[0\]"):
            client.infer("minilm", TEXTS)
        with pytest.raises(VerificationError, match=r"chain 31337 .* chain 1 "):
            client.proof(next(iter(gateway.tasks)))


def test_a_network_that_cannot_be(client: Client, gateway: FakeGateway) -> None:
    client.models()
    for body in ({"chain_id": 0, "contract": "0x" + "00" * 20}, {"chain_id": 1, "contract": "0x12"}, {}):
        gateway.broken = httpx.Response(200, json=body)
        with pytest.raises(VerificationError):
            client.prepare("minilm", TEXTS)


def test_a_proof_of_another_task(client: Client, gateway: FakeGateway) -> None:
    first, second = client.submit("minilm", TEXTS), client.submit("minilm", TEXTS)
    gateway.tasks[first.id] = gateway.tasks[second.id]
    with pytest.raises(VerificationError, match=r"receipt\.request_id"):
        client.proof(first)
    with pytest.raises(VerificationError, match="id:"):
        client.get(first)
    gateway.settled = False
    with pytest.raises(VerificationError, match="id:"):
        client.get(first)
    with pytest.raises(VerificationError, match="id:"):
        client.cancel(first)


def test_a_proof_with_other_inputs(client: Client, gateway: FakeGateway) -> None:
    task = client.submit("minilm", TEXTS)
    request = replace(task.prepared.request, limit_units=7)
    gateway.tasks[task.id] = gateway._execute(EMBEDDER, request)
    client.proof(task.id)  # true in itself
    with pytest.raises(VerificationError, match=r"receipt\.request_hash"):
        client.proof(task)
    with pytest.raises(VerificationError, match=r"receipt\.request_hash"):
        client.get(task)


def test_a_damaged_proof_file(client: Client, gateway: FakeGateway) -> None:
    task = client.submit("minilm", TEXTS)
    gateway.proof = lambda data: data[:-1]
    with pytest.raises(VerificationError):
        client.proof(task)
