"""Tensors: one encoding, checked against a specification, safe on bytes from anybody."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework.errors import InvalidTensor, OutputRejected
from ncn_framework.tensors import (
    DTYPE_SIZES,
    MAX_RANK,
    MAX_TENSORS,
    Tensor,
    TensorSpec,
    bytes_tensor,
    check_tensors,
    pack_tensors,
    split_bytes,
    unpack_tensors,
)
from ncn_framework.testing.fakes import fake_tensor

quick = settings(max_examples=50, deadline=None)
dims = st.lists(st.integers(0, 2**48 - 1), max_size=MAX_RANK).map(tuple)
tensors = st.lists(
    st.builds(Tensor, st.text(max_size=8), st.sampled_from(sorted(DTYPE_SIZES)), dims, st.binary(max_size=64)),
    max_size=4,
).map(tuple)


@quick
@given(tensors)
def test_what_is_packed_is_unpacked(given: tuple[Tensor, ...]) -> None:
    packed = pack_tensors(given)
    assert unpack_tensors(packed) == given
    assert packed == msgspec.msgpack.encode([[t.name, t.dtype, list(t.shape), t.data] for t in given])


@quick
@given(st.binary(max_size=64))
def test_bytes_from_anybody_are_tensors_or_refused(data: bytes) -> None:
    try:
        found = unpack_tensors(data)
    except InvalidTensor:
        return
    assert unpack_tensors(pack_tensors(found)) == found


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([["x", "FP8", [], b""]], "dtype 'FP8'; known: BOOL"),
        ([["x", "FP32", [-1], b""]], "none negative"),
        ([["x", "FP32", [2**48], b""]], "none negative"),
        ([["x", "FP32", [1] * (MAX_RANK + 1), b""]], f"at most {MAX_RANK} dimensions"),
        ([["x", "FP32", [], b""]] * (MAX_TENSORS + 1), f"at most {MAX_TENSORS}"),
        ([["x", "FP32", []]], "not well encoded"),
        ([["x", "FP32", [True], b""]], "not well encoded"),
        ([["x", "FP32", [1.0], b""]], "not well encoded"),
        ({"x": 1}, "not well encoded"),
    ],
)
def test_what_is_no_tensor_is_refused(rows: object, problem: str) -> None:
    data = msgspec.msgpack.encode(rows)
    with pytest.raises(InvalidTensor, match=problem):
        unpack_tensors(data)
    with pytest.raises(OutputRejected, match=problem):
        unpack_tensors(data, error=OutputRejected)


def test_trailing_bytes_and_deep_nesting_are_refused() -> None:
    for data in (pack_tensors([]) + b"\0", b"\x91" * 100_000):
        with pytest.raises(InvalidTensor, match="not well encoded"):
            unpack_tensors(data)


# --- BYTES ---


@quick
@given(st.lists(st.binary(max_size=20), max_size=5))
def test_elements_survive(elements: list[bytes]) -> None:
    tensor = bytes_tensor("x", elements)
    assert tensor.shape == (len(elements),)
    assert split_bytes(tensor) == elements
    check_tensors([tensor], [TensorSpec("x", "BYTES", (-1,))])


@pytest.mark.parametrize("data", [b"\1", b"\1\0\0\0", b"\2\0\0\0a", b"\0\0\0\0\0", b"\xff\xff\xff\xffa"])
def test_an_element_that_ends_behind_the_data_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidTensor, match="behind the data"):
        split_bytes(Tensor("x", "BYTES", (1,), data))


# --- against a specification ---

SPECS = [TensorSpec("x", "FP32", (-1, 2)), TensorSpec("s", "BYTES", (-1,))]


def test_tensors_may_come_in_any_order() -> None:
    given = [fake_tensor(spec, 3) for spec in SPECS]
    check_tensors(given, SPECS)
    check_tensors(given[::-1], SPECS)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "tensor 'x' is missing; the model wants: x, s"),
        ([Tensor("y", "FP32", (1, 2), bytes(8))], "tensor 'y' is unknown or given twice; the model has: x, s"),
        ([fake_tensor(SPECS[0])] * 2, "tensor 'x' is unknown or given twice"),
        ([Tensor("x", "FP64", (1, 2), bytes(16))], r"is FP64\[1, 2\]; the model wants FP32\[-1, 2\]"),
        ([Tensor("x", "FP32", (1, 3), bytes(12))], r"is FP32\[1, 3\]"),
        ([Tensor("x", "FP32", (2,), bytes(8))], r"is FP32\[2\]"),
        ([Tensor("x", "FP32", (1, 2), bytes(7))], r"has 7 bytes; FP32\[1, 2\] wants 8"),
        ([Tensor("s", "BYTES", (2,), bytes(4))], r"has 1 elements; its shape \[2\] wants 2"),
        ([Tensor("s", "BYTES", (1,), bytes(3))], "behind the data"),
    ],
)
@pytest.mark.parametrize("error", [InvalidTensor, OutputRejected])
def test_what_does_not_fit_is_refused(given: list[Tensor], problem: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=problem):
        check_tensors(given, SPECS, error=error)


@pytest.mark.parametrize("dtype", DTYPE_SIZES)
def test_every_dtype_has_its_size(dtype: str) -> None:
    tensor = fake_tensor(TensorSpec("x", dtype, (2, 3)))
    check_tensors([tensor], [TensorSpec("x", dtype, (-1, -1))])
    if dtype != "BYTES":
        assert len(tensor.data) == math.prod(tensor.shape) * DTYPE_SIZES[dtype]


def test_a_bool_is_one_or_nothing() -> None:
    with pytest.raises(InvalidTensor, match="neither 0 nor 1"):
        check_tensors([Tensor("x", "BOOL", (2,), b"\1\2")], [TensorSpec("x", "BOOL", (2,))])


def test_a_scalar_has_one_element_and_an_empty_tensor_none() -> None:
    check_tensors([Tensor("x", "INT8", (), b"\1")], [TensorSpec("x", "INT8", ())])
    check_tensors([Tensor("x", "INT8", (0, 5), b"")], [TensorSpec("x", "INT8", (-1, 5))])
