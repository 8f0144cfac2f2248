"""The roll of the network as one registry knows it: which records count, whose owners are alive, who serves what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ncn_framework.errors import EndorsementRefused, NcnError, UnknownNode
from ncn_framework.models import Record
from ncn_framework.signing import address_hex
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_to_pb

from .presence import Presence
from .records import KINDS, NODE, Judge, is_withdrawal, models_of, subnets_of
from .store import RecordStore
from .watching import Watchers

__all__ = ["Roll"]

_ADDRESS_BYTES = 20  # of a subnet's owner, where a model's digest has 32


class Roll:
    """Takes in records and heartbeats, wherever they come from, and tells watchers of what changed.

    A record is shown as long as it counts and its owner is alive; one that a quorum has signed, as long as it counts.

    Args:
        store: of records, opened.
        judge: of records and heartbeats.
        presence: of their owners.
        watchers: who hear of changes.
        clock: milliseconds since the epoch.
        published: called with each record that its owner gave to this registry.

    Attributes:
        endorsed: takes a record whose quorum is to be checked, and whether its owner gave it to this registry.
        out: accounts that may be given no work, and why; their records as compute nodes are kept, and not shown.
        reputation: returns a compute node's points.
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
        self.endorsed: Callable[[Record, bool], asyncio.Future[None]] = _refuse_endorsed
        self.out: dict[bytes, str] = {}
        self.reputation: Callable[[bytes], int] = lambda node: 0
        self._naming: dict[bytes, dict[bytes, None]] = {}  # models and subnets: the nodes whose records name them
        self._heard: dict[bytes, None] = {}  # since watchers were last told
        self._heard_directly: dict[bytes, None] = {}  # since the last digest to other registries
        for kept in store.all():
            self._index(None, kept.record)

    # --- what comes in ---

    def put(self, record: Record, *, direct: bool = False, alive: bool, checked: bool = False) -> asyncio.Future[None]:
        """Take a record from anybody; the future is done once it is durable.

        Args:
            record: not judged yet.
            direct: its owner gave it to this registry.
            alive: it shows that its owner is alive: it came just now, by gRPC or gossip, and not out of the DHT.
            checked: the quorum in it is one; without, who checks that (``endorsed``) puts it again, later.

        Raises:
            RequestError: it does not count.
            NoCapacity: there is no room for it.
        """
        known = self.store.get(record.kind, record.owner)
        self.judge.check(record, 0 if known is None else known.record.sequence)
        kind = KINDS[record.kind]
        if kind.endorsed and not checked and not is_withdrawal(record):
            return self.endorsed(record, direct)
        written = self.store.put(record, direct=direct)
        self._index(None if known is None else known.record, record)
        if is_withdrawal(record):
            if known is not None and not is_withdrawal(known.record) and self._is_alive(known.record):
                self._tell_gone(known.record)
            self._leave(record.owner)
        elif alive and kind.shows_life:
            self._hear(record.owner, None, record)
        elif self._is_alive(record):
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
        if not self._lives(beat.owner):
            raise UnknownNode(f"no record of {address_hex(beat.owner)} counts here; register it first")
        self._hear(beat.owner, message)
        self._heard[beat.owner] = None
        if direct:
            self._heard_directly[beat.owner] = None

    def _hear(self, owner: bytes, message: mpb.HeartbeatRequest | None, new: Record | None = None) -> None:
        """Note that an owner is alive; show all its records if it was not, or else its new one."""
        if self.presence.hear(owner, message):
            for record in self._shown_alive(owner):
                self._tell_put(record)
        elif new is not None and self._is_alive(new):
            self._tell_put(new)

    def _leave(self, owner: bytes) -> None:
        """Take an owner for gone of whom no record is left that its process renews."""
        if not self._lives(owner) and self.presence.leave(owner):
            for record in self._shown_alive(owner):
                self._tell_gone(record)

    def _lives(self, owner: bytes) -> bool:
        return any(KINDS[record.kind].shows_life for record in self.current(owner))

    def _shown_alive(self, owner: bytes) -> list[Record]:
        """Return the records of an owner that are shown while it is alive, and not otherwise."""
        return [
            record for record in self.current(owner) if not KINDS[record.kind].endorsed and not self._is_out(record)
        ]

    def _is_alive(self, record: Record) -> bool:
        return KINDS[record.kind].endorsed or (record.owner in self.presence and not self._is_out(record))

    def _is_out(self, record: Record) -> bool:
        return record.kind == NODE and record.owner in self.out

    def stand(self, account: bytes, out: bool, reason: str) -> None:
        """Hide the record of a compute node that may be given no work (``out``), whenever it comes; or show it."""
        record = self.get(NODE, account) if account in self.presence else None
        if out:
            if record is not None and account not in self.out:
                self._tell_gone(record)
            self.out[account] = reason
        elif self.out.pop(account, None) is not None and record is not None:
            self._tell_put(record)

    def tick(self) -> None:
        """Take notice of the time: of records that expired and of owners that have fallen silent."""
        expired, forgotten = self.store.sweep(self._clock())
        for record in expired:
            self._index(record, None)
            if self._is_alive(record) and not is_withdrawal(record):
                self._tell_gone(record)
            self._leave(record.owner)
        for owner in forgotten:
            self.presence.forget(owner)
        for owner in self.presence.lost():
            for record in self._shown_alive(owner):
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
        """Return the records that are shown; of ``kinds``, or of all."""
        now = self._clock()
        return [
            kept.record
            for kind in frozenset(kinds) or KINDS
            for kept in self.store.of_kind(kind)
            if self._is_alive(kept.record) and kept.record.expires_ms > now and not is_withdrawal(kept.record)
        ]

    def nodes(self, model: bytes = b"", subnet: bytes = b"") -> Iterable[Record]:
        """Yield the records of the compute nodes that are alive: of all, or those that serve a model and have joined
        the subnet of an owner, where these are given."""
        wanted: list[dict[bytes, None]] = [self._naming.get(name, {}) for name in (model, subnet) if name]
        if not wanted:
            yield from self.shown((NODE,))
            return
        wanted.sort(key=len)
        for owner in list(wanted[0]):
            if all(owner in nodes for nodes in wanted) and owner in self.presence and owner not in self.out:
                record = self.get(NODE, owner)
                if record is not None:
                    yield record

    def is_member(self, node: bytes, subnet: bytes) -> bool:
        """Return whether a node has joined the subnet of an owner."""
        return node in self._naming.get(subnet, {})

    def info(self, record: Record) -> mpb.NodeInfo:
        """Return a record with what was last heard of its owner."""
        heard = self.presence.get(record.owner)
        return mpb.NodeInfo(
            record=record_to_pb(record),
            in_flight=0 if heard is None else heard.in_flight,
            last_heard_ms=0 if heard is None else heard.wall_ms,
            reputation=self.reputation(record.owner),
        )

    def _index(self, old: Record | None, new: Record | None) -> None:
        left, named = _named(old), _named(new)
        owner = new.owner if new is not None else old.owner if old is not None else b""
        for name in left - named:
            self._tell_moved(name, owner, joined=False)
            nodes = self._naming.get(name, {})
            nodes.pop(owner, None)
            if not nodes:
                self._naming.pop(name, None)
        for name in named - left:
            self._naming.setdefault(name, {})[owner] = None
            self._tell_moved(name, owner, joined=True)

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
        self.watchers.tell(pb.WatchEvent(put=record_to_pb(record)), record.kind, record.owner)

    def _tell_gone(self, record: Record) -> None:
        self.watchers.tell(pb.WatchEvent(gone=record_to_pb(record)), record.kind, record.owner)

    def _tell_moved(self, subnet: bytes, node: bytes, *, joined: bool) -> None:
        """Tell those who watch one subnet of a node that joined or left it."""
        if len(subnet) != _ADDRESS_BYTES or node not in self.presence or node in self.out:
            return
        if (record := self.get(NODE, node)) is not None:
            message = record_to_pb(record)
            event = pb.WatchEvent(put=message) if joined else pb.WatchEvent(gone=message)
            self.watchers.tell(event, NODE, node, subnet)


def _named(record: Record | None) -> frozenset[bytes]:
    """Return the digests of models, and the owners of subnets, that a record names."""
    try:
        return frozenset() if record is None else models_of(record) | subnets_of(record)
    except NcnError:  # kept by an older version that judged otherwise
        return frozenset()


def _refuse_endorsed(record: Record, direct: bool) -> asyncio.Future[None]:
    raise EndorsementRefused(f"nobody here can check the quorum of {record.kind} {address_hex(record.owner)}")
