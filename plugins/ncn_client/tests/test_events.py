"""Streams of server-sent events, in parts of any size."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_client.events import Move, Moves
from ncn_framework.errors import VerificationError

STREAM = (
    b'event: event\nid: 1\ndata: {"type":"event","id":"0x1","index":1,"state":"ROUTED","at_ms":5,"detail":""}\n\n'
    b'event: chunk\nid: 2\ndata: {"type":"chunk"}\n\n'
    b'event: event\r\nid: 3\r\ndata: {"state":"FAILED","at_ms":6,"detail":"why","more":[1]}\r\n\r\n'
    b'event: answer\ndata: {"state":"never","at_ms":1}\n\n'
)


@given(st.lists(st.integers(0, len(STREAM))))
def test_parts_of_any_size(cuts: list[int]) -> None:
    moves, at = Moves(), 0
    for cut in [*sorted(cuts), len(STREAM)]:
        moves.feed(STREAM[at:cut])
        at = cut
    assert moves.found == [Move("ROUTED", 5), Move("FAILED", 6, "why")]


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[",
        b"\xff",
        b'{"state":1,"at_ms":1}',
        b"[" * 60_000,
        json.dumps({"state": "x" * 70_000, "at_ms": 1}).encode(),
    ],
)
def test_a_move_of_another_form(data: bytes) -> None:
    with pytest.raises(VerificationError, match="no move"):
        Moves().feed(b"event: event\ndata: " + data + b"\n\n")


def test_moves_without_end() -> None:
    with pytest.raises(VerificationError, match="more than 64"):
        Moves().feed(b'event: event\ndata: {"state":"ROUTED","at_ms":1}\n\n' * 65)


def test_what_is_not_a_move_is_not_kept() -> None:
    moves = Moves()
    for _ in range(100):
        moves.feed(b"event: chunk\ndata: " + b"x" * 100_000)
    assert len(moves._line) <= 1 << 16
    moves.feed(b'\n\nevent: event\ndata: {"state":"SETTLED","at_ms":1}\n\n')
    assert [move.state for move in moves.found] == ["SETTLED"]
