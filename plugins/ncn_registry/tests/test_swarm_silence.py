"""Silent peers: when they are left out, when they are asked all the same, when they are dialled again."""

from __future__ import annotations

import contextlib
import socket

import pytest
import trio
import trio.testing

import ncn_registry.swarm  # noqa: F401 - imports libp2p without the warning of one of its dependencies

# isort: split

from libp2p.peer.id import ID

from ncn_registry.swarm import Timing
from ncn_registry.swarm.patches import admission
from ncn_registry.swarm.silence import Silence

from .swarm_records import Owner, peer, until

HUNG, WELL, OTHER = ID(b"hung"), ID(b"well"), ID(b"other")
TIMING = Timing(backoff_s=2.0, backoff_cap_s=10.0)


def test_a_suspect_is_probed_once_and_left_out_until_it_answers() -> None:
    probed: list[ID] = []
    silence = Silence(TIMING, lambda: [HUNG, WELL], probed.append)
    assert not silence.leaves_out(HUNG)
    silence.suspect(HUNG)
    silence.suspect(HUNG)
    assert probed == [HUNG]
    assert silence.leaves_out(HUNG)
    assert not silence.leaves_out(WELL)
    silence.clear(HUNG)
    assert not silence.leaves_out(HUNG)


def test_where_everybody_is_silent_the_connected_are_asked() -> None:
    silence = Silence(TIMING, lambda: [HUNG, WELL], lambda _: None)
    for each in (HUNG, WELL, OTHER):
        silence.suspect(each)
    assert [silence.leaves_out(each) for each in (HUNG, WELL, OTHER)] == [False, False, True]


def test_pauses_double_up_to_their_cap() -> None:
    async def scenario() -> list[float]:
        silence, pauses = Silence(TIMING, lambda: [], lambda _: None), []
        assert silence.due(HUNG)
        for _ in range(5):
            silence.confirm(HUNG)
            started = trio.current_time()
            while not silence.due(HUNG):
                await trio.sleep(1)
            pauses.append(trio.current_time() - started)
        silence.clear(HUNG)
        silence.confirm(HUNG)
        started = trio.current_time()
        while not silence.due(HUNG):
            await trio.sleep(1)
        return [*pauses, trio.current_time() - started]

    clock = trio.testing.MockClock(autojump_threshold=0)
    assert trio.run(scenario, clock=clock) == pytest.approx([2, 4, 8, 10, 10, 2])


def test_strangers_do_not_fill_the_memory() -> None:
    silence = Silence(TIMING, lambda: [], lambda _: None)
    for number in range(3000):
        silence.suspect(ID(number.to_bytes(4, "big")))
    assert len(silence._peers) <= 1024


async def test_three_hundred_mute_connections_keep_nobody_out() -> None:
    owner = Owner(1)
    async with peer(1) as node:
        host, port = node.addresses[0].split("/")[2], int(node.addresses[0].split("/")[4])
        with contextlib.ExitStack() as mute:
            for _ in range(300):
                mute.enter_context(socket.create_connection((host, port), 5, ("127.0.0.2", 0)))
            async with peer(2, node) as other:
                await until(lambda: other.peers() and node.peers(), "a peer of another address got in")
                assert await other.put(owner.key, owner.record(1)) == 1
            half_open = vars(node._node.host.get_network())["admission"].half_open
            assert half_open["127.0.0.2"] <= admission.HALF_OPEN
