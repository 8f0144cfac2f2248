"""A registry's peer-to-peer network, as the rest of the process sees it: asyncio, strings and bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any

from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from .addresses import check_free, parse_listen, parse_peer
from .bridge import Bridge
from .errors import SwarmError
from .limits import Timing
from .neighbours import Peer
from .node import Node, Options, open_node

__all__ = ["Swarm"]

log = logging.getLogger(__name__)

_WAITING = 4096
_KEY_RANGE = range(2, 51)


def _admit_all(topic: str, data: bytes, peer: str) -> bool:
    return True


def _ignore(key: str, value: bytes) -> None:
    return


class Swarm:
    """One peer of the network: a DHT for signed records, gossip, and the connections for both.

    An async context manager. libp2p runs in a thread of its own; ``validate`` and ``admit`` are called there, so they
    must be quick and touch nothing of the loop's. What they raise counts as a refusal. ``heard`` and ``stored`` are
    called in the loop.

    Args:
        key: 32 bytes, the registry's secp256k1 key. The peer id follows from it.
        listen: multiaddrs, such as ``/ip4/127.0.0.1/tcp/8828``; port 0 takes a free one.
        heard: called with topic, data and author's peer id for each gossip message of another peer. An author's
            messages are limited to 20 a second.
        validate: returns the sequence of a good record, None for a bad one (key without leading slash, value).
        announce: multiaddrs to advertise instead of those listened on, for a node behind NAT or on 0.0.0.0.
        bootstrap: multiaddrs that end in ``/p2p/`` and a peer id. They need not be up: they are tried again.
        admit: returns whether a gossip message is good (topic, data, author's peer id); a bad one is neither heard
            nor relayed.
        stored: called with key and value of each good record that another peer stored here or that a ``get`` found.
        asked: answers a question of a peer (question, peer's id), in the loop; it is cancelled after
            ``timing.answer_s``, and an exception leaves the question without an answer. None: no questions are taken.
        timing: time limits and pauses.

    Raises:
        SwarmError: the key or an address is malformed.
    """

    def __init__(
        self,
        key: bytes,
        listen: Sequence[str],
        *,
        heard: Callable[[str, bytes, str], None],
        validate: Callable[[str, bytes], int | None],
        announce: Sequence[str] = (),
        bootstrap: Sequence[str] = (),
        admit: Callable[[str, bytes, str], bool] = _admit_all,
        stored: Callable[[str, bytes], None] = _ignore,
        asked: Callable[[bytes, str], Coroutine[Any, Any, bytes]] | None = None,
        timing: Timing = Timing(),  # noqa: B008 - frozen
    ) -> None:
        try:
            if len(key) != 32:
                raise ValueError
            self.peer_id = str(ID.from_pubkey(create_new_key_pair(key).public_key))
        except Exception:  # without its cause: that may quote the key
            raise SwarmError("the registry's key must be 32 bytes and a valid secp256k1 key") from None
        self._heard, self._stored, self._waiting = heard, stored, 0
        self._options = Options(
            key=key,
            listen=parse_listen(listen),
            announce=parse_listen(announce) if announce else [],
            bootstrap=[parse_peer(address) for address in bootstrap],
            timing=timing,
            sequence=validate,
            admit=admit,
            heard=self._pass_heard,
            stored=self._pass_stored,
            asked=self._pass_asked if asked is not None else None,
        )
        self._asked = asked
        self._bridge = Bridge(lambda: open_node(self._options))

    async def __aenter__(self) -> Swarm:
        self._loop = asyncio.get_running_loop()
        for address in self._options.listen:
            check_free(address)
        await self._bridge.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._bridge.__aexit__(kind, error, traceback)

    @property
    def addresses(self) -> list[str]:
        """What other nodes can give as ``bootstrap``: each address with this node's peer id."""
        return [str(address) for address in self._node.host.get_addrs()]

    async def put(self, key: str, value: bytes) -> int:
        """Store a record here and at the peers nearest to its key.

        Args:
            key: ``ncn/...``, at most 49 bytes.
            value: at most 16 KiB, and good by ``validate``.

        Returns:
            How many other peers took it. 0 is no error: there may be nobody, or they hold a newer one.

        Raises:
            SwarmError: key or value is refused, or a newer record is known here.
        """
        return await self._bridge.call(self._node.lookup.put, key, value)

    async def restore(self, key: str, value: bytes) -> None:
        """Store a record here, without telling anybody: one from before a restart.

        Raises:
            SwarmError: as ``put``.
        """

        async def restore() -> None:
            self._node.lookup.restore(key, value)

        await self._bridge.call(restore)

    async def get(self, key: str) -> bytes | None:
        """Ask the network for a record; return the best good one, of this node and the nearest peers."""
        return await self._bridge.call(self._node.lookup.get, key)

    async def provide(self, key: bytes) -> None:
        """Tell the network that this node provides something, such as a model's digest (2 to 50 bytes)."""
        self._check_content(key)
        await self._bridge.call(self._node.dht.provider_store.provide, key)

    async def providers(self, key: bytes) -> list[str]:
        """Return the peer ids of those that provide something."""
        self._check_content(key)
        return [str(peer) for peer in await self._bridge.call(self._node.lookup.providers, key)]

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip a message of at most 32 KiB. It may be lost on the way: what must arrive goes into a record."""
        await self._bridge.call(self._node.gossip.publish, topic, data)

    async def subscribe(self, topic: str) -> None:
        """Hear and relay a topic from now on."""
        await self._bridge.call(self._node.subscribe, topic)

    async def connect(self, address: str) -> None:
        """Connect to a peer.

        Raises:
            SwarmError: the address is malformed, or nobody answers there as that peer.
        """
        await self._bridge.call(self._node.neighbours.connect, parse_peer(address))

    async def ask(self, peer_id: str, addresses: Sequence[str], question: bytes, timeout_s: float) -> bytes:
        """Ask a peer directly, over a stream of its own; a connection is made where there is none.

        Args:
            peer_id: of the peer, base58.
            addresses: multiaddrs at which it may be dialled, with or without ``/p2p/`` and that peer id.
            question: at most 16 MiB.
            timeout_s: for all of it, the dialling included.

        Raises:
            SwarmError: an address is malformed, the peer cannot be reached, or gave no answer in time.
        """
        end = f"/p2p/{peer_id}"
        infos = [parse_peer(address.removesuffix(end) + end) for address in addresses]
        if not infos:
            raise SwarmError(f"no address of peer {peer_id} is known")
        info = PeerInfo(infos[0].peer_id, [address for one in infos for address in one.addrs])
        try:
            return await self._bridge.call(self._node.questions.ask, info, question, timeout_s=timeout_s)
        except TimeoutError as error:
            raise SwarmError(f"peer {peer_id} gave no answer within {timeout_s:g} s") from error

    def peers(self) -> list[Peer]:
        """Return the peers this node is connected to."""
        return list(self._node.neighbours.peers)

    async def wait_down(self) -> None:
        """Wait until libp2p has ended; raise what ended it, if anything did. For a service that must not outlive it."""
        await self._bridge.wait_down()

    @property
    def _node(self) -> Node:
        if not hasattr(self._bridge, "service"):
            raise SwarmError("the swarm is not running; enter it with `async with`")
        return self._bridge.service

    @staticmethod
    def _check_content(key: bytes) -> None:
        if len(key) not in _KEY_RANGE:
            raise SwarmError(f"a provided key must have {_KEY_RANGE[0]} to {_KEY_RANGE[-1]} bytes, not {len(key)}")

    async def _pass_asked(self, question: bytes, peer: str) -> bytes:
        if self._asked is None:
            raise SwarmError("no questions are taken here")
        return await self._bridge.call_back(self._asked, question, peer)

    def _pass_heard(self, topic: str, data: bytes, peer: str) -> None:
        self._pass(self._heard, topic, data, peer)

    def _pass_stored(self, key: str, value: bytes) -> None:
        self._pass(self._stored, key, value)

    def _pass(self, receiver: Callable[..., None], *args: object) -> None:
        """Hand something to the loop, from libp2p's thread; drop it where the loop is too far behind."""
        if self._waiting >= _WAITING:
            log.warning("%d messages of the network wait to be handled: one more was dropped", self._waiting)
            return
        self._waiting += 1

        def deliver() -> None:
            self._waiting -= 1
            try:
                receiver(*args)
            except Exception:
                log.exception("handling a message of the network failed")

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed
            self._waiting -= 1
