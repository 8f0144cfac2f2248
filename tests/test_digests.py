"""What is hashed and signed: pinned by vectors, checked against another implementation, and sensitive to all."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework import Signer, digests, manifests
from ncn_framework.errors import ModelError
from ncn_framework.models import Chunk, Domain, InferenceRequest, ModelFile, ModelManifest, Receipt, Record
from ncn_framework.payments import Voucher
from ncn_framework.tensors import DTYPE_SIZES, Tensor, TensorSpec
from ncn_framework.testing.fakes import fake_manifest, fake_record, fake_request, fake_signer
from tests.oracle import address, typed

VECTORS = Path(__file__).parent / "vectors"

hashes = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20)
u64 = st.integers(0, 2**64 - 1)
domains = st.builds(Domain, st.integers(1, 2**64 - 1), addresses)
quick = settings(max_examples=25, deadline=None)


def test_the_vectors_are_what_the_functions_say() -> None:
    generated = runpy.run_path(str(VECTORS / "generate.py"))["vectors"]()
    assert json.loads((VECTORS / "digests.json").read_text()) == generated, "run: python tests/vectors/generate.py"


def test_keccak_is_not_sha3() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert digests.keccak(b"").hex() == empty  # the digest of nothing, known from Ethereum's empty code hash


# --- EIP-712, with eth_account as the oracle ---


@quick
@given(domains, hashes)
def test_a_request_is_eip_712(domain: Domain, nonce: bytes) -> None:
    request = fake_request(nonce=nonce, deadline_ms=1)
    message = {"requestId": request.request_id, "requestHash": request.request_hash}
    assert digests.request_digest(domain, request) == typed(domain, "Request", message)


receipts = st.builds(Receipt, hashes, hashes, hashes, hashes, u64, u64, st.integers(0, 2**96 - 1), addresses, u64, u64)


@quick
@given(domains, receipts)
def test_a_receipt_is_eip_712(domain: Domain, receipt: Receipt) -> None:
    message = {
        "requestId": receipt.request_id,
        "requestHash": receipt.request_hash,
        "model": receipt.model,
        "outputHash": receipt.output_hash,
        "chunks": receipt.chunks,
        "units": receipt.units,
        "fee": receipt.fee_wei,
        "node": address(receipt.node),
        "startedMs": receipt.started_ms,
        "finishedMs": receipt.finished_ms,
    }
    assert digests.receipt_digest(domain, receipt) == typed(domain, "Receipt", message)


@quick
@given(domains, st.text(max_size=20), addresses, u64, u64, st.binary(max_size=50))
def test_a_record_is_eip_712(
    domain: Domain, kind: str, owner: bytes, sequence: int, expires_ms: int, payload: bytes
) -> None:
    message = {
        "kind": kind,
        "owner": address(owner),
        "sequence": sequence,
        "expiresMs": expires_ms,
        "payloadHash": digests.keccak(payload),
    }
    record = Record(kind, owner, sequence, expires_ms, payload)
    assert digests.record_digest(domain, record) == typed(domain, "Record", message)


@quick
@given(domains, addresses, addresses, hashes)
def test_a_session_is_eip_712(domain: Domain, node: bytes, gateway: bytes, challenge: bytes) -> None:
    message = {"node": address(node), "gateway": address(gateway), "challenge": challenge}
    assert digests.session_digest(domain, node, gateway, challenge) == typed(domain, "Session", message)


def test_no_purpose_shares_a_type() -> None:
    assert all(text.startswith(f"{name}(") for name, text in digests.TYPES.items())
    assert len({text.partition("(")[2] for text in digests.TYPES.values()}) == len(digests.TYPES)


# --- sensitivity ---

CHANGES: dict[str, Any] = {
    "model": bytes(32),
    "inputs": (Tensor("x", "FP32", (1,), b"\0\0\0\1"),),
    "nonce": bytes(32),
    "limit_units": 2,
    "deadline_ms": 2,
    "parameters": {"a": 2},
    "client": b"\1" * 20,
    "payment": "voucher",
}


def test_the_request_hash_covers_every_field_but_what_is_signed() -> None:
    assert {f.name for f in fields(InferenceRequest)} == {*CHANGES, "signature", "authorization"}
    request = fake_request(deadline_ms=1, limit_units=1, parameters={"a": 1})
    seen = {request.request_hash}
    for name, value in CHANGES.items():
        seen.add(replace(request, **{name: value}).request_hash)
    assert len(seen) == 1 + len(CHANGES)
    voucher = Voucher(bytes(20), bytes(20), bytes(20), 1, bytes(65))
    assert replace(request, signature=b"x", authorization=voucher).request_hash == request.request_hash


def test_the_inputs_hash_covers_every_field_and_not_the_order() -> None:
    one, two = Tensor("x", "UINT8", (1,), b"\1"), Tensor("y", "UINT8", (1,), b"\2")
    assert digests.inputs_hash([one, two]) == digests.inputs_hash([two, one])
    changed = [
        replace(one, name="z"),
        replace(one, dtype="INT8"),
        replace(one, shape=(1, 1)),
        replace(one, data=b"\3"),
    ]
    assert len({digests.inputs_hash([t, two]) for t in (one, *changed)}) == 5
    assert digests.inputs_hash([one]) != digests.inputs_hash([one, two])


def test_parameters_of_different_types_are_different() -> None:
    values: list[Any] = [1, 1.0, True, "1"]
    assert len({digests.parameters_hash({"a": value}) for value in values}) == 4
    assert digests.parameters_hash({"a": 1, "b": 2}) == digests.parameters_hash({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "digest",
    [
        lambda domain: digests.request_digest(domain, fake_request(deadline_ms=1)),
        lambda domain: digests.record_digest(domain, fake_record(expires_ms=1)),
        lambda domain: digests.session_digest(domain, bytes(20), bytes(20), bytes(32)),
    ],
)
def test_a_digest_is_bound_to_chain_and_contract(digest: Callable[[Domain], bytes]) -> None:
    assert len({digest(d) for d in (Domain(), Domain(1), Domain(contract=b"\1" * 20))}) == 3


def test_the_request_id_is_the_clients_and_the_nonces() -> None:
    ids = {digests.request_id(client, nonce) for client in (bytes(20), b"\1" * 20) for nonce in (bytes(32), b"\1" * 32)}
    assert len(ids) == 4


def test_a_link_covers_everything_before_it() -> None:
    start = digests.chain_start(bytes(32), bytes(32), bytes(20))
    assert start == sha256(b"ncn.chain.v1" + bytes(84)).digest()
    assert start != digests.chain_start(bytes(32), bytes(32), b"\1" * 20)
    chunk = Chunk(1, 2, b"data")
    link = digests.chunk_link(start, chunk)
    assert link == sha256(start + bytes(7) + b"\1" + bytes(7) + b"\2" + sha256(b"data").digest()).digest()
    others = [replace(chunk, sequence=2), replace(chunk, units=3), replace(chunk, data=b"date")]
    assert len({digests.chunk_link(start, c) for c in (chunk, *others)} | {digests.chunk_link(link, chunk)}) == 5
    assert digests.chunk_link(start, replace(chunk, link=b"whatever")) == link


# --- manifests ---

names = st.text(max_size=12)
specs = st.lists(
    st.builds(
        TensorSpec,
        names,
        st.sampled_from(sorted(DTYPE_SIZES)),
        st.lists(st.integers(-1, 2**31), max_size=8).map(tuple),
    ),
    max_size=3,
).map(tuple)
any_manifest = st.builds(
    ModelManifest,
    name=names,
    version=names,
    runtime=names,
    architecture=names,
    files=st.lists(st.builds(ModelFile, names, st.integers(0, 2**63 - 1), hashes), max_size=3).map(tuple),
    inputs=specs,
    outputs=specs,
    parameters=st.dictionaries(names, st.booleans() | st.integers(-(2**63), 2**63 - 1) | names, max_size=3),
    base_fee_wei=st.integers(0, 2**96 - 1),
    unit_fee_wei=st.integers(0, 2**96 - 1),
    memory_bytes=st.integers(1, 2**63 - 1),
    time_limit_ms=st.integers(1, 2**63 - 1),
    tolerance=st.just(0.0) | st.floats(0.0001, 1e6),
)


@quick
@given(any_manifest)
def test_a_manifest_survives_its_json(manifest: ModelManifest) -> None:
    data = manifests.manifest_json(manifest)
    assert manifests.manifest_from_json(data) == manifest
    assert manifest.digest == sha256(data).digest()
    spaced = json.dumps(json.loads(data), indent=2, sort_keys=False).encode()
    assert manifests.manifest_from_json(spaced).digest == manifest.digest, "need not be canonical to be read"


def test_every_field_of_a_manifest_is_in_its_digest() -> None:
    manifest = fake_manifest()
    changes: dict[str, Any] = {
        "files": (),
        "inputs": (),
        "outputs": (),
        "parameters": {"a": 1},
        **dict.fromkeys(("base_fee_wei", "unit_fee_wei", "memory_bytes", "time_limit_ms"), 7),
        **dict.fromkeys(("name", "version", "runtime", "architecture"), "other"),
        "tolerance": 0.5,
    }
    assert set(changes) == {f.name for f in fields(ModelManifest)}
    assert len({replace(manifest, **{n: v}).digest for n, v in changes.items()} | {manifest.digest}) == 1 + len(changes)


@pytest.mark.parametrize(("tolerance", "written"), [(0.0001, b"0.0001"), (1.0, b"1"), (1e6, b"1000000"), (2.5, b"2.5")])
def test_a_tolerance_is_written_as_in_other_languages(tolerance: float, written: bytes) -> None:
    data = manifests.manifest_json(replace(fake_manifest(), tolerance=tolerance))
    assert data.endswith(b',"tolerance":' + written + b',"version":"1"}')
    assert manifests.manifest_from_json(data).tolerance == tolerance


def test_no_tolerance_leaves_a_digest_as_it_was() -> None:
    assert b"tolerance" not in manifests.manifest_json(fake_manifest())


def broken(**changes: Any) -> bytes:
    return json.dumps({**json.loads(manifests.manifest_json(fake_manifest())), **changes}).encode()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "truncated"),
        (b"\xff", "malformed"),
        (b"[" * 100_000, "valid"),
        (b"{}", "missing required field"),
        (broken(surprise=1), "unknown field `surprise`"),
        (broken(name=1), "Expected `str`"),
        (broken(schema=2), "schema 2 is unknown"),
        (broken(files=[{"path": "a", "size_bytes": 1, "sha256": "00"}]), "is not 64 hex digits"),
        (broken(files=[{"path": "a", "size_bytes": 1, "sha256": "z" * 64}]), "valid"),
        (broken(inputs=[{"name": "x", "dtype": "FP8", "shape": []}]), "bad dtype or shape: FP8"),
        (broken(inputs=[{"name": "x", "dtype": "FP32", "shape": [-2]}]), "bad dtype or shape"),
        (broken(outputs=[{"name": "x", "dtype": "FP32", "shape": [1] * 9}]), "bad dtype or shape"),
        (broken(price={"base_fee_wei": "-1"}), "outside 0 to 2^96-1 wei"),
        (broken(price={"unit_fee_wei": str(2**96)}), "outside 0 to 2^96-1 wei"),
        (broken(price={"unit_fee_wei": "9" * 10_000}), "valid"),
        (broken(price={"unit_fee_wei": 5}), "Expected `str`"),
        (broken(resources={"memory_bytes": 0}), "positive 63-bit int"),
        (broken(resources={"time_limit_ms": 2**63}), "positive 63-bit int"),
        (broken(tolerance=-1), "tolerance -1.0 lies outside 0.0001 to 1000000.0"),
        (broken(tolerance=0.00001), "tolerance 1e-05 lies outside"),
        (broken(tolerance=2e6), "tolerance 2000000.0 lies outside"),
        (broken(tolerance="0.1"), "Expected `float`"),
        (broken(parameters={"a": []}), "Expected"),
        (broken(parameters={"a": None}), "Expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_manifest_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ModelError, match="manifest is not valid: ") as refused:
        manifests.manifest_from_json(data)
    assert problem in str(refused.value)


def test_a_signature_for_one_purpose_means_nothing_for_another() -> None:
    signer: Signer = fake_signer()
    session = digests.session_digest(Domain(), signer.address, bytes(20), bytes(32))
    record = digests.record_digest(Domain(), fake_record(signer))
    assert signer.sign(session).value != signer.sign(record).value
