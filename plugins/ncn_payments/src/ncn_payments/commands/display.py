"""How commands show amounts, times and progress."""

from __future__ import annotations

import time
from datetime import datetime

import click

from ..amounts import shown_amount

__all__ = ["at", "away", "ncn", "say"]


def say(text: str) -> None:
    """Tell of progress, beside the results: on standard error."""
    click.echo(text, err=True)


def ncn(wei: int) -> str:
    """Return an amount of the token."""
    return f"{shown_amount(wei)} NCN"


def at(seconds: int) -> str:
    """Return a time, seconds since the epoch, by the clock of this machine's zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def away(seconds: int) -> str:
    """Return a time that is to come, and how long until then."""
    left = max(0, seconds - int(time.time()))
    days, hours, minutes = left // 86_400, left % 86_400 // 3_600, left % 3_600 // 60
    span = f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {left % 60} s"
    return f"{at(seconds)} (in {span})"
