"""The swarm as the registry uses it: records, providers, gossip and peers, among real nodes on loopback."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ncn_registry.swarm import Swarm, SwarmDown, SwarmError

from .swarm_records import LOCAL, QUICK, Ears, Owner, peer, sequence_of, until


async def test_a_record_put_at_one_node_is_read_at_another() -> None:
    owner = Owner(1)
    async with peer(1) as first, peer(2, first) as second, peer(3, first) as third:
        await until(lambda: len(first.peers()) == 2, "three nodes know each other")
        record = owner.record(1)
        assert await second.put(owner.key, record) == 2
        assert await third.get(owner.key) == record
        assert await third.get(Owner(2).key) is None


async def test_a_node_alone_keeps_what_it_puts() -> None:
    owner = Owner(1)
    async with peer(1) as alone:
        assert await alone.put(owner.key, owner.record(1)) == 0
        assert await alone.get(owner.key) is not None
        assert alone.peers() == []


async def test_the_newest_record_wins_wherever_it_is() -> None:
    owner = Owner(1)
    old, new = owner.record(1), owner.record(2)
    async with peer(1) as first, peer(2) as second:
        await first.put(owner.key, old)
        await second.put(owner.key, new)
        await first.connect(second.addresses[0])
        assert await first.get(owner.key) == new
        assert await second.get(owner.key) == new


async def test_what_peers_store_here_is_told() -> None:
    told: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    owner = Owner(1)
    async with peer(1, stored=lambda key, value: told.put_nowait((key, value))) as first, peer(2, first) as second:
        record = owner.record(1)
        await second.put(owner.key, record)
        assert await asyncio.wait_for(told.get(), 10) == (owner.key, record)
        await second.put(owner.key, record)  # renewed: no news
        await second.put(owner.key, owner.record(2))
        assert sequence_of(*await asyncio.wait_for(told.get(), 10)) == 2


async def test_what_a_get_finds_is_told_and_kept() -> None:
    told: list[str] = []
    owner = Owner(1)
    async with peer(2, stored=lambda key, value: told.append(key)) as reader:
        async with peer(1) as writer:
            await writer.put(owner.key, owner.record(1))
            await reader.connect(writer.addresses[0])
            assert await reader.get(owner.key) is not None
        assert told == [owner.key]
        assert await reader.get(owner.key) is not None


async def test_restored_records_are_served_and_not_sent() -> None:
    told: list[str] = []
    owner = Owner(1)
    async with peer(1, stored=lambda key, value: told.append(key)) as other, peer(2, other) as restarted:
        await restarted.restore(owner.key, owner.record(4))
        assert told == []
        assert await other.get(owner.key) is not None


async def test_providers_are_found() -> None:
    digest = bytes(range(32))
    async with peer(1) as first, peer(2, first) as second, peer(3, first) as third:
        await second.provide(digest)
        await first.provide(digest)
        assert set(await third.providers(digest)) == {first.peer_id, second.peer_id}
        assert await third.providers(b"\1" * 32) == []


async def test_gossip_reaches_every_other_subscriber() -> None:
    ears = [Ears() for _ in range(3)]
    async with (
        peer(1, heard=ears[0]) as first,
        peer(2, first, heard=ears[1]) as second,
        peer(3, first, heard=ears[2]) as third,
    ):
        for each in (first, second, third):
            await each.subscribe("ncn/test")
        await publish_until_heard(second, ears[0], ears[2])
        assert ears[1].messages.empty(), "a node does not hear itself"


async def publish_until_heard(sender: Swarm, *ears: Ears) -> None:
    """Publish until all have heard: before the first exchange of subscriptions, a message has nobody to go to."""
    for number in range(60):
        message = f"message {number}".encode()
        await sender.publish("ncn/test", message)
        try:
            for each in ears:
                topic, data, author = await asyncio.wait_for(each.messages.get(), 1)
                assert (topic, author) == ("ncn/test", sender.peer_id)
                assert data.startswith(b"message ")
        except TimeoutError:
            continue
        return
    raise AssertionError("gossip did not arrive")


async def test_gossip_goes_on_after_a_restart() -> None:
    ear = Ears()
    async with peer(1, heard=ear) as listener:
        await listener.subscribe("ncn/test")
        for _ in range(2):
            async with peer(2, listener) as speaker:
                await speaker.subscribe("ncn/test")
                await publish_until_heard(speaker, ear)


async def test_a_receiver_that_raises_is_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[bytes] = []

    def bad(topic: str, data: bytes, author: str) -> None:
        heard.append(data)
        raise RuntimeError("a receiver's fault")

    async with peer(1, heard=bad) as listener, peer(2, listener) as speaker:
        await listener.subscribe("ncn/test")
        await until(lambda: speaker.peers() and listener.peers(), "they know each other")
        while len(heard) < 2:
            await speaker.publish("ncn/test", b"x")
            await asyncio.sleep(0.1)
    assert "handling a message of the network failed" in caplog.text


async def test_peers_are_listed_with_addresses_and_latency() -> None:
    async with peer(1) as first, peer(2, first) as second:
        await until(lambda: first.peers() and first.peers()[0].latency_ms is not None, "a peer was probed")
        seen, back = first.peers()[0], second.peers()[0]
        assert seen.peer_id == second.peer_id
        assert seen.inbound
        assert not back.inbound
        assert second.addresses[0] in seen.addresses


async def test_a_peer_that_comes_back_is_found_again() -> None:
    async with peer(1) as first:
        async with peer(2, first) as second:
            await until(lambda: first.peers(), "they know each other")
            address = second.addresses[0].split("/p2p/")[0]
        await until(lambda: not first.peers(), "the peer is gone")
        async with Swarm((2).to_bytes(32, "big"), [address], heard=Ears(), validate=sequence_of, timing=QUICK):
            # It has no bootstrap address: the first node goes back to it.
            await until(lambda: first.peers(), "the peer is back")


async def test_a_bootstrap_peer_may_start_later() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}"
    later = Swarm((1).to_bytes(32, "big"), [address], heard=Ears(), validate=sequence_of, timing=QUICK)
    early = Swarm(
        (2).to_bytes(32, "big"),
        [LOCAL],
        heard=Ears(),
        validate=sequence_of,
        timing=QUICK,
        bootstrap=[f"{address}/p2p/{later.peer_id}"],
    )
    async with early:
        assert early.peers() == []
        async with later:
            await until(lambda: early.peers(), "the bootstrap peer was tried again")


async def test_ipv6_can_be_dialled() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with peer(1, listen=["/ip6/::1/tcp/0"]) as one, peer(2, one, listen=["/ip6/::1/tcp/0"]):
        await until(lambda: one.peers(), "they know each other by IPv6")


async def test_names_can_be_dialled() -> None:
    async with peer(1) as one:
        name = one.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/")
        async with peer(2, bootstrap=[name]):
            await until(lambda: one.peers(), "they know each other by name")
        async with peer(3) as other:
            with pytest.raises(SwarmError, match=r"cannot be reached at /dns/nowhere\.invalid/"):
                await other.connect(one.addresses[0].replace("/ip4/127.0.0.1/", "/dns/nowhere.invalid/"))


async def test_announced_addresses_replace_those_listened_on() -> None:
    async with peer(1, announce=["/ip4/192.0.2.7/tcp/8828"]) as node:
        assert node.addresses == [f"/ip4/192.0.2.7/tcp/8828/p2p/{node.peer_id}"]


async def test_a_wildcard_is_advertised_as_real_addresses() -> None:
    swarm = Swarm((1).to_bytes(32, "big"), ["/ip4/0.0.0.0/tcp/0"], heard=Ears(), validate=sequence_of)
    async with swarm:
        assert swarm.addresses
        assert not any("0.0.0.0" in address or "/tcp/0/" in address for address in swarm.addresses)


async def test_a_port_in_use_is_refused() -> None:
    async with peer(1) as first:
        taken = first.addresses[0].split("/p2p/")[0]
        second = Swarm((2).to_bytes(32, "big"), [taken], heard=Ears(), validate=sequence_of)
        with pytest.raises(SwarmError, match="Address already in use"):
            await second.__aenter__()


async def test_an_address_of_another_machine_is_refused() -> None:
    swarm = Swarm((1).to_bytes(32, "big"), ["/ip4/192.0.2.7/tcp/0"], heard=Ears(), validate=sequence_of)
    with pytest.raises(SwarmError, match=r"cannot listen on /ip4/192\.0\.2\.7/tcp/0"):
        await swarm.__aenter__()


@pytest.mark.parametrize(
    ("listen", "bootstrap", "words"),
    [
        ([], [], "no address to listen on"),
        (["127.0.0.1:8828"], [], "is no multiaddr"),
        (["/ip4/127.0.0.1/udp/8828"], [], "cannot listen on"),
        (["/ip4/127.0.0.1/tcp/1/ws"], [], "cannot listen on"),
        ([LOCAL], ["/ip4/127.0.0.1/tcp/8828"], "names no peer"),
        ([LOCAL], ["/ip4/127.0.0.1/tcp/8828/p2p/nobody"], "multiaddr|names no peer"),
    ],
)
def test_malformed_addresses_are_refused(listen: list[str], bootstrap: list[str], words: str) -> None:
    with pytest.raises(SwarmError, match=words):
        Swarm(b"\1" * 32, listen, bootstrap=bootstrap, heard=Ears(), validate=sequence_of)


@pytest.mark.parametrize("key", [b"", b"\1" * 31, b"\0" * 32, b"\xff" * 32])
def test_a_bad_key_is_refused_and_not_shown(key: bytes) -> None:
    with pytest.raises(SwarmError, match="32 bytes") as caught:
        Swarm(key, [LOCAL], heard=Ears(), validate=sequence_of)
    assert caught.value.__cause__ is None
    assert "xff" not in str(caught.value)


async def test_the_key_is_not_in_the_options_repr() -> None:
    secret = b"\x2a" * 32
    assert repr(secret)[2:-1] not in repr(Swarm(secret, [LOCAL], heard=Ears(), validate=sequence_of)._options)


async def test_nobody_at_an_address_is_an_error() -> None:
    async with peer(1) as node:
        absent = Swarm((2).to_bytes(32, "big"), [LOCAL], heard=Ears(), validate=sequence_of)
        with pytest.raises(SwarmError, match="cannot be reached"):
            await node.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{absent.peer_id}")
        with pytest.raises(SwarmError, match="this node itself"):
            await node.connect(node.addresses[0])


async def test_another_peers_id_at_an_address_is_an_error() -> None:
    async with peer(1) as first, peer(2) as second:
        third = Swarm((3).to_bytes(32, "big"), [LOCAL], heard=Ears(), validate=sequence_of)
        with pytest.raises(SwarmError, match="cannot be reached"):
            await first.connect(second.addresses[0].replace(second.peer_id, third.peer_id))


@pytest.mark.parametrize(
    ("key", "size", "words"),
    [
        ("other/node/1", 10, "must begin with ncn/"),
        ("ncn/" + "x" * 50, 10, "at most 49 bytes"),
        ("ncn/node/1", 0, "refused"),
        ("ncn/node/1", 20_000, "too large"),
    ],
)
async def test_keys_and_values_are_bounded(key: str, size: int, words: str) -> None:
    async with peer(1, validate=lambda key, value: 1) as node:
        with pytest.raises(SwarmError, match=words):
            await node.put(key, b"x" * size)


async def test_topics_messages_and_contents_are_bounded() -> None:
    async with peer(1) as node:
        with pytest.raises(SwarmError, match="topic"):
            await node.subscribe("x" * 200)
        with pytest.raises(SwarmError, match="gossip message"):
            await node.publish("ncn/test", b"x" * 40_000)
        with pytest.raises(SwarmError, match="2 to 50 bytes"):
            await node.provide(b"x" * 51)


async def test_a_closed_swarm_says_so() -> None:
    node = peer(1)
    with pytest.raises(SwarmError, match="not running"):
        node.peers()
    async with node:
        pass
    with pytest.raises(SwarmDown):
        await node.get(Owner(1).key)
    await node.wait_down()


async def test_closing_frees_the_port() -> None:
    async with peer(1) as first:
        address = first.addresses[0].split("/p2p/")[0]
    async with Swarm((1).to_bytes(32, "big"), [address], heard=Ears(), validate=sequence_of) as again:
        assert again.addresses[0].startswith(address)
