"""Errors of the swarm, in the kernel's tree.

NcnError
└── SwarmError        libp2p cannot do what was asked: a bad address, an oversized or refused record, no answer
    └── SwarmDown     libp2p's own thread has ended; only a new Swarm helps
"""

from __future__ import annotations

from ncn_framework.errors import NcnError

__all__ = ["SwarmDown", "SwarmError"]


class SwarmError(NcnError):
    """libp2p cannot do what was asked of it."""


class SwarmDown(SwarmError):
    """libp2p's thread has ended, by a fault or because the swarm was closed."""
