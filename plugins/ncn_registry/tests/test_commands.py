"""The commands against a running registry, and without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from bench.network import free_ports
from ncn_framework.errors import ConfigError, NcnError, UnknownNode, code_of
from ncn_framework.signing import address_hex
from ncn_framework.testing.fakes import fake_manifest
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import record_to_pb
from ncn_registry.commands import node, registry

from .committee import VALIDATORS, a_chain, an_epoch
from .network import NODE, OTHER, RunningRegistry, Sea, a_heartbeat, a_record, a_registry, until


@pytest.fixture
def sea() -> Sea:
    return Sea()


@pytest.fixture
async def one(tmp_path: Path, sea: Sea) -> AsyncIterator[RunningRegistry]:
    async with a_registry(tmp_path / "one", sea, heartbeat_interval_ms="60000") as made:
        await made.stub.RegisterNode(mpb.NodeInfo(record=record_to_pb(a_record())))
        await made.stub.UpdateNodeHeartbeat(a_heartbeat(in_flight=2))
        yield made


async def said(command: click.Command, *arguments: str) -> str:
    """Return what a command prints, run as a person would, beside the registry."""
    return await asyncio.to_thread(_said, command, *arguments)


def _said(command: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return str(result.output)


async def shown(command: click.Command, *arguments: str) -> Any:
    return json.loads(await said(command, *arguments, "--json"))


async def test_nodes_are_listed_and_shown(one: RunningRegistry) -> None:
    address, digest = address_hex(NODE.address), fake_manifest().digest.hex()
    (row,) = await shown(node, "list", "--at", one.target)
    assert (row["node"], row["alive"], row["in_flight"]) == (address, True, 2)
    assert [model["digest"] for model in row["models"]] == ["0x" + digest]
    assert await shown(node, "list", "--at", one.target, "--model", digest) == [row]
    assert await shown(node, "list", "--at", one.target, "--model", "0x" + "00" * 32) == []
    text = await said(node, "list", "--at", one.target)
    assert text == f"{address}  2/4  strict      {fake_manifest().name}\n"
    assert await shown(node, "show", address, "--at", one.target) == row
    text = await said(node, "show", address, "--at", one.target)
    assert f"node       {address}\nalive      yes" in text
    assert digest in text


async def test_records_and_peers_are_listed(tmp_path: Path, sea: Sea, one: RunningRegistry) -> None:
    rows = await shown(registry, "records", "--at", one.target)
    assert [row["kind"] for row in rows] == ["node", "registry"]
    (row,) = await shown(registry, "records", "--kind", "node", "--at", one.target)
    assert row["owner"] == address_hex(NODE.address)
    assert len((await said(registry, "records", "--at", one.target)).splitlines()) == 2
    assert await shown(registry, "peers", "--at", one.target) == []
    assert "no other registry" in await said(registry, "peers", "--at", one.target)
    async with a_registry(tmp_path / "two", sea):
        (peer,) = await shown(registry, "peers", "--at", one.target)
        assert peer["multiaddrs"][0].endswith(peer["peer_id"])
        assert peer["peer_id"] in await said(registry, "peers", "--at", one.target)


async def test_validators_are_listed(tmp_path: Path, sea: Sea, one: RunningRegistry) -> None:
    with pytest.raises(NcnError, match="ncn_epoch"):
        await said(registry, "validators", "--at", one.target)
    async with a_registry(tmp_path / "two", sea, [a_chain(an_epoch())], VALIDATORS[:4]) as two:
        await until(lambda: two.registry.roll is not None and len(two.registry.roll.shown(("validator",))) == 4)
        two.node.plugins.standing(VALIDATORS[0].address, True, "jailed")
        rows = await shown(registry, "validators", "--at", two.target)
        states = {row["validator"]: row["state"] for row in rows}
        assert [states[address_hex(v.address)] for v in VALIDATORS] == ["jailed", *["active"] * 3, "silent"]
        assert {row["stake_wei"] for row in rows} == {str(10**18)}
        text = await said(registry, "validators", "--at", two.target)
        assert f"{address_hex(VALIDATORS[1].address)}  active  1,000,000,000,000,000,000 wei  /ip4/" in text
        rows = await shown(registry, "records", "--kind", "validator", "--at", two.target)
        assert len(rows) == 4


async def test_who_is_unknown_or_mistyped_is_a_clear_error(one: RunningRegistry) -> None:
    with pytest.raises(UnknownNode, match=address_hex(OTHER.address)):
        await said(node, "show", address_hex(OTHER.address), "--at", one.target)
    assert "not an address" in await said(node, "show", "0x12", "--at", one.target)
    assert "64 hex digits" in await said(node, "list", "--model", "minilm", "--at", one.target)


async def test_a_registry_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    target = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(NcnError, match="ncn serve registry") as caught:
        await said(node, "list", "--at", target)
    assert code_of(caught.value).code == "unavailable"
    monkeypatch.setenv("REGISTRY_GRPC_ADDR", target)
    with pytest.raises(NcnError, match=target):
        await said(registry, "peers")
    with pytest.raises(ConfigError, match="HOST:PORT"):
        await said(registry, "peers", "--at", "here")
