"""Prometheus metrics of a gateway, counted from the moves of its requests."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ncn_framework.models import Event
from ncn_framework.states import TERMINAL, State

__all__ = ["Metrics"]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """``ncn_requests_total`` by final state, ``ncn_request_seconds``, ``ncn_requests_in_flight``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ended = Counter("ncn_requests_total", "Requests by final state.", ["state"], registry=self.registry)
        self._by_state = {state: self._ended.labels(str(state)) for state in TERMINAL}
        self._seconds = Histogram(
            "ncn_request_seconds", "From RECEIVED to SETTLED, in seconds.", registry=self.registry, buckets=_BUCKETS
        )
        in_flight = Gauge("ncn_requests_in_flight", "Requests between RECEIVED and their end.", registry=self.registry)
        self._began: dict[bytes, int] = {}
        in_flight.set_function(lambda: len(self._began))

    def route(self) -> Route:
        """Return the HTTP route that shows them."""

        async def show(_: Request) -> Response:
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return Route("/metrics", show)

    def event(self, event: Event) -> None:
        """Count a move."""
        if event.state is State.RECEIVED:
            self._began[event.request_id] = event.at_ms
        elif event.state in TERMINAL:
            self._by_state[event.state].inc()
            began = self._began.pop(event.request_id, None)
            if began is None:  # REFUNDED follows an end that was counted
                return
            if event.state is State.SETTLED:
                self._seconds.observe((event.at_ms - began) / 1000)
