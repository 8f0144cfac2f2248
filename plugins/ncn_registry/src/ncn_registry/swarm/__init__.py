"""The peer-to-peer network of registries: libp2p with a DHT for records and gossip for news.

Importing it takes 1.4 s and 85 MB: import it where a registry is served, not at the top of a module.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # Its WebSocket transport, which is not used here, imports a deprecated part of websockets.
    warnings.filterwarnings("ignore", "websockets", DeprecationWarning)
    import libp2p  # noqa: F401

from .errors import SwarmDown, SwarmError
from .limits import Timing
from .neighbours import Peer
from .swarm import Swarm

__all__ = ["Peer", "Swarm", "SwarmDown", "SwarmError", "Timing"]
