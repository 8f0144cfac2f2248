"""Subnets that a node has joined by its setting: membership said, gateways dialled, models fetched and served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from ncn_compute import joined, manifest
from ncn_compute.config import ComputeSettings
from ncn_compute.joined import JoinedSubnets
from ncn_framework import digests
from ncn_framework.errors import MalformedRequest, ModelError
from ncn_framework.manifests import manifest_json
from ncn_framework.models import Domain, ModelManifest, Record
from ncn_framework.payments import Quorum
from ncn_framework.signing import Signer, address_hex, check_signature
from ncn_framework.testing.fakes import ManualClock, fake_manifest, fake_signer
from ncn_framework.wire.convert_records import GatewayInfo, gateway_record
from ncn_framework.wire.convert_subnets import (
    ListedModel,
    Subnet,
    endorsed_record,
    membership_from_record,
    subnet_record,
)

NODE, OWNER, OTHER = fake_signer("a node"), fake_signer("an owner"), fake_signer("another owner")


@dataclass
class FakeFound:
    taken: list[bytes] = field(default_factory=list)

    def take(self, record: Record) -> None:
        self.taken.append(record.owner)


@dataclass
class FakeCompute:
    """What subnets need of a node."""

    root: Path
    settings: ComputeSettings
    clock: ManualClock = field(default_factory=lambda: ManualClock(1_000))
    signer: Signer = NODE
    found: FakeFound = field(default_factory=FakeFound)
    models: dict[bytes, tuple[ModelManifest, Path]] = field(default_factory=dict)
    said: asyncio.Queue[Record] = field(default_factory=asyncio.Queue)
    served: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    refusal: str = ""

    @property
    def node(self) -> Any:
        lifecycle = type("Lifecycle", (), {"clock": staticmethod(self.clock), "register": self.said.put})
        lifecycle.register = staticmethod(self.said.put)  # type: ignore[attr-defined]
        return type("Node", (), {"lifecycle": lifecycle, "domain": Domain()})

    async def serve_model(self, one: ModelManifest, directory: Path) -> None:
        if self.refusal:
            raise ModelError(self.refusal)
        manifest.verify(directory, one)
        self.models[one.digest] = (one, directory)
        await self.served.put(one.name)


def a_subnet(
    *models: ListedModel, version: int = 1, owner: Signer = OWNER, name: str = "first", gateways: Any = None
) -> Record:
    """Return the record of a subnet as a registry shows it."""
    listed = Subnet(owner.address, name, models, (owner.address,) if gateways is None else gateways)
    inner = subnet_record(listed, version, 10**15)
    return endorsed_record(inner, Quorum(1, 1, (bytes(65),)))


def a_gateway(owner: Signer) -> Record:
    return gateway_record(GatewayInfo(owner.address, "here:1"), 1, 10**15)


def a_model(folder: Path, name: str = "fake") -> ListedModel:
    """Make a model's folder, and return the model as a subnet lists it."""
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"fake")
    one = fake_manifest(name=name)
    (folder / "manifest.json").write_bytes(manifest_json(one))
    return ListedModel(one.digest, name, one.runtime, 4, (folder.as_uri(),))


def a_compute(tmp_path: Path, *subnets: str, **settings: Any) -> FakeCompute:
    return FakeCompute(tmp_path / "models", ComputeSettings(subnets=subnets, **settings))


@pytest.fixture
def compute(tmp_path: Path) -> FakeCompute:
    return a_compute(tmp_path, "first")


@pytest.fixture
async def subnets(compute: FakeCompute) -> AsyncIterator[JoinedSubnets]:
    made = JoinedSubnets(cast(Any, compute))
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def soon(queue: asyncio.Queue[Any]) -> Any:
    async with asyncio.timeout(20):
        return await queue.get()


async def test_a_membership_is_said_signed_and_renewed(compute: FakeCompute, subnets: JoinedSubnets) -> None:
    assert subnets
    subnets.take(a_subnet(owner=OTHER, name="another"))
    subnets.take(a_subnet())
    record = await soon(compute.said)
    assert (record.kind, record.owner, record.sequence) == ("membership", NODE.address, 1_000)
    assert record.expires_ms == 1_000 + compute.settings.record_lifetime_ms
    assert membership_from_record(record) == (OWNER.address,)
    check_signature(digests.record_digest(Domain(), record), record.signature, NODE.address, "it")
    await subnets.say()
    assert compute.said.empty(), "nothing has changed"
    await subnets.say(again=True)
    assert (await soon(compute.said)).sequence == 1_001


async def test_without_the_setting_nothing_is_said(tmp_path: Path) -> None:
    compute = a_compute(tmp_path)
    subnets = JoinedSubnets(cast(Any, compute))
    assert not subnets
    subnets.take(a_subnet())
    await subnets.say(again=True)
    assert compute.said.empty()


async def test_a_subnet_may_be_named_by_its_owners_address(tmp_path: Path) -> None:
    compute = a_compute(tmp_path, address_hex(OWNER.address).upper().replace("0X", "0x"))
    subnets = JoinedSubnets(cast(Any, compute))
    subnets.take(a_subnet(name="whatever"))
    await subnets.say()
    assert membership_from_record(await soon(compute.said)) == (OWNER.address,)


async def test_gateways_that_a_subnet_lists_are_dialled_and_no_others(
    compute: FakeCompute, subnets: JoinedSubnets, monkeypatch: pytest.MonkeyPatch
) -> None:
    subnets.take_gateway(a_gateway(OWNER))
    subnets.take_gateway(a_gateway(OTHER))
    assert compute.found.taken == []
    subnets.take(a_subnet())
    assert compute.found.taken == [OWNER.address], "whose record came before the subnet's"
    subnets.take_gateway(a_gateway(OTHER))
    assert compute.found.taken == [OWNER.address]
    subnets.take(a_subnet(version=2, gateways=(OTHER.address,)))
    assert compute.found.taken == [OWNER.address, OTHER.address]
    subnets.take_gateway(a_gateway(OTHER))
    assert compute.found.taken[2:] == [OTHER.address]
    monkeypatch.setattr(joined, "_MOST_GATEWAYS", 2)
    subnets.take_gateway(a_gateway(fake_signer("a third")))
    assert len(subnets._gateways) == 2


async def test_an_older_version_changes_nothing(compute: FakeCompute, subnets: JoinedSubnets) -> None:
    subnets.take(a_subnet(version=2, gateways=()))
    subnets.take(a_subnet(version=1))
    subnets.take_gateway(a_gateway(OWNER))
    assert compute.found.taken == []
    with pytest.raises(MalformedRequest):
        subnets.take(a_gateway(OWNER))


async def test_models_are_fetched_and_served_as_versions_bring_them(
    compute: FakeCompute, subnets: JoinedSubnets, tmp_path: Path
) -> None:
    first, second = a_model(tmp_path / "one", "one"), a_model(tmp_path / "two", "two")
    subnets.take(a_subnet(first))
    assert await soon(compute.served) == "one"
    subnets.take(a_subnet(first, second, version=2))
    assert await soon(compute.served) == "two"
    assert compute.served.empty()
    assert sorted(one.name for one, _ in manifest.find_models(compute.root).values()) == ["one", "two"]


async def test_what_could_not_be_served_harms_no_other_and_is_tried_again(
    compute: FakeCompute, subnets: JoinedSubnets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined, "_AGAIN_S", 0.02)
    missing, good = a_model(tmp_path / "one", "one"), a_model(tmp_path / "two", "two")
    (tmp_path / "one" / "model.bin").rename(tmp_path / "away")
    subnets.take(a_subnet(missing, good))
    assert await soon(compute.served) == "two"
    (tmp_path / "away").rename(tmp_path / "one" / "model.bin")
    assert await soon(compute.served) == "one"


async def test_nothing_is_fetched_where_the_setting_says_no(tmp_path: Path) -> None:
    compute = a_compute(tmp_path, "first", sync_models=False)
    subnets = JoinedSubnets(cast(Any, compute))
    task = asyncio.create_task(subnets.run())
    subnets.take(a_subnet(a_model(tmp_path / "one")))
    await soon(compute.said)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not compute.root.exists()
