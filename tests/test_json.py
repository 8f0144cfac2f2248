"""The JSON forms: what a tensor, a request and a receipt look like, and what is refused."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework.errors import InvalidTensor, MalformedRequest, NcnError, NoCapacity, RequestTooLarge
from ncn_framework.models import Chunk, Receipt, Settlement, Signature, SignedReceipt
from ncn_framework.signing import Signer, address_hex
from ncn_framework.tensors import (
    DTYPE_SIZES,
    MAX_TENSORS,
    Tensor,
    TensorSpec,
    bytes_tensor,
    check_tensors,
    pack_tensors,
)
from ncn_framework.testing.fakes import fake_manifest, fake_request, fake_tensor
from ncn_framework.wire import json as forms
from ncn_framework.wire.json import SubmitJson, TensorJson

quick = settings(max_examples=40, deadline=None)
hashes = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20)
u63 = st.integers(0, 2**63 - 1)


def there_and_back(tensor: Tensor, encoding: forms.Encoding, spec: TensorSpec) -> Tensor:
    data = forms.encode(forms.tensor_json(tensor, encoding))
    return forms.tensor_from_json(forms.decode(data, TensorJson), [spec])


@quick
@given(st.sampled_from(sorted(DTYPE_SIZES)), st.integers(0, 3), st.data())
@pytest.mark.parametrize("encoding", get_args(forms.Encoding))
def test_a_tensor_survives(encoding: forms.Encoding, dtype: str, count: int, data: st.DataObject) -> None:
    if dtype == "BYTES":
        tensor = bytes_tensor("x", data.draw(st.lists(st.binary(max_size=8), min_size=count, max_size=count)))
    else:
        size = DTYPE_SIZES[dtype] * count
        values = st.sampled_from((0, 1)) if dtype == "BOOL" else st.integers(0, 255)
        tensor = Tensor("x", dtype, (count,), bytes(data.draw(st.lists(values, min_size=size, max_size=size))))
    again = there_and_back(tensor, encoding, TensorSpec("x", dtype, (-1,)))
    assert again == tensor
    check_tensors([again], [TensorSpec("x", dtype, (-1,))])


def test_numbers_are_numbers_and_text_is_text() -> None:
    form = forms.tensor_json(Tensor("x", "FP32", (2,), struct.pack("<2f", 0.5, -2)), "json")
    assert json.loads(forms.encode(form)) == {"name": "x", "dtype": "FP32", "shape": [2], "data": [0.5, -2.0]}
    form = forms.tensor_json(bytes_tensor("x", ["grüß".encode()]), "json")
    assert json.loads(forms.encode(form))["data"] == ["grüß"]


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("x", "FP32", (1,), struct.pack("<f", math.nan)),
        Tensor("x", "FP64", (1,), struct.pack("<d", math.inf)),
        Tensor("x", "BF16", (1,), b"\x80\x3f"),
        bytes_tensor("x", [b"\xff"]),
    ],
)
def test_what_json_cannot_hold_is_base64(tensor: Tensor) -> None:
    form = forms.tensor_json(tensor, "json")
    assert form.data is None
    assert there_and_back(tensor, "json", TensorSpec("x", tensor.dtype, (-1,))) == tensor


def test_dtype_and_shape_may_come_from_the_specification() -> None:
    spec = TensorSpec("x", "FP32", (-1, 2))
    assert forms.tensor_from_json(TensorJson("x", data=[1, 2, 3, 4]), [spec]).shape == (2, 2)
    assert forms.tensor_from_json(TensorJson("x", data_base64="AAAAAAAAAAA="), [spec]).shape == (1, 2)
    assert forms.tensor_from_json(TensorJson("x", data=[1, 2]), [TensorSpec("x", "FP32", (2,))]).shape == (2,)


X = TensorSpec("x", "FP32", (-1,))


@pytest.mark.parametrize(
    ("form", "spec", "problem"),
    [
        (TensorJson("y", data=[]), X, "'y' is unknown; the model has: x"),
        (TensorJson("x", "FP8", data=[]), X, "dtype 'FP8'"),
        (TensorJson("x"), X, "either data or data_base64"),
        (TensorJson("x", data=[], data_base64=""), X, "either data or data_base64"),
        (TensorJson("x", data_base64="?"), X, "is not base64"),
        (TensorJson("x", data_base64="ü"), X, "is not base64"),
        (TensorJson("x", data_base64="AAA"), X, "is not base64"),
        (TensorJson("x", shape=[-1], data=[]), X, "none negative"),
        (TensorJson("x", shape=[2**48, 0], data=[]), X, "at most 8"),
        (TensorJson("x", shape=[1] * 9, data=[1]), X, "at most 8"),
        (TensorJson("x", data=["1"]), X, "must be numbers"),
        (TensorJson("x", data=[True]), X, "must be numbers"),
        (TensorJson("x", data=[1e39]), X, "does not fit FP32"),
        (TensorJson("x", data=[10**400]), X, "does not fit FP32"),
        (TensorJson("x", data=[256]), TensorSpec("x", "UINT8", (-1,)), "does not fit UINT8"),
        (TensorJson("x", data=[-1]), TensorSpec("x", "UINT64", (-1,)), "does not fit UINT64"),
        (TensorJson("x", data=[1.5]), TensorSpec("x", "INT32", (-1,)), "does not fit INT32"),
        (TensorJson("x", data=[1]), TensorSpec("x", "BOOL", (-1,)), "must be true and false"),
        (TensorJson("x", data=[1]), TensorSpec("x", "BYTES", (-1,)), "must be strings"),
        (TensorJson("x", data=[1]), TensorSpec("x", "BF16", (-1,)), "give data_base64"),
        (TensorJson("x", data=[1]), TensorSpec("x", "FP32", (-1, -1)), "needs its shape"),
        (TensorJson("x", data=[]), TensorSpec("x", "FP32", (-1, 0)), "needs its shape"),
        (TensorJson("x", data_base64=""), TensorSpec("x", "BYTES", (-1,)), "BYTES in base64 needs its shape"),
    ],
)
def test_a_tensor_that_makes_no_sense_is_refused(form: TensorJson, spec: TensorSpec, problem: str) -> None:
    with pytest.raises(InvalidTensor, match=problem):
        forms.tensor_from_json(form, [spec])


def test_there_is_a_bound_on_tensors() -> None:
    with pytest.raises(RequestTooLarge, match=f"at most {MAX_TENSORS}"):
        forms.inputs_from_json([TensorJson("x", data=[])] * (MAX_TENSORS + 1), [X])


# --- bodies ---


@pytest.fixture
def high_recursion_limit() -> Iterator[None]:
    """Raise Python's limit beyond what the C stack holds, as importing eth_account does."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not what is expected"),
        (b"{", "not what is expected"),
        (b'{"model": "\xff", "inputs": []}', "UTF-8|not what is expected"),
        (b'{"model": "m"}', "missing required field `inputs`"),
        (b'{"model": "m", "inputs": [], "surprise": 1}', "unknown field `surprise`"),
        (b'{"model": 1, "inputs": []}', "Expected `str`, got `int`"),
        (b'{"model": "m", "inputs": [], "encoding": "xml"}', "Invalid enum value"),
        (b'{"model": "\\ud800", "inputs": []}', "not what is expected"),
        (b'{"model": "m", "inputs": [], "parameters": {"a": NaN}}', "not what is expected"),
        (b"[" * 100_000, "nested too deep|not what is expected"),
    ],
)
def test_a_body_that_is_not_the_form_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(MalformedRequest, match=problem):
        forms.decode(body, SubmitJson)


def test_deep_nesting_is_refused_where_anything_is_allowed(high_recursion_limit: None) -> None:
    with pytest.raises(MalformedRequest, match="nested too deep"):
        forms.decode(b"[" * 100_000, Any)


DEFAULTS: dict[str, Any] = {"nonce": bytes(32), "limit_units": 7, "deadline_ms": 8, "payment": "free"}


def submit(**changes: Any) -> SubmitJson:
    return SubmitJson(**{"model": "fake", "inputs": [TensorJson("x", data=[1])], **changes})


def test_a_request_takes_what_is_missing_from_the_gateway() -> None:
    manifest = fake_manifest()
    request = forms.request_from_json(submit(), manifest, **DEFAULTS)
    assert request.model == manifest.digest
    assert (request.nonce, request.limit_units, request.deadline_ms, request.payment) == (bytes(32), 7, 8, "free")


def test_a_signed_request_survives(signer: Signer) -> None:
    manifest = fake_manifest()
    request = fake_request(manifest, signer, parameters={"a": 1.5}, payment="voucher")
    form = submit(
        inputs=[forms.tensor_json(t, "json") for t in request.inputs],
        parameters=dict(request.parameters),
        client=address_hex(request.client),
        nonce="0x" + request.nonce.hex(),
        limit_units=request.limit_units,
        deadline_ms=request.deadline_ms,
        payment=request.payment,
        signature="0x" + request.signature.hex(),
    )
    decoded = forms.decode(forms.encode(form), SubmitJson)
    assert forms.request_from_json(decoded, manifest, **DEFAULTS) == request


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"nonce": "0x00"}, MalformedRequest, "nonce has 1 bytes; it must have 32"),
        ({"nonce": "zz"}, MalformedRequest, "nonce is not 0x-hex"),
        ({"client": "0x12"}, MalformedRequest, "client: .*is not an address"),
        ({"client": "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"}, MalformedRequest, "wrong checksum"),
        ({"signature": "0x00"}, MalformedRequest, "signature has 1 bytes; it must have 65"),
        ({"limit_units": 2**63}, MalformedRequest, "passes 63 bits"),
        ({"deadline_ms": -(2**64)}, MalformedRequest, "passes 63 bits"),
        ({"parameters": {"a": 2**63}}, MalformedRequest, "passes 63 bits"),
        ({"parameters": {str(n): 1 for n in range(65)}}, RequestTooLarge, "at most 64"),
    ],
)
def test_a_malformed_request_is_refused(changes: dict[str, Any], error: type[NcnError], problem: str) -> None:
    with pytest.raises(error, match=problem):
        forms.request_from_json(submit(**changes), fake_manifest(), **DEFAULTS)


# --- answers ---

RECEIPT = Receipt(bytes(32), bytes(32), bytes(32), bytes(32), 1, 1, 1, bytes(20), 1, 1)

receipts = st.builds(
    SignedReceipt,
    st.builds(Receipt, hashes, hashes, hashes, hashes, u63, u63, st.integers(0, 2**96 - 1), addresses, u63, u63),
    st.lists(st.builds(Signature, addresses, st.binary(min_size=65, max_size=65)), max_size=3).map(tuple),
)


@quick
@given(receipts)
def test_a_receipt_survives(receipt: SignedReceipt) -> None:
    data = forms.encode(forms.receipt_json(receipt))
    assert forms.receipt_from_json(forms.decode(data, forms.ReceiptJson)) == receipt


@pytest.mark.parametrize(
    "changes",
    [
        {"fee_wei": "-1"},
        {"fee_wei": "\u0663"},
        {"fee_wei": "9" * 30},
        {"chunks": -1},
        {"units": 2**63},
        {"request_id": "0x"},
        {"node": "0x00"},
        {"signatures": [forms.SignatureJson("0x" + "00" * 20, "0x00")]},
    ],
)
def test_a_malformed_receipt_is_refused(changes: dict[str, Any]) -> None:
    form = forms.receipt_json(SignedReceipt(RECEIPT, ()))
    for name, value in changes.items():
        setattr(form, name, value)
    with pytest.raises(MalformedRequest):
        forms.receipt_from_json(form)


def test_an_answer_has_all_that_verifying_needs() -> None:
    manifest, request = fake_manifest(), fake_request()
    output = fake_tensor(manifest.outputs[0])
    chunk = Chunk(1, 1, pack_tensors([output]), bytes(32))
    receipt = SignedReceipt(RECEIPT, ())
    answer = forms.answer_json(request, [chunk], receipt, Settlement("free", 2**80), "json")
    again = forms.decode(forms.encode(answer), forms.AnswerJson)
    assert again == answer
    assert again.settlement.charged_wei == str(2**80)
    assert forms.tensor_from_json(again.chunks[0].outputs[0], manifest.outputs) == output
    echoed = (again.client, again.nonce, again.limit_units, again.deadline_ms, again.payment)
    assert echoed == (
        address_hex(request.client),
        "0x" + request.nonce.hex(),
        request.limit_units,
        request.deadline_ms,
        request.payment,
    )


def test_an_error_shows_its_code_and_nothing_foreign() -> None:
    problem = forms.error_json(NoCapacity("later"), bytes(32))
    assert (problem.type, problem.status, problem.retryable) == ("urn:ncn:error:no-capacity", 503, True)
    assert problem.detail == "later"
    foreign = forms.error_json(KeyError("secret"))
    assert (foreign.code, foreign.status) == ("internal", 500)
    assert "secret" not in foreign.detail
