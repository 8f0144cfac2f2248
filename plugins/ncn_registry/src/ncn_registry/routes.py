"""What a gateway tells over HTTP of the nodes that its registry knows: ``GET /api/v1/nodes``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ncn_framework.wire.convert import node_info_from_record

from .forms import NodeForm, node_form
from .known import Acquaintance, Known

__all__ = ["node_routes"]

_MOST = 10_000


def node_routes(known: Known) -> Sequence[BaseRoute]:
    """Return the routes of a gateway; without a registry, its list is empty."""

    async def nodes(_: Request) -> Response:
        forms = [_form(one, known) for one in islice(known, _MOST)]
        return Response(msgspec.json.encode(forms), media_type="application/json")

    return (Route("/api/v1/nodes", nodes),)


def _form(one: Acquaintance, known: Known) -> NodeForm:
    info, out = node_info_from_record(one.record), known.out.get(one.record.owner, "")
    return node_form(one.record, info, one.in_flight, one.heard_ms, known.is_alive(one), out)
