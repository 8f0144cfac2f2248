"""Amounts, as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_client.amounts import shown


@pytest.mark.parametrize(
    ("wei", "text"),
    [
        (0, "0 NCN (0 wei)"),
        (1, "0.000000000000000001 NCN (1 wei)"),
        (10**18, "1 NCN (1000000000000000000 wei)"),
        (2_500_000_000_000_000, "0.0025 NCN (2500000000000000 wei)"),
    ],
)
def test_shown(wei: int, text: str) -> None:
    assert shown(wei) == text


@given(st.integers(0, 2**96))
def test_nothing_is_lost(wei: int) -> None:
    amount, _, rest = shown(wei).partition(" NCN (")
    whole, _, fraction = amount.partition(".")
    assert int(whole) * 10**18 + int(fraction.ljust(18, "0")) == wei
    assert rest == f"{wei} wei)"
