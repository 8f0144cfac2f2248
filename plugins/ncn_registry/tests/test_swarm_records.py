"""What the network must not make a node believe: forged, expired, stale, oversized and senseless records and news."""

from __future__ import annotations

import asyncio

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import ncn_registry.swarm

# isort: split

from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID

from ncn_registry.swarm import records
from ncn_registry.swarm.gossip import Gossip
from ncn_registry.swarm.records import Judge, RecordStore

from .swarm_records import Ears, Owner, peer, sequence_of, until

OWNER, OTHER = Owner(1), Owner(2)
FORGED = OTHER.record(9)
BAD = {
    "forged": FORGED,
    "expired": OWNER.record(9, expires_in_s=-1),
    "tampered": OWNER.record(9, "price 1").replace(b"price 1", b"price 9"),
    "senseless": b"\xff\x00",
    "wrong types": b'{"point": 3, "expires": null}',
}


def believes_all(key: str, value: bytes) -> int:
    return 10**9


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_bad_record_is_neither_stored_nor_read(bad: bytes) -> None:
    told: list[str] = []
    async with (
        peer(1, stored=lambda key, value: told.append(key)) as honest,
        peer(2, honest, validate=believes_all) as liar,
    ):
        await until(lambda: liar.peers() and honest.peers(), "they know each other")
        assert await liar.put(OWNER.key, bad) == 0
        assert await honest.get(OWNER.key) is None, "the liar's copy was read"
        good = OWNER.record(1)
        await honest.put(OWNER.key, good)
        assert await honest.get(OWNER.key) == good
        assert told == []


async def test_an_older_record_replaces_no_newer_one() -> None:
    def prefers_old(key: str, value: bytes) -> int:
        return 100 - (sequence_of(key, value) or 100)

    async with peer(1) as honest, peer(2, honest, validate=prefers_old) as liar:
        await until(lambda: liar.peers() and honest.peers(), "they know each other")
        new = OWNER.record(5)
        assert await honest.put(OWNER.key, new) in (0, 1)
        assert await liar.put(OWNER.key, OWNER.record(4)) == 0
        assert await honest.get(OWNER.key) == new
        with pytest.raises(ncn_registry.swarm.SwarmError, match="sequence 4 is older"):
            await honest.put(OWNER.key, OWNER.record(4))


async def test_a_record_that_expired_makes_room_for_any_good_one() -> None:
    valid = {b"old": 9, b"new": 1}
    async with peer(1, validate=lambda key, value: valid.get(value)) as node:
        await node.put("ncn/node/1", b"old")
        valid[b"old"] = 0
        del valid[b"old"]
        assert await node.get("ncn/node/1") is None
        await node.put("ncn/node/1", b"new")
        assert await node.get("ncn/node/1") == b"new"


async def test_a_validator_that_raises_refuses_and_lets_the_node_live(caplog: pytest.LogCaptureFixture) -> None:
    def broken(key: str, value: bytes) -> int:
        raise RuntimeError("a validator's fault")

    async with peer(1, validate=broken) as node, peer(2, node) as other:
        await until(lambda: other.peers() and node.peers(), "they know each other")
        assert await other.put(OWNER.key, OWNER.record(1)) == 0
        with pytest.raises(ncn_registry.swarm.SwarmError, match="refused"):
            await node.put(OWNER.key, OWNER.record(1))
        assert await node.get(OWNER.key) is None
    assert "a validator's fault" in caplog.text


def news(value: bytes, owner: Owner = OWNER) -> bytes:
    return owner.key.encode() + b"\n" + value


class Newer:
    """Admits news of records that are good and newer than what it has seen; raises on nonsense."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, topic: str, data: bytes, author: str) -> bool:
        key, _, value = data.partition(b"\n")
        sequence = sequence_of(key.decode(), value)
        if sequence is None or sequence <= self.known.get(key.decode(), -1):
            return False
        self.known[key.decode()] = sequence
        return True


async def test_bad_and_old_news_are_not_heard() -> None:
    ear, fence = Ears(), Owner(3)
    async with peer(1, heard=ear, admit=Newer()) as listener, peer(2, listener) as speaker:
        await listener.subscribe("ncn/records")
        for sequence in range(1, 60):  # until the speaker knows that somebody listens
            await speaker.publish("ncn/records", news(OWNER.record(sequence)))
            await asyncio.sleep(0.1)
            if not ear.messages.empty():
                break
        heard = sequence_of(OWNER.key, ear.messages.get_nowait()[1].partition(b"\n")[2])
        assert heard is not None
        for bad in (*BAD.values(), OWNER.record(heard), OWNER.record(heard - 1)):
            await speaker.publish("ncn/records", news(bad))
        oversized = speaker._node.gossip.service.publish  # publish() of the speaker itself would refuse
        await speaker._bridge.call(oversized, "ncn/records", news(OWNER.record(heard + 1, "x" * 40_000)))
        await speaker.publish("ncn/records", news(fence.record(1), fence))
        while True:
            _, data, _ = await asyncio.wait_for(ear.messages.get(), 20)
            key, _, value = data.partition(b"\n")
            if key.decode() == fence.key:
                break
            # One that was under way before; never one of the bad ones.
            assert (sequence_of(key.decode(), value) or 0) > heard


def test_an_author_has_a_budget() -> None:
    async def scenario() -> list[int]:
        host = new_host(key_pair=create_new_key_pair(b"\1" * 32))
        gossip = Gossip(host, lambda *_: None, lambda *_: True)
        author, counts = new_host().get_id(), []
        for pause_s in (0, 1, 600):
            await trio.sleep(pause_s)
            counts.append(sum(gossip._affords(author) for _ in range(500)))
        return counts

    assert trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0)) == [60, 20, 60]


def test_many_authors_do_not_grow_the_budgets() -> None:
    async def scenario() -> int:
        gossip = Gossip(new_host(key_pair=create_new_key_pair(b"\1" * 32)), lambda *_: None, lambda *_: True)
        for number in range(3000):
            gossip._affords(ID(number.to_bytes(4, "big")))
        return len(gossip._budgets)

    assert trio.run(scenario) <= 1024


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=6))
def test_the_selector_is_a_total_order(values: list[bytes]) -> None:
    judge = Judge(lambda key, value: None if value[0] > 200 else value[0] % 4)
    chosen = values[judge.select("/ncn/node/1", values)]
    for value in values:
        if (rank := judge.rank("/ncn/node/1", value)) is not None:
            best = judge.rank("/ncn/node/1", chosen)
            assert best is not None
            assert best >= rank
    if judge.rank("/ncn/node/1", chosen) is not None:
        backwards = values[::-1]
        assert backwards[judge.select("/ncn/node/1", backwards)] == chosen, "the order of arrival decides nothing"
    assert judge.select("/ncn/node/1", [chosen, chosen]) == 1, "of equals the last: a renewed record must be taken"


@pytest.mark.parametrize("key", ["ncn/node/1", "/pk/1", "/ncn/" + "x" * 46, "/ncn", ""])
def test_keys_of_other_kinds_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="bad, expired or too large"):
        Judge(believes_all).validate(key, b"1")


def test_a_full_store_forgets_the_oldest_of_others_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "STORED_RECORDS", 3)
    host = new_host(key_pair=create_new_key_pair(b"\1" * 32))
    told: list[str] = []
    store = RecordStore(host, host.get_id(), lambda key, value: told.append(key))
    assert isinstance(store, ValueStore)
    store.put(b"/ncn/mine", b"1")
    for number in range(5):
        store.learn(b"/ncn/%d" % number, b"1")
    assert sorted(store.store) == [b"/ncn/3", b"/ncn/4", b"/ncn/mine"]
    assert told == [f"ncn/{number}" for number in range(5)]
