"""What registries tell each other: each record that changes at once, and once a second whom they have heard."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ncn_framework.errors import NcnError, UnknownNode
from ncn_framework.models import Record
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb, record_to_pb

from .dht import Dht
from .records import KINDS
from .roll import Roll
from .store import Key

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["HEARTBEATS", "INTERVAL_S", "RECORDS", "Gossip"]

log = logging.getLogger(__name__)

RECORDS = "ncn/records/1"
HEARTBEATS = "ncn/heartbeats/1"

INTERVAL_S = 1.0
"""How often registries tell whom they have heard, at most."""
_MOST_PRESENCES = 200
"""In one message (of some 125 bytes each, where gossip takes 32 KiB)."""
_MOST_DIGESTS = 8
"""In a second; whom they do not hold comes a second later."""
_MOST_BYTES = 28 << 10
"""Of records in one message; more follow in the next, soon."""
_PAUSE_S = 0.1
"""Between messages of records; what changes meanwhile is told together. Authors are held to 20 messages a second."""
_MOST_VERSIONS = 8
_BACKLOG = 256
_AT_ONCE = 64
"""Heartbeats that are checked (0.1 ms each) before others get their turn."""


class Gossip:
    """Entered as an asynchronous context manager, in which its tasks run.

    Args:
        swarm: this registry's libp2p.
        roll: that takes in what is heard.
        dht: where records are looked for that others have and this registry has not.
        interval_s: between digests.
    """

    def __init__(self, swarm: Swarm, roll: Roll, dht: Dht, interval_s: float = INTERVAL_S) -> None:
        self._swarm, self._roll, self._dht, self._interval_s = swarm, roll, dht, interval_s
        self._inbox = asyncio.Queue[tuple[str, bytes, str]](_BACKLOG)
        self._changed: dict[Key, Record] = {}
        self._more = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Gossip:
        for topic in (RECORDS, HEARTBEATS):
            await self._swarm.subscribe(topic)
        self._tasks = [asyncio.create_task(part) for part in (self._read(), self._tell_records(), self._tell_heard())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def publish(self, record: Record) -> None:
        """Tell other registries of a record that changed; they would find it in the DHT later, if this fails."""
        self._changed[record.kind, record.owner] = record
        self._more.set()

    async def flush(self) -> None:
        """Tell what is still to be told of records."""
        while self._changed:
            message, size = pb.Records(), 0
            for key, record in list(self._changed.items()):
                encoded = record_to_pb(record)
                size += encoded.ByteSize() + 8
                if message.records and size > _MOST_BYTES:
                    break
                message.records.append(encoded)
                del self._changed[key]
            await self._publish(RECORDS, message.SerializeToString(deterministic=True))

    def admit(self, topic: str, data: bytes, peer: str) -> bool:
        """Return whether a message is worth passing on; called in the thread of libp2p."""
        try:
            if topic == RECORDS:
                return any(map(self._counts, pb.Records.FromString(data).records))
            return len(pb.Heartbeats.FromString(data).presences) <= _MOST_PRESENCES
        except DecodeError:
            return False

    def _counts(self, message: mpb.Record) -> bool:
        try:
            self._roll.judge.check(record_from_pb(message))
        except NcnError:
            return False
        return True

    def heard(self, topic: str, data: bytes, peer: str) -> None:
        """Take a message of another registry; too many at once are dropped, since the next digest makes up for it."""
        if self._inbox.full():
            log.debug("a message of %s by peer %s is dropped: too many wait", topic, peer)
            return
        self._inbox.put_nowait((topic, data, peer))

    async def _publish(self, topic: str, data: bytes) -> None:
        try:
            await self._swarm.publish(topic, data)
        except (TimeoutError, NcnError, OSError, RuntimeError) as error:
            log.debug("a message of %s was not published: %s", topic, error)

    async def _tell_records(self) -> None:
        while True:
            while not self._changed:
                self._more.clear()
                await self._more.wait()
            await self.flush()
            await asyncio.sleep(_PAUSE_S)

    async def _tell_heard(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._roll.tell_heard()
            for _ in range(_MOST_DIGESTS):
                presences = self._roll.take_heard_directly(_MOST_PRESENCES)
                if not presences:
                    break
                digest = pb.Heartbeats(presences=presences).SerializeToString(deterministic=True)
                await self._publish(HEARTBEATS, digest)

    async def _read(self) -> None:
        while True:
            topic, data, peer = await self._inbox.get()
            try:
                if topic == RECORDS:
                    await self._take_records(pb.Records.FromString(data))
                elif topic == HEARTBEATS:
                    await self._take(pb.Heartbeats.FromString(data))
            except (NcnError, DecodeError) as error:
                log.debug("a message of %s by peer %s does not count: %s", topic, peer, error)
            except Exception:  # a stranger's message must not end this task
                log.exception("a message of %s by peer %s could not be taken", topic, peer)

    async def _take_records(self, message: pb.Records) -> None:
        for record in message.records:
            await asyncio.sleep(0)
            try:
                self._roll.put(record_from_pb(record), alive=True).add_done_callback(_noticed)
            except NcnError as error:
                log.debug("a record that was heard is not taken: %s", error)

    async def _take(self, digest: pb.Heartbeats) -> None:
        for number, presence in enumerate(digest.presences[:_MOST_PRESENCES]):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                self._roll.beat(presence.heartbeat)
            except UnknownNode:
                self._miss(presence)  # its heartbeat was signed: it is there, and so must its record be
            except NcnError:
                continue  # mostly one that came by another way as well
            else:
                self._miss(presence)

    def _miss(self, presence: pb.Presence) -> None:
        owner = presence.heartbeat.node
        for version in presence.records[:_MOST_VERSIONS]:
            if version.kind in KINDS:
                kept = self._roll.store.get(version.kind, owner)
                if kept is None or kept.record.sequence < version.sequence:
                    self._dht.want(version.kind, owner)


def _noticed(written: asyncio.Future[None]) -> None:
    if not written.cancelled():
        written.exception()
