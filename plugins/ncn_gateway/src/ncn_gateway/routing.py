"""The built-in router: power of two choices (Mitzenmacher 2001) over a score; the same cost at any size."""

from __future__ import annotations

import random
from itertools import islice

from ncn_framework.errors import NoCandidate
from ncn_framework.models import Candidate, Candidates, Considered, Route

from .directory import Serving

__all__ = ["choose", "score"]

_MOST_NAMED = 8  # nodes out of service that a route names
_UNKNOWN_LATENCY_MS = 1.0  # a node nobody has asked yet looks fast, so that it is tried


def score(candidate: Candidate) -> float:
    """Return the expected wait, in ms: latency x queue per slot, worse with each share of failures; lower is better."""
    latency = candidate.latency_ms or _UNKNOWN_LATENCY_MS
    return latency * (1 + candidate.in_flight / candidate.capacity) * (1 + 9 * candidate.failures)


async def choose(candidates: Candidates) -> Route:
    """Return the better of two random candidates.

    Reason codes: ``chosen``, ``higher-score``, ``draining``, ``standing`` (it may be given no work).

    Raises:
        NoCandidate: all nodes that serve the model are shutting down or may be given no work.
    """
    count = len(candidates)
    out = candidates.out if isinstance(candidates, Serving) else ()
    if not count and out:
        raise NoCandidate(
            f"all {len(out)} nodes that serve the model are out of service (standing); ask another gateway"
        )
    if not count:
        raise NoCandidate("the last node that served the model has left; try again soon")
    picks = [0] if count == 1 else random.sample(range(count), 2)
    seen = [candidates[index] for index in picks]
    able = [c for c in seen if c.capacity > 0] or [c for c in candidates if c.capacity > 0]
    if not able:
        raise NoCandidate(f"all {count} nodes that serve the model are shutting down (draining); try again soon")
    best = min(able, key=score)
    considered = tuple(
        Considered(c.node, "draining")
        if c.capacity == 0
        else Considered(c.node, "chosen" if c is best else "higher-score", score(c))
        for c in (seen if any(c is best for c in seen) else [*seen, best])
    )
    considered += tuple(Considered(node, "standing") for node in islice(out, _MOST_NAMED))
    return Route(best.node, best.manifest, considered)
