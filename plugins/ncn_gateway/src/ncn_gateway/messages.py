"""What the gateway says of a task while it goes on, and what WebSocket clients ask for: JSON messages with a ``type``.

``/ws/schema.json`` has their schema. Server-sent events carry the same messages.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from ncn_framework.errors import NcnError, code_of
from ncn_framework.models import Event
from ncn_framework.wire.json import (
    AnswerJson,
    ChunkJson,
    Encoding,
    ErrorJson,
    SubmitJson,
    answer_json,
    chunk_json,
    encode,
    error_json,
)
from ncn_framework.wire.json_payments import PaymentJson, payment_json

from .tasks import Task

__all__ = [
    "Accepted",
    "Answer",
    "Cancel",
    "ClientMessage",
    "Failure",
    "Moved",
    "Piece",
    "Ping",
    "Pong",
    "ServerMessage",
    "Submit",
    "Subscribe",
    "name_of",
    "schema",
    "server_sent",
    "updates",
]

Ref = Annotated[str, msgspec.Meta(max_length=128)]
"""The client's own name for a submission, until it knows the id."""


class _Message(msgspec.Struct, tag_field="type", forbid_unknown_fields=True):
    pass


# --- from the client ---


class Submit(_Message, tag="submit"):
    """Submit a request and follow its task; ``accepted`` with the same ``ref`` names the id."""

    ref: Ref
    request: SubmitJson


class Subscribe(_Message, tag="subscribe"):
    """Follow a task behind the update with index ``after``; 0: from its beginning."""

    id: str
    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    encoding: Encoding = "json"


class Cancel(_Message, tag="cancel"):
    """Cancel a task; whoever follows it hears of the move."""

    id: str


class Ping(_Message, tag="ping"):
    """Ask for a ``pong``."""


ClientMessage = Submit | Subscribe | Cancel | Ping

# --- from the server ---


class Accepted(_Message, tag="accepted"):
    """The submission ``ref`` is stored as task ``id``."""

    ref: str
    id: str


class Moved(_Message, tag="event", omit_defaults=True):
    """A task moved into ``state``; into AWAITING_PAYMENT with what its client has to pay."""

    id: str
    index: int
    state: str
    at_ms: int
    detail: str
    payment: PaymentJson | None = None


class Piece(_Message, tag="chunk"):
    """A task gave a chunk."""

    id: str
    index: int
    chunk: ChunkJson


class Answer(_Message, tag="answer"):
    """A task settled; nothing follows."""

    id: str
    answer: AnswerJson


class Failure(_Message, tag="error", omit_defaults=True):
    """A message was refused (``ref`` or ``id`` as it had them), or a task failed (``id``); ``code`` is 4xxx."""

    error: ErrorJson
    code: int
    ref: str | None = None
    id: str | None = None


class Pong(_Message, tag="pong"):
    """The answer to ``ping``."""


ServerMessage = Accepted | Moved | Piece | Answer | Failure | Pong


class _Named(msgspec.Struct):
    """What tells a refused message apart."""

    ref: Ref | None = None
    id: Ref | None = None


def name_of(data: bytes) -> _Named:
    """Return what the client called a message that was refused, as far as it can be read."""
    try:
        return msgspec.json.decode(data, type=_Named)
    except (msgspec.DecodeError, RecursionError):
        return _Named()


def schema() -> dict[str, Any]:
    """Return the JSON schema of every message in both directions."""
    return msgspec.json.schema(ClientMessage | ServerMessage)


async def updates(task: Task, after: int, encoding: Encoding) -> AsyncGenerator[Moved | Piece | Answer | Failure, None]:
    """Yield a message for each update of ``task`` behind the first ``after``, and how it ended last."""
    name = "0x" + task.request.request_id.hex()
    found: Any = task.follow(after)
    async with aclosing(found):
        async for index, update in found:
            if isinstance(update, Event):
                payment = None if update.payment is None else payment_json(update.payment)
                yield Moved(name, index, str(update.state), update.at_ms, update.detail, payment)
            else:
                yield Piece(name, index, chunk_json(update, encoding))
    try:
        outcome = await task.wait()
    except NcnError as error:
        yield Failure(error_json(error, task.request.request_id), code_of(error).websocket, id=name)
    else:
        answer = answer_json(task.request, outcome.chunks, outcome.receipt, outcome.settlement, encoding)
        yield Answer(name, answer)


async def server_sent(task: Task, after: int, encoding: Encoding) -> AsyncGenerator[bytes, None]:
    """Yield the same messages as server-sent events (WHATWG HTML, 9.2); their ``id`` is the update's index."""
    async with aclosing(updates(task, after, encoding)) as messages:
        async for message in messages:
            index = b"id: %d\n" % message.index if isinstance(message, Moved | Piece) else b""
            kind = str(message.__struct_config__.tag).encode()
            yield b"event: %s\n%sdata: %s\n\n" % (kind, index, encode(message))
