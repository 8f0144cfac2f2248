"""The roll of the network as one registry knows it: which records count, whose owners are alive, who serves what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ncn_framework.errors import NcnError, UnknownNode
from ncn_framework.models import Record
from ncn_framework.signing import address_hex
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_to_pb

from .presence import Presence
from .records import NODE, Judge, is_withdrawal, models_of
from .store import RecordStore
from .watching import Watchers

__all__ = ["Roll"]


class Roll:
    """Takes in records and heartbeats, wherever they come from, and tells watchers of what changed.

    A record is shown as long as it counts and its owner is alive.

    Args:
        store: of records, opened.
        judge: of records and heartbeats.
        presence: of their owners.
        watchers: who hear of changes.
        clock: milliseconds since the epoch.
        published: called with each record that its owner gave to this registry.
    """

    def __init__(
        self,
        store: RecordStore,
        judge: Judge,
        presence: Presence,
        watchers: Watchers,
        clock: Callable[[], int],
        published: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.store, self.judge, self.presence, self.watchers = store, judge, presence, watchers
        self.published = published
        self._clock = clock
        self._serving: dict[bytes, dict[bytes, None]] = {}
        self._heard: dict[bytes, None] = {}  # since watchers were last told
        self._heard_directly: dict[bytes, None] = {}  # since the last digest to other registries
        for kept in store.all():
            self._index(None, kept.record)

    # --- what comes in ---

    def put(self, record: Record, *, direct: bool = False, alive: bool) -> asyncio.Future[None]:
        """Take a record from anybody; the future is done once it is durable.

        Args:
            record: not judged yet.
            direct: its owner gave it to this registry.
            alive: it shows that its owner is alive: it came just now, by gRPC or gossip, and not out of the DHT.

        Raises:
            RequestError: it does not count.
            NoCapacity: there is no room for it.
        """
        known = self.store.get(record.kind, record.owner)
        self.judge.check(record, 0 if known is None else known.record.sequence)
        written = self.store.put(record, direct=direct)
        self._index(None if known is None else known.record, record)
        if is_withdrawal(record):
            if record.owner in self.presence and known is not None and not is_withdrawal(known.record):
                self._tell_gone(known.record)
            if not self.current(record.owner):
                self.presence.leave(record.owner)
        elif alive:
            self._hear(record.owner, None, record)
        elif record.owner in self.presence:
            self._tell_put(record)
        if direct:
            self.published(record)
        return written

    def beat(self, message: mpb.HeartbeatRequest, *, direct: bool = False) -> None:
        """Take a heartbeat from anybody.

        Args:
            message: not judged yet.
            direct: its owner sent it to this registry.

        Raises:
            UnknownNode: no record of its owner is known that counts.
            RequestError: it is forged, old or not newer than the last one.
        """
        beat = self.judge.check_heartbeat(message, self.presence.newest_ms(message.node))
        if not self.current(beat.owner):
            raise UnknownNode(f"no record of {address_hex(beat.owner)} counts here; register it first")
        self._hear(beat.owner, message)
        self._heard[beat.owner] = None
        if direct:
            self._heard_directly[beat.owner] = None

    def _hear(self, owner: bytes, message: mpb.HeartbeatRequest | None, new: Record | None = None) -> None:
        """Note that an owner is alive; show all its records if it was not, or else its new one."""
        if self.presence.hear(owner, message):
            for record in self.current(owner):
                self._tell_put(record)
        elif new is not None:
            self._tell_put(new)

    def tick(self) -> None:
        """Take notice of the time: of records that expired and of owners that have fallen silent."""
        expired, forgotten = self.store.sweep(self._clock())
        for record in expired:
            self._index(record, None)
            if record.owner in self.presence and not is_withdrawal(record):
                self._tell_gone(record)
            if not self.current(record.owner):
                self.presence.leave(record.owner)
        for owner in forgotten:
            self.presence.forget(owner)
        for owner in self.presence.lost():
            for record in self.current(owner):
                self._tell_gone(record)

    # --- what is known ---

    def current(self, owner: bytes) -> list[Record]:
        """Return the records of an owner that count, whether or not it is alive."""
        now = self._clock()
        return [
            kept.record
            for kept in self.store.of(owner)
            if kept.record.expires_ms > now and not is_withdrawal(kept.record)
        ]

    def get(self, kind: str, owner: bytes) -> Record | None:
        """Return the record of an owner and kind if it counts."""
        return next((record for record in self.current(owner) if record.kind == kind), None)

    def shown(self, kinds: Iterable[str] = ()) -> list[Record]:
        """Return the records of all owners that are alive; of ``kinds``, or of all."""
        wanted, now = frozenset(kinds), self._clock()
        return [
            kept.record
            for kept in self.store.all()
            if kept.record.owner in self.presence
            and (not wanted or kept.record.kind in wanted)
            and kept.record.expires_ms > now
            and not is_withdrawal(kept.record)
        ]

    def nodes(self, model: bytes = b"") -> Iterable[Record]:
        """Yield the records of the compute nodes that are alive; those that serve ``model``, or all."""
        if not model:
            yield from self.shown((NODE,))
            return
        for owner in list(self._serving.get(model, ())):
            if owner in self.presence and (record := self.get(NODE, owner)) is not None:
                yield record

    def info(self, record: Record) -> mpb.NodeInfo:
        """Return a record with what was last heard of its owner."""
        heard = self.presence.get(record.owner)
        return mpb.NodeInfo(
            record=record_to_pb(record),
            in_flight=0 if heard is None else heard.in_flight,
            last_heard_ms=0 if heard is None else heard.wall_ms,
        )

    def _index(self, old: Record | None, new: Record | None) -> None:
        for model in () if old is None else _models(old):
            owners = self._serving.get(model, {})
            owners.pop(old.owner if old is not None else b"", None)
            if not owners:
                self._serving.pop(model, None)
        for model in () if new is None else _models(new):
            self._serving.setdefault(model, {})[new.owner if new is not None else b""] = None

    # --- what goes out ---

    def take_heard_directly(self, most: int) -> list[pb.Presence]:
        """Return whom this registry heard itself since the last call, at most ``most``; the rest comes next time."""
        owners = list(self._heard_directly)[:most]
        for owner in owners:
            del self._heard_directly[owner]
        return [presence for owner in owners if (presence := self._presence(owner)) is not None]

    def tell_heard(self) -> None:
        """Tell watchers whom this registry has heard since the last call, one message for each kind of record."""
        owners, self._heard = list(self._heard), {}
        by_kind: dict[str, list[pb.Presence]] = {}
        for owner in owners if len(self.watchers) else ():
            if (presence := self._presence(owner)) is not None:
                for version in presence.records:
                    by_kind.setdefault(version.kind, []).append(presence)
        for kind, presences in by_kind.items():
            self.watchers.tell(pb.WatchEvent(heartbeats=pb.Heartbeats(presences=presences)), kind)

    def _presence(self, owner: bytes) -> pb.Presence | None:
        heard = self.presence.get(owner)
        if heard is None or heard.beat is None:
            return None
        versions = [pb.RecordVersion(kind=r.kind, sequence=r.sequence) for r in self.current(owner)]
        return pb.Presence(heartbeat=heard.beat, records=versions)

    def _tell_put(self, record: Record) -> None:
        self.watchers.tell(pb.WatchEvent(put=record_to_pb(record)), record.kind)

    def _tell_gone(self, record: Record) -> None:
        self.watchers.tell(pb.WatchEvent(gone=record_to_pb(record)), record.kind)


def _models(record: Record) -> frozenset[bytes]:
    try:
        return models_of(record)
    except NcnError:  # kept by an older version that judged otherwise
        return frozenset()
