"""A registry whose peers all lie: it believes nothing false, and says that it may be cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_to_pb
from ncn_registry.anchors import Anchors
from ncn_registry.gossip import RECORDS
from ncn_registry.plugin import Plugin
from ncn_registry.records import NODE as NODE_KIND
from ncn_registry.records import dht_key, to_bytes
from ncn_registry.registry import Registry
from ncn_registry.swarm import Swarm

from .committee import VALIDATORS, a_chain, an_epoch
from .network import NODE, OTHER, RunningRegistry, Sea, a_node, a_record, a_registry, running, until


@pytest.fixture
def sea() -> Sea:
    return Sea()


# --- who is in the network ---


async def test_a_registry_among_validators_is_in_the_network(tmp_path: Path, sea: Sea) -> None:
    chain = a_chain(an_epoch())
    async with (
        a_registry(tmp_path / "a", sea, [chain], VALIDATORS[:1]) as one,
        a_registry(tmp_path / "b", sea, [chain], VALIDATORS[1:2]) as other,
    ):
        looking = Anchors(one.node, roll_of(one), sea.swarms[0], 1)  # type: ignore[arg-type]
        await until(lambda: roll_of(one).get("validator", VALIDATORS[1].address))
        assert await looking.look() == ""
        (peer,) = [peer async for peer in one.stub.ListPeers(mpb.Empty())]
        assert list(peer.validators) == [VALIDATORS[1].address]
        assert peer.registry == other.node.signer.address


async def test_one_that_speaks_for_all_needs_nobody(tmp_path: Path, sea: Sea) -> None:
    async with a_registry(tmp_path / "a", sea, [a_chain(an_epoch())], VALIDATORS) as one:
        assert await Anchors(one.node, roll_of(one), sea.swarms[0], 1).look() == ""  # type: ignore[arg-type]


async def test_one_among_strangers_says_so_once(tmp_path: Path, sea: Sea, caplog: pytest.LogCaptureFixture) -> None:
    chain = a_chain(an_epoch())
    async with a_registry(tmp_path / "a", sea, [chain]) as one, a_registry(tmp_path / "b", sea, [chain]):
        looking = Anchors(one.node, roll_of(one), sea.swarms[0], 0.001)  # type: ignore[arg-type]
        said = await looking.look()
        assert said.startswith("none of the 1 peers of this registry speaks for a validator of epoch 7")
        keeping = asyncio.create_task(looking.keep())
        await until(lambda: said in caplog.messages)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert caplog.messages.count(said) == 1


def roll_of(one: RunningRegistry):  # type: ignore[no-untyped-def]
    """Return the roll of a running registry."""
    assert one.registry.roll is not None
    return one.registry.roll


# --- an eclipse, with real libp2p ---


class Liar:
    """A peer that keeps and tells whatever suits it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lies: dict[str, bytes] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Swarm]:
        swarm = Swarm(
            bytes([self.number]) * 32,
            ["/ip4/127.0.0.1/tcp/0"],
            heard=lambda topic, data, peer: None,
            validate=lambda key, value: 10**9 if value in self.lies.values() else None,  # the truth is refused
        )
        async with swarm:
            yield swarm


async def test_an_eclipsed_registry_believes_nothing_false(tmp_path: Path) -> None:
    truth = a_record(NODE, sequence=5)
    forged = replace(a_record(NODE, sequence=9), signature=a_record(OTHER, sequence=9).signature)
    older = a_record(NODE, sequence=3)
    invented = replace(a_record(OTHER, sequence=9), signature=bytes(65))
    made: list[Swarm] = []

    def swarm(*arguments, **options):  # type: ignore[no-untyped-def]
        made.append(Swarm(*arguments, **options))
        return made[0]

    class Eclipsed(Plugin):
        @property
        def part(self) -> Registry:
            if not hasattr(self, "_made"):
                self._made = Registry(self.node, swarm)
            return self._made

    async with AsyncExitStack() as stack:
        liars = [await stack.enter_async_context(Liar(number).running()) for number in range(1, 5)]
        settings = {
            "grpc_listen_addr": "127.0.0.1:0",
            "p2p_listen_addr": "/ip4/127.0.0.1/tcp/0",
            "bootstrap": ",".join(liar.addresses[0] for liar in liars),
        }
        (tmp_path / "home").mkdir()
        node = a_node("registry", tmp_path / "home", Eclipsed, [a_chain(an_epoch())], **settings)
        await stack.enter_async_context(running(node))
        registry: Registry = node.plugins.instances["registry"].part
        roll = registry.roll
        assert roll is not None
        await until(lambda: len(made[0].peers()) == len(liars))
        await roll.put(truth, direct=True, alive=True)
        for liar, lie in zip(liars, (forged, older, invented, forged), strict=True):
            key = dht_key(NODE_KIND, lie.owner)
            await liar.publish(RECORDS, pb.Records(records=[record_to_pb(lie)]).SerializeToString())
            # straight into its store: what it answers when it is asked
            await liar._bridge.call(_kept, liar, key, to_bytes(lie))
        assert await made[0].get(dht_key(NODE_KIND, OTHER.address)) is None, "what the liars made up was read"
        async with asyncio.timeout(20):  # an older one that its owner signed is all they can show, until ours is there
            while await made[0].get(dht_key(NODE_KIND, NODE.address)) != to_bytes(truth):
                await asyncio.sleep(0.05)
        assert list(roll.shown((NODE_KIND,))) == [truth]
        anchors = Anchors(node, roll, made[0], 1)
        assert "none of the 4 peers of this registry speaks for a validator" in await anchors.look()


async def _kept(liar: Swarm, key: str, value: bytes) -> None:
    liar._node.dht.value_store.put(f"/{key}".encode(), value)
