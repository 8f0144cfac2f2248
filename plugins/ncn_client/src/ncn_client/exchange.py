"""One call to a gateway and its reply, without a network; and what a failed one is raised as.

An exchange is a generator that yields calls and is sent their replies. The synchronous and the asynchronous client
drive the same exchanges, so that nothing of the protocol is written twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ncn_framework.errors import (
    CapacityError,
    MalformedRequest,
    NcnError,
    ReplayConflict,
    StageTimeout,
    StoreError,
    VerificationError,
    error_from_code,
)
from ncn_framework.payments import PaymentDue
from ncn_framework.proof import MAX_PROOF_BYTES
from ncn_framework.wire.json import decode, hash_bytes

if TYPE_CHECKING:
    import httpx

__all__ = [
    "Call",
    "Exchange",
    "Pay",
    "Paying",
    "Reply",
    "collect",
    "connection_error",
    "content_of",
    "decoded",
    "is_over",
    "paid",
    "printable",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """An HTTP request.

    Attributes:
        method: such as ``GET``.
        path: with the query, below the gateway's URL.
        content: JSON body.
        timeout_s: time without a byte from the gateway.
        feed: asks for a stream of events and takes its parts as they come; the reply's content is empty then.
    """

    method: str
    path: str
    content: bytes | None = None
    timeout_s: float = 10.0
    feed: Callable[[bytes], object] | None = None


@dataclass(frozen=True)
class Reply:
    """An HTTP response, read to its end."""

    status: int
    content: bytes


Pay = Callable[[PaymentDue], "bytes | str | Awaitable[bytes | str]"]
"""Pays what is due into escrow, on chain, and returns the transaction's hash: 32 bytes, or 0x-hex.

The synchronous client takes a function; the asynchronous one may also be given a coroutine function, and calls a
plain one in a thread of its own.
"""


@dataclass(frozen=True)
class Paying:
    """Asks the caller's function to pay; the reply's content is the transaction's hash, 32 bytes."""

    pay: Pay
    due: PaymentDue


Exchange = Generator[Call | Paying, Reply, T]
"""Yields calls, is sent their replies (or is thrown what went wrong with them), returns the result."""


class _Problem(msgspec.Struct):
    """The members of RFC 9457 that are used; others are ignored, as the RFC asks."""

    code: str = ""
    detail: str = ""


def content_of(call: Call, reply: Reply) -> bytes:
    """Return the body of a reply that is a success.

    Raises:
        NcnError: the error that the gateway names by its code; an unknown code or none at all is the root.
    """
    if 200 <= reply.status < 300:
        return reply.content
    try:
        problem: _Problem = decode(reply.content, _Problem)
    except MalformedRequest:
        problem = _Problem()
    raise error_from_code(
        problem.code,
        printable(problem.detail)
        or f"the gateway answers {call.method} {call.path} with status {reply.status}, unexplained",
    )


def printable(text: str) -> str:
    """Return a gateway's words without what a terminal would obey; bounded."""
    return "".join(c if c.isprintable() else " " for c in text[:2_000])


def decoded(call: Call, reply: Reply, kind: type[T]) -> T:
    """Return the body of a successful reply as a struct.

    Raises:
        NcnError: as ``content_of``.
        VerificationError: the body is not of that form.
    """
    content = content_of(call, reply)
    try:
        return decode(content, kind, max_brackets=1 << 20)  # type: ignore[no-any-return]
    except MalformedRequest as cause:
        raise VerificationError(f"{call.method} {call.path}", str(cause)) from cause


def paid(transaction: bytes | str) -> Reply:
    """Return the reply to ``Paying``.

    Raises:
        MalformedRequest: what the caller's function returned is no hash of a transaction.
    """
    if isinstance(transaction, str):
        return Reply(200, hash_bytes(transaction, "the hash of the transaction that pays"))
    if not isinstance(transaction, bytes) or len(transaction) != 32:
        raise MalformedRequest(f"the function that pays returned {transaction!r:.80}, no hash of a transaction")
    return Reply(200, bytes(transaction))


def is_over(error: BaseException) -> bool:
    """Return whether a request that ended with ``error`` is known not to run: it was not sent, or a gateway says so."""
    import httpx

    cause = error.__cause__
    if isinstance(cause, httpx.HTTPError):
        return isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    unknown = (ReplayConflict, StoreError, VerificationError)
    return isinstance(error, NcnError) and type(error) is not NcnError and not isinstance(error, unknown)


def collect(body: bytearray, part: bytes) -> None:
    """Add a part to a body that is being read.

    Raises:
        VerificationError: it grows larger than any answer may be.
    """
    body += part
    if len(body) > MAX_PROOF_BYTES:
        raise VerificationError("body", f"the gateway sends more than {MAX_PROOF_BYTES} bytes")


def connection_error(gateway: str, call: Call, cause: httpx.HTTPError) -> NcnError:
    """Return what trouble with the connection is raised as: it names the address and the remedy."""
    import httpx

    why = str(cause) or type(cause).__name__
    if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
        return CapacityError(
            f"no gateway at {gateway} ({why}); start one with `ncn serve`, "
            "or name another: --gateway, NCN_CLIENT_GATEWAY"
        )
    if isinstance(cause, httpx.TimeoutException):
        return StageTimeout(
            f"the gateway at {gateway} was silent for {call.timeout_s:g} s after {call.method} {call.path}; "
            "give it more time (timeout_s, NCN_CLIENT_TIMEOUT_MS)"
        )
    return CapacityError(
        f"the connection to the gateway at {gateway} broke in {call.method} {call.path} ({why}); "
        "send the same prepared request again: it is executed once"
    )
