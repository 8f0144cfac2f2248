"""Questions over direct streams between real peers: answered, bounded, limited in time, and no end of the host."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import trio

from ncn_registry.swarm import Swarm, SwarmError
from ncn_registry.swarm.limits import ASKED_AT_ONCE, QUESTION_BYTES, QUESTIONS_OF_PEER, VALIDATION_PROTOCOL

from .swarm_records import QUICK, peer, until

IMPATIENT = replace(QUICK, question_s=0.5, answer_s=1.0)


async def echo(question: bytes, asker: str) -> bytes:
    """Answer with who asked and what."""
    return asker.encode() + b":" + question


async def ask(asker: Swarm, other: Swarm, question: bytes, timeout_s: float = 20) -> bytes:
    return await asker.ask(other.peer_id, other.addresses, question, timeout_s)


async def raw_stream(asker: Swarm, other: Swarm, data: bytes, *, wait_s: float = 20) -> bytes:
    """Send ``data`` as it is over a stream of the protocol; return what comes back before it ends."""
    if not any(known.peer_id == other.peer_id for known in asker.peers()):
        await asker.connect(other.addresses[0])

    async def exchange() -> bytes:
        host = asker._node.host
        (target,) = (known for known in host.get_connected_peers() if str(known) == other.peer_id)
        stream = await host.new_stream(target, [VALIDATION_PROTOCOL])  # type: ignore[list-item]
        await stream.write(data)
        found = b""
        with trio.move_on_after(wait_s) as scope:
            try:
                while piece := await stream.read(4096):
                    found += piece
            except Exception as error:
                found += b"|" + type(error).__name__.encode()
        assert not scope.cancelled_caught, "the stream was not ended by the peer"
        return found

    return await asker._bridge.call(exchange)


async def test_a_peer_answers_and_knows_who_asks() -> None:
    async with peer(1, asked=echo) as first, peer(2) as second:
        assert second.peers() == []
        assert await ask(second, first, b"what?") == second.peer_id.encode() + b":what?"
        assert await ask(second, first, b"") == second.peer_id.encode() + b":"
        bare = [address.split("/p2p/")[0] for address in first.addresses]
        assert await second.ask(first.peer_id, bare, b"again", 20) == second.peer_id.encode() + b":again"


async def test_the_largest_question_and_answer_pass() -> None:
    async def back(question: bytes, asker: str) -> bytes:
        return question

    large = bytes(range(256)) * (QUESTION_BYTES // 256)
    async with peer(1, asked=back) as first, peer(2, first) as second:
        assert await ask(second, first, large, 60) == large
        with pytest.raises(SwarmError, match="passes the"):
            await ask(second, first, large + b"x")


async def test_many_questions_at_once_are_all_answered() -> None:
    async with peer(1, asked=echo) as first, peer(2, first) as second:
        answers = await asyncio.gather(*(ask(second, first, b"%d" % n) for n in range(3 * ASKED_AT_ONCE)))
        assert [answer.split(b":")[1] for answer in answers] == [b"%d" % n for n in range(3 * ASKED_AT_ONCE)]


async def test_who_takes_no_questions_is_an_error() -> None:
    async with peer(1) as first, peer(2, first) as second:
        with pytest.raises(SwarmError, match="without an answer"):
            await ask(second, first, b"what?")
        absent = peer(3)
        with pytest.raises(SwarmError, match="cannot be reached"):
            await second.ask(absent.peer_id, ["/ip4/127.0.0.1/tcp/1"], b"what?", 20)
        with pytest.raises(SwarmError, match="no address"):
            await second.ask(absent.peer_id, [], b"what?", 20)
        with pytest.raises(SwarmError, match=r"names no peer|multiaddr"):
            await second.ask("nobody", ["/ip4/127.0.0.1/tcp/1"], b"what?", 20)


async def test_a_handler_that_raises_takes_nobody_down(caplog: pytest.LogCaptureFixture) -> None:
    async def bad(question: bytes, asker: str) -> bytes:
        if question == b"secret words":
            raise RuntimeError(question.decode())
        return b"fine"

    async with peer(1, asked=bad) as first, peer(2, first) as second:
        with pytest.raises(SwarmError, match="without an answer"):
            await ask(second, first, b"secret words")
        assert await ask(second, first, b"and now?") == b"fine"
    assert "RuntimeError" in caplog.text
    assert "secret words" not in caplog.text


async def test_an_answer_that_is_too_large_is_not_sent() -> None:
    async def too_much(question: bytes, asker: str) -> bytes:
        return bytes(QUESTION_BYTES + 1)

    async with peer(1, asked=too_much) as first, peer(2, first) as second:
        with pytest.raises(SwarmError, match="without an answer"):
            await ask(second, first, b"what?")


async def test_a_peer_that_hangs_costs_the_time_limit_and_no_more() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(question: bytes, asker: str) -> bytes:
        if question == b"quick":
            return b"here"
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with peer(1, asked=hang, timing=IMPATIENT) as first, peer(2, first) as second:
        with pytest.raises(SwarmError, match=r"no answer within 0\.3 s"):
            await ask(second, first, b"slow", 0.3)
        assert await ask(second, first, b"quick") == b"here"
        await asyncio.wait_for(ended.wait(), 20)  # answer_s ended it there, too
        assert begun.is_set()


async def test_an_asker_that_is_cancelled_leaves_the_connection_whole() -> None:
    begun = asyncio.Event()

    async def slow_once(question: bytes, asker: str) -> bytes:
        if question == b"slow":
            begun.set()
            await asyncio.Event().wait()
        return b"here"

    async with peer(1, asked=slow_once, timing=IMPATIENT) as first, peer(2, first) as second:
        for _ in range(3):
            begun.clear()
            asking = asyncio.create_task(ask(second, first, b"slow"))
            await begun.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        large = asyncio.create_task(ask(second, first, bytes(QUESTION_BYTES)))
        await asyncio.sleep(0)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        assert await ask(second, first, b"quick") == b"here"


async def test_idle_streams_end_and_free_their_places() -> None:
    async with peer(1, asked=echo, timing=IMPATIENT) as first, peer(2, first) as second:
        ends = await asyncio.gather(*(raw_stream(second, first, b"\0\0") for _ in range(QUESTIONS_OF_PEER)))
        assert all(end.startswith(b"|") for end in ends)
        half = (100).to_bytes(4, "big") + b"half of it"
        assert (await raw_stream(second, first, half)).startswith(b"|")
        questions = first._node.questions
        await until(lambda: not questions._open and not questions._bytes, "nothing is held any more")
        assert await ask(second, first, b"what?")


async def test_one_peer_cannot_hold_more_streams_than_its_share() -> None:
    async with peer(1, asked=echo, timing=replace(QUICK, question_s=3.0)) as first, peer(2, first) as second:
        idle = [asyncio.create_task(raw_stream(second, first, b"\0\0")) for _ in range(QUESTIONS_OF_PEER)]
        questions = first._node.questions
        await until(lambda: questions._open.total() == QUESTIONS_OF_PEER, "its share is taken")
        with pytest.raises(SwarmError, match="without an answer"):
            await ask(second, first, b"what?")
        async with peer(3, first) as third:
            assert (await ask(third, first, b"what?")).endswith(b":what?"), "others have a share of their own"
        await asyncio.gather(*idle)


@pytest.mark.parametrize("head", [b"\xff\xff\xff\xff", (QUESTION_BYTES + 1).to_bytes(4, "big")])
async def test_a_question_that_announces_too_much_is_refused_at_once(head: bytes) -> None:
    async with peer(1, asked=echo) as first, peer(2, first) as second:
        assert (await raw_stream(second, first, head)).startswith(b"|")
        assert await ask(second, first, b"what?")


async def test_closing_while_a_question_is_answered_is_clean() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(question: bytes, asker: str) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with peer(2) as second:
        async with peer(1, asked=hang) as first:
            asking = asyncio.create_task(ask(second, first, b"slow"))
            await begun.wait()
        await asyncio.wait_for(ended.wait(), 20)
        with pytest.raises(SwarmError):
            await asking
