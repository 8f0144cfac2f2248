"""Questions to one peer and their answers, over direct streams of their own protocol.

A stream carries one question: 4 bytes of length, big-endian, and the question; then the answer in the same form.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeAlias

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from .errors import SwarmError
from .limits import (
    ASKED_AT_ONCE,
    QUESTION_BYTES,
    QUESTIONS_BYTES,
    QUESTIONS_OF_PEER,
    QUESTIONS_OF_PEER_BYTES,
    VALIDATION_PROTOCOL,
    Timing,
)

__all__ = ["Questions"]

log = logging.getLogger("ncn_registry.swarm")

Asked: TypeAlias = Callable[[bytes, str], Awaitable[bytes]]

_PIECE = 64 << 10
_HEAD = 4


class Questions:
    """The direct streams of one host, both ways.

    What peers send is bounded: in bytes, in streams of each peer, and in time for each step, so that a peer that says
    nothing, or never ends, costs a stream for a while and no more.

    Args:
        host: whose streams.
        connect: makes a connection to a peer, or raises SwarmError.
        timing: of one step of a question.
        asked: answers a question of a peer: the question, the peer's id. What it raises resets the stream. None: no
            peer's questions are taken.
    """

    def __init__(
        self,
        host: IHost,
        connect: Callable[[PeerInfo], Awaitable[None]],
        timing: Timing,
        asked: Asked | None,
    ) -> None:
        self._host, self._connect, self._timing = host, connect, timing
        self._open = Counter[ID]()
        self._bytes = Counter[ID]()
        self._asking: dict[ID, tuple[trio.CapacityLimiter, trio.Lock]] = {}
        if asked is not None:
            host.set_stream_handler(TProtocol(VALIDATION_PROTOCOL), partial(self._handle, asked))

    # --- asking ---

    async def ask(self, info: PeerInfo, question: bytes) -> bytes:
        """Ask a peer, to which a connection is made where there is none; takes as long as the peer takes.

        Raises:
            SwarmError: it cannot be reached, does not answer such questions, or ended the stream without an answer.
        """
        peer = info.peer_id
        if len(question) > QUESTION_BYTES:
            raise SwarmError(f"a question of {len(question)} bytes passes the {QUESTION_BYTES} that peers take")
        if peer not in self._asking:
            self._asking[peer] = trio.CapacityLimiter(ASKED_AT_ONCE), trio.Lock()
        limiter, dialling = self._asking[peer]
        try:
            async with limiter:
                async with dialling:
                    if peer not in self._host.get_connected_peers():
                        await self._connect(info)
                return await self._exchange(peer, question)
        finally:
            if not limiter.borrowed_tokens and not limiter.statistics().tasks_waiting:
                self._asking.pop(peer, None)

    async def _exchange(self, peer: ID, question: bytes) -> bytes:
        stream, answered = None, False
        try:
            stream = await self._host.new_stream(peer, [TProtocol(VALIDATION_PROTOCOL)])
            await stream.write(len(question).to_bytes(_HEAD, "big") + question)
            answer = await self._read(stream, int.from_bytes(await self._exactly(stream, _HEAD), "big"))
            answered = True
            return answer
        except SwarmError:
            raise
        except Exception as error:  # the library raises many classes
            raise SwarmError(f"peer {peer} ended the stream without an answer ({type(error).__name__})") from error
        finally:
            if stream is not None:
                with suppress(Exception):
                    await (stream.close() if answered else stream.reset())

    # --- answering ---

    async def _handle(self, asked: Asked, stream: INetStream) -> None:
        peer, answered = stream.muxed_conn.peer_id, False
        try:
            async with self._slot(peer):
                answered = await self._answer(asked, stream, peer)
        except SwarmError as error:
            log.info("%s", error)
        except trio.TooSlowError:
            log.info("peer %s took too long over a question", peer)
        except StreamError as error:
            # Mostly an asker that has enough answers of others.
            log.debug("peer %s ended a question's stream: %s", peer, type(error).__name__)
        except Exception as error:  # a stranger's bytes, or the answering itself: the host lives on
            # Its message may hold what the peer sent: the class alone is logged.
            log.warning("a question of peer %s was not answered: %s", peer, type(error).__name__)
        finally:
            with suppress(Exception):
                await (stream.close() if answered else stream.reset())

    async def _answer(self, asked: Asked, stream: INetStream, peer: ID) -> bool:
        limit_s = self._timing.question_s
        with trio.fail_after(limit_s):
            size = int.from_bytes(await self._exactly(stream, _HEAD), "big")
            if self._bytes[peer] + size > QUESTIONS_OF_PEER_BYTES or self._bytes.total() + size > QUESTIONS_BYTES:
                raise SwarmError(f"peer {peer} asks too much at once: a question of {size} bytes was refused")
            self._bytes[peer] += size
        try:
            with trio.fail_after(limit_s):
                question = await self._read(stream, size)
            with trio.fail_after(self._timing.answer_s):
                answer = await asked(question, str(peer))
        finally:
            self._bytes[peer] -= size
            if not self._bytes[peer]:
                del self._bytes[peer]
        if len(answer) > QUESTION_BYTES:
            raise SwarmError(f"an answer of {len(answer)} bytes passes the {QUESTION_BYTES} that peers take")
        with trio.fail_after(limit_s):
            await stream.write(len(answer).to_bytes(_HEAD, "big") + answer)
        return True

    @asynccontextmanager
    async def _slot(self, peer: ID) -> AsyncIterator[None]:
        if self._open[peer] >= QUESTIONS_OF_PEER:
            raise SwarmError(f"peer {peer} has {QUESTIONS_OF_PEER} questions open already: one more was refused")
        self._open[peer] += 1
        try:
            yield
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def _read(self, stream: INetStream, size: int) -> bytes:
        if size > QUESTION_BYTES:
            raise SwarmError(f"peer {stream.muxed_conn.peer_id} announces {size} bytes; at most {QUESTION_BYTES}")
        return await self._exactly(stream, size)

    async def _exactly(self, stream: INetStream, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = await stream.read(min(size - len(data), _PIECE))
            if not piece:
                raise SwarmError(f"peer {stream.muxed_conn.peer_id} ended a stream after {len(data)} of {size} bytes")
            data += piece
        return bytes(data)
