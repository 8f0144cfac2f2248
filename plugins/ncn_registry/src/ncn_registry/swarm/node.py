"""libp2p's side of a swarm, on trio: one host with its DHT and gossip, and the tasks that keep its peers.

Connections are noise over TCP, with yamux: the library would also offer plaintext, and a peer's id would be its word.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm as Network
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service

from . import patches
from .addresses import Multiaddr, advertised
from .errors import SwarmError
from .gossip import Gossip
from .limits import Timing
from .lookup import Lookup, Routing
from .neighbours import Neighbours
from .questions import Questions
from .records import NAMESPACE, Judge, RecordStore
from .silence import Silence

__all__ = ["Node", "Options", "open_node"]

log = logging.getLogger("ncn_registry.swarm")

_CONNECTIONS = 256


@dataclass(frozen=True)
class Options:
    """What a node is made of. The functions are called in libp2p's thread.

    Attributes:
        key: 32 bytes, secp256k1.
        listen: addresses to listen on.
        announce: addresses to advertise instead of those listened on, if any.
        bootstrap: peers to connect to first, and to go back to.
        timing: how long to wait for what.
        sequence: of a good record its sequence, None for a bad one.
        admit: whether a gossip message is good: topic, data, author.
        heard: called with each good gossip message: topic, data, author.
        stored: called with each record that a peer stored here, or that was read from one: key, value.
        asked: answers a question of a peer: question, peer; where there is none, questions are not taken.
    """

    key: bytes = field(repr=False)
    listen: Sequence[Multiaddr]
    announce: Sequence[Multiaddr]
    bootstrap: Sequence[PeerInfo]
    timing: Timing
    sequence: Callable[[str, bytes], int | None]
    admit: Callable[[str, bytes, str], bool]
    heard: Callable[[str, bytes, str], None]
    stored: Callable[[str, bytes], None]
    asked: Callable[[bytes, str], Awaitable[bytes]] | None


@dataclass(frozen=True)
class Node:
    """A running host and its services."""

    host: IHost
    dht: KadDHT
    gossip: Gossip
    lookup: Lookup
    neighbours: Neighbours
    questions: Questions
    nursery: trio.Nursery

    async def subscribe(self, topic: str) -> None:
        """Hear a topic from now on."""
        await self.gossip.subscribe(topic, self.nursery)


class _NoConnector(AutoConnector):
    """Dials nobody: the library's own dials whoever was ever heard of, silent peers among them."""

    async def maybe_connect(self) -> None:
        """Do nothing."""


def _new_host(options: Options) -> IHost:
    key_pair = create_new_key_pair(options.key)
    wait = options.timing.rpc_s
    host = new_host(
        key_pair=key_pair,
        sec_opt={NOISE: Noise(key_pair, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        listen_addrs=options.listen,
        addrs_factory=lambda listening: list(options.announce) or advertised(listening),
        disable_identify_address_discovery=True,
        negotiate_timeout=max(int(wait), 1),
        connection_config=ConnectionConfig(
            max_connections=_CONNECTIONS,
            min_connections=0,  # the neighbours are kept by Neighbours alone
            low_watermark=0,
            high_watermark=_CONNECTIONS,
            dial_timeout=wait,
            inbound_upgrade_timeout=2 * wait,
            outbound_upgrade_timeout=wait,
            inbound_stream_protocol_negotiation_timeout=max(wait, 1),
            outbound_stream_protocol_negotiation_timeout=max(wait, 1),
        ),
    )
    network = host.get_network()
    if isinstance(network, Network):
        network.retry_config = RetryConfig(max_retries=0)
        network.auto_connector = _NoConnector(network)
    return host


def _quieten() -> None:
    # The library reports what strangers send as warnings and errors of its own, contents and all.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)


async def _close(host: IHost) -> None:
    # Without it sockets stay open, after a cancellation too.
    with trio.move_on_after(5) as scope:
        scope.shield = True
        await host.close()


@asynccontextmanager
async def open_node(options: Options) -> AsyncIterator[Node]:
    """Run a node.

    Raises:
        SwarmError: an address cannot be listened on.
    """
    patches.apply()
    _quieten()
    host, timing = _new_host(options), options.timing
    async with host.run(options.listen), AsyncExitStack() as stack:
        stack.push_async_callback(_close, host)
        listening = host.get_network().listeners
        for address in options.listen:
            if str(address) not in listening:
                raise SwarmError(f"cannot listen on {address}: is it an address of this machine?")
        judge = Judge(options.sequence)
        dht = KadDHT(
            host,
            DHTMode.SERVER,
            validator=NamespacedValidator({NAMESPACE: judge}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        dht._provider_rate_max = 200  # per 10 s; a registry announces every model it knows when it starts
        neighbours = Neighbours(host, dht, timing, options.bootstrap)
        silence = Silence(timing, host.get_connected_peers, neighbours.probe)
        store = RecordStore(host, host.get_id(), options.stored)
        routing = Routing(host, dht.routing_table, silence, timing)
        dht.value_store, dht.peer_routing, dht.provider_store.peer_routing = store, routing, routing
        gossip = Gossip(host, options.heard, options.admit)
        for service in (gossip.service, gossip.router):
            await stack.enter_async_context(background_trio_service(service))
        await gossip.service.wait_until_ready()
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(gossip.announce_for_ever, timing.probe_s)
        await neighbours.start(nursery, silence)
        # Only now: its first look-up fills the routing table, and would find nobody.
        await stack.enter_async_context(background_trio_service(dht))
        lookup = Lookup(dht, store, judge, silence, timing)
        questions = Questions(host, neighbours.connect, timing, options.asked)
        yield Node(host, dht, gossip, lookup, neighbours, questions, nursery)
