"""Reading the body of an HTTP request, within its bound."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from ncn_framework.errors import RequestTooLarge

__all__ = ["read_json"]


async def read_json(request: Request, limit: int) -> bytes:
    """Return the body of a JSON request; what is too large is refused before it is read.

    Args:
        limit: bytes, at most.

    Raises:
        HTTPException: 415 where it is not JSON, or compressed.
        RequestTooLarge: it passes ``limit``.
    """
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise HTTPException(415, "the body must be application/json")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HTTPException(415, "the body must not be compressed", {"accept-encoding": "identity"})
    declared = headers.get(b"content-length", b"")
    fits = not declared.isdigit() or (len(declared) < 20 and int(declared) <= limit)
    room, more, chunks = limit if fits else -1, True, list[bytes]()
    while more and room >= 0:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        room -= len(chunks[-1])
        more = message.get("more_body", False)
    if room < 0:
        raise RequestTooLarge(f"the body is larger than this gateway's limit of {limit} bytes")
    return b"".join(chunks)
