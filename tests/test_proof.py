"""A proof verifies offline, and no byte of it can be changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework import digests, manifests, proof
from ncn_framework.errors import VerificationError
from ncn_framework.models import (
    ANONYMOUS,
    Chunk,
    Domain,
    InferenceRequest,
    ModelFile,
    ModelManifest,
    Parameter,
    Receipt,
    SignedReceipt,
)
from ncn_framework.proof import Proof, verify
from ncn_framework.signing import Signer, address_hex
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor, pack_tensors

NODE = Signer(b"\x11" * 32)
CLIENT = Signer(b"\x22" * 32)
WITNESS = Signer(b"\x33" * 32)
DOMAIN = Domain(31337, bytes(range(20)))


def make(
    *,
    texts: tuple[bytes, ...] = (b"a sentence",),
    pieces: int = 2,
    client: Signer | None = CLIENT,
    witnesses: tuple[Signer, ...] = (WITNESS,),
    parameters: dict[str, Parameter] | None = None,
    settings: dict[str, Parameter] | None = None,
    nonce: bytes = b"\x07" * 32,
    domain: Domain = DOMAIN,
    payment: str = "voucher",
    changed: Callable[[Receipt], Receipt] = lambda receipt: receipt,
    outputs: Callable[[int], Tensor] = lambda i: Tensor("vector", "FP32", (2,), struct.pack("<2f", i, 0.5)),
) -> Proof:
    """Return a proof that verifies, but for what ``changed`` and ``outputs`` make of it."""
    manifest = ModelManifest(
        name="m",
        version="1",
        runtime="fake",
        architecture="",
        files=(ModelFile("w", 1, b"\x05" * 32),),
        inputs=(TensorSpec("text", "BYTES", (-1,)),),
        outputs=(TensorSpec("vector", "FP32", (2,)),),
        parameters=settings or {},
        base_fee_wei=10,
        unit_fee_wei=3,
    )
    request = InferenceRequest(
        model=manifest.digest,
        inputs=(bytes_tensor("text", texts),),
        nonce=nonce,
        limit_units=100,
        deadline_ms=1_900_000_000_000,
        parameters=parameters or {},
        client=client.address if client else ANONYMOUS,
        payment=payment,
    )
    if client:
        request = replace(request, signature=client.sign(digests.request_digest(domain, request)).value)
    link = digests.chain_start(request.request_hash, request.model, NODE.address)
    chunks: list[Chunk] = []
    for i in range(pieces):
        chunk = Chunk(i + 1, 4 * (i + 1), pack_tensors([outputs(i)]))
        link = digests.chunk_link(link, chunk)
        chunks.append(replace(chunk, link=link))
    units = 4 * pieces
    receipt = changed(
        Receipt(
            request.request_id,
            request.request_hash,
            request.model,
            link,
            pieces,
            units,
            manifest.fee_wei(units, payment),
            NODE.address,
            1_800_000_000_000,
            1_800_000_000_012,
        )
    )
    digest = digests.receipt_digest(domain, receipt)
    signatures = tuple(signer.sign(digest) for signer in (NODE, *witnesses))
    return Proof(domain, manifest, request, tuple(chunks), SignedReceipt(receipt, signatures))


def where(data: bytes, node: bytes | None = None) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(data, node=node)
    assert caught.value.where
    assert str(caught.value).startswith(caught.value.where + ": ")
    return caught.value.where


def edited(change: Callable[[dict[str, Any]], object], of: Proof | None = None) -> bytes:
    """Return a canonical file after ``change`` of its JSON."""
    form = json.loads((of or make()).to_json())
    change(form)
    return (json.dumps(form, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


# --- what verifies ---


def test_round_trip_and_report() -> None:
    made, lines = make(), list[str]()
    data = made.to_json()
    assert Proof.from_json(data) == made
    assert verify(data, node=NODE.address, report=lines.append) == made
    assert [line.split(":")[0] for line in lines] == [
        "form",
        "model",
        "request",
        "client",
        "chunks",
        "receipt",
        "signature",
        "signature",
        "domain",
        "node",
    ]
    assert address_hex(NODE.address) in lines[6]


def test_form_is_canonical() -> None:
    data = make().to_json()
    form = json.loads(data)
    assert data == (json.dumps(form, indent=2, sort_keys=True) + "\n").encode()
    assert form["schema"] == "ncn.proof.v1"
    assert form["domain"] == {"chain_id": 31337, "contract": address_hex(DOMAIN.contract)}
    assert form["manifest"] == json.loads(manifests.manifest_json(make().manifest))
    assert all("data" not in tensor for chunk in form["chunks"] for tensor in chunk["outputs"])


def test_anonymous_and_free() -> None:
    made = make(client=None, witnesses=(), payment="free")
    assert made.receipt.receipt.fee_wei == 0
    assert verify(made.to_json()) == made


scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text()
)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.binary(max_size=40), max_size=4),
    pieces=st.integers(1, 4),
    signed=st.booleans(),
    nonce=st.binary(min_size=32, max_size=32),
    parameters=st.dictionaries(st.text(max_size=8), scalars, max_size=4),
    of_model=st.dictionaries(st.text(max_size=8), scalars, max_size=4),
    chain=st.integers(1, 2**64 - 1),
)
def test_every_proof_comes_back_as_it_was(
    texts: list[bytes],
    pieces: int,
    signed: bool,
    nonce: bytes,
    parameters: dict[str, Parameter],
    of_model: dict[str, Parameter],
    chain: int,
) -> None:
    made = make(
        texts=tuple(texts),
        pieces=pieces,
        client=CLIENT if signed else None,
        nonce=nonce,
        parameters=parameters,
        settings=of_model,
        domain=Domain(chain, DOMAIN.contract),
    )
    data = made.to_json()
    assert verify(data) == made
    assert Proof.from_json(data).to_json() == data


# --- what does not ---


@pytest.mark.parametrize("client", [CLIENT, None])
def test_no_byte_can_be_changed(client: Signer | None) -> None:
    data = make(client=client, pieces=1, parameters={"t": 0.5}).to_json()
    assert len(data) < 4096
    for index, byte in enumerate(data):
        for other in {byte ^ 1, byte ^ 0x20, byte ^ 0x80, ord("0"), ord(" ")} - {byte}:
            assert where(data[:index] + bytes((other,)) + data[index + 1 :])


def test_no_byte_can_be_left_out_or_added() -> None:
    data = make(pieces=1).to_json()
    for index in range(len(data) + 1):
        assert where(data[:index] + b" " + data[index:])
        if index < len(data):
            assert where(data[:index] + data[index + 1 :])
            assert where(data[:index])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_well(data: bytes) -> None:
    where(data)


def _swap(form: dict[str, Any]) -> None:
    form["chunks"].reverse()


def _twice(form: dict[str, Any]) -> None:
    form["receipt"]["signatures"].append(form["receipt"]["signatures"][0])


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("schema", lambda f: f.update(schema="ncn.proof.v2")),
    ("domain.chain_id", lambda f: f["domain"].update(chain_id=0)),
    ("request.signature", lambda f: f["domain"].update(chain_id=1)),
    ("domain.contract", lambda f: f["domain"].update(contract="0x12")),
    ("manifest", lambda f: f["manifest"].update(runtime=None)),
    ("request.model", lambda f: f["manifest"].update(version="2")),
    ("request.model", lambda f: f["request"].update(model="0x" + "00" * 32)),
    ("request", lambda f: f["request"].update(limit_units=2**64)),
    ("request.limit_units", lambda f: f["request"].update(limit_units=0)),
    ("request.nonce", lambda f: f["request"].pop("nonce")),
    ("request", lambda f: f["request"]["inputs"][0].update(name="other")),
    ("request", lambda f: f["request"]["inputs"][0].update(data_base64="!")),
    ("request.inputs", lambda f: f["request"]["inputs"][0].update(shape=[2])),
    ("receipt.request_id", lambda f: f["request"].update(nonce="0x" + "00" * 32)),
    ("receipt.request_hash", lambda f: f["request"].update(deadline_ms=5)),
    ("request.signature", lambda f: f["request"].pop("signature")),
    ("request.signature", lambda f: f["request"].update(signature="0x" + "11" * 65)),
    ("chunks", lambda f: f.update(chunks=[])),
    ("chunks[0].sequence", _swap),
    ("chunks[0].sequence", lambda f: f["chunks"].pop(0)),
    ("chunks[1].units", lambda f: f["chunks"][1].update(units=3)),
    ("chunks[1].units", lambda f: f["chunks"][1].update(units=101)),
    ("chunks[1]", lambda f: f["chunks"][1].update(units=9)),
    ("chunks[0]", lambda f: f["chunks"][0].update(link="0x" + "00" * 32)),
    ("chunks[1]", lambda f: f["chunks"][1]["outputs"][0].update(data_base64="AAAAAAAAAAA=")),
    ("chunks[1]", lambda f: f["chunks"][1]["outputs"][0].update(shape=[2**70])),
    ("receipt.output_hash", lambda f: f["chunks"].pop()),
    ("receipt.fee_wei", lambda f: f["receipt"].update(fee_wei="1")),
    ("receipt.finished_ms", lambda f: f["receipt"].update(finished_ms=1)),
    ("receipt.signatures[0]", lambda f: f["receipt"].update(started_ms=1_800_000_000_001)),
    ("receipt.signatures", lambda f: f["receipt"].update(signatures=[])),
    ("receipt.signatures", lambda f: f["receipt"]["signatures"].pop(0)),
    ("receipt.signatures[1]", lambda f: f["receipt"]["signatures"][1].update(signer=address_hex(CLIENT.address))),
    ("receipt.signatures[2]", _twice),
    ("receipt.signatures", lambda f: f["receipt"].update(signatures=f["receipt"]["signatures"] * 33)),
    ("request.inputs[0].shape[0]", lambda f: f["request"]["inputs"][0].update(shape=["1"])),
    ("file", lambda f: f.update(extra=1)),
]


@pytest.mark.parametrize(("place", "change"), CHANGES)
def test_a_changed_field_is_named(place: str, change: Callable[[dict[str, Any]], object]) -> None:
    assert where(edited(change)) == place


@pytest.mark.parametrize("name", ["chunks", "units", "fee_wei", "output_hash"])
def test_a_node_that_signs_a_wrong_receipt(name: str) -> None:
    value: Any = bytes(32) if name == "output_hash" else 77
    made = make(changed=lambda receipt: replace(receipt, **{name: value}))
    assert where(made.to_json()) == f"receipt.{name}"


def test_a_node_that_signs_outputs_the_manifest_does_not_promise() -> None:
    made = make(outputs=lambda i: Tensor("vector", "FP32", (1,), bytes(4)))
    assert where(made.to_json()) == "chunks[0].outputs"


def test_another_node_than_required() -> None:
    assert where(make().to_json(), node=CLIENT.address) == "receipt.node"


def test_another_form_is_refused_with_line_byte_and_field() -> None:
    data = make().to_json()
    lines = data.count(b"\n")
    assert where(data + b"\n") == f"line {lines + 1}, byte {len(data)}"
    assert "(receipt.units)" in where(data.replace(b'"units": 8\n  },', b'"units": 8 \n  },'))
    upper = data.replace(b'"link": "0x', b'"link": "0X')
    assert where(upper) == "chunks[0]"
    link = make().chunks[1].link.hex().encode()
    assert "(chunks[1].link)" in where(data.replace(link, link.upper(), 1))
    spaced = data.replace(b'"chunks": [', b'"chunks":  [')
    assert where(spaced) == "line 2, byte 14 (chunks)"
    shape = data.replace(b'"shape": [\n          1', b'"shape": [\n           1')
    assert "(request.inputs[0].shape[0])" in where(shape)


def test_where_a_file_stops_being_json() -> None:
    data = make().to_json()
    assert where(data.replace(b'"chunks": [', b'"chunks": (')).startswith("line 2, byte 1")
    assert where(data.replace(b'"voucher"', b'"vouche\xff"')).startswith("line ")
    assert where(b"") == "file"
    assert where(b"[" * 100_000)


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "MAX_PROOF_BYTES", 10)
    assert where(make().to_json()) == "file"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_has_no_form_is_not_written(value: float) -> None:
    with pytest.raises(VerificationError):
        make(parameters={"t": value}).to_json()


def test_a_chunk_in_another_encoding_is_not_written() -> None:
    made = make(pieces=1)
    data = made.chunks[0].data
    longer = b"\xdc\x00\x01" + data[1:]  # array 16 instead of fixarray
    with pytest.raises(VerificationError, match=r"chunks\[0\]"):
        replace(made, chunks=(replace(made.chunks[0], data=longer),)).to_json()
