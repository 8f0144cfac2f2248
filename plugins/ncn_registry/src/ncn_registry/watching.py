"""Who watches, and what each has still to be sent; a slow one is bounded and told to begin again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ncn_framework.errors import Draining, NcnError, NoCapacity
from ncn_framework.wire import registry_pb2 as pb

__all__ = ["Watcher", "Watchers"]

Within = Callable[[bytes], bool]


def _anybody(owner: bytes) -> bool:
    return True


class Watcher:
    """One who watches.

    Attributes:
        kinds: of records that it asked for; empty: all.
        subnet: owner of the subnet whose records it asked for; empty: all.
    """

    def __init__(self, kinds: frozenset[str], backlog: int, subnet: bytes = b"", within: Within = _anybody) -> None:
        self.kinds, self.subnet = kinds, subnet
        self._backlog, self._within = backlog, within
        self._waiting: deque[pb.WatchEvent] = deque()
        self._more = asyncio.Event()
        self._end: NcnError | None = None

    def wants(self, kind: str, owner: bytes | None = None) -> bool:
        """Return whether it asked for records of this kind, and of this owner."""
        return (not self.kinds or kind in self.kinds) and (owner is None or self._within(owner))

    def tell(self, event: pb.WatchEvent) -> None:
        """Send an event after those that wait; where too many do, end the watch."""
        if self._end is not None:
            return
        if len(self._waiting) >= self._backlog:
            self.end(NoCapacity(f"this watcher is {self._backlog} events behind; watch again, from the beginning"))
            return
        self._waiting.append(event)
        self._more.set()

    def end(self, error: NcnError) -> None:
        """End the watch with ``error``; what waits is not sent any more."""
        self._end = self._end or error
        self._waiting.clear()
        self._more.set()

    async def next(self) -> pb.WatchEvent:
        """Return the next event.

        Raises:
            NcnError: the watch was ended.
        """
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._more.clear()
            await self._more.wait()
        return self._waiting.popleft()


class Watchers:
    """All who watch.

    Args:
        most: how many there may be.
        backlog: events that may wait for each.
    """

    def __init__(self, most: int = 1_024, backlog: int = 4_096) -> None:
        self._most, self._backlog = most, backlog
        self._all: set[Watcher] = set()

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def joined(self, kinds: Iterable[str], subnet: bytes = b"", within: Within = _anybody) -> Iterator[Watcher]:
        """Yield a new watcher, which hears of everything until the context is left.

        Args:
            kinds: of records; none: all.
            subnet: owner of a subnet, whose records alone are wanted; empty: all.
            within: returns whether an address belongs to that subnet now.

        Raises:
            NoCapacity: there are too many.
        """
        if len(self._all) >= self._most:
            raise NoCapacity(f"{self._most} watch this registry already; try another one")
        watcher = Watcher(frozenset(kinds), self._backlog, subnet, within)
        self._all.add(watcher)
        try:
            yield watcher
        finally:
            self._all.discard(watcher)

    def tell(
        self, event: pb.WatchEvent, kind: str | None = None, owner: bytes | None = None, subnet: bytes = b""
    ) -> None:
        """Tell everybody; or those who want records of ``kind`` and ``owner``; of these, where ``subnet`` is given,
        those alone who watch that subnet."""
        for watcher in self._all:
            if (kind is None or watcher.wants(kind, owner)) and (not subnet or watcher.subnet == subnet):
                watcher.tell(event)

    def drain(self) -> None:
        """End every watch: this registry stops."""
        for watcher in self._all:
            watcher.end(Draining("this registry is shutting down; watch again soon"))
