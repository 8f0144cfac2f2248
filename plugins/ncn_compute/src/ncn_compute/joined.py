"""The subnets that a node has joined by its setting: says so, dials their gateways, fetches and serves their models."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ncn_framework import digests
from ncn_framework.errors import ModelError, NcnError
from ncn_framework.models import Record
from ncn_framework.signing import address_hex
from ncn_framework.wire.convert_records import gateway_info_from_record
from ncn_framework.wire.convert_subnets import ListedModel, Subnet, endorsed_from_record, membership_record

from .manifest import load

if TYPE_CHECKING:
    from .service import Compute

__all__ = ["JoinedSubnets"]

log = logging.getLogger(__name__)

_MOST_GATEWAYS = 1_024
"""Records of gateways that are remembered, in case a subnet comes to list one."""
_AGAIN_S = 60.0
"""How soon models that could not be fetched are tried again."""


class JoinedSubnets:
    """Knows subnets by what the registry tells: it has checked the quorums, and each configuration's owner signed it.

    Args:
        compute: the node.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute, self._settings = compute, compute.settings
        self._subnets: dict[bytes, Subnet] = {}
        self._versions: dict[bytes, int] = {}
        self._gateways: dict[bytes, Record] = {}
        self._said: tuple[bytes, ...] = ()
        self._sequence = 0
        self._changed = asyncio.Event()
        self._stopped = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._settings.subnets)

    def take(self, record: Record) -> None:
        """Take a subnet's record; one that the setting does not name changes nothing.

        Raises:
            MalformedRequest: it is not a subnet's record.
        """
        endorsed = endorsed_from_record(record)
        subnet = endorsed.subnet
        if not self._is_named(subnet) or record.sequence <= self._versions.get(subnet.owner, 0):
            return
        log.info("subnet %s has version %d with %d models", subnet.name, record.sequence, len(subnet.models))
        self._subnets[subnet.owner], self._versions[subnet.owner] = subnet, record.sequence
        self._changed.set()
        for gateway in subnet.gateways:
            if (known := self._gateways.get(gateway)) is not None:
                self._compute.found.take(known)

    def take_gateway(self, record: Record) -> None:
        """Dial the gateway of a record, where a subnet lists it.

        Raises:
            MalformedRequest: it is not a gateway's record.
        """
        info = gateway_info_from_record(record)
        if len(self._gateways) >= _MOST_GATEWAYS and info.gateway not in self._gateways:
            del self._gateways[next(iter(self._gateways))]
        self._gateways[info.gateway] = record
        if any(info.gateway in subnet.gateways for subnet in self._subnets.values()):
            self._compute.found.take(record)

    def _is_named(self, subnet: Subnet) -> bool:
        names = {name.lower() for name in self._settings.subnets}
        return subnet.name in names or address_hex(subnet.owner).lower() in names

    async def run(self) -> None:
        """Keep membership and models up with the subnets until cancelled."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self.say()
                if self._settings.sync_models and not await self._sync():
                    asyncio.get_running_loop().call_later(_AGAIN_S, self._changed.set)
        finally:
            self._stopped.set()

    async def say(self, *, again: bool = False) -> None:
        """Publish which subnets this node has joined, if that has changed, or ``again``."""
        joined = tuple(sorted(self._subnets))
        if not joined or (joined == self._said and not again):
            return
        node, signer = self._compute.node, self._compute.signer
        now = node.lifecycle.clock()
        self._sequence, self._said = max(now, self._sequence + 1), joined
        expires_ms = now + self._settings.record_lifetime_ms
        record = membership_record(signer.address, joined, self._sequence, expires_ms)
        signature = signer.sign(digests.record_digest(node.domain, record))
        await node.lifecycle.register(replace(record, signature=signature.value))

    async def _sync(self) -> bool:
        """Fetch what is missing and serve it; return whether all is there."""
        wanted = {m.digest: m for subnet in self._subnets.values() for m in subnet.models}
        missing = [model for digest, model in wanted.items() if digest not in self._compute.models]
        complete = True
        for model in missing:
            try:
                directory = await asyncio.to_thread(self._fetch, model)
                await self._compute.serve_model(await asyncio.to_thread(load, directory), directory)
            except (NcnError, OSError) as error:
                log.warning("model %s of a subnet is not served here: %s", model.name, error)
                complete = False
            else:
                log.info("model %s of a subnet is served from %s", model.name, directory)
        return complete

    def _fetch(self, model: ListedModel) -> Path:
        from .syncing import sync  # which imports an HTTP client

        settings = self._settings
        (result,) = sync(
            [model], self._compute.root, most_bytes=settings.max_models_bytes, stopped=self._stopped.is_set
        )
        if result.directory is None:
            raise ModelError(result.problem)
        return result.directory
