"""Sends what a command is for once, also where it was interrupted and is typed again."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import click

from ..writer import Receipt, TransactionWriter
from .display import say

__all__ = ["once", "told"]


async def once(
    writer: TransactionWriter, contract: bytes, what: str, send: Callable[[str], Awaitable[Receipt]]
) -> Receipt:
    """Send what is named ``what``, unless it is under way from a run that was interrupted: then wait for that.

    Args:
        writer: of the account.
        contract: address of the one that is told, which belongs to the name.
        what: with every argument of it.
        send: sends it under the key that it is given.
    """
    prefix = f"{what}:{contract.hex()}:"
    receipt = await writer.take_up(prefix)
    if receipt is not None:
        say("an earlier run had sent this already; nothing is sent twice")
        return receipt
    say("sending the transaction, and waiting until it is final ...")
    return await send(prefix + secrets.token_hex(8))


def told(receipt: Receipt, what: str) -> None:
    """Print what was done, and the transaction that did it."""
    click.echo(f"{what}; transaction 0x{receipt.hash.hex()}, {receipt.gas_used:,} gas")
