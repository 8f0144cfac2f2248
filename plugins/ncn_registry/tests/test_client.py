"""Gateways and nodes with a registry: they are found there, hear of each other, and live without it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from bench.network import free_ports
from ncn_framework import hookimpl
from ncn_framework.config import Config
from ncn_framework.errors import ConfigError
from ncn_framework.lifecycle import now_ms
from ncn_framework.manager import loaded_plugin
from ncn_framework.models import Event, Record
from ncn_framework.node import Node
from ncn_framework.sources import Sources
from ncn_framework.states import State
from ncn_framework.testing.fakes import ManualClock
from ncn_framework.wire.convert_records import GATEWAY, gateway_info_from_record
from ncn_registry.client import RegistryClient
from ncn_registry.known import Known
from ncn_registry.plugin import Plugin
from ncn_registry.routes import node_routes

from .network import NODE, OTHER, RunningRegistry, Sea, a_heartbeat, a_record, a_registry, running, until


class Role:
    """Stands for the plugin of a role: says where it listens, hears what is registered."""

    roles = ("gateway", "compute")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.heard: list[Record] = []
        self.address = "127.0.0.1:50051"

    @hookimpl
    def ncn_register(self, record: Record) -> None:
        self.heard.append(record)

    @hookimpl
    def ncn_serve(self) -> Any:
        return self._serve()

    @asynccontextmanager
    async def _serve(self) -> AsyncIterator[None]:
        self.node.endpoints["grpc"] = self.address
        yield


def a_role(role: str, home: Path, target: str, **settings: str) -> Node:
    home.mkdir(exist_ok=True)
    environment = {"NCN_HOME": str(home), "REGISTRY_GRPC_ADDR": target, **settings}
    plugins = [loaded_plugin("registry", Plugin), loaded_plugin("role", Role)]
    return Node(role, Config(Sources(environment=environment, folder=home)), plugins)


def client_of(node: Node) -> RegistryClient:
    part = node.plugins.instances["registry"].part
    assert isinstance(part, RegistryClient)
    return part


def heard_by(node: Node) -> list[Record]:
    heard: list[Record] = node.plugins.instances["role"].heard
    return heard


def own_record(node: Node, sequence: int = 1) -> Record:
    return a_record(node.signer, sequence)


async def test_a_gateway_and_a_node_find_each_other_through_two_registries(tmp_path: Path) -> None:
    sea = Sea()
    async with a_registry(tmp_path / "r1", sea) as one, a_registry(tmp_path / "r2", sea) as two:
        gateway = a_role("gateway", tmp_path / "gateway", one.target)
        compute = a_role("compute", tmp_path / "compute", two.target)
        async with running(gateway), running(compute):
            record = own_record(compute)
            await compute.lifecycle.register(record)
            known = client_of(gateway).known
            await until(lambda: known.get(compute.signer.address))
            assert record in heard_by(gateway), "the gateway's plugins hear of it"
            await until(lambda: client_of(compute).known.get(gateway.signer.address))
            said = next(r for r in heard_by(compute) if r.kind == GATEWAY)
            assert gateway_info_from_record(said).grpc_addr == "127.0.0.1:50051"
            newer = own_record(compute, 2)
            await compute.lifecycle.register(newer)
            await until(lambda: newer in heard_by(gateway))
        await until(lambda: one.registry.roll and not one.registry.roll.shown(("node", GATEWAY)))


async def test_a_node_that_stops_is_withdrawn_at_once(tmp_path: Path) -> None:
    async with a_registry(tmp_path / "r", Sea(), heartbeat_interval_ms="600000") as registry:
        gateway = a_role("gateway", tmp_path / "gateway", registry.target)
        compute = a_role("compute", tmp_path / "compute", registry.target)
        async with running(gateway):
            async with running(compute):
                await compute.lifecycle.register(own_record(compute))
                await until(lambda: client_of(gateway).known.get(compute.signer.address))
            await until(lambda: client_of(gateway).known.get(compute.signer.address) is None)


async def test_in_flight_requests_are_told(tmp_path: Path) -> None:
    async with a_registry(tmp_path / "r", Sea()) as registry:
        gateway = a_role("gateway", tmp_path / "gateway", registry.target)
        compute = a_role("compute", tmp_path / "compute", registry.target)
        async with running(gateway), running(compute):
            await compute.lifecycle.register(own_record(compute))
            for state in (State.RECEIVED, State.RECEIVED, State.SETTLED, State.RECEIVED):
                compute.plugins.event(Event(bytes(32), state, now_ms()))
            owner = compute.signer.address
            await until(lambda: (one := client_of(gateway).known.get(owner)) is not None and one.in_flight == 2)
            app = Starlette(routes=list(node_routes(client_of(gateway).known)))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
                (row,) = (await http.get("/api/v1/nodes")).json()
            assert row["in_flight"] == 2
            assert row["alive"] is True
            assert row["models"][0]["name"]


async def test_a_registry_that_comes_late_and_again_misses_nothing(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    target, sea = f"127.0.0.1:{port}", Sea()
    gateway = a_role("gateway", tmp_path / "gateway", target, NCN_REGISTRY_HEARTBEAT_INTERVAL_MS="200")
    compute = a_role("compute", tmp_path / "compute", target, NCN_REGISTRY_HEARTBEAT_INTERVAL_MS="200")
    async with running(gateway), running(compute):
        await compute.lifecycle.register(own_record(compute))
        known = client_of(gateway).known
        for home in ("r1", "r2"):  # the second one has an empty store
            async with a_registry(tmp_path / home, sea, grpc_listen_addr=target) as registry:
                await until(partial(_shows, registry, {compute.signer.address, gateway.signer.address}))
                await until(lambda: known.get(compute.signer.address))


def _shows(registry: RunningRegistry, owners: set[bytes]) -> bool:
    roll = registry.registry.roll
    return roll is not None and owners <= {record.owner for record in roll.shown()}


async def test_records_of_others_are_not_republished(tmp_path: Path) -> None:
    async with a_registry(tmp_path / "r", Sea()) as registry:
        gateway = a_role("gateway", tmp_path / "gateway", registry.target)
        async with running(gateway):
            await until(lambda: registry.registry.roll and registry.registry.roll.shown((GATEWAY,)))
            await gateway.lifecycle.register(a_record())
            client = client_of(gateway)
            assert all(record.owner == gateway.signer.address for record in client._own.values())


async def test_a_lying_registry_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with a_registry(tmp_path / "r", Sea(), heartbeat_interval_ms="600000") as registry:
        gateway = a_role("gateway", tmp_path / "gateway", registry.target)
        async with running(gateway):
            await until(lambda: len(registry.registry.roll.watchers) if registry.registry.roll else 0)
            roll = registry.registry.roll
            assert roll is not None
            roll._tell_put(replace(a_record(), sequence=9))
            await until(lambda: "does not count" in caplog.text)
            assert client_of(gateway).known.get(NODE.address) is None
            assert a_record() not in heard_by(gateway)


async def test_without_a_registry_nothing_is_done(tmp_path: Path) -> None:
    gateway = a_role("gateway", tmp_path, "")
    async with running(gateway):
        await gateway.lifecycle.register(own_record(gateway))
        assert "registry" not in gateway.endpoints
        assert client_of(gateway)._own == {}


async def test_an_address_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"REGISTRY_GRPC_ADDR.*HOST:PORT"):
        async with running(a_role("gateway", tmp_path, "somewhere")):
            pass


async def test_a_gateway_that_listens_everywhere_is_announced_by_the_name_it_was_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_registry(tmp_path / "r", Sea(), heartbeat_interval_ms="600000") as registry:
        roll = registry.registry.roll
        assert roll is not None
        gateway = a_role("gateway", tmp_path / "gateway", registry.target)
        gateway.plugins.instances["role"].address = "0.0.0.0:50051"
        async with running(gateway):
            await until(lambda: "NCN_REGISTRY_ANNOUNCE_GATEWAY_ADDR" in caplog.text)
            assert roll.shown((GATEWAY,)) == []
        named = a_role(
            "gateway", tmp_path / "gateway", registry.target, NCN_REGISTRY_ANNOUNCE_GATEWAY_ADDR="gateway.example:1"
        )
        async with running(named):
            (record,) = await found(lambda: roll.shown((GATEWAY,)))
            assert gateway_info_from_record(record).grpc_addr == "gateway.example:1"


async def found(look: Callable[[], list[Record]]) -> list[Record]:
    await until(look)
    return look()


def test_who_was_not_heard_of_lately_is_not_taken_for_alive() -> None:
    clock = ManualClock()
    known = Known(clock, 8_000)
    record = a_record()
    known.put(record)
    clock.advance(8_000)
    (one,) = known
    assert known.is_alive(one)
    clock.advance(1)
    assert not known.is_alive(one)
    known.heard(a_heartbeat(in_flight=3))
    assert known.is_alive(one)
    assert one.in_flight == 3
    known.keep_only({OTHER.address})
    assert len(known) == 0
