"""A router that always takes the node with the lowest address; the built-in one is never asked."""

from __future__ import annotations

from collections.abc import Awaitable

from ncn_framework import hookimpl
from ncn_framework.errors import NoCandidate
from ncn_framework.models import Candidates, Considered, Route

roles = ("gateway",)


@hookimpl
def ncn_route(candidates: Candidates) -> Awaitable[Route]:
    return lowest(candidates)


async def lowest(candidates: Candidates) -> Route:
    able = [candidate for candidate in candidates if candidate.capacity > 0]
    if not able:
        raise NoCandidate("every node that serves the model is shutting down; try again soon")
    best = min(able, key=lambda candidate: candidate.node)
    return Route(best.node, best.manifest, (Considered(best.node, "lowest-address"),))
