"""What a failed call to a gateway is raised as."""

from __future__ import annotations

import httpx
import pytest

from ncn_client import AsyncClient, Client
from ncn_client import exchange as exchange_module
from ncn_framework.errors import (
    CapacityError,
    ConfigError,
    NcnError,
    NoCapacity,
    StageTimeout,
    VerificationError,
)

from .fakes import FakeGateway

TEXTS = {"text": ["one", "three"]}


def test_typed_errors(client: Client, gateway: FakeGateway) -> None:
    problem = {"code": "no-capacity", "detail": "busy\x1b[2J", "status": 503, "hint": "unknown members are ignored"}
    gateway.broken = httpx.Response(503, json=problem)
    with pytest.raises(NoCapacity, match=r"^busy \[2J$"):
        client.health()
    gateway.broken = httpx.Response(502, json={"code": "verification", "detail": "a.b: wrong"})
    with pytest.raises(VerificationError) as caught:
        client.health()
    assert caught.value.where == "a.b"


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(418, json={"code": "teapot", "detail": "short and stout"}),
        httpx.Response(500, content=b"<html>"),
        httpx.Response(500, content=b"[" * 100_000),
        httpx.Response(500, content=b"\xff"),
        httpx.Response(307, headers={"location": "http://elsewhere"}),
    ],
)
def test_unknown_errors(client: Client, gateway: FakeGateway, response: httpx.Response) -> None:
    gateway.broken = response
    with pytest.raises(NcnError, match=f"short and stout|status {response.status_code}") as caught:
        client.health()
    assert type(caught.value) is NcnError


@pytest.mark.parametrize("content", [b"", b"[]", b'{"id":1}', b"\xff", b'{"receipt":1}', b"[" * 100_000])
def test_an_answer_of_another_form(client: Client, gateway: FakeGateway, content: bytes) -> None:
    task = client.submit("minilm", TEXTS)
    gateway.broken = httpx.Response(200, content=content)
    for call in (lambda: client.send(task.prepared), lambda: client.get(task), lambda: client.proof(task)):
        with pytest.raises(VerificationError):
            call()


def test_an_answer_without_end(client: Client, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_PROOF_BYTES", 10)
    gateway.broken = httpx.Response(200, content=b"x" * 11)
    with pytest.raises(VerificationError, match="more than 10 bytes"):
        client.health()


@pytest.mark.parametrize(
    ("trouble", "kind", "remedy"),
    [
        (httpx.ConnectError("refused"), CapacityError, "`ncn serve`"),
        (httpx.ConnectTimeout(""), CapacityError, "`ncn serve`"),
        (httpx.ReadTimeout(""), StageTimeout, "timeout_s"),
        (httpx.ReadError(""), CapacityError, "again"),
        (httpx.RemoteProtocolError("cut"), CapacityError, "cut"),
    ],
)
async def test_trouble_with_the_connection(
    client: Client,
    asking: AsyncClient,
    gateway: FakeGateway,
    trouble: Exception,
    kind: type[NcnError],
    remedy: str,
) -> None:
    gateway.broken = trouble
    with pytest.raises(kind, match="http://gateway") as caught:
        client.health()
    assert remedy in str(caught.value)
    with pytest.raises(kind, match=remedy):
        await asking.health()


def test_nobody_listens() -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(CapacityError, match=r"http://127\.0\.0\.1:1 "):
        client.health()


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://host:port"])
def test_a_gateway_that_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match=url):
        Client(url)
    with pytest.raises(ConfigError, match=url):
        AsyncClient(url)
