"""Whether a registry is in the network, or among strangers who pretend to be it.

Anybody can run a thousand peers, and be all that a registry is connected to. Signed records keep such a registry from
believing anything false, but not from missing what is true. Only stake is scarce: a registry with a connection to who
speaks for a validator of the current epoch is in the network; one without says that it cannot tell.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ncn_framework.errors import NcnError

from .roll import Roll
from .validators import VALIDATOR, validator_info_from_record

if TYPE_CHECKING:
    from ncn_framework.node import Node

    from .swarm import Swarm

__all__ = ["Anchors", "speakers_of"]

log = logging.getLogger(__name__)


def speakers_of(roll: Roll) -> Mapping[str, list[bytes]]:
    """Return the validators that each libp2p peer speaks for, by records that the validators signed."""
    found: dict[str, list[bytes]] = {}
    for record in roll.shown((VALIDATOR,)):
        info = validator_info_from_record(record)
        found.setdefault(info.peer_id, []).append(info.validator)
    return found


class Anchors:
    """Says when no peer of a registry has a stake in the network.

    Args:
        node: the registry of this process.
        roll: that knows who speaks for whom.
        swarm: with the connections.
        interval_s: between two looks; the first comes after one.
    """

    def __init__(self, node: Node, roll: Roll, swarm: Swarm, interval_s: float) -> None:
        self._node, self._roll, self._swarm, self._interval_s = node, roll, swarm, interval_s
        self._said = ""

    async def keep(self) -> None:
        """Look again and again, and log what changes."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                said = await self.look()
            except NcnError:  # without a chain nobody can tell
                continue
            if said and said != self._said:
                log.warning("%s", said)
            elif self._said and not said:
                log.info("this registry is connected to who speaks for a validator again")
            self._said = said

    async def look(self) -> str:
        """Return why this registry may be cut off from the network; empty where it is not.

        Raises:
            ChainError, NoHandlerError: the current epoch is not known.
        """
        epoch = await self._node.validation.epoch()
        own = {validator.address for validator in self._node.validators}
        others = {member.address for member in epoch.members} - own
        peers = {peer.peer_id for peer in self._swarm.peers()}
        return self._judged(epoch.number, others, peers)

    def _judged(self, epoch: int, others: Collection[bytes], peers: Collection[str]) -> str:
        speaking = speakers_of(self._roll)
        if not others or any(validator in others for peer in peers for validator in speaking.get(peer, ())):
            return ""
        return (
            f"none of the {len(peers)} peers of this registry speaks for a validator of epoch {epoch}, which has "
            f"{len(others)} others: it may be cut off from the network, and miss records; add registries that you "
            "trust to registry.bootstrap"
        )
