"""``ncn models sync`` as a person runs it: which registry, which subnets, which exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from ncn_compute import asking, fetch
from ncn_compute.asking import registry_of
from ncn_compute.commands import models
from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.errors import CapacityError, ConfigError, SignatureRejected
from ncn_framework.manifests import manifest_json
from ncn_framework.models import Domain
from ncn_framework.sources import Sources
from ncn_framework.testing.fakes import fake_manifest, fake_signer
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_to_pb
from ncn_framework.wire.convert_subnets import ListedModel, Subnet, subnet_record
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceServicer, add_P2PRegistryServiceServicer_to_server

OWNER = fake_signer("an owner")


class FakeRegistry(P2PRegistryServiceServicer):
    """Shows one subnet, whatever it is asked for."""

    def __init__(self, *listed: ListedModel) -> None:
        self.listed, self.asked = listed, list[str]()
        self.network = pb.Network(chain_id=31337, contract=bytes(20))
        self.signer = OWNER

    def GetNetwork(self, request: Any, context: Any) -> pb.Network:  # noqa: N802 - gRPC's name
        return self.network

    def GetSubnet(self, request: pb.SubnetID, context: Any) -> pb.SubnetMetadata:  # noqa: N802
        self.asked.append(request.id)
        record = subnet_record(Subnet(OWNER.address, "first", self.listed, ()), 1, 10**15)
        message = record_to_pb(record)
        message.signature = self.signer.sign(digests.record_digest(Domain(), record)).value
        return pb.SubnetMetadata(record=message)


@pytest.fixture
def model(tmp_path: Path) -> ListedModel:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"fake")
    one = fake_manifest()
    (folder / "manifest.json").write_bytes(manifest_json(one))
    return ListedModel(one.digest, one.name, one.runtime, 4, (folder.as_uri(),))


@pytest.fixture
def registry(model: ListedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRegistry]:
    made = FakeRegistry(model)  # type: ignore[abstract]
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_P2PRegistryServiceServicer_to_server(made, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("NCN_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("MODEL_PATH", raising=False)
        monkeypatch.setenv("REGISTRY_GRPC_ADDR", f"127.0.0.1:{port}")
        yield made
        server.stop(None).wait()


def ran(*arguments: str) -> Result:
    result = CliRunner().invoke(models, ["sync", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_what_a_subnet_lists_is_fetched_and_listed(registry: FakeRegistry, model: ListedModel, tmp_path: Path) -> None:
    directory = tmp_path / "home" / "models" / f"fake-{model.digest.hex()[:12]}"
    first = ran("first")
    assert f"fake: fetched: {directory}" in first.output
    assert f"fake: there already: {directory}" in ran("first", "second").output
    assert registry.asked == ["first", "first", "second"]
    (row,) = json.loads(ran("first", "--json").stdout)
    assert row == {
        "digest": f"0x{model.digest.hex()}",
        "name": "fake",
        "directory": str(directory),
        "fetched": False,
        "problem": "",
    }
    assert str(directory) in CliRunner().invoke(models, ["list"]).output


def test_the_setting_names_the_subnets(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="NCN_COMPUTE_SUBNETS"):
        ran()
    monkeypatch.setenv("NCN_COMPUTE_SUBNETS", "one,two")
    assert ran().exit_code == 0
    assert registry.asked == ["one", "two"]


def test_a_model_that_cannot_be_fetched_is_told_and_is_the_exit_status(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_pause", lambda seconds: None)
    (tmp_path / "source" / "model.bin").write_bytes(b"fak3")
    result = ran("first")
    assert result.exit_code == 1
    assert "fake: not fetched: model.bin of file://" in result.output
    registry.listed = ()
    result = ran("first")
    assert (result.exit_code, result.output) == (0, "these subnets list no model\n")


def test_a_configuration_that_its_owner_did_not_sign_is_refused(registry: FakeRegistry) -> None:
    registry.signer = fake_signer("somebody")
    with pytest.raises(SignatureRejected, match="configuration of subnet first"):
        ran("first")


def test_another_network_and_no_registry_are_clear_errors(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.network = pb.Network(chain_id=1, contract=bytes(20))
    with pytest.raises(ConfigError, match="belongs to chain 1"):
        ran("first")
    with pytest.raises(CapacityError, match=r"127\.0\.0\.1:1 cannot be reached"):
        ran("first", "--at", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="HOST:PORT"):
        ran("first", "--at", "here")


def test_the_registry_is_the_flags_the_settings_or_this_machines(tmp_path: Path) -> None:
    def config(**environment: str) -> Config:
        return Config(Sources(environment=environment, folder=tmp_path))

    assert registry_of(config(), None) == asking._DEFAULT
    assert registry_of(config(NCN_REGISTRY_GRPC_ADDR="local"), None) == asking._DEFAULT
    assert registry_of(config(REGISTRY_GRPC_ADDR="there:1"), None) == "there:1"
    assert registry_of(config(REGISTRY_GRPC_ADDR="there:1"), "here:2") == "here:2"
