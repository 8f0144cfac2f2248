"""The WebSocket ``/ws``: one JSON message per text frame, several tasks at once; ``/ws/schema.json`` has the schema.

A client submits or subscribes and hears each move and chunk of the task with its index, then the answer or the
error. After a break it subscribes anew behind the last index that it has seen.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from ncn_framework.errors import MalformedRequest, NcnError, NoCapacity, RequestError, TaskEnded, code_of
from ncn_framework.states import TERMINAL
from ncn_framework.wire.json import Encoding, ErrorJson, decode, encode, error_json, hash_bytes

from .messages import (
    Accepted,
    Cancel,
    ClientMessage,
    Failure,
    Ping,
    Pong,
    ServerMessage,
    Submit,
    Subscribe,
    name_of,
    schema,
    updates,
)
from .tasks import Task, Tasks

__all__ = ["websocket_routes"]

log = logging.getLogger(__name__)

_OUTBOX = 64
"""Messages that may wait for a client that reads slowly; followers then wait, replies end the connection."""

_FIRST_MESSAGE_S = 30.0
"""How long a client may say nothing at first. Hypercorn 0.18 forgets a connection whose client sends before the
handshake is answered, without a word to the application; nothing else would ever end it here."""

_CLOSE_TIMEOUT_S = 2.0
"""How long a client may say nothing after a close frame."""

_POLICY_VIOLATION, _TOO_BIG, _RESTART = 1008, 1009, 1012  # RFC 6455 and IANA's registry of close codes


class _HangupError(Exception):
    """The connection ends: with a close code, or because the client has gone."""

    def __init__(self, code: int = 0, reason: str = "") -> None:
        self.code, self.reason = code, reason


class _Connection:
    """One client.

    The reader never waits for the client to read: all that is sent goes through the outbox and its one writer.
    So a client that stops reading holds up its own followers and nothing else, and its going is always noticed.
    """

    def __init__(self, websocket: WebSocket, tasks: Tasks, max_message_bytes: int, max_followed: int) -> None:
        self.websocket, self.tasks = websocket, tasks
        self.max_message_bytes, self.max_followed = max_message_bytes, max_followed
        self._outbox: asyncio.Queue[ServerMessage] = asyncio.Queue(_OUTBOX)
        self._busy = 0
        self._followed: set[bytes] = set()

    async def run(self, closing: asyncio.Event) -> None:
        """Serve the client until it goes, it misbehaves, or ``closing`` is set. Tasks go on without it."""
        hangup = _HangupError()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                group.create_task(_hang_up_on(closing))
                await self._read(group)
        except* _HangupError as several:
            found = [each for each in several.exceptions if isinstance(each, _HangupError)]
            hangup = min(found, key=lambda each: each.code)  # 0: nobody is there to be told
        if hangup.code:
            await self._close(hangup)

    async def _close(self, hangup: _HangupError) -> None:
        """Send the close frame, and read on until the client answers it or falls silent.

        Hypercorn cannot close a connection while messages wait that nobody takes.
        """
        async with asyncio.TaskGroup() as group:
            closing = group.create_task(self.websocket.close(hangup.code, hangup.reason))
            with suppress(TimeoutError):
                more = True
                while more:
                    async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                        more = (await self.websocket.receive())["type"] != "websocket.disconnect"
            closing.cancel()

    async def _write(self) -> None:
        while True:
            message = await self._outbox.get()
            try:
                await self.websocket.send_text(encode(message).decode())
            except (WebSocketDisconnect, WebSocketDisconnected) as cause:
                raise _HangupError from cause

    async def _read(self, group: asyncio.TaskGroup) -> None:
        limit_s: float | None = _FIRST_MESSAGE_S
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    message = await self.websocket.receive()
            except TimeoutError as cause:
                raise _HangupError(_POLICY_VIOLATION, f"no message came within {_FIRST_MESSAGE_S:.0f} s") from cause
            limit_s = None
            if message["type"] == "websocket.disconnect":
                raise _HangupError
            data = (message.get("text") or "").encode()
            try:
                if message.get("text") is None:
                    raise MalformedRequest("a binary frame came; send each message as JSON in a text frame")
                if len(data) > self.max_message_bytes:
                    raise _HangupError(_TOO_BIG, f"at most {self.max_message_bytes} bytes in a message")
                await self._take(decode(data, ClientMessage), group)
            except NcnError as error:
                name = name_of(data)
                self._reply(Failure(error_json(error), code_of(error).websocket, name.ref, name.id))

    def _reply(self, message: ServerMessage) -> None:
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull as cause:
            raise _HangupError(_POLICY_VIOLATION, "too many replies wait to be read") from cause

    async def _take(self, message: ClientMessage, group: asyncio.TaskGroup) -> None:
        match message:
            case Ping():
                self._reply(Pong())
            case Cancel():
                await self._cancel(message)
            case Submit() | Subscribe():
                if self._busy >= self.max_followed:
                    raise NoCapacity(
                        f"this connection follows {self._busy} tasks already, the most it may; "
                        "wait for one to end, or open another connection"
                    )
                self._busy += 1
                group.create_task(self._serve(message))

    async def _serve(self, message: Submit | Subscribe) -> None:
        """Do what ``message`` asks; what goes wrong ends that task's messages, not the connection."""
        ref, name = (message.ref, None) if isinstance(message, Submit) else (None, message.id)
        try:
            if isinstance(message, Submit):
                await self._submit(message)
            else:
                await self._subscribe(message)
        except Exception as error:
            if not isinstance(error, NcnError):
                log.exception("a WebSocket message of type %s failed", message.__struct_config__.tag)
            await self._outbox.put(Failure(error_json(error), code_of(error).websocket, ref, name))
        finally:
            self._busy -= 1

    async def _submit(self, message: Submit) -> None:
        task = await self.tasks.submit(self.tasks.admit(message.request))
        await task.settled_or_received()
        await self._outbox.put(Accepted(message.ref, "0x" + task.request.request_id.hex()))
        if task.request.request_id not in self._followed:  # else its messages come already
            await self._follow(task, 0, message.request.encoding)

    async def _subscribe(self, message: Subscribe) -> None:
        task = await self.tasks.get(hash_bytes(message.id, "id"))
        if task.request.request_id in self._followed:
            raise RequestError(f"this connection follows task {message.id} already; its messages come once")
        await self._follow(task, message.after, message.encoding)

    async def _follow(self, task: Task, after: int, encoding: Encoding) -> None:
        self._followed.add(task.request.request_id)
        try:
            async with aclosing(updates(task, after, encoding)) as messages:
                async for message in messages:
                    await self._outbox.put(message)
        finally:
            self._followed.discard(task.request.request_id)

    async def _cancel(self, message: Cancel) -> None:
        task = await self.tasks.get(hash_bytes(message.id, "id"))
        if task.state in TERMINAL:
            self._reply(Failure(resting(task), 4409, id=message.id))
        else:
            task.cancel()


def resting(task: Task) -> ErrorJson:
    """Return the problem of cancelling a task that rests."""
    name = "0x" + task.request.request_id.hex()
    error = TaskEnded(f"task {name} rests in {task.state}; there is nothing to cancel")
    return error_json(error, task.request.request_id)


async def _hang_up_on(closing: asyncio.Event) -> None:
    await closing.wait()
    raise _HangupError(_RESTART, "this gateway stops")


def websocket_routes(
    tasks: Tasks, *, max_message_bytes: int, max_followed: int, closing: asyncio.Event
) -> list[BaseRoute]:
    """Return the routes ``/ws`` and ``/ws/schema.json``.

    Args:
        tasks: of the gateway.
        max_message_bytes: a longer message ends its connection with code 1009.
        max_followed: most tasks that one connection follows at once.
        closing: set when the server is about to stop; connections then end with code 1012.
    """
    document = encode(schema())

    async def connect(websocket: WebSocket) -> None:
        await websocket.accept()
        await _Connection(websocket, tasks, max_message_bytes, max_followed).run(closing)

    async def describe(_: Request) -> Response:
        return Response(document, media_type="application/schema+json")

    return [WebSocketRoute("/ws", connect), Route("/ws/schema.json", describe)]
