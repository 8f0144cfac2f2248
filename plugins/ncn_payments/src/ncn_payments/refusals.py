"""Why a chain does not take a transaction: JSON-RPC has no codes for it, so that the words of its error count."""

from __future__ import annotations

from .errors import RpcError

__all__ = ["FUNDS", "KNOWN", "LATER", "PASSED", "says"]

KNOWN = ("already known", "already imported", "alreadyknown", "known transaction", "already exists")
"""It has it already."""
PASSED = ("nonce too low", "nonce is too low", "invalid nonce", "old nonce")
"""The nonce is used, perhaps by this very transaction."""
LATER = ("underpriced", "less than block base fee", "txpool is full", "pool is full", "future transaction")
"""Not now, or not for this fee."""
FUNDS = ("insufficient funds", "insufficient balance")
"""The account has too little ether."""


def says(error: RpcError, texts: tuple[str, ...]) -> bool:
    """Return whether an error of the chain has one of these texts."""
    reason = error.reason.lower()
    return any(text in reason for text in texts)
