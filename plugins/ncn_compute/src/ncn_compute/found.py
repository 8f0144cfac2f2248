"""Gateways that a registry names: dialled like those of the settings, as many as the operator allows."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ncn_framework.models import Record
from ncn_framework.signing import address_hex
from ncn_framework.wire.convert_records import gateway_info_from_record

from .session import GatewaySession

if TYPE_CHECKING:
    from .service import Compute

__all__ = ["FoundGateways"]

log = logging.getLogger(__name__)


class FoundGateways:
    """Sessions with gateways that were found.

    Anybody can name an address in a record of their own, so that a node dials found ones only where its operator
    says how many.

    Args:
        compute: the node.
        most: gateways to dial.
    """

    def __init__(self, compute: Compute, most: int) -> None:
        self._compute, self._most = compute, most
        self._running: dict[bytes, tuple[GatewaySession, asyncio.Task[None], int]] = {}

    def take(self, record: Record) -> None:
        """Dial the gateway of a checked record, unless it is dialled already or there are enough.

        Raises:
            MalformedRequest: it is not a gateway's record.
        """
        info = gateway_info_from_record(record)
        if not self._most:
            return
        self._prune(self._compute.node.lifecycle.clock())
        if (found := self._running.get(info.gateway)) is not None:
            session, task, _ = found
            if session.target == info.grpc_addr:
                self._running[info.gateway] = (session, task, record.expires_ms)
                return
            self._end(info.gateway)  # it has moved
        if any(session.target == info.grpc_addr for session in self._compute.sessions):
            return
        if len(self._running) >= self._most:
            log.debug("gateway %s is not dialled: %d are, as find_gateways says", info.grpc_addr, self._most)
            return
        log.info("found gateway %s (%s)", address_hex(info.gateway), info.grpc_addr)
        session = GatewaySession(self._compute, info.grpc_addr, info.gateway)
        self._compute.sessions.append(session)
        self._running[info.gateway] = (session, asyncio.create_task(session.run()), record.expires_ms)

    async def close(self) -> None:
        """End every session with a gateway that was found."""
        tasks = [self._end(gateway) for gateway in list(self._running)]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _prune(self, now_ms: int) -> None:
        """End the sessions whose gateway is away and has not renewed its record."""
        for gateway, (session, task, expires_ms) in list(self._running.items()):
            if task.done() or (expires_ms <= now_ms and not session.connected):
                self._end(gateway)

    def _end(self, gateway: bytes) -> asyncio.Task[None]:
        session, task, _ = self._running.pop(gateway)
        self._compute.sessions.remove(session)
        task.cancel()
        return task
