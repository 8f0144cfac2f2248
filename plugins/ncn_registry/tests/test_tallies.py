"""Whoever has the same notices has the same numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework.errors import StoreError
from ncn_framework.models import Domain
from ncn_framework.statements import Performance
from ncn_registry import tallies as module
from ncn_registry.faults import ALONE, Fault, counted
from ncn_registry.tallies import Proven, Tallies

from .network import DOMAIN

A, B, C, D = (bytes([number]) * 20 for number in range(1, 5))
NODE = b"\x77" * 20


def proven(number: int, epoch: int = 7, **changes: object) -> Proven:
    """Return what a notice proves that A, B and C signed statement ``number``, and D did not."""
    fields = {"signed": frozenset({A, B, C}), "teller": A, "silent": frozenset({D}), **changes}
    return Proven(number.to_bytes(32, "big"), epoch, **fields)  # type: ignore[arg-type]


async def put(tallies: Tallies, some: Iterable[Proven]) -> None:
    await asyncio.gather(*(tallies.put(one) for one in some))


async def numbers(path: Path, some: Iterable[Proven]) -> tuple[object, ...]:
    async with Tallies(path, DOMAIN) as tallies:
        await put(tallies, some)
        return await tallies.performances(7), await tallies.performances(8), await tallies.receipts()


SOME = [
    proven(1, receipts=((NODE, 3),)),
    proven(2, teller=B, refused=frozenset({D}), silent=frozenset()),
    proven(2, teller=A),
    proven(2, teller=A, refused=frozenset({D}), silent=frozenset()),
    proven(3, signed=frozenset({A, B, D}), silent=frozenset({C})),
    proven(3, signed=frozenset({A, B, C}), silent=frozenset({D})),
    proven(4, epoch=8, receipts=((NODE, 9),)),
    proven(4, epoch=7, receipts=((NODE, 2),)),
    proven(1, teller=B, receipts=((NODE, 5), (A, 1))),
]


async def test_work_is_counted_once_and_a_signature_beats_who_says_that_there_was_none(tmp_path: Path) -> None:
    performances, later, receipts = await numbers(tmp_path / "one.db", SOME)
    assert performances == (
        Performance(A, 4, 0, 0),
        Performance(B, 4, 0, 0),
        Performance(C, 4, 0, 0),
        Performance(D, 1, 1, 2),
    )
    assert later == (), "the signatures of statement 4 are of the earlier epoch"
    assert receipts == {NODE: 5, A: 1}


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(SOME), again=st.lists(st.sampled_from(SOME), max_size=5))
def test_order_and_repetition_change_nothing(
    order: list[Proven], again: list[Proven], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tallies")
    assert asyncio.run(numbers(folder / "a.db", [*order, *again])) == asyncio.run(numbers(folder / "b.db", SOME))


async def test_a_restart_loses_nothing_and_another_network_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "tallies.db"
    first = await numbers(path, SOME)
    assert await numbers(path, []) == first
    async with Tallies(path, Domain(1, b"\x09" * 20)) as tallies:
        assert await tallies.unreported() == []
        assert await tallies.receipts() == {}


async def test_what_is_reported_is_no_more_pending_and_later_forgotten_but_not_counted_again(tmp_path: Path) -> None:
    path = tmp_path / "tallies.db"
    async with Tallies(path, DOMAIN) as tallies:
        await put(tallies, [proven(1, receipts=((NODE, 3),)), proven(2, epoch=8, receipts=((NODE, 1),))])
        assert await tallies.unreported() == [7, 8]
        assert (await tallies.pending())[A] == Performance(A, 2, 0, 0)
        await tallies.book(7)
        assert await tallies.unreported() == [8]
        assert (await tallies.pending())[D] == Performance(D, 0, 0, 1)
        await tallies.forget(8)
    async with Tallies(path, DOMAIN) as tallies:
        assert tallies.oldest == 8
        await put(tallies, [proven(1, epoch=8, receipts=((NODE, 3),)), proven(9, epoch=7)])
        assert await tallies.performances(7) == ()
        assert (await tallies.pending())[A] == Performance(A, 1, 0, 0), "a signature counts in one epoch"
        assert await tallies.receipts() == {NODE: 4}


async def test_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    async with Tallies(tmp_path / "tallies.db", DOMAIN) as tallies:
        await put(tallies, [proven(1), proven(2)])
        with pytest.raises(StoreError, match="2 statements are counted already"):
            tallies.put(proven(3))


async def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "tallies.db").write_text("this is no database, and long enough to be taken for one" * 20)
    with pytest.raises(StoreError, match=r"tallies\.db could not be kept"):
        async with Tallies(tmp_path / "tallies.db", DOMAIN):
            pass


def faults(teller: bytes, count: int, *, start: int = 0, silent: bool = True) -> list[Fault]:
    return [Fault(D, number.to_bytes(32, "big"), teller, silent) for number in range(start, start + count)]


def test_one_members_word_alone_does_little_harm() -> None:
    assert counted(faults(A, 1_000)) == {D: (0, ALONE)}
    assert counted(faults(A, 1_000, silent=False)) == {D: (ALONE, 0)}
    assert counted([*faults(A, 1_000), *faults(B, 5, start=2_000)]) == {D: (0, 5 + 5 + ALONE)}
    mixed = [*faults(A, 8), *faults(A, 8, start=100, silent=False)]
    assert counted(mixed) == {D: (8, 2)}, "what costs more is doubted first"


def test_what_several_say_counts_in_full_and_each_statement_once() -> None:
    assert counted([*faults(A, 50), *faults(B, 50, start=100)]) == {D: (0, 100)}
    assert counted([*faults(A, 50), *faults(B, 50)]) == {D: (0, 50)}
    assert counted([*faults(A, 3), *faults(B, 3, silent=False)]) == {D: (3, 0)}
    assert counted([]) == {}
