"""Subnets over real gRPC: signed by a quorum or not shown, named once, joined and left, the same at every registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ncn_framework.errors import EndorsementRefused
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Record
from ncn_framework.payments import Quorum
from ncn_framework.quorums import check_quorum
from ncn_framework.signing import address_hex
from ncn_framework.statements import SubnetStatement
from ncn_framework.testing.fakes import fake_manifest, fake_signer
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb, record_to_pb
from ncn_framework.wire.convert_payments import quorum_from_pb
from ncn_framework.wire.convert_records import GatewayInfo, gateway_record
from ncn_framework.wire.convert_subnets import (
    ENDORSED_SUBNET,
    descriptor_to_pb,
    endorsed_record,
    membership_record,
)
from ncn_registry.records import dht_key, withdrawal

from .network import DOMAIN, NODE, OTHER, RunningRegistry, Sea, a_heartbeat, a_record, a_registry, signed, until
from .test_service import Watch, discovered, info, refused, told
from .validators import FEE, OPERATOR, VALIDATORS, FakeValidators, a_configuration, a_model, a_published, quorum_of

ID = address_hex(OPERATOR.address)
SECOND = fake_signer("another operator")


@pytest.fixture
def sea() -> Sea:
    return Sea()


@pytest.fixture
def validators() -> FakeValidators:
    return FakeValidators()


@pytest.fixture
async def one(tmp_path: Path, sea: Sea, validators: FakeValidators) -> AsyncIterator[RunningRegistry]:
    async with a_registry(tmp_path / "one", sea, [validators], VALIDATORS) as made:
        yield made


async def shown(registry: RunningRegistry, **request: Any) -> list[str]:
    return [found.name async for found in registry.stub.ListSubnets(pb.ListRequest(**request))]


async def created(registry: RunningRegistry, configuration: Record | None = None) -> Record:
    """Create and publish a subnet as an operator does; return the published record."""
    configuration = configuration or a_configuration()
    request = pb.CreateSubnetRequest(record=record_to_pb(configuration), fee_transaction=FEE)
    answer = await registry.stub.CreateSubnet(request)
    published = signed(endorsed_record(configuration, quorum_from_pb(answer.quorum), FEE), OPERATOR)
    await registry.stub.RegisterNode(info(published))
    return published


def a_membership(*subnets: bytes, sequence: int = 1, node: Any = NODE) -> pb.SubnetMembership:
    record = membership_record(node.address, subnets, sequence, now_ms() + 10**9)
    return pb.SubnetMembership(subnet=ID, record=record_to_pb(signed(record, node)))


async def members(registry: RunningRegistry, name: str = ID) -> list[bytes]:
    return [found.record.owner async for found in registry.stub.ListSubnetMembers(pb.SubnetID(id=name))]


# --- created, shown, changed, withdrawn ---


async def test_a_subnet_is_signed_published_and_shown_with_its_quorum(
    one: RunningRegistry, validators: FakeValidators
) -> None:
    configuration = a_configuration(models=(a_model(1, "https://models.example/one/"),), description="For tests.")
    answer = await one.stub.CreateSubnet(
        pb.CreateSubnetRequest(record=record_to_pb(configuration), fee_transaction=FEE)
    )
    (statement,) = validators.asked
    assert statement == SubnetStatement(2, configuration, FEE)
    assert len(answer.quorum.signatures) == 3
    assert await shown(one) == [], "the operator has not published it"
    published = await created(one, configuration)
    for name in (ID, ID.lower(), "first"):
        found = await one.stub.GetSubnet(pb.SubnetID(id=name))
        assert (found.id, found.name, found.owner, found.version) == (ID, "first", OPERATOR.address, 1)
        assert (found.description, list(found.gateways), found.members) == ("For tests.", [OPERATOR.address], 0)
        assert record_from_pb(found.record) == configuration
        check_quorum(DOMAIN, statement, quorum_from_pb(found.quorum), await validators.epoch())
        assert found.fee_transaction == FEE
        assert found.payment_tree.compute_bps == 8_000
        assert found.models[0].sources == ["https://models.example/one/"]
    watch = Watch(one, ENDORSED_SUBNET)
    assert await watch.next() == ("put", published), "its owner is not alive, and need not be"
    assert await watch.next() == ("synced", None)
    gone = signed(withdrawal(published, now_ms()), OPERATOR)
    await one.stub.DeregisterNode(mpb.WalletAddress(address=OPERATOR.address, withdrawal=record_to_pb(gone)))
    assert await watch.next() == ("gone", published)
    watch.call.cancel()
    assert await shown(one) == []
    assert await refused(one.stub.GetSubnet(pb.SubnetID(id=ID))) == ("NOT_FOUND", "unknown-subnet")


async def test_lists_go_on_where_they_stopped(one: RunningRegistry) -> None:
    await created(one)
    other = a_configuration("second", owner=SECOND)
    await one.stub.RegisterNode(info(a_published(other, owner=SECOND)))
    names = {OPERATOR.address: "first", SECOND.address: "second"}
    low, high = sorted(names)
    assert await shown(one, limit=1) == [names[low]]
    assert await shown(one, after=f"0x{low.hex()}") == [names[high]]


async def test_a_name_is_taken_once(one: RunningRegistry, validators: FakeValidators) -> None:
    await created(one)
    copy = a_configuration("first", owner=SECOND)
    request = pb.CreateSubnetRequest(record=record_to_pb(copy), fee_transaction=FEE)
    assert await refused(one.stub.CreateSubnet(request)) == ("ALREADY_EXISTS", "replay-conflict")
    subnets = one.registry.subnets
    assert subnets is not None
    with pytest.raises(EndorsementRefused, match="choose another"):
        await subnets.inspect(SubnetStatement(2, copy, FEE))
    assert len(validators.asked) == 1
    # two that were signed at the same moment elsewhere: neither is hidden, and the name alone means none of them
    await one.stub.RegisterNode(info(a_published(copy, owner=SECOND)))
    assert await refused(one.stub.GetSubnet(pb.SubnetID(id="first"))) == ("INVALID_ARGUMENT", "malformed")
    assert (await one.stub.GetSubnet(pb.SubnetID(id=ID))).name == "first"


async def test_what_does_not_count_is_not_put_before_validators(
    one: RunningRegistry, validators: FakeValidators
) -> None:
    await created(one, a_configuration(sequence=5))
    create = one.stub.CreateSubnet
    good = a_configuration(sequence=6)
    cases = {
        "replay-conflict": a_configuration(sequence=5),
        "signature-rejected": replace(good, signature=a_configuration(sequence=7).signature),
        "deadline-expired": a_configuration(sequence=6, expires_ms=now_ms() - 1),
        "malformed": a_configuration(sequence=6, expires_ms=now_ms() + 400 * 86_400_000),
    }
    for code, record in cases.items():
        assert (await refused(create(pb.CreateSubnetRequest(record=record_to_pb(record)))))[1] == code
    short = pb.CreateSubnetRequest(record=record_to_pb(good), fee_transaction=b"1")
    assert (await refused(create(short)))[1] == "malformed"
    assert len(validators.asked) == 1
    validators.refusal = "the fee was not paid"
    request = pb.CreateSubnetRequest(record=record_to_pb(good))
    assert await refused(create(request)) == ("FAILED_PRECONDITION", "endorsement-refused")


async def test_models_are_added_and_removed_one_by_one(one: RunningRegistry, validators: FakeValidators) -> None:
    await created(one)
    both = (a_model(), added := a_model(2, "https://models.example/two/"))
    version = a_configuration(sequence=2, models=both)
    request = pb.SubnetModel(record=record_to_pb(version), model=descriptor_to_pb(added))
    assert (await refused(one.stub.RemoveModel(request)))[1] == "malformed"
    renamed = a_configuration("renamed", sequence=2, models=both)
    more = pb.SubnetModel(record=record_to_pb(renamed), model=descriptor_to_pb(added))
    assert (await refused(one.stub.AddModel(more)))[1] == "malformed"
    answer = await one.stub.AddModel(request)
    assert validators.asked[-1].fee_transaction == FEE, "it was paid once, for all versions"
    published = endorsed_record(version, quorum_from_pb(answer.quorum), answer.fee_transaction)
    await one.stub.RegisterNode(info(signed(published, OPERATOR)))
    listed = [model.name async for model in one.stub.ListModels(pb.ListRequest())]
    assert listed == ["model-1", "model-2"]
    after = f"0x{a_model().digest.hex()}"
    assert [model.name async for model in one.stub.ListModels(pb.ListRequest(after=after))] == ["model-2"]
    assert (await one.stub.GetModel(pb.ModelID(digest=added.digest))).sources == ["https://models.example/two/"]
    assert (await refused(one.stub.GetModel(pb.ModelID(digest=bytes(32)))))[1] == "unknown-model"
    less = a_configuration(sequence=3, models=(added,))
    request = pb.SubnetModel(record=record_to_pb(less), model=descriptor_to_pb(a_model()))
    assert len((await one.stub.RemoveModel(request)).models) == 1


# --- quorums ---


def forgeries() -> dict[str, Record]:
    configuration = a_configuration(sequence=2)
    statement = SubnetStatement(2, configuration)
    good = quorum_of(statement)
    strangers = quorum_of(statement, tuple(fake_signer(f"stranger {n}") for n in range(3)))
    twice = Quorum(2, 0b111, (good.signatures[0],) * 3)
    swapped = replace(good, signatures=good.signatures[::-1])
    outside = replace(good, bitmap=0b1100001)
    other = quorum_of(SubnetStatement(2, a_configuration(sequence=3)))
    unsigned = replace(configuration, signature=a_configuration(sequence=9).signature)
    return {
        "too few": a_published(configuration, quorum_of(statement, VALIDATORS[:2])),
        "no members": a_published(configuration, strangers),
        "one thrice": a_published(configuration, twice),
        "wrong order": a_published(configuration, swapped),
        "no such place": a_published(configuration, outside),
        "another version's": a_published(configuration, other),
        "no such epoch": a_published(configuration, quorum_of(SubnetStatement(3, configuration))),
        "epoch 0": a_published(configuration, quorum_of(SubnetStatement(0, configuration))),
        "not signed by its owner": a_published(unsigned, quorum_of(SubnetStatement(2, unsigned))),
    }


@pytest.mark.parametrize("name", list(forgeries()))
async def test_a_forged_quorum_is_not_shown_and_displaces_nothing(
    one: RunningRegistry, sea: Sea, validators: FakeValidators, name: str
) -> None:
    await created(one)
    forged = forgeries()[name]
    _, code = await refused(one.stub.RegisterNode(info(forged)))
    assert code == ("signature-rejected" if name == "not signed by its owner" else "endorsement-refused")
    (swarm,) = sea.swarms
    swarm.heard("ncn/records/1", told(forged), "somebody")
    swarm.heard("ncn/records/1", told(a_published(a_configuration("other", owner=SECOND), owner=SECOND)), "somebody")
    await until(lambda: one.registry.subnets is not None and one.registry.subnets.get(SECOND.address))
    assert (await one.stub.GetSubnet(pb.SubnetID(id=ID))).version == 1
    assert await shown(one, limit=5) == [n for _, n in sorted([(OPERATOR.address, "first"), (SECOND.address, "other")])]


async def test_a_validator_does_not_sign_for_its_own_subnet(one: RunningRegistry) -> None:
    own = a_configuration("own", owner=VALIDATORS[0])
    assert (await refused(one.stub.RegisterNode(info(a_published(own, owner=VALIDATORS[0])))))[1] == (
        "endorsement-refused"
    )
    signers = VALIDATORS[1:4]
    quorum = quorum_of(SubnetStatement(2, own), signers)
    await one.stub.RegisterNode(info(a_published(own, replace(quorum, bitmap=0b1110), VALIDATORS[0])))
    assert await shown(one) == ["own"]


async def test_while_the_chain_is_away_nothing_is_shown_and_later_it_is(
    one: RunningRegistry, validators: FakeValidators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncn_registry.subnets._AGAIN_S", 0.02)
    validators.away = True
    assert await refused(one.stub.RegisterNode(info(a_published(a_configuration())))) == ("UNAVAILABLE", "chain")
    assert await shown(one) == []
    await until(lambda: len(validators.epochs) > 3)
    assert await shown(one) == []
    validators.away = False
    subnets = one.registry.subnets
    assert subnets is not None
    await until(lambda: subnets.get(OPERATOR.address))
    assert await shown(one) == ["first"]


async def test_those_that_wait_are_bounded_and_the_newest_counts(
    one: RunningRegistry, validators: FakeValidators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncn_registry.subnets._MOST_WAITING", 1)
    validators.away = True
    register = one.stub.RegisterNode
    assert (await refused(register(info(a_published(a_configuration(sequence=4))))))[1] == "chain"
    assert (await refused(register(info(a_published(a_configuration(sequence=4))))))[1] == "replay-conflict"
    assert (await refused(register(info(a_published(a_configuration(sequence=5))))))[1] == "chain"
    second = a_published(a_configuration("second", owner=SECOND), owner=SECOND)
    assert (await refused(register(info(second))))[1] == "no-capacity"
    subnets = one.registry.subnets
    assert subnets is not None
    await until(lambda: subnets._waiting)
    validators.away = False
    subnets._more.set()
    await until(lambda: (found := subnets.get(OPERATOR.address)) and found.record.sequence == 5)


async def test_the_chain_is_not_asked_again_for_epochs_that_it_has_not(
    one: RunningRegistry, validators: FakeValidators
) -> None:
    for sequence in range(1, 20):
        configuration = a_configuration(sequence=sequence)
        quorum = quorum_of(SubnetStatement(1_000 + sequence, configuration))
        await refused(one.stub.RegisterNode(info(a_published(configuration, quorum))))
    assert validators.epochs == [0]


async def test_a_restart_shows_what_was_checked_without_the_chain(
    tmp_path: Path, sea: Sea, validators: FakeValidators
) -> None:
    async with a_registry(tmp_path / "one", sea, [validators], VALIDATORS) as one:
        await created(one)
    validators.away = True
    async with a_registry(tmp_path / "one", sea, [validators]) as again:
        assert await shown(again) == ["first"]


# --- two registries ---


async def test_a_subnet_created_at_one_is_shown_at_the_other(
    tmp_path: Path, sea: Sea, one: RunningRegistry, validators: FakeValidators
) -> None:
    async with a_registry(tmp_path / "two", sea, [validators]) as two:
        watch = Watch(two, ENDORSED_SUBNET)
        assert await watch.next() == ("synced", None)
        published = await created(one)
        assert await watch.next() == ("put", published)
        watch.call.cancel()
        assert await shown(two) == ["first"]
        await one.stub.RegisterNode(info(a_record()))
        await two.stub.JoinSubnet(a_membership(OPERATOR.address))
        async with asyncio.timeout(20):
            while await members(one) != [NODE.address] or await members(two) != [NODE.address]:
                await one.stub.UpdateNodeHeartbeat(a_heartbeat())
                await asyncio.sleep(0.02)
        await two.stub.LeaveSubnet(a_membership(sequence=2))
        await until(lambda: one.registry.roll and not one.registry.roll.is_member(NODE.address, OPERATOR.address))


async def test_a_registry_that_heard_nothing_finds_it_in_the_dht(
    tmp_path: Path, sea: Sea, one: RunningRegistry, validators: FakeValidators
) -> None:
    sea.deaf = True
    await created(one)
    await until(lambda: dht_key(ENDORSED_SUBNET, OPERATOR.address) in sea.values)
    async with a_registry(tmp_path / "two", sea, [validators]) as two:
        assert await shown(two) == []
        assert (await two.stub.GetSubnet(pb.SubnetID(id=ID))).name == "first"
        assert await shown(two) == ["first"]


# --- members ---


async def test_nodes_join_and_leave(one: RunningRegistry) -> None:
    assert (await refused(one.stub.JoinSubnet(a_membership(OPERATOR.address))))[1] == "unknown-subnet"
    await created(one)
    for node in (NODE, OTHER):
        await one.stub.RegisterNode(info(a_record(node)))
    address = mpb.WalletAddress(address=NODE.address)
    assert (await refused(one.stub.GetMembership(address)))[1] == "unknown-node"
    ack = await one.stub.JoinSubnet(a_membership(OPERATOR.address))
    assert ack.message == f"node {address_hex(NODE.address)} has joined subnet first"
    assert await members(one) == await members(one, "first") == [NODE.address]
    assert await discovered(one, subnet="first") == [NODE.address]
    assert await discovered(one, subnet=ID, model=fake_manifest().digest) == [NODE.address]
    assert await discovered(one, subnet=ID, model=bytes(32)) == []
    assert (await one.stub.GetSubnet(pb.SubnetID(id=ID))).members == 1
    assert (await one.stub.GetMembership(address)).record.sequence == 1
    assert (await refused(one.stub.JoinSubnet(a_membership(OPERATOR.address))))[1] == "replay-conflict"
    assert (await refused(one.stub.JoinSubnet(a_membership(sequence=2))))[1] == "malformed"
    assert (await refused(one.stub.LeaveSubnet(a_membership(OPERATOR.address, sequence=2))))[1] == "malformed"
    forged = a_membership(OPERATOR.address, sequence=2, node=OTHER)
    forged.record.owner = NODE.address
    assert (await refused(one.stub.JoinSubnet(forged)))[1] == "signature-rejected"
    await one.stub.LeaveSubnet(a_membership(sequence=2))
    assert await members(one) == []


async def test_a_membership_does_not_say_that_its_node_lives(one: RunningRegistry) -> None:
    await created(one)
    await one.stub.JoinSubnet(a_membership(OPERATOR.address))
    assert await members(one) == []
    assert (await refused(one.stub.UpdateNodeHeartbeat(a_heartbeat())))[1] == "unknown-node"
    await one.stub.RegisterNode(info(record := a_record()))
    assert await members(one) == [NODE.address]
    gone = record_to_pb(signed(withdrawal(record, now_ms())))
    await one.stub.DeregisterNode(mpb.WalletAddress(address=NODE.address, withdrawal=gone))
    assert await members(one) == []


async def test_a_watch_of_a_subnet_hears_of_its_own_alone(one: RunningRegistry) -> None:
    await created(one)
    gateway = signed(gateway_record(GatewayInfo(OPERATOR.address, "here:1"), 1, now_ms() + 60_000), OPERATOR)
    await one.stub.RegisterNode(info(gateway))
    await one.stub.RegisterNode(info(inside := a_record()))
    await one.stub.RegisterNode(info(a_record(OTHER)))
    watch = Watch(one, "node", "gateway")
    watch.call.cancel()
    watch.call = one.stub.Watch(pb.WatchRequest(kinds=["node", "gateway"], subnet="first"))
    assert await watch.next() == ("put", gateway)
    assert await watch.next() == ("synced", None)
    await one.stub.JoinSubnet(a_membership(OPERATOR.address))
    assert await watch.next() == ("put", inside)
    await one.stub.RegisterNode(info(a_record(OTHER, sequence=2)))
    await one.stub.RegisterNode(info(newer := a_record(sequence=2)))
    assert await watch.next() == ("put", newer)
    await one.stub.LeaveSubnet(a_membership(sequence=2))
    assert await watch.next() == ("gone", newer)
    watch.call.cancel()
    unknown = one.stub.Watch(pb.WatchRequest(subnet="nowhere"))
    assert await refused(unknown.read()) == ("NOT_FOUND", "unknown-subnet")


async def test_the_network_is_told(one: RunningRegistry) -> None:
    network = await one.stub.GetNetwork(mpb.Empty())
    assert (network.chain_id, network.contract) == (31337, bytes(20))
