"""The embedded chain over HTTP: what may be asked, by whom, and how it is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from ncn_framework.errors import ChainError
from ncn_framework.signing import Signer
from ncn_payments.chain import Chain
from ncn_payments.chain.rpc import RpcChain
from ncn_payments.chain_rpc import METHODS, chain_route
from ncn_payments.errors import RpcError
from ncn_payments.transactions import Call

from .sending import raw, send

SOMEBODY = b"\x07" * 20


def transport(chain: Chain, peer: str = "127.0.0.1") -> httpx.ASGITransport:
    return httpx.ASGITransport(Starlette(routes=[chain_route(chain)]), client=(peer, 5), raise_app_exceptions=True)


@pytest.fixture
async def http(embedded: Chain) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=transport(embedded), base_url="http://gateway") as client:
        yield client


async def post(http: httpx.AsyncClient, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await http.post("/chain", content=content, headers={"content-type": "application/json", **headers})


def asked(method: str, *params: Any, identity: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identity, "method": method, "params": list(params)}


async def test_serves_a_chain(embedded: Chain, deployer: Signer) -> None:
    remote = RpcChain(("http://127.0.0.1:8080/chain",), 31337, transport=transport(embedded))
    async with remote:
        receipt = await send(remote, deployer, 0, Call(SOMEBODY), value=3)
        assert receipt["status"] == "0x1"
        assert await remote.balance(SOMEBODY) == await embedded.balance(SOMEBODY) == 3
        with pytest.raises(RpcError, match="nonce too low") as caught:
            await remote.request("eth_sendRawTransaction", [raw(deployer, 0, Call(SOMEBODY))])
        assert caught.value.code == -32000


async def test_every_method_is_one_of_the_chain(embedded: Chain) -> None:
    for method in METHODS:
        try:
            await embedded.request(method)
        except RpcError as error:
            if error.code == -32601:
                raise


@pytest.mark.parametrize(
    "method", ["evm_increaseTime", "evm_mine", "evm_setAutomine", "anvil_setBalance", "eth_sign", ""]
)
async def test_no_controls(http: httpx.AsyncClient, embedded: Chain, method: str) -> None:
    answer = (await post(http, asked(method, 5))).json()
    assert answer == {
        "jsonrpc": "2.0",
        "id": 1,
        "error": {"code": -32601, "message": f"the method {method} does not exist/is not available"},
    }
    assert await embedded.block_number() == 0


async def test_ids_are_returned(http: httpx.AsyncClient) -> None:
    for identity in (0, 7, "seven", None):
        assert (await post(http, asked("eth_chainId", identity=identity))).json() == {
            "jsonrpc": "2.0",
            "id": identity,
            "result": "0x7a69",
        }


async def test_notifications_have_no_answer(http: httpx.AsyncClient) -> None:
    silent = {"jsonrpc": "2.0", "method": "eth_chainId"}
    for body in (silent, [silent, silent]):
        response = await post(http, body)
        assert (response.status_code, response.content) == (204, b"")


async def test_batches(http: httpx.AsyncClient) -> None:
    body = [asked("eth_chainId", identity=1), 5, asked("eth_blockNumber", identity=2), asked("evm_mine", identity=3)]
    answers = (await post(http, body)).json()
    assert [answer.get("result") for answer in answers] == ["0x7a69", None, "0x0", None]
    assert [answer["id"] for answer in answers] == [1, None, 2, 3]
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32600, None, -32601]
    for bad in ([], [asked("eth_chainId")] * 101):
        assert (await post(http, bad)).json()["error"]["code"] == -32600


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff", -32700),
        (b"[" * 200_000, -32700),
        (5, -32600),
        ({}, -32600),
        ({"jsonrpc": "1.0", "id": 1, "method": "eth_chainId"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": 5}, -32600),
        ({"jsonrpc": "2.0", "id": {}, "method": "eth_chainId"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": {}}, -32602),
        (asked("eth_getBalance", "0x12"), -32602),
        (asked("eth_call", 5), -32602),
    ],
)
async def test_malformed(http: httpx.AsyncClient, body: Any, code: int) -> None:
    response = await post(http, body)
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert (answer["jsonrpc"], answer["error"]["code"]) == ("2.0", code)


async def test_revert_data_comes_through(http: httpx.AsyncClient, embedded: Chain, deployer: Signer) -> None:
    from . import programs

    receipt = await send(embedded, deployer, 0, programs.creation(programs.REVERT))
    call = {"to": receipt["contractAddress"], "data": "0x" + bytes(31).hex() + "05"}
    error = (await post(http, asked("eth_call", call, "latest"))).json()["error"]
    assert (error["code"], error["data"]) == (3, call["data"])


async def test_too_large(http: httpx.AsyncClient) -> None:
    assert (await post(http, b" " * (1 << 20) + b"{}")).status_code == 413


async def test_others_are_refused(embedded: Chain) -> None:
    for peer, status in (("127.0.0.1", 200), ("::1", 200), ("192.0.2.1", 403), ("testclient", 403)):
        async with httpx.AsyncClient(transport=transport(embedded, peer), base_url="http://gateway") as client:
            assert (await post(client, asked("eth_chainId"))).status_code == status


async def test_pages_of_a_browser_are_refused(http: httpx.AsyncClient) -> None:
    body = json.dumps(asked("eth_chainId")).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert (await http.post("/chain", content=body, headers={"content-type": kind})).status_code == 415
    assert (await http.get("/chain")).status_code == 405


async def test_a_chain_in_trouble(embedded: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    for trouble, message in ((ChainError("the disk is full"), "the disk is full"), (KeyError("x"), "Internal error")):

        async def failing(*_: Any, trouble: Exception = trouble) -> Any:
            raise trouble

        monkeypatch.setattr(embedded, "request", failing)
        async with httpx.AsyncClient(transport=transport(embedded), base_url="http://gateway") as client:
            answer = (await post(client, asked("eth_chainId"))).json()
        assert answer["error"] == {"code": -32603, "message": message}
