"""Metrics are counted from the moves of requests and shown by a route of the plugin's own."""

from __future__ import annotations

import httpx
from starlette.applications import Starlette

from ncn_framework.models import Event
from ncn_framework.states import State
from ncn_gateway.metrics import Metrics


async def test_moves_become_figures() -> None:
    metrics = Metrics()
    one, two = bytes(32), b"\1" * 32
    for request_id, state, at_ms in (
        (one, State.RECEIVED, 1_000),
        (two, State.RECEIVED, 1_000),
        (one, State.SETTLED, 1_020),
    ):
        metrics.event(Event(request_id, state, at_ms))
    transport = httpx.ASGITransport(Starlette(routes=[metrics.route()]))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as api:
        shown = (await api.get("/metrics")).text.splitlines()
    assert 'ncn_requests_total{state="SETTLED"} 1.0' in shown
    assert "ncn_requests_in_flight 1.0" in shown
    assert 'ncn_request_seconds_bucket{le="0.025"} 1.0' in shown
    assert 'ncn_request_seconds_bucket{le="0.01"} 0.0' in shown
