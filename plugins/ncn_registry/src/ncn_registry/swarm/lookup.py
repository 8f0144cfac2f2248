"""Puts and gets that count, and that no peer can hold up.

The library's own ``put_value`` says nothing of how many peers took a value, and its ``get_value`` answers from a local
copy that may be 24 h old.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID

from .errors import SwarmError
from .limits import Timing
from .records import Judge, RecordStore, wire_key
from .silence import Silence

__all__ = ["Lookup", "Routing"]

T = TypeVar("T")

_ROUNDS = 3
"""Of a get; each asks up to a bucket of peers."""

_COMPLETE_S = 30
"""For how long a small network counts as known after a look-up. Peers that join make themselves known by then."""


class Routing(PeerRouting):
    """The library's iterative look-up, which leaves silent peers out and notes those that fall silent."""

    def __init__(self, host: IHost, table: RoutingTable, silence: Silence, timing: Timing) -> None:
        super().__init__(host, table)
        self._silence, self._timing = silence, timing

    async def _query_peer_for_closest(self, peer: ID, target_key: bytes) -> list[ID]:
        if self._silence.leaves_out(peer):
            return []
        found: list[ID] = []
        with trio.move_on_after(self._timing.rpc_s) as scope:
            found = await super()._query_peer_for_closest(peer, target_key)
        if scope.cancelled_caught or (not found and peer not in self.host.get_connected_peers()):
            self._silence.suspect(peer)
        return found


class Lookup:
    """Reads and writes records in the network.

    Args:
        dht: whose peers are asked.
        store: this node's own part of the network's records.
        judge: says which values are good.
        silence: of peers that don't answer.
        timing: how long one peer has.
    """

    def __init__(self, dht: KadDHT, store: RecordStore, judge: Judge, silence: Silence, timing: Timing) -> None:
        self._dht, self._store, self._judge = dht, store, judge
        self._silence, self._timing = silence, timing
        self._complete_until = 0.0

    async def put(self, key: str, value: bytes) -> int:
        """Store a record here and at the peers nearest to its key; return how many peers took it.

        Raises:
            SwarmError: the record is bad, too large, or older than one that is stored here.
        """
        self.restore(key, value)
        name = wire_key(key).encode()
        nearest = await self._nearest(name)
        return sum(await self._ask(nearest, lambda peer: self._store._store_at_peer(peer, name, value)))

    def restore(self, key: str, value: bytes) -> None:
        """Store a record here alone.

        Raises:
            SwarmError: as for ``put``.
        """
        name = wire_key(key)
        if (rank := self._judge.rank(name, value)) is None:
            raise SwarmError(f"the record of {key} is refused: badly signed, expired or too large ({len(value)} bytes)")
        mine = self._store.get(name.encode())
        if mine is not None and (self._judge.rank(name, mine.value) or (-1, b"")) > rank:
            raise SwarmError(f"the record of {key} with sequence {rank[0]} is older than what is known; get it first")
        self._store.put(name.encode(), value)

    async def get(self, key: str) -> bytes | None:
        """Return the best good record of this node and the peers nearest to the key; None if there is none."""
        name = wire_key(key)
        wire = name.encode()
        mine = self._store.get(wire)
        values = [mine.value] if mine is not None else []
        table = self._dht.routing_table
        nearest = list({*table.find_local_closest_peers(wire, BUCKET_SIZE), *self._dht.host.get_connected_peers()})
        asked: set[ID] = set()
        # Each answer names peers that are nearer, so that no look-up is needed before: half the messages.
        for _ in range(_ROUNDS):
            fresh = [peer for peer in nearest if peer not in asked]
            asked.update(fresh)
            closer: list[ID] = []
            for answer in await self._ask(fresh, lambda peer: self._store._get_from_peer(peer, wire, False, True)):
                if isinstance(answer, tuple):
                    closer.extend(answer[1])
                    if isinstance(answer[0], bytes):
                        values.append(answer[0])
            nearest = sort_peer_ids_by_distance(wire, list({*nearest, *closer}))[:BUCKET_SIZE]
            if asked.issuperset(nearest):
                break
        best = self._judge.best(name, values)
        if best is not None and (mine is None or best != mine.value):
            self._store.learn(wire, best)
        return best

    async def providers(self, key: bytes) -> list[ID]:
        """Return the peers that say they provide a key, those of the nearest peers included."""
        store = self._dht.provider_store
        found = [provider.peer_id for provider in store.get_providers(key)]
        nearest = await self._nearest(key)
        for answer, _ in await self._ask(nearest, lambda peer: store._get_providers_from_peer_with_closers(peer, key)):
            found.extend(provider.peer_id for provider in answer)
        return list(dict.fromkeys(found))

    async def _nearest(self, key: bytes) -> list[ID]:
        """Return the peers nearest to a key."""
        table = self._dht.routing_table
        # All peers of a network smaller than a bucket are near to every key: one look-up finds them for all keys.
        if table.size() < BUCKET_SIZE and trio.current_time() < self._complete_until:
            return table.get_peer_ids()
        nearest = await self._dht.peer_routing.find_closest_peers_network(key)
        self._complete_until = trio.current_time() + _COMPLETE_S
        return nearest

    async def _ask(self, peers: Iterable[ID], question: Callable[[ID], Awaitable[T]]) -> list[T]:
        """Ask peers all at once; return the answers of those that answered in time."""
        answers: list[T] = []

        async def one(peer: ID) -> None:
            with trio.move_on_after(self._timing.rpc_s) as scope:
                answers.append(await question(peer))
            if scope.cancelled_caught or peer not in self._dht.host.get_connected_peers():
                self._silence.suspect(peer)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                if peer != self._dht.local_peer_id and not self._silence.leaves_out(peer):
                    nursery.start_soon(one, peer)
        return answers
