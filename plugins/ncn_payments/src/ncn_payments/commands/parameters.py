"""What several commands take: addresses and amounts, checked before anything is opened."""

from __future__ import annotations

import click

__all__ = ["address_parameter", "amount_parameter"]


def address_parameter(ctx: click.Context, param: click.Parameter, value: str | None) -> bytes | None:
    """Return an address as bytes; one with a wrong checksum is refused."""
    from ncn_framework.signing import address_from_hex

    try:
        return None if value is None else address_from_hex(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def amount_parameter(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return an amount of the token, as people write it, in wei; none is refused, and what no contract can hold."""
    from ncn_framework.payments import MAX_WEI

    from ..amounts import parse_amount

    if value is None:
        return None
    try:
        amount = parse_amount(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    if not 0 < amount <= MAX_WEI:
        raise click.BadParameter(f"{value!r} is not above 0 and below 2^96 wei", ctx, param)
    return amount
