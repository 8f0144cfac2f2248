"""When two answers count as the same."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_framework.comparison import difference
from ncn_framework.models import Chunk
from ncn_framework.tensors import Tensor, bytes_tensor, pack_tensors

FORMS = {"FP16": "<e", "FP32": "<f", "FP64": "<d"}


def floats(*values: float, dtype: str = "FP32", name: str = "y", shape: tuple[int, ...] | None = None) -> Tensor:
    """Return a tensor of floats."""
    if dtype == "BF16":
        data = b"".join(struct.pack("<f", value)[2:] for value in values)
    else:
        data = b"".join(struct.pack(FORMS[dtype], value) for value in values)
    return Tensor(name, dtype, shape or (len(values),), data)


def answer(*tensors: Tensor, units: int = 1) -> list[Chunk]:
    """Return an answer of one chunk."""
    return [Chunk(1, units, pack_tensors(tensors))]


@pytest.mark.parametrize("dtype", ["FP16", "BF16", "FP32", "FP64"])
def test_floats_may_differ_by_the_tolerance_and_no_more(dtype: str) -> None:
    """1 and 1.5 have one encoding in each of the four."""
    one, other = answer(floats(1.0, 2.0, dtype=dtype)), answer(floats(1.5, 2.0, dtype=dtype))
    assert difference(one, other, 0.5) == ""
    assert difference(one, other, 0.49) == "chunk 1: tensor 'y' differs by 0.5 at element 0 (tolerance 0.49)"
    assert difference(one, one, 0.0) == ""
    assert difference(one, other, 0.0)


@pytest.mark.parametrize("other", [0.0, math.inf, -math.inf, 1e30])
def test_not_a_number_equals_itself_alone(other: float) -> None:
    nan = answer(floats(math.nan))
    assert difference(nan, answer(floats(other)), 1e300)
    assert difference(answer(floats(other)), nan, 1e300)
    assert difference(nan, [replace(nan[0], data=nan[0].data)], 0.0) == ""
    quiet, signalling = (answer(Tensor("y", "FP32", (1,), bits)) for bits in (b"\0\0\xc0\x7f", b"\1\0\xc0\x7f"))
    assert difference(quiet, signalling, 0.0) == "", "whichever it is, it is none"


def test_an_infinity_equals_that_of_its_sign() -> None:
    up, down = answer(floats(math.inf)), answer(floats(-math.inf))
    assert difference(up, answer(floats(math.inf)), 0.0) == ""
    assert difference(up, down, 1e300)
    assert difference(up, answer(floats(3e38)), math.inf), "no tolerance reaches from a number to infinity"


def test_minus_zero_is_zero() -> None:
    assert difference(answer(floats(0.0)), answer(floats(-0.0)), 0.0) == ""


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ([], answer(floats(1.0)), "0 chunks, not 1"),
        (answer(floats(1.0), units=2), answer(floats(1.0)), "2 units"),
        (answer(floats(1.0), floats(1.0, name="z")), answer(floats(1.0)), "2 tensors, not 1"),
        (answer(floats(1.0, name="z")), answer(floats(1.0)), "tensor 'z'"),
        (answer(floats(1.0, dtype="FP64")), answer(floats(1.0)), r"FP64\[1\]"),
        (answer(floats(1.0, 2.0, shape=(2, 1))), answer(floats(1.0, 2.0, shape=(1, 2))), r"\[2, 1\]"),
        (answer(Tensor("y", "INT32", (1,), b"\1\0\0\0")), answer(Tensor("y", "INT32", (1,), b"\2\0\0\0")), "other"),
        (answer(bytes_tensor("y", [b"a"])), answer(bytes_tensor("y", [b"b"])), "other elements"),
        (answer(Tensor("y", "FP32", (2,), b"\0" * 4)), answer(floats(1.0, 2.0)), "4 bytes, not 8"),
        ([Chunk(1, 1, b"not tensors")], answer(floats(1.0)), "not well encoded"),
        ([Chunk(2, 1, b"")], answer(floats(1.0)), "chunk 2"),
    ],
)
def test_all_else_must_be_the_same(one: Sequence[Chunk], other: Sequence[Chunk], why: str) -> None:
    """However large the tolerance is."""
    found = difference(one, other, 1e6)
    assert re.search(why, found), found


@given(
    st.lists(st.floats(width=32), min_size=1),
    st.floats(0, 1e6),
    st.sampled_from(["FP32", "FP64"]),
)
def test_an_answer_equals_itself(values: list[float], tolerance: float, dtype: str) -> None:
    one = answer(floats(*values, dtype=dtype))
    other = [replace(one[0], data=pack_tensors([floats(*values, dtype=dtype)]))]
    assert difference(one, other, tolerance) == ""
