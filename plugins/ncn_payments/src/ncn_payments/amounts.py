"""Amounts of ether and of the network's token, as people read and write them: both have 18 decimals."""

from __future__ import annotations

import re

__all__ = ["parse_amount", "shown_amount"]

_DECIMALS = 18
_AMOUNT = re.compile(r"(\d{1,30})(?:\.(\d{1,18}))?(\s*wei)?", re.ASCII | re.IGNORECASE)


def shown_amount(wei: int) -> str:
    """Return an amount as a decimal number, exactly: ``0.0025``."""
    whole, rest = divmod(wei, 10**_DECIMALS)
    return f"{whole}.{rest:0{_DECIMALS}d}".rstrip("0").rstrip(".")


def parse_amount(text: str) -> int:
    """Return an amount in wei, exactly: of a decimal number, such as ``12.5``, or of a number of wei, ``250 wei``.

    Raises:
        ValueError: not a number, negative, with more than 18 decimals, or a fraction of a wei.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or (found[2] and found[3]):
        raise ValueError(
            f"{text[:64]!r} is no amount: give a decimal number with at most {_DECIMALS} decimals, "
            "or a whole number with the suffix wei"
        )
    if found[3]:
        return int(found[1])
    return int(found[1]) * int(10**_DECIMALS) + int((found[2] or "").ljust(_DECIMALS, "0"))
