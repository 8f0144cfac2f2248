"""Asks a gateway about payments, over HTTP (``routes``)."""

from __future__ import annotations

import ipaddress
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from ncn_framework.errors import (
    CapacityError,
    ConfigError,
    NcnError,
    SignatureRejected,
    StageTimeout,
    VerificationError,
    error_from_code,
)
from ncn_framework.models import Domain
from ncn_framework.signing import address_from_hex, address_hex
from ncn_framework.wire.json import ErrorJson

from .forms import BatchJson, ChannelJson, PaymentsJson
from .operator_token import OperatorToken

__all__ = ["GatewayClient"]

T = TypeVar("T")

_TIMEOUT_S = 10.0
_SETTLE_S = 3_600.0
_MOST_BYTES = 16 << 20


class GatewayClient:
    """One gateway, entered as an asynchronous context manager.

    Args:
        url: of the gateway, http:// or https://.
        transport: for tests.

    Every method raises:
        CapacityError: nobody answers there.
        StageTimeout: no answer in time.
        VerificationError: the answer is none of a gateway's.
        NcnError: the error that the gateway names.
    """

    def __init__(self, url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"gateway {url!r} is no URL: give http://HOST:PORT or https://HOST")
        self.url = url.rstrip("/")
        self._local = _is_loopback(parts.hostname)
        self._private = self._local or parts.scheme == "https"
        self._http = httpx.AsyncClient(transport=transport, timeout=_TIMEOUT_S, trust_env=not self._local)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def address(self, domain: Domain) -> bytes:
        """Return the gateway's address.

        Args:
            domain: of our network.

        Raises:
            ConfigError: it is a gateway of another network.
        """
        about = await self._ask("GET", "/api/v1/payments", PaymentsJson)
        try:
            contract, gateway = address_from_hex(about.contract), address_from_hex(about.gateway)
        except ValueError as cause:
            raise VerificationError(self.url, f"names no address: {cause}") from cause
        if (about.chain_id, contract) != (domain.chain_id, domain.contract):
            raise ConfigError(
                f"the gateway at {self.url} is paid by contract {address_hex(contract)} on chain {about.chain_id}; "
                f"ours is {address_hex(domain.contract)} on chain {domain.chain_id}: "
                "set RPC_URL, NCN_CHAIN_ID and NCN_PAYMENTS_ADDRESSES to its network, or name another gateway"
            )
        return gateway

    async def channel(self, client: bytes, signer: bytes) -> ChannelJson:
        """Return a channel as the gateway has it; what it says is not checked."""
        return await self._ask("GET", f"/api/v1/channels/{address_hex(client)}/{address_hex(signer)}", ChannelJson)

    async def settle(self, token: OperatorToken) -> list[BatchJson]:
        """Have the gateway settle whatever it has charged.

        Raises:
            ConfigError: the connection would show the token to others.
            SignatureRejected: it is not this gateway's token.
        """
        if not self._private:
            raise ConfigError(f"{self.url} is neither https nor this machine: the operator's token is not sent there")
        headers = {"authorization": token.header}
        return await self._ask("POST", "/api/v1/batches", list[BatchJson], headers, _SETTLE_S)

    async def _ask(
        self,
        method: str,
        path: str,
        form: type[T],
        headers: dict[str, str] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> T:
        try:
            async with self._http.stream(
                method, self.url + path, headers=headers, timeout=httpx.Timeout(timeout_s, connect=_TIMEOUT_S)
            ) as response:
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise VerificationError(self.url, f"{path} answers more than {_MOST_BYTES} bytes")
        except httpx.ConnectError as cause:
            raise CapacityError(f"no gateway answers at {self.url}; start it (ncn serve), or name another") from cause
        except httpx.TimeoutException as cause:
            raise StageTimeout(f"the gateway at {self.url} did not answer {path} in time") from cause
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            raise CapacityError(
                f"the connection to the gateway at {self.url} failed: {type(cause).__name__}"
            ) from cause
        if response.status_code != 200:
            raise self._problem(response.status_code, bytes(body))
        try:
            return msgspec.json.decode(body, type=form)
        except (msgspec.MsgspecError, RecursionError) as cause:
            raise VerificationError(self.url, f"{path} is not answered as a gateway does: {cause}") from cause

    def _problem(self, status: int, body: bytes) -> NcnError:
        try:
            problem = msgspec.json.decode(body, type=ErrorJson)
        except (msgspec.MsgspecError, RecursionError):
            return CapacityError(f"{self.url} answers HTTP {status}, not as a gateway that takes payments does")
        if status == 401:
            return SignatureRejected(f"{self.url}: {problem.detail}")
        return error_from_code(problem.code, f"{self.url}: {problem.detail}")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
