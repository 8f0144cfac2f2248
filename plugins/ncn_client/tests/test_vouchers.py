"""Requests paid by vouchers, as both clients send them: one channel for all that is in flight."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ncn_client import Answer, AsyncClient, Client
from ncn_framework.errors import CapacityError, ModelFailed, NodeLost, PaymentRequired, UnknownTask, VerificationError
from ncn_framework.models import Domain
from ncn_framework.signing import address_hex

from .fakes import CLIENT, EMBEDDER, GATEWAY, NODE, OTHER, FakeGateway, resigned

TEXT = {"text": "a"}
UNITS = 5  # that the fake gateway's answers have
FEE = EMBEDDER.fee_wei(UNITS, "voucher")


@pytest.fixture
def paying(gateway: FakeGateway) -> Any:
    with Client("http://gateway", signer=CLIENT, transport=httpx.MockTransport(gateway)) as client:
        yield client


def sums(gateway: FakeGateway) -> list[int]:
    """Return the cumulative amounts of the vouchers that came."""
    return [int(body.voucher.cumulative_wei) for body in gateway.bodies if body.voucher]


def account(gateway: FakeGateway) -> Any:
    return gateway.ledger.account(CLIENT.address, CLIENT.address)


# --- one after the other ---


def test_each_request_carries_a_voucher(paying: Client, gateway: FakeGateway) -> None:
    answers = [paying.infer("minilm", TEXT, limit_units=units) for units in (10, 20, 30)]
    assert sums(gateway) == [40, FEE + 70, 2 * FEE + 100]
    assert account(gateway).charged == 3 * FEE
    last = answers[-1]
    assert last.settlement is not None
    assert (last.settlement.mode, last.settlement.charged_wei) == ("voucher", FEE)
    assert last.voucher is not None
    assert last.voucher.cumulative_wei == 2 * FEE + 100
    assert gateway.seen.count(f"GET /api/v1/channels/{address_hex(CLIENT.address)}/{address_hex(CLIENT.address)}") == 1
    form = gateway.bodies[-1].voucher
    assert form is not None
    assert (form.client, form.gateway) == (address_hex(CLIENT.address), address_hex(GATEWAY.address))


def test_a_new_client_goes_on_where_the_last_one_ended(paying: Client, gateway: FakeGateway) -> None:
    paying.infer("minilm", TEXT, limit_units=10)
    with Client("http://gateway", signer=CLIENT, transport=httpx.MockTransport(gateway)) as again:
        again.embed("b", limit_units=10)
    assert sums(gateway) == [40, FEE + 40]


def test_a_session_key_draws_on_its_payer(gateway: FakeGateway) -> None:
    transport = httpx.MockTransport(gateway)
    with Client("http://gateway", signer=OTHER, payer=CLIENT.address, transport=transport) as client:
        answer = client.embed("a")
        standing = client.standing()
    assert gateway.ledger.account(CLIENT.address, OTHER.address).charged == FEE
    assert (standing.charged_wei, standing.held_wei) == (FEE, 0)
    assert answer.proof.request.client == OTHER.address
    assert answer.voucher is not None
    assert (answer.voucher.client, answer.voucher.signer) == (CLIENT.address, OTHER.address)


def test_sent_again_is_charged_once(paying: Client, gateway: FakeGateway) -> None:
    prepared = paying.prepare("minilm", TEXT, limit_units=10)
    assert paying.send(prepared).proof == paying.send(prepared).proof
    paying.embed("b", limit_units=10)
    assert sums(gateway) == [40, FEE, FEE + 40]
    assert account(gateway).charged == 2 * FEE


def test_a_lost_answer_is_counted_until_it_is_seen(paying: Client, gateway: FakeGateway) -> None:
    gateway.losing = 1
    prepared = paying.prepare("minilm", TEXT, limit_units=10)
    with pytest.raises(CapacityError, match="again"):
        paying.send(prepared)
    paying.send(prepared)
    assert sums(gateway) == [40, FEE]  # by then the gateway said that it was charged
    paying.embed("b", limit_units=10)
    assert sums(gateway)[-1] == FEE + 40
    assert account(gateway).charged == 2 * FEE


def test_what_failed_costs_nothing(paying: Client, gateway: FakeGateway) -> None:
    gateway.failing = NodeLost("the node left")
    with pytest.raises(NodeLost):
        paying.infer("minilm", TEXT, limit_units=100)
    gateway.failing = None
    paying.infer("minilm", TEXT, limit_units=10)
    assert sums(gateway) == [310, 40]


# --- tasks ---


def test_a_task_is_settled_when_its_answer_is_seen(paying: Client, gateway: FakeGateway) -> None:
    gateway.deferred = True
    first, second = (paying.submit("minilm", TEXT, limit_units=10) for _ in range(2))
    assert sums(gateway) == [40, 80]
    gateway.finish(first.id)
    gateway.fail(second.id)
    gateway.deferred = False
    paying.embed("b", limit_units=10)
    assert sums(gateway)[-1] == 120
    assert isinstance(paying.get(first), Answer)
    assert isinstance(paying.get(first.id), Answer)  # counted once
    paying.embed("b", limit_units=10)
    assert sums(gateway)[-1] == FEE + FEE + 40 + 40
    with pytest.raises(ModelFailed, match="raised"):
        paying.wait(second)
    paying.embed("b", limit_units=10)
    assert sums(gateway)[-1] == 3 * FEE + 40


def test_a_task_by_its_id_alone_is_settled_too(paying: Client, gateway: FakeGateway) -> None:
    task = paying.submit("minilm", TEXT, limit_units=10)
    paying.get(task.id)
    paying.embed("b", limit_units=10)
    assert sums(gateway) == [40, FEE + 40]


def test_a_task_that_is_cancelled_or_unknown_is_not_charged(paying: Client, gateway: FakeGateway) -> None:
    gateway.deferred = True
    task, gone = (paying.submit("minilm", TEXT, limit_units=10) for _ in range(2))
    gateway.finish(task.id)  # the fake gateway lets anything be cancelled
    paying.cancel(task)
    del gateway.running[gone.id]
    gateway.ledger.free(gone.prepared.request.request_id)
    with pytest.raises(UnknownTask):
        paying.get(gone)
    gateway.deferred = False
    with pytest.raises(PaymentRequired):  # the cancelled one was charged after all: the deposit is too small by that
        account(gateway).deposited = FEE + 39
        paying.embed("b", limit_units=10)
    assert sums(gateway)[-1] == 40


def test_moves(paying: Client) -> None:
    task = paying.submit("minilm", TEXT)
    assert [move.state for move in paying.moves(task)][-3:] == ["EXECUTED", "VALIDATED", "SETTLED"]
    assert paying.wait(task).vectors


# --- what it may cost ---


def test_default_limit_and_bound(paying: Client, gateway: FakeGateway) -> None:
    paying.embed("a")
    assert gateway.bodies[-1].limit_units == 1_000_000
    paying.embed("a", max_fee_wei=100)
    assert gateway.bodies[-1].limit_units == 30
    paying.embed("a", max_fee_wei=100, limit_units=30)
    before = len(gateway.bodies)
    for options in ({"limit_units": 31}, {"max_fee_wei": 12}, {"max_fee_wei": 9}):
        with pytest.raises(PaymentRequired, match="max_fee_wei allows"):
            paying.embed("a", **{"max_fee_wei": 100, **options})  # type: ignore[arg-type]
    assert len(gateway.bodies) == before


def test_bound_of_the_client(gateway: FakeGateway) -> None:
    transport = httpx.MockTransport(gateway)
    with Client("http://gateway", signer=CLIENT, max_fee_wei=100, transport=transport) as client:
        client.embed("a")
        assert gateway.bodies[-1].limit_units == 30
        client.embed("a", max_fee_wei=40)
        assert gateway.bodies[-1].limit_units == 10
        client.embed("a", payment="free")
        assert gateway.bodies[-1].limit_units == 1_000_000


# --- too little ---


def test_a_deposit_that_is_too_small(paying: Client, gateway: FakeGateway) -> None:
    gateway.ledger.deposit = 100
    with pytest.raises(PaymentRequired, match=r"\(210 wei\) are missing.*`ncn payments deposit`"):
        paying.infer("minilm", TEXT, limit_units=100)
    assert gateway.seen.count("POST /api/v1/inference") == 1
    account(gateway).deposited += 210
    paying.infer("minilm", TEXT, limit_units=100)


def test_a_gateway_that_refuses_without_reason(paying: Client, gateway: FakeGateway) -> None:
    paying.models()
    paying.standing()
    responses = 0

    def refuse(http: httpx.Request) -> httpx.Response:
        nonlocal responses
        if http.method == "POST":
            responses += 1
            return httpx.Response(402, json={"code": "payment-required", "detail": "I want\x1b more"})
        return gateway(http)

    with (
        Client("http://gateway", signer=CLIENT, transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(PaymentRequired, match="though the deposit would do: I want  more"),
    ):
        client.embed("a")
    assert responses == 2


def test_a_channel_that_is_being_closed(paying: Client, gateway: FakeGateway) -> None:
    account(gateway).unlock_at_s = 1_900_000_000
    with pytest.raises(PaymentRequired, match="being closed"):
        paying.embed("a")


def test_two_clients_of_one_key(paying: Client, gateway: FakeGateway) -> None:
    with Client("http://gateway", signer=CLIENT, transport=httpx.MockTransport(gateway)) as other:
        for _ in range(3):
            for client in (paying, other):
                client.infer("minilm", TEXT, limit_units=10)
    assert account(gateway).charged == 6 * FEE
    assert sums(gateway)[-1] == 5 * FEE + 40


# --- lies ---


@pytest.mark.parametrize(
    ("where", "lie"),
    [
        ("settlement.charged_wei", lambda form: setattr(form.settlement, "charged_wei", str(FEE + 1))),
        ("settlement.charged_wei", lambda form: setattr(form.settlement, "charged_wei", str(FEE - 1))),
        ("settlement.charged_wei", lambda form: setattr(form.settlement, "charged_wei", "1e3")),
        ("settlement.mode", lambda form: setattr(form.settlement, "mode", "free")),
        ("receipt.fee_wei", lambda form: resigned(form, NODE, fee_wei=str(FEE + 1))),
    ],
)
def test_a_charge_that_is_not_the_fee(paying: Client, gateway: FakeGateway, where: str, lie: Any) -> None:
    gateway.lie = lie
    with pytest.raises(VerificationError) as caught:
        paying.infer("minilm", TEXT, limit_units=10)
    assert caught.value.where == where
    gateway.lie = lambda form: None
    paying.infer("minilm", TEXT, limit_units=10)
    assert sums(gateway) == [40, FEE + 40]  # it was charged; a look at the channel says so


@pytest.mark.parametrize("field", ["charged_wei", "held_wei"])
def test_more_than_was_signed(paying: Client, gateway: FakeGateway, field: str) -> None:
    gateway.channel = lambda form: setattr(form, field, "41")
    with pytest.raises(VerificationError, match="own voucher allows 0"):
        paying.infer("minilm", TEXT, limit_units=10)
    assert not gateway.bodies


def test_a_gateway_that_counts_too_much_gains_nothing(paying: Client, gateway: FakeGateway) -> None:
    """It may say that all was used that was signed; it is not signed another wei without another request."""
    paying.infer("minilm", TEXT, limit_units=100)
    signed = sums(gateway)[-1]
    gateway.channel = lambda form: setattr(form, "charged_wei", str(signed))
    for _ in range(5):
        paying.standing()
    paying.infer("minilm", TEXT, limit_units=10)
    assert sums(gateway)[-1] == signed + 40


def test_another_gateway_at_the_same_address(paying: Client, gateway: FakeGateway, monkeypatch: Any) -> None:
    paying.embed("a")
    monkeypatch.setattr(gateway.ledger, "gateway", OTHER.address)
    with pytest.raises(VerificationError) as caught:
        paying.embed("a")
    assert caught.value.where == "channel"


# --- modes ---


@pytest.mark.parametrize(
    ("modes", "mode"),
    [(["voucher", "free"], "voucher"), (["free", "voucher"], "free"), (["exact", "escrow", "voucher"], "voucher")],
)
def test_the_first_mode_that_the_client_can_do(
    paying: Client, gateway: FakeGateway, modes: list[str], mode: str
) -> None:
    gateway.modes = modes
    assert paying.prepare("minilm", TEXT).request.payment == mode
    assert paying.prepare("minilm", TEXT, payment="free").request.payment == "free"


def test_without_a_key(client: Client, gateway: FakeGateway) -> None:
    assert client.embed("a").proof.request.payment == "free"
    for payment in ("voucher", "escrow"):
        with pytest.raises(PaymentRequired, match="--wallet"):
            client.embed("a", payment=payment)
    with pytest.raises(PaymentRequired, match="no key"):
        client.standing()


def test_without_a_key_where_nothing_is_free(client: Client, gateway: FakeGateway) -> None:
    gateway.modes = ["voucher", "escrow"]
    with pytest.raises(PaymentRequired, match=r"voucher, escrow.*`ncn wallet create`"):
        client.embed("a")


def test_a_gateway_that_wants_what_the_client_cannot_do(paying: Client, gateway: FakeGateway) -> None:
    gateway.modes = ["exact", "escrow"]
    with pytest.raises(PaymentRequired, match="exact, escrow; for escrow"):
        paying.embed("a")


def test_mode_of_the_client(gateway: FakeGateway) -> None:
    transport = httpx.MockTransport(gateway)
    with Client("http://gateway", signer=CLIENT, payment="free", domain=Domain(1), transport=transport) as client:
        assert client.prepare("minilm", TEXT).request.payment == "free"
    assert gateway.seen == ["GET /api/v1/models"]


# --- many at once ---


async def test_a_deposit_that_fits_half_of_them(gateway: FakeGateway) -> None:
    arrived, all_there = 0, asyncio.Event()
    account(gateway).deposited = 100 * FEE

    def count() -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 200:
            all_there.set()

    async def handler(http: httpx.Request) -> httpx.Response:
        return await gateway.slowly(http, count, all_there)

    async with AsyncClient("http://gateway", signer=CLIENT, transport=httpx.MockTransport(handler)) as client:
        asked = (client.infer("minilm", TEXT, limit_units=UNITS, max_fee_wei=FEE) for _ in range(200))
        found = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, Answer) for each in found) == 100
    refused = [each for each in found if not isinstance(each, Answer)]
    assert {type(each) for each in refused} == {PaymentRequired}
    assert all("are missing" in str(each) for each in refused)
    assert account(gateway).charged == 100 * FEE
    assert arrived == 200  # those that could not fit were not tried again


async def test_who_stops_waiting_has_to_pay_what_was_done(gateway: FakeGateway) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def handler(http: httpx.Request) -> httpx.Response:
        return await gateway.slowly(http, arrived.set, go)

    async with AsyncClient("http://gateway", signer=CLIENT, transport=httpx.MockTransport(handler)) as client:
        asked = asyncio.create_task(client.infer("minilm", TEXT, limit_units=10))
        await arrived.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        go.set()
        assert (await client.standing()).held_wei == 40
        await client.infer("minilm", TEXT, limit_units=10)
    assert sums(gateway) == [40, 80]


def test_threads_share_a_client(gateway: FakeGateway) -> None:
    account(gateway).deposited = 40 * FEE
    one_at_a_time = threading.Lock()  # the fake gateway is no server

    def handler(http: httpx.Request) -> httpx.Response:
        with one_at_a_time:
            return gateway(http)

    def ask(client: Client, number: int) -> bool:
        try:
            return bool(client.infer("minilm", TEXT, limit_units=UNITS).vectors)
        except PaymentRequired:
            return False

    with (
        Client("http://gateway", signer=CLIENT, transport=httpx.MockTransport(handler)) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        served = list(pool.map(lambda number: ask(client, number), range(64)))
    assert sum(served) == 40
    assert account(gateway).charged == 40 * FEE
