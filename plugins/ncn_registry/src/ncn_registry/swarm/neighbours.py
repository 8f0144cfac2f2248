"""The peers a node is connected to: probed, dropped when they are silent, gone back to when they can be reached."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio
from libp2p.abc import IHost, INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.host.ping import ID as PING
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm as Network
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.rcmgr import Direction
from libp2p.utils.varint import encode_uvarint, read_varint_prefixed_bytes_limited

from .addresses import Multiaddr, resolved
from .errors import SwarmError
from .limits import DHT_PROTOCOL, Timing
from .silence import Silence

__all__ = ["Neighbours", "Peer"]

log = logging.getLogger("ncn_registry.swarm")

_WANTED = 12
"""Connections that a node looks for by itself: gossip needs several, or a part of it is lost."""

_KNOWN = 512
_ADDRESS_TTL_S = 24 * 3600


@dataclass(frozen=True)
class Peer:
    """A connected peer.

    Attributes:
        peer_id: its id, base58.
        addresses: where it can be dialled, as far as it said.
        inbound: it dialled us.
        latency_ms: of its last probe; None before the first.
    """

    peer_id: str
    addresses: tuple[str, ...]
    inbound: bool
    latency_ms: float | None


class Neighbours(INotifee):
    """Keeps the connections of one host.

    Args:
        host: whose connections.
        dht: whose routing table gets the peers that serve it.
        timing: of probes and pauses.
        bootstrap: peers to reach at all times.
    """

    def __init__(self, host: IHost, dht: KadDHT, timing: Timing, bootstrap: Sequence[PeerInfo]) -> None:
        self._host, self._dht, self._timing = host, dht, timing
        self._bootstrap = {info.peer_id: info.addrs for info in bootstrap if info.peer_id != host.get_id()}
        self._known: dict[ID, list[Multiaddr]] = {}
        self._latency_ms: dict[ID, float] = {}
        self._dialling, self._probing = set[ID](), set[ID]()
        self.peers: tuple[Peer, ...] = ()

    async def start(self, nursery: trio.Nursery, silence: Silence) -> None:
        """Connect to the bootstrap peers, as far as they can be reached, and tend to all from then on."""
        self._nursery, self._silence = nursery, silence
        self._host.get_network().register_notifee(self)
        async with trio.open_nursery() as first:
            for peer, addresses in self._bootstrap.items():
                first.start_soon(self._dial, peer, addresses)
        nursery.start_soon(self._probe_for_ever)
        nursery.start_soon(self._reach_for_ever)

    async def connect(self, info: PeerInfo) -> None:
        """Connect to a peer, whose addresses are tried in turn.

        Raises:
            SwarmError: none of them answers as that peer.
        """
        if info.peer_id == self._host.get_id():
            raise SwarmError(f"{info.peer_id} is this node itself")
        network, store = self._host.get_network(), self._host.get_peerstore()
        failure: Exception | None = None
        dialled = list[Multiaddr]()
        for address in info.addrs:
            try:
                with trio.fail_after(self._timing.rpc_s):
                    dialled += await resolved(address)
            except (OSError, trio.TooSlowError) as error:
                failure = error
        for address in dialled:
            # The library dials one address of a kind, and after a failure none for a minute.
            store.clear_addrs(info.peer_id)
            if isinstance(network, Network):
                network.unblock_peer(info.peer_id)
            try:
                with trio.fail_after(2 * self._timing.rpc_s):
                    await self._host.connect(PeerInfo(info.peer_id, [address]))
                break
            except Exception as error:  # the library raises many classes, TooSlowError among them
                failure = error
        store.add_addrs(info.peer_id, info.addrs, _ADDRESS_TTL_S)
        if not self._connected(info.peer_id):
            where = ", ".join(map(str, info.addrs))
            raise SwarmError(
                f"peer {info.peer_id} cannot be reached at {where}; is it up, and is this its peer id?"
            ) from failure

    def probe(self, peer: ID) -> None:
        """Have a peer asked for a sign of life; drop it if it gives none."""
        self._nursery.start_soon(self._probe, peer)

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        """See who it is, as the library asks of a notifee."""
        self._note()
        self._nursery.start_soon(self._greet, conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """Take note, as the library asks of a notifee."""
        peer = conn.muxed_conn.peer_id
        if not self._connected(peer):
            self._latency_ms.pop(peer, None)
        self._note()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Nothing to do."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Nothing to do."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing to do."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing to do."""

    def _connected(self, peer: ID) -> bool:
        return peer in self._host.get_connected_peers()

    def _note(self) -> None:
        """Renew the list of peers, that other threads read."""
        network, peers = self._host.get_network(), []
        for peer in self._host.get_connected_peers():
            connection = next(iter(network.get_connections(peer)), None)
            inbound = isinstance(connection, SwarmConn) and connection.direction is Direction.INBOUND
            addresses = tuple(map(str, self._addresses(peer)))
            peers.append(Peer(str(peer), addresses, inbound, self._latency_ms.get(peer)))
        self.peers = tuple(peers)

    def _addresses(self, peer: ID) -> list[Multiaddr]:
        with suppress(Exception):  # PeerStoreError: it has said nothing yet
            return list(self._host.get_peerstore().addrs(peer))
        return self._known.get(peer, [])

    async def _hang_up(self, peer: ID) -> None:
        self._dht.routing_table.remove_peer(peer)
        with suppress(Exception):
            await self._host.get_network().close_peer(peer)
        self._note()

    async def _greet(self, peer: ID) -> None:
        if not await self._probe(peer):
            return
        # A peer that dialled us says where it listens only in its identify message, which comes a little later.
        for pause_s in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
            if peer in self._known or not self._connected(peer):
                return
            await trio.sleep(pause_s)
            await self._learn(peer)

    async def _learn(self, peer: ID) -> None:
        addresses = self._addresses(peer)
        if not addresses:
            return
        self._known.pop(peer, None)
        while len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[peer] = addresses
        await self._dht.add_peer(peer)
        self._note()

    async def _probe(self, peer: ID) -> bool:
        """Ask a peer for a sign of life, twice if need be; whether it gave one."""
        if peer in self._probing:
            return False
        self._probing.add(peer)
        try:
            for _ in range(2):
                started = trio.current_time()
                with trio.move_on_after(2 * self._timing.rpc_s):
                    # Without a connection, the question would make one: dialling is not done here.
                    if self._connected(peer) and await self._answers(peer):
                        self._silence.clear(peer)
                        self._latency_ms[peer] = 1000 * (trio.current_time() - started)
                        await self._learn(peer)
                        return True
            self._silence.confirm(peer)
            await self._hang_up(peer)
            return False
        finally:
            self._probing.discard(peer)

    async def _answers(self, peer: ID) -> bool:
        try:
            await self._ping(peer)
        except Exception as error:
            log.debug("peer %s: a probe failed with %s", peer, type(error).__name__)
            return False
        return True

    async def _ping(self, peer: ID) -> None:
        # Whoever does not serve the DHT agrees to libp2p's own ping: that is a sign of life, too.
        stream = await self._host.new_stream(peer, [TProtocol(DHT_PROTOCOL), PING])
        try:
            if stream.get_protocol() == PING:
                return
            ping = Message(type=Message.MessageType.PING).SerializeToString()
            await stream.write(encode_uvarint(len(ping)) + ping)
            await read_varint_prefixed_bytes_limited(stream, 1024)
        finally:
            await stream.close()

    async def _probe_for_ever(self) -> None:
        while True:
            await trio.sleep(self._timing.probe_s)
            limiter = trio.CapacityLimiter(16)

            async def one(peer: ID, limiter: trio.CapacityLimiter = limiter) -> None:
                async with limiter:
                    await self._probe(peer)

            async with trio.open_nursery() as nursery:
                for peer in self._host.get_connected_peers():
                    nursery.start_soon(one, peer)
            self._note()

    async def _reach_for_ever(self) -> None:
        while True:
            await trio.sleep(self._timing.backoff_s / 2)
            wanted = dict(self._bootstrap)
            if len(self._host.get_connected_peers()) < _WANTED:
                wanted |= self._known
            for peer, addresses in wanted.items():
                if peer not in self._dialling and not self._connected(peer) and self._silence.due(peer):
                    self._nursery.start_soon(self._dial, peer, addresses)

    async def _dial(self, peer: ID, addresses: list[Multiaddr]) -> None:
        self._dialling.add(peer)
        try:
            await self.connect(PeerInfo(peer, addresses))
        except SwarmError as error:
            log.info("%s", error)
            self._silence.confirm(peer)
        finally:
            self._dialling.discard(peer)
