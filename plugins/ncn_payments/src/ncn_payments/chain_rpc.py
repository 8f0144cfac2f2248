"""``POST /chain``: the embedded chain's JSON-RPC 2.0 (execution-apis) for the other processes of this machine.

Reads and signed transactions only: what moves the clock or the blocks is not reachable. Peers that are not on
loopback are refused, and so is any body that is not ``application/json``: a page in a browser cannot send that to
another origin without being asked first (Fetch, "CORS-safelisted request-header").
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ncn_framework.errors import ChainError, MalformedRequest
from ncn_framework.wire.json import decode

from .chain import Chain
from .errors import RpcError

__all__ = ["METHODS", "chain_route"]

log = logging.getLogger(__name__)

METHODS = frozenset(
    {
        "eth_accounts",
        "eth_blockNumber",
        "eth_call",
        "eth_chainId",
        "eth_estimateGas",
        "eth_gasPrice",
        "eth_getBalance",
        "eth_getBlockByHash",
        "eth_getBlockByNumber",
        "eth_getCode",
        "eth_getLogs",
        "eth_getStorageAt",
        "eth_getTransactionByHash",
        "eth_getTransactionCount",
        "eth_getTransactionReceipt",
        "eth_maxPriorityFeePerGas",
        "eth_sendRawTransaction",
        "eth_syncing",
        "net_version",
        "web3_clientVersion",
    }
)
"""What may be asked."""

_MOST_BYTES = 1 << 20
_MOST_IN_BATCH = 100
_PARSE, _INVALID_REQUEST, _NO_METHOD, _INTERNAL = -32700, -32600, -32601, -32603
_JSON = "application/json"


def chain_route(chain: Chain, path: str = "/chain") -> Route:
    """Return the route that asks ``chain``."""

    async def answer(request: Request) -> Response:
        if not _is_local(request):
            return Response(
                "the embedded chain answers programs on its own machine only\n", 403, media_type="text/plain"
            )
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            return Response(f"send {_JSON}\n", 415, media_type="text/plain")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return _reply(_error(None, _INVALID_REQUEST, f"more than {_MOST_BYTES} bytes"), 413)
        return await _answer(chain, bytes(body))

    return Route(path, answer, methods=["POST"])


async def _answer(chain: Chain, body: bytes) -> Response:
    try:
        asked = decode(body, Any)
    except MalformedRequest:
        return _reply(_error(None, _PARSE, "Parse error"))
    if not isinstance(asked, list):
        reply = await _one(chain, asked)
        return Response(status_code=204) if reply is None else _reply(reply)
    if not 0 < len(asked) <= _MOST_IN_BATCH:
        return _reply(_error(None, _INVALID_REQUEST, f"a batch has 1 to {_MOST_IN_BATCH} requests"))
    replies = [reply for reply in await asyncio.gather(*(_one(chain, one) for one in asked)) if reply is not None]
    return _reply(replies) if replies else Response(status_code=204)


async def _one(chain: Chain, asked: Any) -> dict[str, Any] | None:
    """Return the answer to one request; None for a notification, which wants none."""
    if not isinstance(asked, dict) or asked.get("jsonrpc") != "2.0" or not isinstance(asked.get("method"), str):
        return _error(None, _INVALID_REQUEST, "Invalid Request")
    identity, method, params = asked.get("id"), asked["method"], asked.get("params", [])
    if not isinstance(identity, str | int | float | None):
        return _error(None, _INVALID_REQUEST, "Invalid Request: id is no string or number")
    if not isinstance(params, list):
        reply = _error(identity, -32602, "params is not a list")
    elif method not in METHODS:
        reply = _error(identity, _NO_METHOD, f"the method {method[:64]} does not exist/is not available")
    else:
        reply = await _ask(chain, identity, method, params)
    return reply if "id" in asked else None


async def _ask(chain: Chain, identity: Any, method: str, params: Sequence[Any]) -> dict[str, Any]:
    try:
        return {"jsonrpc": "2.0", "id": identity, "result": await chain.request(method, params)}
    except RpcError as error:
        return _error(identity, error.code, error.reason, error.data)
    except ChainError as error:
        return _error(identity, _INTERNAL, str(error))
    except Exception:  # a defect; who asked shall still have an answer of the protocol's form
        log.exception("%s could not be answered", method)
        return _error(identity, _INTERNAL, "Internal error")


def _error(identity: Any, code: int, message: str, data: Any = None) -> dict[str, Any]:
    error = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": identity, "error": error}


def _reply(body: dict[str, Any] | Iterable[dict[str, Any]], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type=_JSON)


def _is_local(request: Request) -> bool:
    if request.client is None:  # a Unix socket, or no socket at all
        return True
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
