"""``ncn subnet`` as a person runs it, against a running registry whose validators sign."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ncn_framework import hookimpl
from ncn_framework.config import Names, Settings
from ncn_framework.errors import (
    ConfigError,
    EndorsementRefused,
    MalformedRequest,
    ModelError,
    ReplayConflict,
    SignatureRejected,
    UnknownModel,
    UnknownSubnet,
)
from ncn_framework.manager import LoadedPlugin, loaded_plugin
from ncn_framework.manifests import manifest_json
from ncn_framework.payments import FeeDue
from ncn_framework.signing import Signer, address_hex, load_or_create_signer
from ncn_framework.testing.fakes import fake_manifest
from ncn_registry import operating
from ncn_registry.asking_subnets import AskedSubnets
from ncn_registry.commands_subnet import subnet
from ncn_registry.plugin import Plugin

from .network import RunningRegistry, Sea, a_heartbeat, a_record, a_registry
from .test_service import info
from .validators import FEE, VALIDATORS, FakeValidators

FEE_WEI = 5 * 10**17


class FakeFees(Settings):
    table = "payments"
    subnet_fee_wei: int = FEE_WEI


class FakeCompute(Settings):
    table = "compute"
    subnets: Names = ()


class Payer(FakeValidators):
    """Pays fees, and has the tables of settings that other plugins own."""

    @hookimpl
    def ncn_settings(self) -> type[Settings]:
        return FakeFees


class ComputeSettings:
    roles = ("compute",)

    @hookimpl
    def ncn_settings(self) -> type[Settings]:
        return FakeCompute


@pytest.fixture
def payer(monkeypatch: pytest.MonkeyPatch) -> Payer:
    made = Payer()

    def found(order: Iterable[str], disabled: Iterable[str]) -> list[LoadedPlugin]:
        return [
            loaded_plugin("registry", Plugin),
            loaded_plugin("payer", made),
            loaded_plugin("compute", ComputeSettings()),
        ]

    monkeypatch.setattr(operating, "find_plugins", found)
    return made


@pytest.fixture
async def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payer: Payer) -> AsyncIterator[RunningRegistry]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NCN_HOME", str(tmp_path / "home"))
    given = {"heartbeat_interval_ms": "60000"}
    async with a_registry(tmp_path / "one", Sea(), [payer], VALIDATORS, **given) as made:
        monkeypatch.setenv("REGISTRY_GRPC_ADDR", made.target)
        yield made


def key(tmp_path: Path, role: str) -> Signer:
    return load_or_create_signer(tmp_path / "home" / "keys" / f"{role}.key")


async def ran(*arguments: str, answer: str = "") -> Result:
    """Run the command as a person would, beside the registry."""
    return await asyncio.to_thread(lambda: CliRunner().invoke(subnet, arguments, input=answer))


async def shown(*arguments: str) -> Any:
    """Return what a command prints as JSON; an error is raised."""
    result = await ran(*arguments, "--json")
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


async def said(*arguments: str) -> str:
    result = await ran(*arguments)
    if result.exception is not None:
        raise result.exception
    return str(result.output)


async def test_a_subnet_is_paid_for_signed_published_and_shown(
    tmp_path: Path, one: RunningRegistry, payer: Payer
) -> None:
    owner = key(tmp_path, "gateway")
    result = await ran("create", "first", "--description", "For tests.", answer="y\n")
    assert result.exit_code == 0, result.output
    for text in (
        "its fee is 0.5 NCN",
        f"paid in transaction 0x{FEE.hex()}",
        "3 validators of epoch 2 signed",
        f"published at registry {one.target}",
        f"subnet     {address_hex(owner.address)}",
        "shares     compute 80%, gateway 10%, validators 5%, treasury 5%",
    ):
        assert text in result.output
    assert payer.paid == [FeeDue(31337, FEE_WEI, f"subnet {address_hex(owner.address)}")]
    assert payer.asked[0].fee_transaction == FEE
    form = await shown("show", "first")
    assert (form["id"], form["name"], form["gateways"]) == (address_hex(owner.address), "first", [form["id"]])
    assert (form["signers"], form["fee_transaction"]) == (3, f"0x{FEE.hex()}")
    assert await shown("list") == [form]
    assert "first" in await said("list")


async def test_nothing_is_paid_where_it_would_be_for_nothing(one: RunningRegistry, payer: Payer) -> None:
    assert (await ran("create", "first", answer="n\n")).exit_code == 1
    with pytest.raises(MalformedRequest, match="name 'First'"):
        await said("create", "First", "--yes")
    assert "not an address" in (await ran("create", "first", "--yes", "--gateway", "0x12")).output
    assert payer.paid == []
    await said("create", "first", "--yes")
    with pytest.raises(ReplayConflict, match="has subnet 'first' already"):
        await said("create", "second", "--yes")
    assert len(payer.paid) == 1


async def test_a_taken_name_is_told_before_the_fee_is_paid(
    one: RunningRegistry, payer: Payer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await said("create", "first", "--yes")
    monkeypatch.setenv("NCN_HOME", str(tmp_path / "another"))
    with pytest.raises(ReplayConflict, match="choose another"):
        await said("create", "first", "--yes")
    with pytest.raises(UnknownSubnet):
        await said("update")
    assert len(payer.paid) == 1


async def test_what_failed_after_the_fee_goes_on_with_the_same_fee(one: RunningRegistry, payer: Payer) -> None:
    payer.refusal = "not now"
    with pytest.raises(EndorsementRefused, match="not now"):
        await said("create", "first", "--yes")
    payer.refusal = ""
    await said("create", "first", "--yes")
    assert len({due.purpose for due in payer.paid}) == 1, "under which the payer pays once"
    assert [statement.fee_transaction for statement in payer.asked] == [FEE] * len(payer.asked)


async def test_models_are_added_changed_and_removed(one: RunningRegistry, payer: Payer, tmp_path: Path) -> None:
    await said("create", "first", "--yes")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest_json(fake_manifest()))
    digest = f"0x{fake_manifest().digest.hex()}"
    url = "https://models.example/fake"
    form = await shown("add-model", str(folder), "--source", url)
    assert form["models"] == [
        {"digest": digest, "name": "fake", "runtime": "fake", "size_bytes": 4, "sources": [url]},
    ]
    assert payer.asked[-1].fee_transaction == FEE
    form = await shown("add-model", str(folder), "--source", "file:///models/fake")
    assert [model["sources"] for model in form["models"]] == [["file:///models/fake"]]
    served = fake_manifest(name="served")
    with pytest.raises(UnknownModel, match="name the model's folder"):
        await said("add-model", f"0x{served.digest.hex()}")
    await one.stub.RegisterNode(info(a_record(models=[served])))
    form = await shown("add-model", served.digest.hex())
    assert [model["name"] for model in form["models"]] == ["fake", "served"]
    assert f"model      {digest}  fake (fake, 4 bytes)" in await said("show", "first")
    with pytest.raises(UnknownModel, match="listed: fake, served"):
        await said("remove-model", "nothing")
    form = await shown("remove-model", "fake")
    assert [model["name"] for model in form["models"]] == ["served"]
    form = await shown("remove-model", served.digest.hex())
    assert form["models"] == []
    for bad in ("nowhere", "https://models.example/fake"):
        with pytest.raises(ModelError, match="cannot be read"):
            await said("add-model", bad)
    for bad in ("ftp://x/y", "https://user:secret@x/y", "https://x/y?token=1", "not a url"):
        with pytest.raises(MalformedRequest) as caught:
            await said("add-model", str(folder), "--source", bad)
        assert "secret" not in str(caught.value)
    assert len(payer.paid) == 1


async def test_a_subnet_is_updated_and_deleted(one: RunningRegistry, payer: Payer) -> None:
    await said("create", "first", "--yes")
    before = await shown("show", "first")
    other = address_hex(VALIDATORS[0].address)
    form = await shown("update", "--description", "Changed.", "--gateway", other, "--days", "10")
    assert (form["description"], form["gateways"]) == ("Changed.", [other])
    assert form["version"] > before["version"]
    assert form["expires_ms"] < before["expires_ms"]
    assert (await ran("delete", answer="n\n")).exit_code == 1
    assert "is withdrawn" in await said("delete", "--yes")
    assert await shown("list") == []
    assert "ncn subnet create" in await said("list")
    with pytest.raises(UnknownSubnet):
        await said("show", "first")
    await said("create", "first", "--yes")
    assert [form["name"] for form in await shown("list")] == ["first"]


async def test_a_node_joins_and_leaves_with_its_own_key(one: RunningRegistry, tmp_path: Path) -> None:
    await said("create", "first", "--yes")
    node = key(tmp_path, "compute")
    with pytest.raises(UnknownSubnet):
        await said("join", "nowhere")
    assert await said("join", "first") == f"node {address_hex(node.address)} has joined subnet first\n"
    assert await shown("members", "first") == []
    assert "is alive" in await said("members", "first")
    await one.stub.RegisterNode(info(a_record(node)))
    await one.stub.UpdateNodeHeartbeat(a_heartbeat(node, in_flight=2))
    (row,) = await shown("members", "first")
    assert (row["node"], row["alive"], row["in_flight"]) == (address_hex(node.address), True, 2)
    assert (await said("members", "first")).startswith(f"{address_hex(node.address)}  2/4  strict")
    assert "has left subnet first" in await said("leave", "first")
    assert await shown("members", "first") == []


async def test_a_node_that_joins_by_its_setting_is_told_so(
    one: RunningRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await said("create", "first", "--yes")
    monkeypatch.setenv("NCN_COMPUTE_SUBNETS", "first")
    with pytest.raises(ConfigError, match=r"compute\.subnets"):
        await said("leave", "first")


async def test_another_network_than_the_settings_name_is_refused(
    one: RunningRegistry, monkeypatch: pytest.MonkeyPatch, payer: Payer
) -> None:
    monkeypatch.setenv("NCN_CHAIN_ID", "1")
    with pytest.raises(ConfigError, match="belongs to chain 31337"):
        await said("create", "first", "--yes")
    assert payer.paid == []


async def test_an_operator_does_not_sign_what_a_registry_slips_in(
    one: RunningRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await said("create", "first", "--yes")
    real = AskedSubnets.subnet

    def forged(self: Any, name: str) -> Any:
        endorsed, members = real(self, name)
        return replace(endorsed, record=replace(endorsed.record, sequence=endorsed.record.sequence + 1)), members

    monkeypatch.setattr(AskedSubnets, "subnet", forged)
    with pytest.raises(SignatureRejected, match="that the registry shows"):
        await said("update", "--description", "mine")


def test_every_command_explains_itself() -> None:
    for name, command in subnet.commands.items():
        assert isinstance(command, click.Command)
        result = CliRunner().invoke(subnet, [name, "--help"])
        assert result.exit_code == 0
        assert command.help
