"""The draw of a committee: the same for everybody, by stake, and out of the hands of who asks."""

from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework.committees import Epoch, Member, draw

stakes = st.lists(st.integers(1, 2**96 - 1), min_size=1, max_size=40)


def epoch_of(stakes_wei: list[int], seed: bytes = b"\x05" * 32) -> Epoch:
    members = tuple(Member(i.to_bytes(20, "big"), stake) for i, stake in enumerate(stakes_wei))
    return Epoch(1, members, len(members) // 2 + 1, 0, seed, bytes(20))


@given(stakes, st.binary(min_size=32, max_size=32))
@settings(max_examples=50, deadline=None)
def test_every_member_is_in_the_order_once(stakes_wei: list[int], subject: bytes) -> None:
    assert sorted(draw(epoch_of(stakes_wei), subject)) == list(range(len(stakes_wei)))


def test_the_first_is_whom_a_plain_reading_of_the_rule_gives() -> None:
    epoch, subject = epoch_of([5, 1, 10, 4]), b"\x07" * 32
    number = hashlib.sha256(b"ncn.committee.v1" + epoch.seed + subject + bytes(4)).digest()
    point = int.from_bytes(number, "big") % 20
    expected = 0 if point < 5 else 1 if point < 6 else 2 if point < 16 else 3
    assert draw(epoch, subject)[0] == expected


def test_a_known_draw_stays_as_it_is() -> None:
    assert draw(epoch_of([3, 1, 4, 1, 5, 9, 2, 6]), b"\x11" * 32) == KNOWN


KNOWN = (0, 4, 5, 7, 2, 1, 6, 3)


def test_who_is_excluded_or_has_no_stake_is_not_asked() -> None:
    epoch = epoch_of([5, 0, 7, 9])
    assert sorted(draw(epoch, bytes(32), {epoch.members[2].address})) == [0, 3]


def test_nobody_left_is_an_empty_order() -> None:
    assert draw(epoch_of([0]), bytes(32)) == ()


def test_another_subject_or_seed_gives_another_order() -> None:
    epoch = epoch_of([1] * 30)
    assert draw(epoch, b"\1" * 32) != draw(epoch, b"\2" * 32)
    assert draw(epoch, b"\1" * 32) != draw(epoch_of([1] * 30, b"\x06" * 32), b"\1" * 32)


def test_who_has_twice_the_stake_comes_first_twice_as_often() -> None:
    epoch = epoch_of([200, 100, 100])
    first = Counter(draw(epoch, i.to_bytes(32, "big"))[0] for i in range(4_000))
    assert 1_850 < first[0] < 2_150  # 2,000, and five standard deviations are 158
    assert 850 < first[1] < 1_150
