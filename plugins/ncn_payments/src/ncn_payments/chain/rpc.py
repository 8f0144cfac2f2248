"""A chain behind JSON-RPC over HTTP: one or several URLs, asked again and in turn when they fail."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from ncn_framework.errors import ChainError, ConfigError

from ..errors import ChainUnreachable, RpcError
from .interface import Chain, quantity

__all__ = ["RpcChain"]

logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every URL, and providers put keys into URLs

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_MOST_BYTES = 64 << 20
_BUSY_CODES = frozenset({-32005, -32097})
"""What providers answer, with status 200, to who asks too often (EIP-1474's "limit exceeded", and Alchemy's)."""


class _Answer(msgspec.Struct):
    result: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


class _Busy(Exception):
    """This URL has no answer now; another one, or the same later, may have."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class RpcChain(Chain):
    """Asks the URL that answered last; where it fails, the next, with growing pauses between the rounds.

    A URL is used once it was found to have the right chain id. Requests can be sent again safely, transactions
    among them: they are signed, and a second copy is refused as known.

    Args:
        urls: http:// or https://; they may hold keys, and are never part of an error: hosts are.
        chain_id: EIP-155 chain id that each must have.
        timeout_s: for one answer of one URL.
        patience_s: for one request in all.
        transport: for tests.

    Raises:
        ChainError: (of a request) no URL has this chain id.
    """

    def __init__(
        self,
        urls: Sequence[str],
        chain_id: int,
        *,
        timeout_s: float = 10.0,
        patience_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.chain_id = chain_id
        self._hosts = [urlsplit(url).netloc.rpartition("@")[2] for url in urls]
        if all(urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost") for url in urls):
            self.poll_s = 0.1
        self._urls = list(urls)
        self._checked = [False] * len(urls)
        self._current = 0
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._transport = transport
        self._ids = itertools.count(1)
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            timeout=self._timeout_s, transport=self._transport, follow_redirects=False, trust_env=True
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        deadline = time.monotonic() + self._patience_s
        reasons: dict[str, str] = {}
        attempt = 0
        while True:
            place = self._current
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    if not self._checked[place]:
                        await self._check(place)
                    return await self._ask(place, method, params)
            except (_Busy, TimeoutError) as error:
                reasons[self._hosts[place]] = str(error) or "no answer in time"
                pause = error.pause_s if isinstance(error, _Busy) else 0.0
            attempt += 1
            self._current = (place + 1) % len(self._urls)
            if attempt % len(self._urls) == 0:
                around = attempt // len(self._urls) - 1
                pause = max(pause, min(_FIRST_PAUSE_S * 2**around, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))
            if time.monotonic() + pause >= deadline:
                raise ChainUnreachable(
                    f"{method}: the chain did not answer within {self._patience_s:g} s: "
                    + "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
                )
            await asyncio.sleep(pause)

    async def _check(self, place: int) -> None:
        found = quantity(await self._ask(place, "eth_chainId", ()))
        if found != self.chain_id:
            raise ConfigError(
                f"the chain at {self._hosts[place]} has id {found}, not {self.chain_id}; "
                "correct RPC_URL or NCN_CHAIN_ID"
            )
        self._checked[place] = True

    async def _ask(self, place: int, method: str, params: Sequence[Any]) -> Any:
        """Return the result of one attempt at one URL."""
        if self._client is None:
            raise ChainUnreachable("the chain's connection is closed; enter it with `async with` first")
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}
        try:
            response = await self._client.post(
                self._urls[place], content=msgspec.json.encode(body), headers={"content-type": "application/json"}
            )
        except httpx.HTTPError as cause:  # its text may repeat the URL
            raise _Busy(type(cause).__name__) from cause
        if response.status_code == 429 or response.status_code >= 500:
            raise _Busy(f"HTTP {response.status_code}", _retry_after(response))
        if len(response.content) > _MOST_BYTES:
            raise ChainError(f"{method}: {self._hosts[place]} answered {len(response.content)} bytes")
        try:
            answer = _decode(response.content)
        except (msgspec.DecodeError, RecursionError) as cause:
            raise ChainError(
                f"{method}: {self._hosts[place]} answered HTTP {response.status_code} and no JSON-RPC; "
                "is RPC_URL the address of a chain's JSON-RPC?"
            ) from cause
        if answer.error is None:
            return answer.result
        error = answer.error if isinstance(answer.error, dict) else {"message": str(answer.error)}
        code = error.get("code")
        if code in _BUSY_CODES:
            raise _Busy(f"limit exceeded (code {code})", 1.0)
        number = code if isinstance(code, int) else -32603
        raise RpcError(number, str(error.get("message", ""))[:1000], error.get("data"), method)


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the server asks to wait (RFC 9110, section 10.2.3), in its numeric form."""
    text = response.headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isdigit() else 0.0
