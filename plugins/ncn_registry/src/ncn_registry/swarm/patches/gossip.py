"""An exception while one gossip message is handled ends the gossip service, and the program with it.

A synchronous topic validator that raises does this, and so does a message that carries a key that doesn't parse: any
peer can send one.
"""

from __future__ import annotations

import logging

from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from .patch import Patch

__all__ = ["PATCH"]

log = logging.getLogger("ncn_registry.swarm")

_push = Pubsub.push_msg


async def _contained(self: Pubsub, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
    try:
        await _push(self, msg_forwarder, msg)
    except Exception as error:
        log.warning("peer %s: a gossip message was dropped after %s", msg_forwarder, type(error).__name__)


PATCH = Patch(
    "a gossip message that cannot be handled ends the program",
    [(Pubsub, "push_msg", _contained)],
)
