"""Coroutines inside commands; asyncio is imported when one runs, since the command's help needs none of it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, run in a loop of its own."""
    import asyncio

    return asyncio.run(work)
