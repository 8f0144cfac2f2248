"""The one judge: what counts, and what of it is told to whoever sent the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_framework.errors import (
    DeadlineExpired,
    MalformedRequest,
    NcnError,
    ReplayConflict,
    RequestTooLarge,
    SignatureRejected,
)
from ncn_framework.models import Domain, Record
from ncn_framework.testing.fakes import ManualClock, fake_manifest
from ncn_registry.records import KINDS, Bounds, Judge, dht_key, is_withdrawal, models_of, to_bytes, withdrawal

from .network import DOMAIN, NODE, OTHER, a_heartbeat, a_record, signed

CLOCK = ManualClock()
NOW = CLOCK()
JUDGE = Judge(DOMAIN, CLOCK, Bounds(payload_bytes=4_096, lifetime_ms=100_000, skew_ms=1_000))


def good(**changes: object) -> Record:
    return a_record(expires_ms=NOW + 50_000, **changes)  # type: ignore[arg-type]


def test_a_good_record_counts() -> None:
    JUDGE.check(good())
    JUDGE.check(good(sequence=8), newest=7)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: replace(good(), signature=b""), SignatureRejected, "65 bytes"),
        (lambda: signed(good(), OTHER), SignatureRejected, "signed by"),
        (lambda: replace(good(), sequence=9), SignatureRejected, "signed by"),
        (lambda: replace(good(), payload=b"x"), SignatureRejected, "signed by"),
        (lambda: replace(good(), expires_ms=NOW + 50_001), SignatureRejected, "signed by"),
        (lambda: signed(good(), NODE, Domain(1)), SignatureRejected, "signed by"),
        (lambda: a_record(expires_ms=NOW), DeadlineExpired, "expired at"),
        (lambda: a_record(expires_ms=NOW + 101_001), MalformedRequest, "expires sooner"),
        (lambda: good(payload=b"x" * 4_097), RequestTooLarge, "at most 4096"),
        (lambda: good(payload=b"x"), MalformedRequest, "malformed"),
        (lambda: good(kind="treasure"), MalformedRequest, "known: node"),
        (lambda: good(kind="gateway"), MalformedRequest, "malformed"),
        (lambda: good(sequence=2**63), MalformedRequest, "63-bit"),
        (lambda: replace(good(), sequence=0), MalformedRequest, "63-bit"),
        (lambda: replace(good(), owner=b"short"), MalformedRequest, "20 bytes"),
    ],
)
def test_what_does_not_count_is_refused(make: Callable[[], Record], error: type[NcnError], says: str) -> None:
    with pytest.raises(error, match=says):
        JUDGE.check(make())


@pytest.mark.parametrize("newest", [5, 6])
def test_a_replayed_or_older_record_is_refused(newest: int) -> None:
    with pytest.raises(ReplayConflict, match="higher sequence"):
        JUDGE.check(good(sequence=5), newest)


def test_a_heartbeat_counts_once_and_not_by_another_clock() -> None:
    assert JUDGE.check_heartbeat(a_heartbeat(at_ms=NOW)).owner == NODE.address
    with pytest.raises(ReplayConflict):
        JUDGE.check_heartbeat(a_heartbeat(at_ms=NOW), NOW)
    for at_ms in (NOW - 1_001, NOW + 1_001):
        with pytest.raises(MalformedRequest, match="set the clock right"):
            JUDGE.check_heartbeat(a_heartbeat(at_ms=at_ms))
    forged = a_heartbeat(at_ms=NOW)
    forged.in_flight = 7
    with pytest.raises(SignatureRejected):
        JUDGE.check_heartbeat(forged)
    with pytest.raises(MalformedRequest):
        JUDGE.check_heartbeat(type(forged)(node=b"short", at_ms=NOW))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_fits_into_the_dht(kind: str) -> None:
    assert len("/" + dht_key(kind, NODE.address)) <= 50


def test_a_value_of_the_dht_is_its_keys_or_nothing() -> None:
    record, key = good(sequence=3), dht_key("node", NODE.address)
    assert JUDGE.open(key, to_bytes(record)) == record
    assert JUDGE.sequence(key, to_bytes(record)) == 3
    assert JUDGE.sequence(dht_key("node", OTHER.address), to_bytes(record)) is None
    assert JUDGE.sequence(dht_key("gateway", NODE.address), to_bytes(record)) is None
    assert JUDGE.sequence(key, to_bytes(record)[:-1]) is None
    assert JUDGE.sequence(key, b"x" * 100_000) is None


@given(st.binary(max_size=300))
def test_no_value_of_a_stranger_makes_the_judge_raise(value: bytes) -> None:
    assert JUDGE.sequence(dht_key("node", NODE.address), value) is None


def test_a_withdrawal_outlives_what_it_withdraws() -> None:
    record = good(sequence=NOW + 10)
    gone = withdrawal(record, NOW)
    assert is_withdrawal(gone)
    assert not is_withdrawal(record)
    assert gone.sequence == record.sequence + 1
    assert gone.expires_ms == record.expires_ms
    JUDGE.check(signed(gone), record.sequence)
    assert models_of(gone) == frozenset()
    assert models_of(record) == {fake_manifest().digest}
