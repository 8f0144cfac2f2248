"""KadDHT ignores ``protocol_prefix``: the id is a constant that five modules import by value."""

from __future__ import annotations

from libp2p.custom_types import TProtocol
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store

from ..limits import DHT_PROTOCOL
from .patch import Patch

__all__ = ["PATCH"]

PATCH = Patch(
    "the DHT speaks /ipfs/kad/1.0.0, whatever its protocol_prefix says",
    [
        (module, "PROTOCOL_ID", TProtocol(DHT_PROTOCOL))
        for module in (common, kad_dht, peer_routing, provider_store, value_store)
    ],
)
