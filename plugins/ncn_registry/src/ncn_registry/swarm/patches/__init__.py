"""Mends for libp2p 0.8.1, each with a test that shows the fault without it.

The version is pinned. After an upgrade, a test of ``test_swarm_patches.py`` that fails because the fault is gone says
which module can be deleted.
"""

from __future__ import annotations

from . import admission, bounds, gossip, handlers, protocol, slots, writes

__all__ = ["PATCHES", "apply"]

PATCHES = (
    protocol.PATCH,
    bounds.PATCH,
    writes.PATCH,
    handlers.PATCH,
    gossip.PATCH,
    slots.PATCH,
    admission.PATCH,
)


def apply() -> None:
    """Mend libp2p in this process; before any host or DHT is made."""
    for patch in PATCHES:
        patch.apply()
