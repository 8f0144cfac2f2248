"""A registry over real gRPC: what it takes, what it refuses and how, what it shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ncn_framework.errors import ConfigError
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Record
from ncn_framework.testing.fakes import fake_manifest
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb, record_to_pb
from ncn_registry.records import dht_key, to_bytes, withdrawal
from ncn_registry.registry import multiaddr_of

from .network import (
    NODE,
    OTHER,
    RunningRegistry,
    Sea,
    a_heartbeat,
    a_node,
    a_record,
    a_registry,
    running,
    signed,
    until,
)


@pytest.fixture
def sea() -> Sea:
    return Sea()


@pytest.fixture
async def one(tmp_path: Path, sea: Sea) -> AsyncIterator[RunningRegistry]:
    async with a_registry(tmp_path / "one", sea) as made:
        yield made


def info(record: Record) -> mpb.NodeInfo:
    return mpb.NodeInfo(record=record_to_pb(record))


async def refused(call: Any) -> tuple[str, str]:
    """Return the status and the code that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, str(dict(caught.value.trailing_metadata() or ())["ncn-error"])


async def discovered(registry: RunningRegistry, **request: Any) -> list[bytes]:
    return [found.record.owner async for found in registry.stub.DiscoverNodes(pb.DiscoverNodesRequest(**request))]


def told(*records: Record) -> bytes:
    """Return the message of gossip with these records."""
    return pb.Records(records=map(record_to_pb, records)).SerializeToString()


class Watch:
    """Events of a watch, but for heartbeats."""

    def __init__(self, registry: RunningRegistry, *kinds: str) -> None:
        self.call = registry.stub.Watch(pb.WatchRequest(kinds=kinds))

    async def next(self) -> tuple[str, Record | None]:
        async with asyncio.timeout(20):
            while True:
                event = await self.call.read()
                kind = event.WhichOneof("event")
                if kind != "heartbeats":
                    return kind, None if kind == "synced" else record_from_pb(getattr(event, kind))


async def test_a_node_is_registered_found_and_withdrawn(one: RunningRegistry) -> None:
    record = a_record()
    ack = await one.stub.RegisterNode(info(record))
    assert ack.heartbeat_interval_ms == 200
    assert await discovered(one) == [NODE.address]
    assert await discovered(one, model=fake_manifest().digest) == [NODE.address]
    assert await discovered(one, model=bytes(32)) == []
    await one.stub.UpdateNodeHeartbeat(a_heartbeat(in_flight=3))
    found = await one.stub.GetNode(mpb.WalletAddress(address=NODE.address))
    assert record_from_pb(found.record) == record
    assert found.in_flight == 3
    assert found.last_heard_ms > 0
    gone = record_to_pb(signed(withdrawal(record, now_ms())))
    await one.stub.DeregisterNode(mpb.WalletAddress(address=NODE.address, withdrawal=gone))
    assert await discovered(one) == []
    assert await refused(one.stub.RegisterNode(info(record))) == ("ALREADY_EXISTS", "replay-conflict")
    assert await refused(one.stub.GetNode(mpb.WalletAddress(address=NODE.address))) == ("NOT_FOUND", "unknown-node")
    assert await refused(one.stub.UpdateNodeHeartbeat(a_heartbeat())) == ("NOT_FOUND", "unknown-node")


async def test_nodes_are_limited_in_number(one: RunningRegistry) -> None:
    await one.stub.RegisterNode(info(a_record()))
    await one.stub.RegisterNode(info(a_record(OTHER)))
    assert len(await discovered(one)) == 2
    assert len(await discovered(one, limit=1)) == 1


async def test_what_does_not_count_is_refused_with_status_and_code(one: RunningRegistry) -> None:
    record = a_record(sequence=5)
    register = one.stub.RegisterNode
    await register(info(record))
    assert await refused(register(info(record))) == ("ALREADY_EXISTS", "replay-conflict")
    assert await refused(register(info(a_record(sequence=4)))) == ("ALREADY_EXISTS", "replay-conflict")
    forged = replace(a_record(sequence=6), signature=record.signature)
    assert await refused(register(info(forged))) == ("UNAUTHENTICATED", "signature-rejected")
    expired = a_record(sequence=6, expires_ms=now_ms() - 1)
    assert await refused(register(info(expired))) == ("DEADLINE_EXCEEDED", "deadline-expired")
    far = a_record(sequence=6, expires_ms=now_ms() + 10**9)
    assert await refused(register(info(far))) == ("INVALID_ARGUMENT", "malformed")
    large = a_record(sequence=6, payload=b"x" * 20_000)
    assert await refused(register(info(large))) == ("RESOURCE_EXHAUSTED", "too-large")
    assert await refused(register(info(a_record(kind="crown")))) == ("INVALID_ARGUMENT", "malformed")
    assert await refused(register(mpb.NodeInfo())) == ("INVALID_ARGUMENT", "malformed")
    assert await refused(register(info(a_record(sequence=6, payload=b"")))) == ("INVALID_ARGUMENT", "malformed")
    await one.stub.UpdateNodeHeartbeat(beat := a_heartbeat())
    assert await refused(one.stub.UpdateNodeHeartbeat(beat)) == ("ALREADY_EXISTS", "replay-conflict")
    beat.at_ms += 1
    assert await refused(one.stub.UpdateNodeHeartbeat(beat)) == ("UNAUTHENTICATED", "signature-rejected")
    late = a_heartbeat(at_ms=now_ms() + 10**6)
    assert await refused(one.stub.UpdateNodeHeartbeat(late)) == ("INVALID_ARGUMENT", "malformed")
    kept = one.registry.roll
    assert kept is not None
    assert kept.get("node", NODE.address) == record


async def test_only_the_owner_withdraws(one: RunningRegistry) -> None:
    record = a_record()
    await one.stub.RegisterNode(info(record))
    deregister = one.stub.DeregisterNode
    by_other = record_to_pb(signed(withdrawal(record, now_ms()), OTHER))
    message = mpb.WalletAddress(address=NODE.address, withdrawal=by_other)
    assert await refused(deregister(message)) == ("UNAUTHENTICATED", "signature-rejected")
    bare = mpb.WalletAddress(address=NODE.address)
    assert await refused(deregister(bare)) == ("INVALID_ARGUMENT", "malformed")
    full = mpb.WalletAddress(address=NODE.address, withdrawal=record_to_pb(a_record(sequence=2)))
    assert await refused(deregister(full)) == ("INVALID_ARGUMENT", "malformed")
    assert await discovered(one) == [NODE.address]


async def test_a_watch_has_all_then_synced_then_changes(one: RunningRegistry) -> None:
    first, second = a_record(), a_record(sequence=2)
    await one.stub.RegisterNode(info(first))
    watch = Watch(one, "node")
    assert await watch.next() == ("put", first)
    assert await watch.next() == ("synced", None)
    await one.stub.RegisterNode(info(second))
    assert await watch.next() == ("put", second)
    gone = signed(withdrawal(second, now_ms()))
    await one.stub.DeregisterNode(mpb.WalletAddress(address=NODE.address, withdrawal=record_to_pb(gone)))
    assert await watch.next() == ("gone", second)
    watch.call.cancel()


async def test_who_dies_without_a_word_is_gone_and_comes_back_with_a_heartbeat(one: RunningRegistry) -> None:
    record = a_record()
    await one.stub.RegisterNode(info(record))
    watch = Watch(one, "node")
    assert await watch.next() == ("put", record)
    assert await watch.next() == ("synced", None)
    assert await watch.next() == ("gone", record)
    assert await discovered(one) == []
    known = await one.stub.GetNode(mpb.WalletAddress(address=NODE.address))
    assert known.last_heard_ms == 0
    await one.stub.UpdateNodeHeartbeat(a_heartbeat())
    assert await watch.next() == ("put", record)
    watch.call.cancel()


async def test_a_record_that_expires_is_gone_though_its_owner_lives(one: RunningRegistry) -> None:
    record = a_record(expires_ms=now_ms() + 400)
    await one.stub.RegisterNode(info(record))
    watch = Watch(one, "node")
    assert await watch.next() == ("put", record)
    assert await watch.next() == ("synced", None)
    await one.stub.UpdateNodeHeartbeat(a_heartbeat())
    assert await watch.next() == ("gone", record)
    watch.call.cancel()


async def test_watchers_are_told_of_heartbeats(one: RunningRegistry) -> None:
    await one.stub.RegisterNode(info(a_record()))
    call = one.stub.Watch(pb.WatchRequest(kinds=["node"]))
    await one.stub.UpdateNodeHeartbeat(a_heartbeat(in_flight=2))
    async with asyncio.timeout(20):
        while not (event := await call.read()).HasField("heartbeats"):
            pass
    (presence,) = event.heartbeats.presences
    assert presence.heartbeat.node == NODE.address
    assert presence.heartbeat.in_flight == 2
    assert [(version.kind, version.sequence) for version in presence.records] == [("node", 1)]
    call.cancel()


async def test_watches_of_what_is_not_there_are_refused(one: RunningRegistry) -> None:
    assert await refused(one.stub.Watch(pb.WatchRequest(kinds=["crown"])).read()) == ("INVALID_ARGUMENT", "malformed")
    assert await refused(one.stub.Watch(pb.WatchRequest(subnet="s")).read()) == ("NOT_FOUND", "unknown-subnet")


async def test_health_and_reflection(one: RunningRegistry) -> None:
    async with grpc.aio.insecure_channel(one.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "ncn.v1.P2PRegistryService"):
            status = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        asked = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name for service in (await asked.read()).list_services_response.service}
        assert "ncn.v1.P2PRegistryService" in names
        asked.cancel()


async def test_a_registry_hears_at_once_of_a_node_at_another(tmp_path: Path, sea: Sea, one: RunningRegistry) -> None:
    async with a_registry(tmp_path / "two", sea) as two:
        watch = Watch(two, "node")
        assert await watch.next() == ("synced", None)
        record = a_record()
        await one.stub.RegisterNode(info(record))
        assert await watch.next() == ("put", record)
        assert await discovered(two, model=fake_manifest().digest) == [NODE.address]
        async with asyncio.timeout(20):  # who the peer is, it learns from its heartbeat
            while not (peers := [peer async for peer in two.stub.ListPeers(mpb.Empty())])[0].registry:
                await asyncio.sleep(0.01)
        (peer,) = peers
        assert peer.grpc_addr == one.target
        assert peer.registry == one.node.signer.address
        assert await watch.next() == ("gone", record)
        watch.call.cancel()


async def test_heartbeats_pass_on_in_one_message_a_second(tmp_path: Path, sea: Sea, one: RunningRegistry) -> None:
    async with a_registry(tmp_path / "two", sea, heartbeat_interval_ms="60000") as two:
        for signer in (NODE, OTHER):
            await one.stub.RegisterNode(info(a_record(signer)))

        def told() -> bool:
            roll = two.registry.roll
            assert roll is not None
            heard = [roll.presence.get(signer.address) for signer in (NODE, OTHER)]
            return all(one is not None and one.in_flight == 5 for one in heard)

        def together() -> bool:
            digests = [pb.Heartbeats.FromString(data) for topic, data in sea.published if topic == "ncn/heartbeats/1"]
            return any(
                {NODE.address, OTHER.address} <= {presence.heartbeat.node for presence in digest.presences}
                for digest in digests
            )

        async with asyncio.timeout(20):
            while not (told() and together()):  # a heartbeat may overtake its record, so that the next one is needed
                for signer in (NODE, OTHER):
                    await one.stub.UpdateNodeHeartbeat(a_heartbeat(signer, in_flight=5))
                await asyncio.sleep(0.05)


async def test_a_registry_that_came_late_finds_whom_others_hear(tmp_path: Path, sea: Sea, one: RunningRegistry) -> None:
    record = a_record()
    await one.stub.RegisterNode(info(record))
    await until(lambda: dht_key("node", NODE.address) in sea.values)
    async with a_registry(tmp_path / "two", sea) as two:
        watch = Watch(two, "node")
        assert await watch.next() == ("synced", None)
        await one.stub.UpdateNodeHeartbeat(a_heartbeat())
        assert await watch.next() == ("put", record)
        watch.call.cancel()


async def test_a_node_nobody_told_of_is_found_in_the_dht(tmp_path: Path, sea: Sea, one: RunningRegistry) -> None:
    sea.deaf = True
    record = a_record()
    await one.stub.RegisterNode(info(record))
    key = dht_key("node", NODE.address)
    await until(lambda: key in sea.values)
    assert sea.values[key] == to_bytes(record)
    assert sea.providers[fake_manifest().digest]
    async with a_registry(tmp_path / "two", sea) as two:
        found = await two.stub.GetNode(mpb.WalletAddress(address=NODE.address))
        assert record_from_pb(found.record) == record
        assert found.last_heard_ms == 0, "that it is there does not say that it lives"
        assert await discovered(two) == []
        unknown = mpb.WalletAddress(address=OTHER.address)
        assert await refused(two.stub.GetNode(unknown)) == ("NOT_FOUND", "unknown-node")
        assert await refused(two.stub.GetNode(unknown)) == ("NOT_FOUND", "unknown-node")
        assert sea.swarms[1].asked.count(dht_key("node", OTHER.address)) == 1, "a stranger's question is asked once"


async def test_a_forged_record_does_not_enter_by_gossip_or_the_dht(sea: Sea, one: RunningRegistry) -> None:
    roll = one.registry.roll
    assert roll is not None
    forged = told(replace(a_record(), sequence=9))
    (swarm,) = sea.swarms
    assert not swarm.admit("ncn/records/1", forged, "somebody")
    assert not swarm.admit("ncn/heartbeats/1", b"\xff", "somebody")
    for data in (forged, b"", b"\xff" * 40):
        swarm.heard("ncn/records/1", data, "somebody")
        swarm.heard("ncn/heartbeats/1", data, "somebody")
        swarm.stored(dht_key("node", NODE.address), data)
    swarm.heard("ncn/records/1", told(replace(a_record(), sequence=9), good := a_record(OTHER)), "somebody")
    await until(lambda: roll.get("node", OTHER.address) == good)
    assert roll.store.get("node", NODE.address) is None


async def test_a_restart_keeps_records_and_waits_for_heartbeats(tmp_path: Path, sea: Sea) -> None:
    record = a_record()
    async with a_registry(tmp_path / "one", sea) as one:
        await one.stub.RegisterNode(info(record))
        address = one.node.signer.address
    async with a_registry(tmp_path / "one", sea) as again:
        assert again.node.signer.address == address
        assert await discovered(again) == []
        await again.stub.UpdateNodeHeartbeat(a_heartbeat())
        assert await discovered(again) == [NODE.address]
        assert await refused(again.stub.RegisterNode(info(record))) == ("ALREADY_EXISTS", "replay-conflict")


async def test_a_registry_that_stops_says_so(tmp_path: Path, sea: Sea, one: RunningRegistry) -> None:
    watch = Watch(one, "registry")
    assert (await watch.next())[0] == "put"
    assert await watch.next() == ("synced", None)
    async with a_registry(tmp_path / "two", sea) as two:
        kind, record = await watch.next()
        assert kind == "put"
        assert record is not None
        assert record.owner == two.node.signer.address
    kind, record = await watch.next()
    assert kind == "gone"
    watch.call.cancel()


async def test_bad_addresses_are_clear_errors(tmp_path: Path) -> None:
    assert multiaddr_of("127.0.0.1:8828") == "/ip4/127.0.0.1/tcp/8828"
    assert multiaddr_of("[::1]:1") == "/ip6/::1/tcp/1"
    assert multiaddr_of("/ip4/1.2.3.4/tcp/5") == "/ip4/1.2.3.4/tcp/5"
    with pytest.raises(ConfigError, match="p2p_listen_addr"):
        multiaddr_of("8828")
    with pytest.raises(ConfigError, match=r"grpc_listen_addr.*HOST:PORT"):
        async with running(a_node("registry", tmp_path, grpc_listen_addr="50050")):
            pass
