"""What hooks answered, awaited in the ways that their kinds ask for."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any

from .errors import NoHandlerError

__all__ = ["required", "values"]


async def values(results: Iterable[Any]) -> list[Any]:
    """Await in turn what is awaitable of a hook of kind "every"; when one fails, those behind it are closed."""
    waiting, found = deque(results), []
    try:
        while waiting:
            result = waiting.popleft()
            found.append(await result if inspect.isawaitable(result) else result)
    finally:
        for result in waiting:
            if inspect.iscoroutine(result):
                result.close()
    return found


async def required(result: Awaitable[Any] | None, hook: str, what: str) -> Any:
    """Return the answer of a hook of kind "decision".

    Raises:
        NoHandlerError: every plugin declined.
    """
    if result is None:
        raise NoHandlerError(f"no plugin answered {hook} for {what}; install or enable one that does")
    return await result
