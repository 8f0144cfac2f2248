"""Amounts of the network's token, as people read them."""

from __future__ import annotations

__all__ = ["DECIMALS", "shown"]

DECIMALS = 18
"""Digits behind the point of one NCN; a wei is the last of them (ERC-20 ``decimals`` of NCNToken)."""


def shown(wei: int) -> str:
    """Return an amount in NCN and in wei, exactly: ``0.0025 NCN (2500000000000000 wei)``."""
    whole, rest = divmod(wei, 10**DECIMALS)
    digits = f"{rest:0{DECIMALS}d}".rstrip("0")
    return f"{whole}.{digits} NCN ({wei} wei)" if digits else f"{whole} NCN ({wei} wei)"
