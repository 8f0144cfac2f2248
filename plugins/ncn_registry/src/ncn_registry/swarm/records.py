"""Records as the DHT sees them: which value is good, which of several is the best, which are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from libp2p.abc import IHost
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.records.validator import Validator

from .errors import SwarmError
from .limits import KEY_BYTES, STORED_RECORDS, VALUE_BYTES

__all__ = ["Judge", "RecordStore", "wire_key"]

log = logging.getLogger("ncn_registry.swarm")

NAMESPACE = "ncn"


def wire_key(key: str) -> str:
    """Return a key as the DHT carries it: with a leading slash.

    Raises:
        SwarmError: it does not begin with ``ncn/``, or is longer than other implementations take.
    """
    name = "/" + key
    if not key.startswith(NAMESPACE + "/") or len(name.encode()) > KEY_BYTES:
        raise SwarmError(f"key {key!r} must begin with {NAMESPACE}/ and have at most {KEY_BYTES - 1} bytes")
    return name


class Judge(Validator):
    """The DHT's validator and selector, from one function that knows records.

    Args:
        sequence: of a good record its sequence, None for a bad one. May raise: that is a bad record, too. Called in
            libp2p's thread.
    """

    def __init__(self, sequence: Callable[[str, bytes], int | None]) -> None:
        self._sequence = sequence

    def rank(self, key: str, value: bytes) -> tuple[int, bytes] | None:
        """Return what orders the values of one key, the best one highest; None for a bad one.

        Two records of one sequence are their owner's fault. The bytes decide, so that all nodes keep the same.
        """
        if not key.startswith("/" + NAMESPACE + "/") or len(key.encode()) > KEY_BYTES:
            return None
        if not 0 < len(value) <= VALUE_BYTES:
            return None
        try:
            sequence = self._sequence(key[1:], value)
        except Exception:
            log.exception("a record of %s was taken for a bad one, as checking it failed", key[1:])
            return None
        return None if sequence is None else (sequence, value)

    def best(self, key: str, values: Sequence[bytes]) -> bytes | None:
        """Return the best good value, if any is good."""
        ranked = [rank for value in values if (rank := self.rank(key, value)) is not None]
        return max(ranked)[1] if ranked else None

    def validate(self, key: str, value: bytes) -> None:
        """Raise ValueError for a bad value, as the DHT asks it."""
        if self.rank(key, value) is None:
            raise ValueError("the record is bad, expired or too large")

    def select(self, key: str, values: list[bytes]) -> int:
        """Return the best value's index, of equals the last: the DHT refuses a renewed record otherwise."""
        worst = (-1, b"")
        ranks = [self.rank(key, value) or worst for value in values]
        return max(range(len(ranks)), key=lambda index: (ranks[index], index))


class RecordStore(ValueStore):
    """The library's store in memory, bounded, and one that says what it keeps.

    Args:
        host: of the node.
        peer: this node's id.
        stored: called with the key (no leading slash) and the value of each record that another peer put here.
    """

    def __init__(self, host: IHost, peer: ID, stored: Callable[[str, bytes], None]) -> None:
        super().__init__(host=host, local_peer_id=peer)
        self._stored = stored
        self._others: dict[bytes, None] = {}  # keys that are not this node's own, oldest first

    def _evict_if_full(self) -> None:
        # The library looks through all entries and parses the time of each. Dicts keep the order of insertion.
        while len(self.store) >= STORED_RECORDS:
            oldest = next(iter(self._others), None)
            self._others.pop(oldest or b"", None)
            self.store.pop(next(iter(self.store)) if oldest is None else oldest, None)  # it may have expired before

    def put(self, key: bytes, value: bytes, validity: float = 0.0) -> None:
        """Keep a record of this node's own."""
        self.store.pop(key, None)
        self._others.pop(key, None)
        super().put(key, value, validity)

    def put_record(self, key: bytes, record: Record) -> None:
        """Keep a record that a peer put here, which the DHT has validated."""
        known = self.store.pop(key, None)
        super().put_record(key, record)
        self._note(key)
        if known is None or known[0].value != record.value:
            self._stored(key.decode()[1:], bytes(record.value))

    def learn(self, key: bytes, value: bytes) -> None:
        """Keep a record that was read from a peer."""
        mine = key in self.local_keys
        self.put(key, value)
        if not mine:
            self.local_keys.discard(key)
            self._note(key)
        self._stored(key.decode()[1:], value)

    def _note(self, key: bytes) -> None:
        if key not in self.local_keys:
            self._others.pop(key, None)
            self._others[key] = None
            if len(self._others) > STORED_RECORDS:  # some have expired, and left the store by themselves
                self._others = {other: None for other in self._others if other in self.store}

    async def _republish_records(self, peer_routing: Any = None) -> None:
        # The library sends its copies again after 22 h. Ours expire sooner, and whoever signed them renews them.
        return
