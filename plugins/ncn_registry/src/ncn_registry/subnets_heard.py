"""Subnets as a compute node hears of them from its registry, and passes them on to the plugins of its process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ncn_framework import digests
from ncn_framework.errors import CapacityError, NcnError
from ncn_framework.signing import check_signature
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb
from ncn_framework.wire.convert_subnets import ENDORSED_SUBNET, endorsed_from_record

from .records import Judge

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["SubnetsHeard"]

log = logging.getLogger(__name__)


class SubnetsHeard:
    """Watches a registry, which has checked the quorums: a node without a chain can't.

    Args:
        node: whose plugins are told.
        judge: of records.
    """

    def __init__(self, node: Node, judge: Judge) -> None:
        self._node, self._judge = node, judge
        self._versions: dict[bytes, int] = {}

    async def watch(self, stub: Any) -> None:
        """Hear and pass on until the registry ends the watch.

        Raises:
            CapacityError: it did.
        """
        call = stub.Watch(pb.WatchRequest(kinds=(ENDORSED_SUBNET,)), wait_for_ready=True)
        try:
            async for event in call:
                if event.HasField("put"):
                    await self._take(event)
                elif event.HasField("gone"):
                    self._versions.pop(event.gone.owner, None)
        finally:
            call.cancel()
        raise CapacityError("the registry ended the watch of subnets")

    async def _take(self, event: pb.WatchEvent) -> None:
        record = record_from_pb(event.put)
        if record.sequence <= (known := self._versions.get(record.owner, 0)):
            return  # told again after a break
        try:
            self._judge.check(record, known)
            inner = endorsed_from_record(record).record
            digest = digests.record_digest(self._node.domain, inner)
            check_signature(digest, inner.signature, inner.owner, "the configuration of a subnet")
            self._versions[record.owner] = record.sequence
            await self._node.lifecycle.register(record)
        except NcnError as error:
            log.warning("the registry sent a subnet that does not count: %s", error)
