"""Gateways that were found: dialled within bounds, once each, and only as whom their record says they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ncn_compute import found
from ncn_compute.found import FoundGateways
from ncn_compute.session import GatewaySession
from ncn_framework.errors import MalformedRequest
from ncn_framework.models import Record
from ncn_framework.testing.fakes import ManualClock, fake_signer
from ncn_framework.wire.convert_records import GatewayInfo, gateway_record

ONE, TWO = fake_signer("one").address, fake_signer("two").address


class FakeSession:
    """Stands for a session; runs until it is told to end."""

    def __init__(self, compute: Any, target: str, gateway: bytes | None = None) -> None:
        self.compute, self.target, self.expected = compute, target, gateway
        self.gateway: bytes | None = None
        self.connected = False
        self.over = asyncio.Event()
        self.cancelled = False

    async def run(self) -> None:
        try:
            await self.over.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


@dataclass
class FakeNode:
    lifecycle: Any


@dataclass
class FakeCompute:
    clock: ManualClock = field(default_factory=lambda: ManualClock(1_000))
    sessions: list[FakeSession] = field(default_factory=list)

    @property
    def node(self) -> FakeNode:
        return FakeNode(type("Lifecycle", (), {"clock": staticmethod(self.clock)}))


def gateway(owner: bytes = ONE, target: str = "one:1", expires_ms: int = 2_000) -> Record:
    return gateway_record(GatewayInfo(owner, target), 1, expires_ms)


@pytest.fixture
def compute(monkeypatch: pytest.MonkeyPatch) -> FakeCompute:
    monkeypatch.setattr(found, "GatewaySession", FakeSession)
    return FakeCompute()


@pytest.fixture
async def gateways(compute: FakeCompute) -> AsyncIterator[FoundGateways]:
    made = FoundGateways(cast(Any, compute), 1)
    yield made
    await made.close()
    assert compute.sessions == []


def targets(compute: FakeCompute) -> list[str]:
    return [session.target for session in compute.sessions]


async def test_a_found_gateway_is_dialled_once_and_no_more_than_allowed(
    compute: FakeCompute, gateways: FoundGateways
) -> None:
    gateways.take(gateway())
    gateways.take(gateway(expires_ms=3_000))
    gateways.take(gateway(TWO, "two:2"))
    assert targets(compute) == ["one:1"]
    assert compute.sessions[0].expected == ONE


async def test_none_is_dialled_unless_the_operator_allows_it(compute: FakeCompute) -> None:
    FoundGateways(cast(Any, compute), 0).take(gateway())
    assert compute.sessions == []


async def test_what_the_settings_name_is_not_dialled_twice(compute: FakeCompute, gateways: FoundGateways) -> None:
    compute.sessions.append(FakeSession(compute, "one:1"))
    gateways.take(gateway())
    assert targets(compute) == ["one:1"]
    compute.sessions.clear()


async def test_a_gateway_that_moves_is_followed(compute: FakeCompute, gateways: FoundGateways) -> None:
    gateways.take(gateway())
    before = compute.sessions[0]
    await asyncio.sleep(0)
    gateways.take(gateway(target="one:2"))
    assert targets(compute) == ["one:2"]
    await asyncio.sleep(0)
    assert before.cancelled


async def test_one_that_is_away_makes_room_when_its_record_expires(
    compute: FakeCompute, gateways: FoundGateways
) -> None:
    gateways.take(gateway())
    compute.sessions[0].connected = True
    compute.clock.advance(5_000)
    gateways.take(gateway(TWO, "two:2", expires_ms=9_000))
    assert targets(compute) == ["one:1"], "it is still connected"
    compute.sessions[0].connected = False
    gateways.take(gateway(TWO, "two:2", expires_ms=9_000))
    assert targets(compute) == ["two:2"]


async def test_one_whose_session_has_ended_makes_room(compute: FakeCompute, gateways: FoundGateways) -> None:
    gateways.take(gateway())
    compute.sessions[0].over.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gateways.take(gateway(TWO, "two:2"))
    assert targets(compute) == ["two:2"]


async def test_a_record_of_another_kind_is_refused(gateways: FoundGateways) -> None:
    with pytest.raises(MalformedRequest):
        gateways.take(Record("node", ONE, 1, 2, b""))


def test_two_sessions_with_one_gateway_would_end_each_other() -> None:
    compute = FakeCompute()
    session = GatewaySession(cast(Any, compute), "elsewhere:1", ONE)
    compute.sessions = [cast(Any, session)]
    assert not session._is_superfluous(ONE)
    assert GatewaySession(cast(Any, compute), "x:1", ONE)._is_superfluous(TWO), "it is not whom its record says"
    other = FakeSession(compute, "one:1")
    other.gateway = ONE
    compute.sessions.append(other)
    assert session._is_superfluous(ONE)
