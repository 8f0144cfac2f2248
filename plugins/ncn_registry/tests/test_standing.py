"""Who may be given no work is hidden from everybody who looks for nodes, whenever its record comes; and only it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ncn_framework.lifecycle import now_ms
from ncn_framework.testing.fakes import fake_manifest
from ncn_registry.presence import Presence
from ncn_registry.records import NODE as KIND
from ncn_registry.records import Judge
from ncn_registry.roll import Roll
from ncn_registry.store import RecordStore
from ncn_registry.watching import Watcher, Watchers

from .network import DOMAIN, NODE, OTHER, Sea, a_heartbeat, a_node, a_record, a_registry, running

MODEL = fake_manifest().digest


@pytest.fixture
async def roll(tmp_path: Path) -> AsyncIterator[Roll]:
    async with RecordStore(tmp_path / "registry.db", DOMAIN, 0) as store:
        yield Roll(store, Judge(DOMAIN, now_ms), Presence(60, lambda: 0.0, now_ms), Watchers(), now_ms)


async def heard(watcher: Watcher) -> list[tuple[str, bytes]]:
    """Return what a watcher was told, without waiting for more."""
    found = []
    while watcher._waiting:
        event = await watcher.next()
        kind = event.WhichOneof("event")
        found.append((str(kind), event.put.owner if kind == "put" else event.gone.owner))
    return found


def seen(roll: Roll) -> set[bytes]:
    """Return the nodes that somebody who looks sees, by whichever way."""
    ways = [{r.owner for r in found} for found in (roll.nodes(), roll.nodes(MODEL), roll.shown((KIND,)))]
    assert all(way == ways[0] for way in ways)
    return ways[0]


async def test_a_node_that_is_put_out_is_gone_until_it_may_come_back(roll: Roll) -> None:
    for owner in (NODE, OTHER):
        roll.put(a_record(owner), direct=True, alive=True)
    with roll.watchers.joined((KIND,)) as watcher:
        roll.stand(NODE.address, True, "jailed")
        roll.stand(NODE.address, True, "jailed twice")
        assert seen(roll) == {OTHER.address}
        assert await heard(watcher) == [("gone", NODE.address)]
        roll.put(a_record(sequence=2), direct=True, alive=True)
        roll.beat(a_heartbeat())
        assert seen(roll) == {OTHER.address}
        assert await heard(watcher) == []
        assert roll.get(KIND, NODE.address) is not None, "it is kept"
        roll.stand(NODE.address, False, "freed")
        assert seen(roll) == {NODE.address, OTHER.address}
        roll.stand(NODE.address, False, "freed twice")
        assert await heard(watcher) == [("put", NODE.address)]


async def test_one_that_comes_later_is_not_shown(roll: Roll) -> None:
    roll.stand(NODE.address, True, "jailed")
    with roll.watchers.joined((KIND,)) as watcher:
        roll.put(a_record(), direct=True, alive=True)
        assert seen(roll) == set()
        assert await heard(watcher) == []


async def test_a_registry_that_hears_of_it_before_it_is_up_heeds_it(tmp_path: Path) -> None:
    registry = a_node("registry", tmp_path)
    part = registry.plugins.instances["registry"].part
    registry.plugins.standing(NODE.address, True, "jailed")
    registry.plugins.standing(OTHER.address, True, "jailed")
    registry.plugins.standing(OTHER.address, False, "freed")
    part._make_swarm = Sea().swarm
    async with running(registry):
        assert part.roll.out == {NODE.address: "jailed"}


async def test_a_registry_tells_nobody_of_it(tmp_path: Path) -> None:
    async with a_registry(tmp_path / "one", Sea()) as one:
        roll = one.registry.roll
        assert roll is not None
        one.node.plugins.standing(NODE.address, True, "jailed")
        roll.put(a_record(), direct=True, alive=True)
        assert seen(roll) == set()


async def test_a_gateway_tells_who_asks_whom_it_gives_no_work(tmp_path: Path) -> None:
    node = a_node("gateway", tmp_path)
    known = node.plugins.instances["registry"].part.known
    node.plugins.standing(NODE.address, True, "jailed")
    assert known.out == {NODE.address: "jailed"}
    node.plugins.standing(NODE.address, False, "freed")
    assert known.out == {}
