"""gRPC of ``P2PRegistryService`` that concerns reputations: ask, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from ncn_framework.errors import NcnError, UnknownNode
from ncn_framework.signing import address_hex
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert_payments import sized
from ncn_framework.wire.grpc_errors import abort
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceServicer

from .reputations import Points, Reputations

__all__ = ["ReputationService"]

_Context = grpc.aio.ServicerContext[Any, Any]

_MOST_LISTED = 1_000


class ReputationService(P2PRegistryServiceServicer):
    """The part of the registry's service for who asks how validators and nodes have conducted themselves.

    Attributes:
        reputations: that are known.
    """

    reputations: Reputations

    async def GetReputation(self, request: mpb.WalletAddress, context: _Context) -> pb.Reputation:  # noqa: N802
        """Return one account's reputation."""
        try:
            address = sized(request.address, 20, "address")
            found = await self.reputations.of(address)
            if found is None:
                raise UnknownNode(f"nothing is known here of what {address_hex(address)} did")
        except NcnError as error:
            await abort(context, error)
        return _message(found)

    async def ListReputations(  # noqa: N802
        self, request: pb.ListRequest, context: _Context
    ) -> AsyncIterator[pb.Reputation]:
        """Stream the reputations of all that are known, by address in lower case; ``after`` is one."""
        try:
            found = await self.reputations.all()
        except NcnError as error:
            await abort(context, error)
        after, left = request.after.lower(), min(request.limit or _MOST_LISTED, _MOST_LISTED)
        for one in found:
            if left and f"0x{one.account.hex()}" > after:
                left -= 1
                yield _message(one)


def _message(one: Points) -> pb.Reputation:
    return pb.Reputation(
        account=one.account,
        role=one.role,
        points=one.points,
        on_chain=one.on_chain,
        done=one.since.done,
        failed=one.since.failed,
        timeouts=one.since.timeouts,
        receipts=one.receipts,
    )
