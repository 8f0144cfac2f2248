"""How requests are paid for over HTTP: vouchers, x402 (with x402's own client), escrow and its refunds."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402_httpx_transport
from x402.http.utils import decode_payment_required_header, decode_payment_response_header
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.schemas import PaymentRequired as X402PaymentRequired

from ncn_framework import digests
from ncn_framework.errors import Draining, EndorsementRefused, NodeLost, PaymentRequired, TaskCancelled
from ncn_framework.models import FREE, Domain
from ncn_framework.payments import ESCROW, EXACT, VOUCHER, Offer, TransferAuthorization, Voucher
from ncn_framework.signing import address_hex, check_signature
from ncn_framework.states import State
from ncn_framework.wire import x402
from ncn_framework.wire.json import SubmitJson, decode, encode
from ncn_framework.wire.json_payments import PaymentJson, payment_from_json

from .fakes import CLIENT, DOMAIN, GATEWAY, World, body, client_of, make_app, problem, server_sent_events, world

INFERENCE = "/api/v1/inference"
TOKEN = b"\x0a" * 20
NONCE = "0x" + "07" * 32
TRANSACTION = {"transaction_hash": "0x" + "ee" * 32}
OFFERS = tuple(
    Offer(mode, 10**20, TOKEN, GATEWAY.address, DOMAIN.chain_id, 60, {"name": "NCN", "version": "1"})
    for mode in (EXACT, VOUCHER)
)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        yield found


@pytest.fixture
async def api(gateway: World) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(gateway) as client:
        yield client


def voucher(**changes: Any) -> dict[str, Any]:
    """Return a voucher as JSON knows it."""
    addresses = {"client": CLIENT.address, "signer": CLIENT.address, "gateway": GATEWAY.address}
    form: dict[str, Any] = {name: address_hex(address) for name, address in addresses.items()}
    return {**form, "cumulative_wei": str(2**90), "signature": "0x" + "1b" * 65, **changes}


def paid_by(**changes: Any) -> dict[str, str]:
    """Return the headers of a request that is paid for by x402; its signature means nothing."""
    authorization = {
        "from": address_hex(CLIENT.address),
        "to": address_hex(GATEWAY.address),
        "value": "5",
        "validAfter": "0",
        "validBefore": "2000000000",
        "nonce": "0x" + "0d" * 32,
        **changes,
    }
    accepted = {
        "scheme": "exact",
        "network": f"eip155:{DOMAIN.chain_id}",
        "amount": "5",
        "asset": address_hex(TOKEN),
        "payTo": address_hex(GATEWAY.address),
        "maxTimeoutSeconds": 60,
    }
    payload = {"authorization": authorization, "signature": "0x" + "1b" * 65}
    form = {"x402Version": 2, "accepted": accepted, "payload": payload}
    return {x402.SIGNATURE: b64encode(json.dumps(form).encode()).decode()}


async def task_of(gateway: World, form: dict[str, Any]) -> Any:
    return await gateway.tasks.get(bytes.fromhex(form["id"][2:]))


# --- before anything is stored ---


async def test_a_refusal_leaves_no_trace_and_the_same_nonce_may_come_again(
    gateway: World, api: httpx.AsyncClient
) -> None:
    form = body(nonce=NONCE, payment=VOUCHER)
    gateway.funds.offers = OFFERS
    for _ in range(2):
        refused = problem(await api.post(INFERENCE, json=form), 402, "payment-required")
        assert (refused["detail"], "request_id" in refused) == ("nothing was signed for the fee", False)
    request_id = digests.request_id(bytes(20), bytes.fromhex(NONCE[2:]))
    assert await gateway.store.get(request_id) is None
    assert gateway.node.executed == 0
    answer = await api.post(INFERENCE, json={**form, "voucher": voucher()})
    assert (answer.status_code, answer.json()["id"]) == (200, "0x" + request_id.hex())


async def test_offers_are_told_in_x402s_header(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.funds.offers = OFFERS
    response = await api.post(INFERENCE, json=body(payment=EXACT))
    told = decode_payment_required_header(response.headers["payment-required"])
    assert isinstance(told, X402PaymentRequired)
    assert told.resource is not None
    assert told.resource.url == f"http://gateway{INFERENCE}"
    assert [accepted.scheme for accepted in told.accepts] == ["exact"]
    assert told.extensions is not None
    assert told.extensions.keys() == {x402.VOUCHER_EXTENSION}


async def test_without_offers_there_is_no_header(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.funds.refusal = PaymentRequired("the channel is exiting")
    response = await api.post(INFERENCE, json=body())
    problem(response, 402, "payment-required")
    assert "payment-required" not in response.headers


async def test_what_is_known_is_answered_again_unpaid(gateway: World, api: httpx.AsyncClient) -> None:
    form = body(nonce=NONCE, payment=VOUCHER)
    first = await api.post(INFERENCE, json={**form, "voucher": voucher()})
    gateway.funds.refusal = PaymentRequired("nothing is left")
    assert (await api.post(INFERENCE, json=form)).json() == first.json()
    assert gateway.node.executed == 1


async def test_many_at_once_of_one_that_is_refused(gateway: World) -> None:
    gateway.funds.refusal = PaymentRequired("nothing is left")
    form: SubmitJson = decode(encode(body(nonce=NONCE)), SubmitJson)
    tasks = gateway.tasks
    found = await asyncio.gather(*(tasks.submit(tasks.admit(form)) for _ in range(8)), return_exceptions=True)
    assert {type(error) for error in found} == {PaymentRequired}
    gateway.funds.refusal = None
    assert (await (await tasks.submit(tasks.admit(form))).wait()).settlement.mode == FREE


async def test_nothing_starts_once_draining_has_begun_meanwhile(gateway: World, monkeypatch: Any) -> None:
    async def slowly(*_: Any) -> None:
        gateway.tasks.draining = True

    monkeypatch.setattr(gateway.tasks.lifecycle, "admit", slowly)
    form: SubmitJson = decode(encode(body()), SubmitJson)
    with pytest.raises(Draining):
        await gateway.tasks.submit(gateway.tasks.admit(form))
    assert gateway.node.executed == 0


# --- vouchers ---


async def test_a_voucher_pays(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.funds.offers = OFFERS
    answer = (await api.post(INFERENCE, json=body(voucher=voucher()))).json()
    assert (answer["payment"], answer["settlement"]["mode"]) == (VOUCHER, VOUCHER)
    paid = (await task_of(gateway, answer)).request.authorization
    assert paid == Voucher(CLIENT.address, CLIENT.address, GATEWAY.address, 2**90, b"\x1b" * 65)


@pytest.mark.parametrize(
    "changes",
    [
        {"payment": FREE, "voucher": voucher()},
        {"payment": ESCROW, "voucher": voucher()},
        {"voucher": {}},
        {"voucher": voucher(surprise=1)},
        {"voucher": voucher(client="0x12")},
        {"voucher": voucher(cumulative_wei="-1")},
        {"voucher": voucher(cumulative_wei=str(2**96))},
        {"voucher": voucher(cumulative_wei=5)},
        {"voucher": voucher(signature="0x00")},
    ],
)
async def test_a_voucher_that_cannot_be_read(gateway: World, api: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    problem(await api.post(INFERENCE, json=body(**changes)), 400, "malformed")
    assert gateway.node.executed == 0


# --- x402 ---


async def test_x402s_client_asks_pays_and_is_answered(tmp_path: Path) -> None:
    account = Account.from_key(b"\x22" * 32)
    client = x402Client().set_spend_controls(False).register("eip155:*", ExactEvmScheme(account))
    async with world(tmp_path, default_mode=VOUCHER) as gateway:
        gateway.funds.offers = OFFERS
        transport = x402_httpx_transport(client, httpx.ASGITransport(make_app(gateway)))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as api:
            response = await api.post(INFERENCE, json=body())
        assert (response.status_code, response.json()["payment"]) == (200, EXACT)
        told = decode_payment_response_header(response.headers["payment-response"])
        assert (told.success, told.transaction) == (True, gateway.funds.reference)
        assert (told.network, told.payer) == (f"eip155:{DOMAIN.chain_id}", account.address)
        paid = (await task_of(gateway, response.json())).request.authorization
    assert isinstance(paid, TransferAuthorization)
    assert (paid.payee, paid.value_wei) == (GATEWAY.address, 10**20)
    digest = digests.transfer_digest(Domain(DOMAIN.chain_id, TOKEN), "NCN", paid)
    check_signature(digest, paid.signature, CLIENT.address, "the transfer")


async def test_the_same_payment_gives_the_first_answer_even_from_disk(tmp_path: Path) -> None:
    async with world(tmp_path) as before, client_of(before) as api:
        first = await api.post(INFERENCE, json=body(), headers=paid_by())
        again = await api.post(INFERENCE, json=body(), headers=paid_by())
        assert before.node.executed == 1
        other = await api.post(INFERENCE, json=body(limit_units=5), headers=paid_by())
        problem(other, 409, "replay-conflict")
        another = await api.post(INFERENCE, json=body(), headers=paid_by(nonce="0x" + "0e" * 32))
        assert another.json()["id"] != first.json()["id"]
    async with world(tmp_path) as after, client_of(after) as api:
        later = await api.post(INFERENCE, json=body(), headers=paid_by())
        looked_up = await api.get(f"{INFERENCE}/{first.json()['id']}")
        assert after.node.executed == 0
    for response in (again, later, looked_up):
        assert response.json() == first.json()
        assert response.headers["payment-response"] == first.headers["payment-response"]
    payer = decode_payment_response_header(first.headers["payment-response"]).payer
    assert payer == address_hex(CLIENT.address)


async def test_a_nonce_or_a_key_of_the_clients_own_comes_before_the_payments(
    gateway: World, api: httpx.AsyncClient
) -> None:
    named = (await api.post(INFERENCE, json=body(nonce=NONCE), headers=paid_by())).json()
    assert named["nonce"] == NONCE
    keyed = [
        (
            await api.post(INFERENCE, json=body(), headers={**paid_by(nonce=f"0x{n:064x}"), "idempotency-key": "k"})
        ).json()
        for n in (1, 2)
    ]
    assert keyed[0] == keyed[1]
    assert gateway.node.executed == 2


async def test_a_start_by_x402_tells_later(gateway: World, api: httpx.AsyncClient) -> None:
    response = await api.post(INFERENCE, params={"async": "1"}, json=body(), headers=paid_by())
    assert response.status_code == 202
    await (await task_of(gateway, response.json())).wait()
    assert "payment-response" in (await api.get(response.headers["location"])).headers


async def test_other_modes_tell_nothing(api: httpx.AsyncClient) -> None:
    for form in (body(), body(voucher=voucher())):
        assert "payment-response" not in (await api.post(INFERENCE, json=form)).headers


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        (body(payment=VOUCHER), paid_by()),
        (body(payment=FREE), paid_by()),
        (body(voucher=voucher()), paid_by()),
        (body(), {x402.SIGNATURE: "!"}),
        (body(), {x402.SIGNATURE: ""}),
        (body(), {x402.SIGNATURE: b64encode(b"{}").decode()}),
        (body(), paid_by(value="one")),
    ],
)
async def test_a_payment_that_cannot_be_taken(
    gateway: World, api: httpx.AsyncClient, form: dict[str, Any], headers: dict[str, str]
) -> None:
    problem(await api.post(INFERENCE, json=form, headers=headers), 400, "malformed")
    assert gateway.node.executed == 0


async def test_a_mode_that_is_not_accepted(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.tasks.settings = gateway.tasks.settings.model_copy(update={"payment_modes": (VOUCHER,)})
    refused = problem(await api.post(INFERENCE, json=body(), headers=paid_by()), 400, "bad-request")
    assert "'exact' is not accepted; this gateway accepts: voucher" in refused["detail"]
    problem(await api.post(INFERENCE, json=body(payment=FREE)), 400, "bad-request")


# --- escrow ---


async def due(gateway: World, api: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    """Submit an escrow request and return its status, which says what to pay."""
    response = await api.post(INFERENCE, json=body(payment=ESCROW, **changes))
    assert response.status_code == 202
    status: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{INFERENCE}/{status['id']}"
    assert status["state"] == "AWAITING_PAYMENT"
    return status


async def test_escrow_from_the_due_to_the_answer(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.node.go.clear()
    status = await due(gateway, api, nonce=NONCE)
    where, request_id = f"{INFERENCE}/{status['id']}", bytes.fromhex(status["id"][2:])
    told = payment_from_json(decode(encode(status["payment"]), PaymentJson))
    assert told == gateway.funds.escrows[request_id].due
    stored = await gateway.store.get(request_id)
    assert stored is not None
    assert stored[0].progress.events[-1].payment == told, "what is told is on the disk"
    assert (await api.get(where)).json() == status
    assert (await api.post(INFERENCE, json=body(payment=ESCROW, nonce=NONCE))).json() == status
    confirmed = await api.post(f"{where}/payment", json=TRANSACTION)
    assert (confirmed.status_code, confirmed.headers["location"]) == (202, where)
    assert gateway.funds.confirmations[0].transaction == b"\xee" * 32
    await gateway.node.started.wait()
    running = (await api.get(where)).json()
    assert (running["state"], "payment" in running) == ("EXECUTING", False)
    waiting = asyncio.create_task(api.post(INFERENCE, json=body(payment=ESCROW, nonce=NONCE)))
    again = await api.post(f"{where}/payment", json=TRANSACTION)
    assert (again.status_code, again.json()["state"]) == (202, "EXECUTING")
    assert len(gateway.funds.confirmations) == 1
    gateway.node.go.set()
    answer = (await waiting).json()
    assert (answer["state"], answer["settlement"]["mode"]) == ("SETTLED", ESCROW)
    assert (await api.get(where)).json() == answer
    assert (await api.post(f"{where}/payment", json=TRANSACTION)).json()["state"] == "SETTLED"


async def test_escrow_that_need_not_wait(gateway: World, api: httpx.AsyncClient) -> None:
    response = await api.post(INFERENCE, params={"async": "1"}, json=body(payment=ESCROW))
    assert response.status_code == 202
    task = await task_of(gateway, response.json())
    assert await task.awaits_payment()
    assert "payment" in (await api.get(response.headers["location"])).json()


async def test_escrow_that_fails_before_it_is_due(
    gateway: World, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def refused(*_: Any) -> AsyncIterator[None]:
        raise EndorsementRefused("the validators know another price")
        yield

    monkeypatch.setattr(gateway.funds, "_hold", refused)
    problem(await api.post(INFERENCE, json=body(payment=ESCROW)), 502, "endorsement-refused")


async def test_a_confirmation_that_is_not_believed(gateway: World, api: httpx.AsyncClient) -> None:
    status = await due(gateway, api)
    gateway.funds.doubt = PaymentRequired("the transaction paid somebody else")
    where = f"{INFERENCE}/{status['id']}"
    form = problem(await api.post(f"{where}/payment", json=TRANSACTION), 402, "payment-required")
    assert form["request_id"] == status["id"]
    assert (await api.get(where)).json() == status


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({}, 400, "malformed"),
        ({"transaction_hash": "0x12"}, 400, "malformed"),
        ({"transaction_hash": None}, 400, "malformed"),
        ({**TRANSACTION, "surprise": 1}, 400, "malformed"),
        (TRANSACTION, 404, "unknown-task"),
    ],
)
async def test_a_confirmation_that_cannot_be_read(
    api: httpx.AsyncClient, form: dict[str, Any], status: int, code: str
) -> None:
    problem(await api.post(f"{INFERENCE}/0x{'ab' * 32}/payment", json=form), status, code)


async def test_a_confirmation_that_nobody_waits_for(gateway: World, api: httpx.AsyncClient) -> None:
    answer = (await api.post(INFERENCE, json=body())).json()
    form = problem(await api.post(f"{INFERENCE}/{answer['id']}/payment", json=TRANSACTION), 409, "task-ended")
    assert "(payment mode 'free') is SETTLED; it awaits no payment" in form["detail"]
    problem(await api.post(f"{INFERENCE}/me/payment", json=TRANSACTION), 400, "malformed")


async def test_events_say_what_is_due(gateway: World, api: httpx.AsyncClient) -> None:
    gateway.funds.prepaid = True
    response = await api.post(INFERENCE, json=body(payment=ESCROW), headers={"accept": "text/event-stream"})
    events = server_sent_events(response.text)
    telling = [data for kind, _, data in events if kind == "event" and "payment" in data]
    assert [data["state"] for data in telling] == ["AWAITING_PAYMENT"]
    [escrow] = gateway.funds.escrows.values()
    assert payment_from_json(decode(encode(telling[0]["payment"]), PaymentJson)) == escrow.due
    assert events[-1][2]["answer"]["settlement"]["mode"] == ESCROW


async def test_cancelled_while_it_waits(gateway: World, api: httpx.AsyncClient) -> None:
    status = await due(gateway, api)
    where = f"{INFERENCE}/{status['id']}"
    assert (await api.delete(where)).status_code == 202
    task = await task_of(gateway, status)
    with pytest.raises(TaskCancelled):
        await task.wait()
    assert not await task.awaits_payment()
    ended = (await api.get(where)).json()
    assert (ended["state"], ended["error"]["code"], "payment" in ended) == ("CANCELLED", "cancelled", False)
    problem(await api.post(f"{where}/payment", json=TRANSACTION), 409, "task-ended")


async def test_a_refunded_task_keeps_its_error(tmp_path: Path) -> None:
    async with world(tmp_path) as before, client_of(before) as api:
        before.node.error = NodeLost("the node is gone")
        status = await due(before, api)
        where = f"{INFERENCE}/{status['id']}"
        await api.post(f"{where}/payment", json=TRANSACTION)
        task = await task_of(before, status)
        with pytest.raises(NodeLost, match="the node is gone"):
            await task.wait()
        told = (await api.get(where)).json()
        assert (told["state"], told["error"]["code"]) == ("REFUNDED", "node-lost")
        assert told["error"]["detail"] == "the node is gone"
        stream = (await api.get(where, headers={"accept": "text/event-stream"})).text
        moves = [(data["state"], data["detail"]) for kind, _, data in server_sent_events(stream) if kind == "event"]
        assert moves[-2:] == [(end, "node-lost: the node is gone") for end in ("FAILED", "REFUNDED")]
    async with world(tmp_path) as after, client_of(after) as api:
        assert (await api.get(where)).json() == told
        assert (await api.get(where, headers={"accept": "text/event-stream"})).text == stream
        assert (await api.post(f"{where}/payment", json=TRANSACTION)).json() == told


async def test_a_due_that_a_stop_cut_off(gateway: World, api: httpx.AsyncClient, tmp_path: Path) -> None:
    status = await due(gateway, api)
    async with world(tmp_path) as after, client_of(after) as again:  # on the same database, as after a crash
        told = (await again.get(f"{INFERENCE}/{status['id']}")).json()
        assert (told["state"], told["error"]["code"], "payment" in told) == ("FAILED", "node-lost", False)
        task = await task_of(after, status)
        assert [u.state for u in task.updates][-2:] == [State.AWAITING_PAYMENT, State.FAILED]
        assert task.updates[-2].payment is not None
