"""Between protobuf messages and models: nothing is lost, and nothing malformed comes in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework.errors import (
    InvalidTensor,
    MalformedRequest,
    NcnError,
    ReceiptRejected,
    RequestTooLarge,
)
from ncn_framework.models import (
    ANONYMOUS,
    Chunk,
    InferenceRequest,
    NodeInfo,
    Receipt,
    Record,
    Signature,
    SignedReceipt,
)
from ncn_framework.tensors import DTYPE_SIZES, MAX_RANK, MAX_TENSORS, Tensor
from ncn_framework.testing.fakes import fake_manifest, fake_record, fake_request, fake_signer
from ncn_framework.wire import convert
from ncn_framework.wire import messages_pb2 as pb

quick = settings(max_examples=25, deadline=None)
hashes = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20)
u64 = st.integers(0, 2**64 - 1)
i63 = st.integers(0, 2**63 - 1)
names = st.text(max_size=8)
parameters = st.booleans() | st.integers(-(2**63), 2**63 - 1) | names | st.floats(allow_nan=False, allow_infinity=False)
tensors = st.builds(
    Tensor,
    names,
    st.sampled_from(sorted(DTYPE_SIZES)),
    st.lists(st.integers(0, 2**47), max_size=MAX_RANK).map(tuple),
    st.binary(max_size=16),
)
requests = st.builds(
    InferenceRequest,
    model=hashes,
    inputs=st.lists(tensors, max_size=3).map(tuple),
    nonce=hashes,
    limit_units=i63,
    deadline_ms=i63,
    parameters=st.dictionaries(names, parameters, max_size=3),
    client=addresses,
    payment=names,
    signature=st.binary(max_size=65),
)


@quick
@given(requests)
def test_a_request_survives(request: InferenceRequest) -> None:
    data = convert.request_to_pb(request).SerializeToString()
    again = convert.request_from_pb(pb.InferenceRequest.FromString(data))
    assert again == request
    assert again.request_hash == request.request_hash
    for name, value in request.parameters.items():
        assert type(again.parameters[name]) is type(value)


def message(**changes: Any) -> pb.InferenceRequest:
    found = convert.request_to_pb(fake_request())
    for name, value in changes.items():
        found.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, list):
            getattr(found, name).extend(value)
        else:
            setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"model": b""}, MalformedRequest, "model has 0 bytes; it must have 32"),
        ({"nonce": bytes(31)}, MalformedRequest, "nonce has 31 bytes"),
        ({"client": bytes(19)}, MalformedRequest, "client has 19 bytes"),
        ({"request_id": bytes(32)}, MalformedRequest, "is not the id of this client and nonce"),
        ({"inputs": [pb.Tensor(dtype="FP8")]}, InvalidTensor, "dtype 'FP8'"),
        ({"inputs": [pb.Tensor(dtype="FP32", shape=[-1])]}, InvalidTensor, "negative dimension"),
        ({"inputs": [pb.Tensor(dtype="FP32", shape=[1] * (MAX_RANK + 1))]}, InvalidTensor, f"more than {MAX_RANK}"),
        ({"inputs": [pb.Tensor(dtype="FP32")] * (MAX_TENSORS + 1)}, RequestTooLarge, f"at most {MAX_TENSORS}"),
    ],
)
def test_a_malformed_request_is_refused(changes: dict[str, Any], error: type[NcnError], problem: str) -> None:
    with pytest.raises(error, match=problem):
        convert.request_from_pb(message(**changes))


def test_parameters_have_a_value_a_bound_and_no_nan() -> None:
    empty = message()
    empty.parameters["a"].SetInParent()
    with pytest.raises(MalformedRequest, match="parameter 'a' has no value"):
        convert.request_from_pb(empty)
    many = message()
    for number in range(convert.MAX_PARAMETERS + 1):
        many.parameters[str(number)].int_value = 1
    with pytest.raises(RequestTooLarge, match=f"at most {convert.MAX_PARAMETERS}"):
        convert.request_from_pb(many)
    for value in (math.nan, math.inf):
        bad = message()
        bad.parameters["a"].double_value = value
        with pytest.raises(MalformedRequest, match="must be finite"):
            convert.request_from_pb(bad)


def test_an_absent_client_is_anonymous_and_an_absent_id_is_computed() -> None:
    request = convert.request_from_pb(message(client=b"", request_id=b""))
    assert request.client == ANONYMOUS
    assert request.request_id == fake_request().request_id


# --- answers ---

chunks = st.builds(Chunk, u64, u64, st.binary(max_size=16), hashes)
receipts = st.builds(
    SignedReceipt,
    st.builds(Receipt, hashes, hashes, hashes, hashes, u64, u64, st.integers(0, 2**96 - 1), addresses, u64, u64),
    st.lists(st.builds(Signature, addresses, st.binary(max_size=65)), max_size=3).map(tuple),
)


@quick
@given(chunks)
def test_a_chunk_survives(chunk: Chunk) -> None:
    assert convert.chunk_from_pb(convert.chunk_to_pb(bytes(32), chunk)) == chunk


def test_a_missing_link_stays_wrong() -> None:
    found = convert.chunk_from_pb(convert.chunk_to_pb(bytes(32), Chunk(1, 1, b"")))
    assert found.link, "an empty link would be left to the kernel to fill in"


@quick
@given(receipts)
def test_a_receipt_survives(receipt: SignedReceipt) -> None:
    assert convert.receipt_from_pb(convert.receipt_to_pb(receipt)) == receipt


@pytest.mark.parametrize("fee", ["", "-1", "1.5", "0x1", "1_0", " 1", "\u0663", str(2**96), "9" * 30])
def test_a_fee_is_a_decimal_number_of_96_bits(fee: str) -> None:
    with pytest.raises(ReceiptRejected, match="fee_wei"):
        convert.receipt_from_pb(pb.Receipt(fee_wei=fee))


def test_a_receipt_has_a_bound_on_signatures() -> None:
    with pytest.raises(ReceiptRejected, match="more than 64 signatures"):
        convert.receipt_from_pb(pb.Receipt(fee_wei="0", signatures=[pb.Signature()] * 65))


# --- records ---


@quick
@given(st.builds(Record, names, addresses, u64, u64, st.binary(max_size=20), st.binary(max_size=65)))
def test_a_record_survives(record: Record) -> None:
    assert convert.record_from_pb(convert.record_to_pb(record)) == record


def test_a_record_has_an_owner() -> None:
    with pytest.raises(MalformedRequest, match="owner has 0 bytes"):
        convert.record_from_pb(pb.Record(kind="node"))


INFO = NodeInfo(fake_signer().address, (fake_manifest(), fake_manifest(name="other")), 3, "strict", "ncn 1")


def test_what_a_node_says_of_itself_survives() -> None:
    record = convert.node_record(INFO, 7, 9)
    assert (record.kind, record.owner, record.sequence, record.expires_ms) == ("node", INFO.node, 7, 9)
    assert convert.node_info_from_record(record) == INFO


def payload(**changes: Any) -> Record:
    fields = {"models": [], "capacity": 1, "sandbox": "strict", "software": "", **changes}
    return replace(convert.node_record(INFO, 1, 1), payload=msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (fake_record(), "a record of kind 'fake'"),
        (replace(convert.node_record(INFO, 1, 1), payload=bytes(convert.MAX_RECORD_BYTES + 1)), "of at most"),
        (replace(convert.node_record(INFO, 1, 1), payload=b"\xff"), "is malformed"),
        (payload(surprise=1), "is malformed"),
        (payload(models=[b"{}"]), "manifest is not valid"),
        (payload(capacity=0), "capacity 0"),
        (payload(capacity=65_537), "capacity 65537"),
        (payload(sandbox="open"), "sandbox 'open'"),
    ],
)
def test_a_record_that_says_nothing_sensible_is_refused(record: Record, problem: str) -> None:
    with pytest.raises(MalformedRequest, match=problem):
        convert.node_info_from_record(record)


def test_a_model_is_described_with_its_manifest() -> None:
    manifest = fake_manifest(base_fee_wei=2**90)
    info = convert.model_info_to_pb(manifest, 3)
    assert (info.digest, info.nodes, info.base_fee_wei) == (manifest.digest, 3, str(2**90))
    assert [(spec.name, spec.dtype, list(spec.shape)) for spec in info.inputs] == [("x", "FP32", [-1])]
