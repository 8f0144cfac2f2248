"""Records in the DHT: put when they change and again every few hours, looked for when nobody here knows them."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from ncn_framework.errors import NcnError, NoCapacity
from ncn_framework.models import Record
from ncn_framework.signing import address_hex

from .records import dht_key, is_withdrawal, models_of, to_bytes
from .roll import Roll
from .store import Key

if TYPE_CHECKING:
    from .swarm import Swarm

__all__ = ["Dht"]

log = logging.getLogger(__name__)

_WRITERS = 4
_FINDERS = 8
_MOST_WANTED = 1_024
_MOST_UNFOUND = 4_096
_BEHIND_GOSSIP_S = 0.3
"""How long a change waits: what gossip tells shows that its owner lives, which a copy out of the DHT does not."""
_UNFOUND_S = 5.0
"""How long what was not found is not looked for again."""


class Dht:
    """Entered as an asynchronous context manager, in which its tasks run.

    Args:
        swarm: this registry's libp2p.
        roll: whose records it puts, and which takes those that it finds.
        renew_interval_s: after which a record is put again: other hosts forget it after a day or two.
        timeout_s: limit of one operation.
    """

    def __init__(self, swarm: Swarm, roll: Roll, renew_interval_s: float, timeout_s: float) -> None:
        self._swarm, self._roll = swarm, roll
        self._renew_interval_s, self._timeout_s = renew_interval_s, timeout_s
        self._changed: dict[Key, None] = {}
        self._more = asyncio.Event()
        self._finding: dict[Key, asyncio.Task[Record | None]] = {}
        self._unfound: dict[Key, float] = {}
        self._finders = asyncio.Semaphore(_FINDERS)
        self._provided: set[bytes] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Dht:
        self._put_all()
        self._tasks = [asyncio.create_task(self._write()) for _ in range(_WRITERS)]
        self._tasks.append(asyncio.create_task(self._renew()))
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks, *self._finding.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- putting ---

    def put(self, record: Record) -> None:
        """Put the newest record of ``record``'s owner and kind soon."""
        self._changed[record.kind, record.owner] = None
        self._more.set()

    async def _write(self) -> None:
        while True:
            while not self._changed:
                self._more.clear()
                await self._more.wait()
                await asyncio.sleep(_BEHIND_GOSSIP_S)
            if not self._changed:
                continue  # another writer was first
            key = next(iter(self._changed))
            del self._changed[key]
            kept = self._roll.store.get(*key)
            if kept is not None and kept.record.expires_ms > self._roll.judge.clock():
                await self._put(kept.record)

    async def _put(self, record: Record) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                replicas = await self._swarm.put(dht_key(record.kind, record.owner), to_bytes(record))
                log.debug("the %s record of %s has %d replicas", record.kind, address_hex(record.owner), replicas)
            if not is_withdrawal(record):
                for model in models_of(record) - self._provided:
                    async with asyncio.timeout(self._timeout_s):
                        await self._swarm.provide(model)
                    self._provided.add(model)
        except (TimeoutError, NcnError, OSError, RuntimeError) as error:
            log.warning(
                "the %s record of %s was not put into the DHT (%s); it is put again within %.0f s",
                record.kind,
                address_hex(record.owner),
                error or "no answer in time",
                self._renew_interval_s,
            )

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renew_interval_s * random.uniform(0.9, 1.0))  # registries shall not do so at once
            self._provided.clear()
            self._put_all()

    def _put_all(self) -> None:
        """Put, soon, every record that its owner gave to this registry."""
        for kept in self._roll.store.all():
            if kept.direct:
                self.put(kept.record)

    # --- finding ---

    def stored(self, key: str, value: bytes) -> None:
        """Let the roll know of a record that another peer put here; one that is not newer changes nothing."""
        try:
            self._roll.put(self._roll.judge.open(key, value), alive=False).add_done_callback(_noticed)
        except NcnError as error:
            log.debug("what was stored under %s is not taken: %s", key, error)

    async def find(self, kind: str, owner: bytes, *, alive: bool = False) -> Record | None:
        """Look for a record, let the roll take it, and return what the roll has then; None where there is none.

        Args:
            kind: of the record.
            owner: whose.
            alive: the owner is known to be alive.

        Raises:
            NoCapacity: too many are looked for.
        """
        key = (kind, owner)
        task = self._finding.get(key)
        if task is None:
            if self._unfound.get(key, 0.0) > asyncio.get_running_loop().time():
                return None
            if len(self._finding) >= _MOST_WANTED:
                raise NoCapacity(f"{_MOST_WANTED} records are looked for already; ask again soon")
            task = self._finding[key] = asyncio.create_task(self._find(kind, owner, alive))
            task.add_done_callback(lambda _: self._finding.pop(key, None))
        return await asyncio.shield(task)

    def want(self, kind: str, owner: bytes) -> None:
        """Look for a record of somebody who is alive, in the background; where too many are wanted, not now."""
        key = (kind, owner)
        if key in self._finding or len(self._finding) >= _MOST_WANTED:
            return
        if self._unfound.get(key, 0.0) <= asyncio.get_running_loop().time():
            task = self._finding[key] = asyncio.create_task(self._find(kind, owner, True))
            task.add_done_callback(lambda _: self._finding.pop(key, None))

    async def _find(self, kind: str, owner: bytes, alive: bool) -> Record | None:
        try:
            async with self._finders, asyncio.timeout(self._timeout_s):
                value = await self._swarm.get(dht_key(kind, owner))
            if value is not None:
                await self._roll.put(self._roll.judge.open(dht_key(kind, owner), value), alive=alive)
        except (TimeoutError, NcnError, OSError, RuntimeError) as error:
            log.debug("the %s record of %s was not found: %s", kind, address_hex(owner), error)
        found = self._roll.get(kind, owner)
        self._unfound.pop(key := (kind, owner), None)
        if found is None:
            if len(self._unfound) >= _MOST_UNFOUND:
                self._unfound.clear()
            self._unfound[key] = asyncio.get_running_loop().time() + _UNFOUND_S
        return found


def _noticed(written: asyncio.Future[None]) -> None:
    """Take note of a failure that nobody waits for; the store has logged it."""
    if not written.cancelled():
        written.exception()
