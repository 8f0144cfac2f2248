"""How much costly work is done at once, and how much may wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ncn_framework.errors import NoCapacity

__all__ = ["Gate"]


class Gate:
    """Lets so many through at once; others wait, and those that would be too many are refused.

    Args:
        what: is done behind it, for the message.
        at_once: how many may be inside.
        most: how many may be inside or wait.
        most_bytes: of all of them.
    """

    def __init__(self, what: str, at_once: int, most: int, most_bytes: int) -> None:
        self._what, self._most, self._most_bytes = what, most, most_bytes
        self._inside = asyncio.Semaphore(at_once)
        self._count = self._bytes = 0

    @asynccontextmanager
    async def passed(self, size_bytes: int) -> AsyncIterator[None]:
        """Wait for one's turn, and hold it until the context is left.

        Raises:
            NoCapacity: too many wait already.
        """
        if self._count >= self._most or (self._count and self._bytes + size_bytes > self._most_bytes):
            raise NoCapacity(
                f"{self._count} statements of {self._bytes} bytes wait already to be {self._what} here; ask again soon"
            )
        self._count += 1
        self._bytes += size_bytes
        try:
            async with self._inside:
                yield
        finally:
            self._count -= 1
            self._bytes -= size_bytes
