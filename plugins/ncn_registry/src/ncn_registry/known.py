"""What a registry told this process of others: knowledge, not a promise. A gateway routes to whom it is connected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ncn_framework.models import Record
from ncn_framework.wire import messages_pb2 as pb

__all__ = ["Acquaintance", "Known"]


@dataclass
class Acquaintance:
    """Somebody that the registry says is alive.

    Attributes:
        record: its newest, whose signature was checked.
        in_flight: requests that it said it has.
        heard_ms: when this process heard of it last, in milliseconds since the epoch.
    """

    record: Record
    in_flight: int
    heard_ms: int


class Known:
    """Everybody of whom the registry says that they are alive, by address.

    Args:
        clock: milliseconds since the epoch.
        fresh_ms: how long after it was heard somebody is taken for alive: a registry that is away says nothing.

    Attributes:
        out: accounts that may be given no work, and why.
    """

    def __init__(self, clock: Callable[[], int], fresh_ms: int) -> None:
        self._all: dict[bytes, Acquaintance] = {}
        self._clock, self._fresh_ms = clock, fresh_ms
        self.out: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Acquaintance]:
        return iter(list(self._all.values()))

    def get(self, owner: bytes) -> Acquaintance | None:
        """Return what is known of an address."""
        return self._all.get(owner)

    def is_alive(self, one: Acquaintance) -> bool:
        """Return whether somebody was heard of just now."""
        return self._clock() - one.heard_ms <= self._fresh_ms

    def put(self, record: Record) -> None:
        """Note somebody's newest record."""
        known = self._all.get(record.owner)
        self._all[record.owner] = Acquaintance(record, 0 if known is None else known.in_flight, self._clock())

    def heard(self, beat: pb.HeartbeatRequest) -> None:
        """Note a heartbeat, which the registry has checked."""
        if (known := self._all.get(beat.node)) is not None:
            known.in_flight, known.heard_ms = beat.in_flight, self._clock()

    def gone(self, owner: bytes) -> None:
        """Forget somebody."""
        self._all.pop(owner, None)

    def keep_only(self, owners: set[bytes]) -> None:
        """Forget everybody else."""
        self._all = {owner: known for owner, known in self._all.items() if owner in owners}
