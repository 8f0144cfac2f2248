"""Who speaks for which validator: told to everybody for those of this process, found for all others."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ncn_framework.errors import NcnError
from ncn_framework.models import Record

from .database import noticed
from .dht import Dht
from .records import withdrawal
from .roll import Roll
from .sealing import heartbeat, sealed
from .validators import VALIDATOR, ValidatorInfo, validator_info_from_record, validator_record

if TYPE_CHECKING:
    from ncn_framework.node import Node

    from .swarm import Swarm

__all__ = ["Speakers"]


class Speakers:
    """The registries that speak for validators.

    Args:
        node: the registry of this process, with the keys of its validators.
        roll: that knows their records.
        dht: where those are looked for that the roll does not have.
        swarm: this registry's libp2p.
        lifetime_ms: of the records of its validators; they are renewed at half of it.
        interval_s: between two heartbeats of theirs.
    """

    def __init__(self, node: Node, roll: Roll, dht: Dht, swarm: Swarm, lifetime_ms: int, interval_s: float) -> None:
        self._node, self._roll, self._dht, self._swarm = node, roll, dht, swarm
        self._lifetime_ms, self._interval_s = lifetime_ms, interval_s
        self._own: dict[bytes, Record] = {}

    async def of(self, validator: bytes) -> ValidatorInfo | None:
        """Return who speaks for a validator, by its newest record; None where there is none that counts."""
        record = self._roll.get(VALIDATOR, validator) or await self._dht.find(VALIDATOR, validator)
        return None if record is None else validator_info_from_record(record)

    async def keep(self) -> None:
        """Have everybody know, for ever, that this registry speaks for the validators of its process."""
        while True:
            await self.tell()
            await asyncio.sleep(self._interval_s)

    async def tell(self) -> None:
        """Publish what is to be renewed of their records, and let each give a sign of life."""
        for signer in self._node.validators:
            now = self._node.lifecycle.clock()
            own = self._own.get(signer.address)
            if own is None or own.expires_ms - now < self._lifetime_ms / 2:
                kept = self._roll.store.get(VALIDATOR, signer.address)
                sequence = now if kept is None else max(now, kept.record.sequence + 1)
                said = ValidatorInfo(
                    signer.address, self._node.signer.address, self._swarm.peer_id, tuple(self._swarm.addresses)
                )
                record = sealed(validator_record(said, sequence, now + self._lifetime_ms), signer, self._node.domain)
                await self._node.lifecycle.register(record)
                self._own[signer.address] = record
            if signer.address != self._node.signer.address:  # that one is heard of anyway
                with suppress(NcnError):  # the clock was set back; the next one is newer
                    self._roll.beat(heartbeat(signer, self._node.domain, now), direct=True)

    def leave(self) -> None:
        """Withdraw what was published: this registry stops."""
        now = self._node.lifecycle.clock()
        for signer in self._node.validators:
            if (own := self._own.pop(signer.address, None)) is not None:
                with suppress(NcnError):
                    record = sealed(withdrawal(own, now), signer, self._node.domain)
                    self._roll.put(record, direct=True, alive=False).add_done_callback(noticed)
