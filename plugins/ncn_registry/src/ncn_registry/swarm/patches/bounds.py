"""The library's bounds fit a file system of the whole planet; ours a registry of small records.

A message is read into memory before it is looked at, 4 MiB of it, from any peer and on each of its streams. Query
time-outs of 10 s make one hung peer stall every look-up that meets it.
"""

from __future__ import annotations

from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store

from ..limits import VALUE_BYTES, Timing
from .patch import Patch

__all__ = ["PATCH"]

# A record, its author's key and signature, and 20 peers with their addresses and signed records.
_MESSAGE_BYTES = VALUE_BYTES + 48 * 1024

PATCH = Patch(
    "DHT messages of 4 MiB and records of 1 MiB are read and kept, and a query waits 10 s",
    [
        *(
            (module, "MAX_DHT_MESSAGE_SIZE", _MESSAGE_BYTES)
            for module in (common, kad_dht, peer_routing, provider_store, value_store)
        ),
        (kad_dht, "MAX_RECORD_SIZE", VALUE_BYTES + 512),
        (peer_routing, "QUERY_TIMEOUT", Timing().rpc_s),
        (provider_store, "QUERY_TIMEOUT", Timing().rpc_s),
    ],
)
