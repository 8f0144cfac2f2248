"""What a gateway tells about payments over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from ncn_framework.digests import channel_id
from ncn_framework.errors import Draining, MalformedRequest, TaskEnded, UnknownTask
from ncn_framework.inclusion import InclusionJson, inclusion_from_json
from ncn_framework.node import Node
from ncn_framework.signing import address_hex
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_batches import batch_from_pb
from ncn_framework.wire.json import decode
from ncn_payments import accounts as accounts_module
from ncn_payments.operator_token import OperatorToken
from ncn_payments.routes import payment_routes
from ncn_payments.service import Payments

from .network import Network
from .payments import CLIENT, GATEWAY, NODE, make_charge
from .test_desk import Gateway, opened

UNIT = 10**15 + 7
MakeNode = Callable[..., Node]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a channel be asked for again without a pause."""
    monkeypatch.setattr(accounts_module, "_PAUSE_S", 0.0)


@pytest.fixture
async def gateway(network: Network, make_node: MakeNode) -> AsyncIterator[Gateway]:
    async with opened(network, make_node) as made:
        yield made


@pytest.fixture
def payments(gateway: Gateway, network: Network) -> Payments:
    made = Payments(gateway.node)
    made.desk, made.chain = gateway.desk, network.chain
    made.operator_token = OperatorToken("secret")
    return made


@pytest.fixture
async def http(payments: Payments) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Starlette(routes=list(payment_routes(payments))), client=("127.0.0.1", 9))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def told(http: httpx.AsyncClient, path: str) -> Any:
    answer = await http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


async def test_it_says_where_to_pay(http: httpx.AsyncClient, network: Network) -> None:
    addresses = network.contracts.addresses
    assert await told(http, "/api/v1/payments") == {
        "chain_id": 31337,
        "token": address_hex(addresses.token),
        "token_name": "NCN Token",
        "contract": address_hex(addresses.payment),
        "registry": address_hex(addresses.registry),
        "gateway": address_hex(GATEWAY.address),
        "rpc": "/chain",
    }


async def test_it_says_how_a_channel_stands(http: httpx.AsyncClient, network: Network, gateway: Gateway) -> None:
    path = f"/api/v1/channels/{address_hex(CLIENT.address)}/{address_hex(CLIENT.address)}"
    channel = channel_id(CLIENT.address, CLIENT.address, GATEWAY.address)
    assert await told(http, path) == {
        "channel": "0x" + channel.hex(),
        "deposited_wei": "0",
        "spent_wei": "0",
        "charged_wei": "0",
        "held_wei": "0",
        "unlock_at_s": 0,
        "voucher": None,
    }
    await network.deposit(10**18)
    assert (await told(http, path))["deposited_wei"] == str(10**18)  # at once, though it was asked a moment ago
    account = gateway.desk.accounts.account(channel)
    account.charged_wei, account.held_wei, account.best = 7, 5, network.voucher(2**70)
    found = await told(http, path)
    assert (found["charged_wei"], found["held_wei"]) == ("7", "5")
    assert found["voucher"]["cumulative_wei"] == str(2**70)


async def test_an_address_that_is_none_is_refused(http: httpx.AsyncClient) -> None:
    with pytest.raises(MalformedRequest):
        await http.get(f"/api/v1/channels/0x12/{address_hex(CLIENT.address)}")


async def settle_something(network: Network, gateway: Gateway) -> Any:
    await network.deposit(10**18)
    voucher = network.voucher(3 * UNIT)
    for number, fee in enumerate((UNIT, 2 * UNIT)):
        charge = make_charge(number, fee, voucher, domain=network.domain)
        await gateway.ledger.enter(charge, number)
    (settled,) = await gateway.desk.settler.settle(everything=True)
    return settled


async def test_it_lists_its_batches(http: httpx.AsyncClient, network: Network, gateway: Gateway) -> None:
    assert await told(http, "/api/v1/batches") == []
    settled = await settle_something(network, gateway)
    node = UNIT * 80 // 100 + 2 * UNIT * 80 // 100
    total, share, pool = 3 * UNIT, 3 * UNIT // 10, 3 * UNIT // 20
    assert await told(http, "/api/v1/batches") == [
        {
            "gateway": address_hex(GATEWAY.address),
            "nonce": 1,
            "state": "settled",
            "receipts": 2,
            "total_wei": str(total),
            "gas": settled.gas,
            "transaction": settled.tx,
            "detail": "",
            "paid": {
                "compute": {address_hex(NODE.address): str(node)},
                "gateway": str(share),
                "validators": str(pool),
                "treasury": str(total - node - share - pool),
            },
        }
    ]
    await gateway.ledger.settle_elsewhere(GATEWAY.address, 5, [], 1)
    newest, _ = await told(http, "/api/v1/batches")
    assert (newest["nonce"], newest["receipts"], newest["detail"]) == (5, 0, "settled by somebody else")
    assert newest["paid"] == {"compute": {}, "gateway": "0", "validators": "0", "treasury": "0"}


async def test_it_publishes_a_batch(http: httpx.AsyncClient, network: Network, gateway: Gateway) -> None:
    settled = await settle_something(network, gateway)
    answer = await http.get("/api/v1/batches/1")
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert batch_from_pb(pb.BatchStatement.FromString(answer.content)) == settled.statement
    with pytest.raises(UnknownTask, match="no batch with nonce 2"):
        await http.get("/api/v1/batches/2")
    for bad in ("-1", "x", "9" * 19, "\u0662"):
        with pytest.raises(MalformedRequest, match="is not the nonce of a batch"):
            await http.get(f"/api/v1/batches/{bad}")


async def test_it_tells_where_a_request_was_settled(
    http: httpx.AsyncClient, network: Network, gateway: Gateway
) -> None:
    settled = await settle_something(network, gateway)
    for charge in settled.statement.charges:
        receipt = charge.receipt.receipt
        answer = await http.get(f"/api/v1/inference/0x{receipt.request_id.hex()}/inclusion")
        found = inclusion_from_json(decode(answer.content, InclusionJson))
        said: list[str] = []
        found.check(network.domain, receipt, charge.inputs_hash, said.append)
        assert said[1] == "committee: epoch 1, 3 of 5 validators signed the batch"
        assert (found.batch, "0x" + found.transaction.hex()) == (settled.statement.batch, settled.tx)
    waiting = make_charge(7, UNIT, network.voucher(10 * UNIT), domain=network.domain)
    await gateway.ledger.enter(waiting, 0)
    with pytest.raises(TaskEnded, match="no batch on chain yet"):
        await http.get(f"/api/v1/inference/0x{waiting.receipt.receipt.request_id.hex()}/inclusion")
    with pytest.raises(UnknownTask, match="was not charged"):
        await http.get(f"/api/v1/inference/0x{bytes(32).hex()}/inclusion")
    with pytest.raises(MalformedRequest, match="id has 2 bytes"):
        await http.get("/api/v1/inference/0xffff/inclusion")


async def test_only_the_operator_has_it_settle(http: httpx.AsyncClient, network: Network, gateway: Gateway) -> None:
    await network.deposit(10**18)
    await gateway.ledger.enter(make_charge(1, UNIT, network.voucher(UNIT), domain=network.domain), 0)
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
        answer = await http.post("/api/v1/batches", headers=header)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert gateway.ledger.batches() == []
    answer = await http.post("/api/v1/batches", headers={"authorization": "Bearer secret"})
    (done,) = answer.json()
    assert (done["receipts"], done["total_wei"], done["state"]) == (1, str(UNIT), "settled")


async def test_before_it_serves_it_says_so(http: httpx.AsyncClient, payments: Payments) -> None:
    payments.desk = None
    with pytest.raises(Draining):
        await http.get("/api/v1/payments")


async def test_the_embedded_chain_is_served(http: httpx.AsyncClient) -> None:
    answer = await http.post("/chain", json={"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []})
    assert answer.json()["result"] == hex(31337)


async def test_another_chain_is_not(payments: Payments) -> None:
    payments.settings = payments.settings.model_copy(update={"chain": "anvil"})
    assert "/chain" not in {getattr(route, "path", "") for route in payment_routes(payments)}
