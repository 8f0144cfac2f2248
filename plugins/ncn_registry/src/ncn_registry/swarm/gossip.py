"""Gossip: what is relayed and heard, from whom, and how much of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import trio
from libp2p.abc import IHost, ISubscriptionAPI
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from .errors import SwarmError
from .limits import MESSAGE_BYTES, TOPIC_BYTES

__all__ = ["Gossip"]

log = logging.getLogger("ncn_registry.swarm")

_PER_SECOND, _BURST, _AUTHORS = 20.0, 60.0, 1024


class Gossip:
    """The topics of one node.

    Args:
        host: of the node.
        heard: called with topic, data and author's peer id, for each message of others that was admitted.
        admit: says whether a message of others is good, before it is heard or relayed; may raise, then it is not.
    """

    def __init__(
        self, host: IHost, heard: Callable[[str, bytes, str], None], admit: Callable[[str, bytes, str], bool]
    ) -> None:
        # v1.2 and adaptive gossip doubled the cost; the spam protection counts relayed messages against the relay.
        self.router = GossipSub(
            [PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
        )
        self.service = Pubsub(host, self.router, max_inbound_rpc_size=8 * MESSAGE_BYTES)
        # Message ids are author and counter: one that starts at 0 repeats those of before a restart, which peers drop.
        self.service.counter = time.time_ns()
        self._me, self._heard, self._admit = host.get_id(), heard, admit
        self._budgets: dict[ID, tuple[float, float]] = {}

    async def subscribe(self, topic: str, nursery: trio.Nursery) -> None:
        """Hear a topic from now on."""
        if not topic or len(topic.encode()) > TOPIC_BYTES:
            raise SwarmError(f"topic {topic[:40]!r} must have 1 to {TOPIC_BYTES} bytes")
        if topic in self.service.topic_ids:
            return
        self.service.set_topic_validator(topic, partial(self._good, topic), False)
        nursery.start_soon(self._listen, topic, await self.service.subscribe(topic))

    async def publish(self, topic: str, data: bytes) -> None:
        """Send a message to everybody who hears the topic."""
        if not 0 < len(data) <= MESSAGE_BYTES:
            raise SwarmError(f"a gossip message must have 1 to {MESSAGE_BYTES} bytes, not {len(data)}")
        await self.service.publish(topic, data)

    async def announce_for_ever(self, pause_s: float) -> None:
        """Tell the peers again and again which topics are heard here.

        A peer that reconnects before its old connection's end was noticed is forgotten with that one, topics and all,
        and would hear nothing more: the library says each subscription once. Saying it twice does no harm.
        """
        while True:
            await trio.sleep(pause_s)
            await self.service.message_all_peers(self.service.get_hello_packet().SerializeToString())

    async def _listen(self, topic: str, subscription: ISubscriptionAPI) -> None:
        while True:
            message = await subscription.get()
            if message.from_id != self._me.to_bytes():
                self._heard(topic, message.data, str(ID(message.from_id)))

    def _good(self, topic: str, forwarder: ID, message: rpc_pb2.Message) -> bool:
        author = ID(message.from_id)
        if author == self._me:
            return forwarder == self._me
        if len(message.topicIDs) != 1 or not 0 < len(message.data) <= MESSAGE_BYTES or not self._affords(author):
            return False
        try:
            return bool(self._admit(topic, message.data, str(author)))
        except Exception:
            log.exception("a gossip message of %s was dropped, as checking it failed", author)
            return False

    def _affords(self, author: ID) -> bool:
        """Take one message out of an author's budget, a bucket that fills with ``_PER_SECOND``."""
        now = trio.current_time()
        left, since = self._budgets.pop(author, (_BURST, now))
        left = min(_BURST, left + (now - since) * _PER_SECOND)
        while len(self._budgets) >= _AUTHORS:
            del self._budgets[next(iter(self._budgets))]
        self._budgets[author] = max(left - 1, 0.0), now
        return left >= 1
