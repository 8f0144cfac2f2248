"""Several URLs, failures of every kind, and what is said when nobody answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from ncn_framework.errors import ChainError, ConfigError
from ncn_payments.chain import rpc
from ncn_payments.chain.rpc import RpcChain
from ncn_payments.errors import ChainUnreachable, RpcError

A, B = "http://a.example/v2/SECRET-A", "https://user:SECRET-P@b.example/SECRET-B"


class Servers:
    """Answers for several hosts; what each does is a list of behaviours, the last of which stays."""

    def __init__(self, **hosts: list[Any]) -> None:
        self.hosts = hosts
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host.partition(".")[0]
        body = json.loads(request.content)
        self.asked.append((host, body["method"]))
        behaviours = self.hosts[host]
        behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        if isinstance(behaviour, Exception):
            raise behaviour
        if isinstance(behaviour, httpx.Response):
            return behaviour
        answer = behaviour(body["method"])
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": body["id"], **answer})


def fine(chain_id: int = 5) -> Callable[[str], dict[str, Any]]:
    return lambda method: {"result": hex(chain_id if method == "eth_chainId" else 77)}


def failing(code: int, message: str = "no", data: Any = None) -> Callable[[str], dict[str, Any]]:
    error = {"code": code, "message": message, **({} if data is None else {"data": data})}
    return lambda method: {"result": hex(5)} if method == "eth_chainId" else {"error": error}


def chain(servers: Servers, *urls: str, patience_s: float = 5.0) -> RpcChain:
    return RpcChain(urls or (A, B), 5, patience_s=patience_s, transport=httpx.MockTransport(servers))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(rpc, "_LONGEST_PAUSE_S", 0.001)


async def test_stays_with_whoever_answers() -> None:
    servers = Servers(a=[fine()], b=[fine()])
    async with chain(servers) as asked:
        for _ in range(3):
            assert await asked.block_number() == 77
    assert servers.asked == [("a", "eth_chainId"), *[("a", "eth_blockNumber")] * 3]


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.Response(500),
        httpx.Response(503, headers={"retry-after": "0"}),
        httpx.Response(429),
        failing(-32005, "limit exceeded"),
    ],
)
async def test_goes_over_to_another(trouble: Any) -> None:
    servers = Servers(a=[fine(), fine(), trouble], b=[fine()])
    async with chain(servers) as asked:
        assert await asked.block_number() == 77
        assert await asked.block_number() == 77
        assert await asked.block_number() == 77
    assert servers.asked[-3:] == [("b", "eth_chainId"), ("b", "eth_blockNumber"), ("b", "eth_blockNumber")]


async def test_tries_one_url_again() -> None:
    servers = Servers(a=[httpx.ConnectError("x"), fine(), httpx.Response(502), httpx.Response(429), fine()])
    async with chain(servers, A) as asked:
        assert await asked.block_number() == 77
    assert [method for _, method in servers.asked] == ["eth_chainId"] * 2 + ["eth_blockNumber"] * 3


async def test_gives_up_and_says_why_without_keys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    servers = Servers(a=[httpx.ConnectError(f"cannot reach {A}")], b=[httpx.Response(503)])
    async with chain(servers, patience_s=0.05) as asked:
        with pytest.raises(ChainUnreachable) as caught:
            await asked.block_number()
    text = str(caught.value)
    assert "eth_blockNumber" in text
    assert "a.example: ConnectError" in text
    assert "b.example: HTTP 503" in text
    assert len(servers.asked) > 4
    assert "SECRET" not in text + caplog.text


async def test_urls_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with chain(Servers(a=[fine()]), A) as asked:
        await asked.block_number()
    assert "SECRET" not in caplog.text


async def test_an_error_of_the_chain_is_an_answer() -> None:
    servers = Servers(a=[fine(), failing(3, "execution reverted", "0x1234")], b=[fine()])
    async with chain(servers) as asked:
        with pytest.raises(RpcError) as caught:
            await asked.request("eth_call", [{}])
    assert (caught.value.code, caught.value.reason, caught.value.revert_data) == (3, "execution reverted", b"\x124")
    assert ("b", "eth_call") not in servers.asked


async def test_another_chain() -> None:
    async with chain(Servers(a=[fine(chain_id=1)]), A) as asked:
        with pytest.raises(ConfigError, match=r"a\.example has id 1, not 5"):
            await asked.block_number()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b"[" * 100_000])
async def test_no_json_rpc(body: bytes) -> None:
    async with chain(Servers(a=[httpx.Response(200, content=body)]), A) as asked:
        with pytest.raises(ChainError, match="no JSON-RPC"):
            await asked.block_number()


async def test_closed() -> None:
    asked = chain(Servers(a=[fine()]), A)
    with pytest.raises(ChainUnreachable, match="closed"):
        await asked.block_number()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("0x1234", b"\x124"),
        ({"data": "0x1234"}, b"\x124"),
        ("Reverted 0x1234", b"\x124"),
        ("0x", b""),
        ("0x1", None),
        (None, None),
        ("no hex", None),
        ({"other": 1}, None),
    ],
)
def test_revert_data(data: Any, expected: bytes | None) -> None:
    assert RpcError(3, "execution reverted", data).revert_data == expected
