"""Small programs for the virtual machine, in bytes."""

from __future__ import annotations

from ncn_payments.transactions import Call

__all__ = ["BURN", "RECURSE", "REVERT", "STORE_AND_LOG", "TRANSIENT", "creation"]


def creation(runtime: bytes) -> Call:
    """Return the creation of a contract with this code: PUSH2 size PUSH1 12 PUSH0 CODECOPY PUSH2 size PUSH0 RETURN."""
    size = len(runtime).to_bytes(2, "big")
    return Call(None, b"\x61" + size + b"\x60\x0c\x5f\x39\x61" + size + b"\x5f\xf3" + runtime, "a program")


STORE_AND_LOG = bytes.fromhex(
    "5f35"  # the first word of the input
    "80600055"  # is stored in slot 0,
    "5f52"  # put into memory,
    "600760205fa1"  # and logged with topic 7
    "42"
    "5f52"
    "60205ff3"  # the answer is the block's time
)
"""Stores and logs the first word it is given, and answers the time."""

TRANSIENT = bytes.fromhex("602a60015d60015c5f5260205ff3")
"""Puts 42 into transient storage and answers what it finds there (EIP-1153)."""

REVERT = bytes.fromhex("5f355f5260205ffd")
"""Reverts with the first word of its input."""

RECURSE = bytes.fromhex("5f5f5f5f5f305af100")
"""Calls itself with all the gas that it has."""

BURN = bytes.fromhex("5b5f56")
"""Loops until its gas is used up."""
