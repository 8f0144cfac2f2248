"""Python values become the tensors that a model takes, or an error that names the input."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_client.answers import values_of
from ncn_client.inputs import tensors_of
from ncn_framework.errors import InvalidTensor
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor

TEXT = TensorSpec("t", "BYTES", (-1,))
GRID = TensorSpec("t", "BYTES", (-1, 2))
ONE = TensorSpec("t", "BYTES", ())
ROWS = TensorSpec("t", "FP32", (-1, 2))
OPEN = TensorSpec("t", "INT64", (-1, -1))
SCALAR = TensorSpec("t", "INT64", ())
HALF = TensorSpec("t", "BF16", (2,))


class Array:
    def __init__(self, values: Any) -> None:
        self.values = values

    def tolist(self) -> Any:
        return self.values


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(
    ("spec", "value", "shape", "data"),
    [
        (TEXT, "a", (1,), b"\1\0\0\0a"),
        (TEXT, b"\xff", (1,), b"\1\0\0\0\xff"),
        (TEXT, memoryview(b"a"), (1,), b"\1\0\0\0a"),
        (TEXT, ["a", b"b"], (2,), b"\1\0\0\0a\1\0\0\0b"),
        (TEXT, [], (0,), b""),
        (GRID, ["a", "b"], (1, 2), b"\1\0\0\0a\1\0\0\0b"),
        (GRID, [["a", "b"]], (1, 2), b"\1\0\0\0a\1\0\0\0b"),
        (ONE, "a", (), b"\1\0\0\0a"),
        (ROWS, [[1, 2], [3, 4]], (2, 2), floats(1, 2, 3, 4)),
        (ROWS, ((1, 2),), (1, 2), floats(1, 2)),
        (ROWS, [1, 2, 3, 4], (2, 2), floats(1, 2, 3, 4)),
        (ROWS, floats(1, 2), (1, 2), floats(1, 2)),
        (ROWS, Array([[1.0, 2.0]]), (1, 2), floats(1, 2)),
        (ROWS, Tensor("other", "FP32", (1, 2), floats(1, 2)), (1, 2), floats(1, 2)),
        (ROWS, {"data": [1, 2]}, (1, 2), floats(1, 2)),
        (OPEN, [[1, 2, 3]], (1, 3), struct.pack("<3q", 1, 2, 3)),
        (OPEN, {"data": [1, 2], "shape": [2, 1]}, (2, 1), struct.pack("<2q", 1, 2)),
        (SCALAR, 5, (), struct.pack("<q", 5)),
        (HALF, b"\x80\x3f\x00\x40", (2,), b"\x80\x3f\x00\x40"),
    ],
)
def test_values(spec: TensorSpec, value: Any, shape: tuple[int, ...], data: bytes) -> None:
    assert tensors_of({"t": value}, [spec]) == (Tensor("t", spec.dtype, shape, data),)


@pytest.mark.parametrize(
    ("spec", "value", "what"),
    [
        (TEXT, 5, "strings or bytes"),
        (TEXT, [["a"], ["b"]], "2 dimensions"),
        (GRID, [["a"], ["b", "c"]], "ragged"),
        (GRID, [[["a"]]], "3 dimensions"),
        (ROWS, [1, 2, 3], "wants"),
        (ROWS, ["a"], "numbers"),
        (ROWS, [[1], [2, 3]], "ragged"),
        (ROWS, {"dat": [1]}, "'t'"),
        (ROWS, {"data": 1}, "'t'"),
        (OPEN, [1, 2], "needs its shape"),
        (SCALAR, 2**70, "fit"),
        (HALF, [1.0, 2.0], "data_base64"),
        (ROWS, [[[[[[[[[1]]]]]]]]], "deeper than 8"),
    ],
)
def test_what_does_not_fit(spec: TensorSpec, value: Any, what: str) -> None:
    with pytest.raises(InvalidTensor, match=what):
        tensors_of({"t": value}, [spec])


def test_unknown_and_missing() -> None:
    with pytest.raises(InvalidTensor, match="'u' is unknown; the model takes: t"):
        tensors_of({"t": "a", "u": "b"}, [TEXT])
    with pytest.raises(InvalidTensor, match="'t' is missing"):
        tensors_of({}, [TEXT])


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_there_and_back(rows: int, columns: int, data: st.DataObject) -> None:
    row = st.lists(st.floats(width=32, allow_nan=False), min_size=columns, max_size=columns)
    values = data.draw(st.lists(row, min_size=rows, max_size=rows))
    (tensor,) = tensors_of({"t": values}, [TensorSpec("t", "FP32", (-1, -1))])
    assert values_of(tensor) == values


def test_values_of_others() -> None:
    assert values_of(Tensor("t", "BF16", (2,), b"\x80\x3f\x00\x40")) == [1.0, 2.0]
    assert values_of(Tensor("t", "BOOL", (2, 1), b"\0\1")) == [[False], [True]]
    assert values_of(Tensor("t", "INT64", (), struct.pack("<q", 5))) == 5
    assert values_of(Tensor("t", "FP32", (2**40, 0), b"")) == []
    assert values_of(bytes_tensor("t", [b"a", b""])) == [b"a", b""]
