"""Asking a gateway about payments: what is not a gateway's answer is an error that names the gateway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ncn_framework.errors import (
    CapacityError,
    ConfigError,
    Draining,
    NcnError,
    SignatureRejected,
    StageTimeout,
    VerificationError,
    error_from_code,
)
from ncn_framework.wire.json import encode, error_json
from ncn_payments.gateway_client import GatewayClient
from ncn_payments.operator_token import OperatorToken

from .payments import CLIENT, DOMAIN

URL = "http://gateway.example:8080"


def answering(handler: Callable[[httpx.Request], httpx.Response], url: str = URL) -> GatewayClient:
    return GatewayClient(url, transport=httpx.MockTransport(handler))


async def refusal(answer: httpx.Response | Exception) -> NcnError:
    def handler(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with answering(handler) as client:
        with pytest.raises(NcnError, match=r"gateway\.example") as caught:
            await client.address(DOMAIN)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.ConnectError("refused"), CapacityError),
        (httpx.ReadTimeout("late"), StageTimeout),
        (httpx.RemoteProtocolError("broken"), CapacityError),
        (httpx.Response(404, text="not here"), CapacityError),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), CapacityError),
        (httpx.Response(200, text="<html>"), VerificationError),
        (httpx.Response(200, json={"chain_id": 1}), VerificationError),
        (httpx.Response(200, content=b"[" * 100_000), VerificationError),
        (httpx.Response(200, content=b" " * ((16 << 20) + 1)), VerificationError),
        (httpx.Response(503, content=encode(error_json(Draining("closing"), None))), Draining),
    ],
)
async def test_each_failure_has_its_error(answer: httpx.Response | Exception, kind: type[NcnError]) -> None:
    assert type(await refusal(answer)) is kind


async def test_an_address_that_is_none(tmp_path: Path) -> None:
    about = {
        "chain_id": 1,
        "token": "",
        "token_name": "",
        "contract": "0x1",
        "registry": "",
        "gateway": "",
        "rpc": None,
    }
    assert isinstance(await refusal(httpx.Response(200, json=about)), VerificationError)


@pytest.mark.parametrize("url", ["", "gateway.example", "ftp://gateway.example", "http://", "file:///etc/passwd"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="is no URL"):
        GatewayClient(url)


async def test_the_token_goes_to_this_machine_or_through_tls_only(tmp_path: Path) -> None:
    token = OperatorToken.renew(tmp_path)
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json=[])

    for url in ("http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost:8080", "https://gateway.example"):
        async with answering(handler, url) as client:
            assert await client.settle(token) == []
    assert seen == [token.header] * 4
    for url in ("http://gateway.example", "http://127.0.0.1.example", "http://10.0.0.1:8080"):
        async with answering(handler, url) as client:
            with pytest.raises(ConfigError, match="is not sent there"):
                await client.settle(token)
    assert len(seen) == 4


async def test_a_token_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    token = OperatorToken.renew(tmp_path)
    problem = encode(error_json(error_from_code("signature-rejected", "not yours"), None))
    async with answering(lambda _: httpx.Response(401, content=problem), "https://gateway.example") as client:
        with pytest.raises(SignatureRejected, match="not yours") as caught:
            await client.settle(token)
    assert token.header[7:] not in str(caught.value)
    assert token.header[7:] not in repr(token)


async def test_a_channel_is_asked_for_by_its_addresses() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        amounts = {f"{name}_wei": "0" for name in ("deposited", "spent", "charged", "held")}
        return httpx.Response(200, json={"channel": "0x", **amounts, "unlock_at_s": 0, "voucher": None})

    async with answering(handler) as client:
        assert (await client.channel(CLIENT.address, CLIENT.address)).held_wei == "0"
    assert asked[0].lower() == f"/api/v1/channels/0x{CLIENT.address.hex()}/0x{CLIENT.address.hex()}"
