"""Payments into escrow: what is checked before any money moves, and what happens around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from ncn_client import Answer, AsyncClient, Client
from ncn_framework.errors import (
    CapacityError,
    ConfigError,
    MalformedRequest,
    ModelFailed,
    NcnError,
    PaymentRequired,
    TaskEnded,
    TransactionReverted,
    VerificationError,
)
from ncn_framework.payments import EscrowTerms, PaymentDue, Quorum
from ncn_framework.signing import Signer
from ncn_framework.wire.json import StatusJson

from .escrow_desk import VALIDATORS, EscrowDesk
from .fakes import CLIENT, EMBEDDER, GATEWAY, NODE, OTHER, FakeGateway

TEXT = {"text": "a"}
FEE = EMBEDDER.fee_wei(5, "escrow")


@pytest.fixture
def paying(gateway: FakeGateway) -> Iterator[Client]:
    transport = httpx.MockTransport(gateway)
    with Client("http://gateway", signer=CLIENT, pay=gateway.desk.pay, transport=transport) as client:
        yield client


def test_pay_and_be_answered(paying: Client, gateway: FakeGateway) -> None:
    answer = paying.infer("minilm", TEXT, payment="escrow", limit_units=20)
    assert answer.vectors
    assert answer.settlement is not None
    assert (answer.settlement.mode, answer.settlement.charged_wei) == ("escrow", FEE)
    assert answer.voucher is None
    (due,) = gateway.desk.paid.values()
    assert due.terms.amount_wei == 70
    task = "/api/v1/inference/0x" + answer.request_id.hex()
    assert gateway.seen[2:] == [
        "POST /api/v1/inference",
        f"POST {task}/payment",
        f"GET {task}",
        f"GET {task}?encoding=base64",
    ]
    assert not gateway.ledger.accounts


def test_sent_again_is_paid_once(paying: Client, gateway: FakeGateway) -> None:
    prepared = paying.prepare("minilm", TEXT, payment="escrow")
    assert paying.send(prepared).proof == paying.send(prepared).proof
    assert len(gateway.desk.paid) == 1
    task = paying.submit("minilm", TEXT, payment="escrow", nonce=prepared.request.nonce, **_same(prepared))
    assert task.status.state == "SETTLED"


def test_a_confirmation_that_is_lost(paying: Client, gateway: FakeGateway) -> None:
    prepared = paying.prepare("minilm", TEXT, payment="escrow")

    def pay(due: PaymentDue) -> bytes:
        gateway.broken = httpx.ReadError("cut")
        return gateway.desk.pay(due)

    with pytest.raises(CapacityError, match="again"):
        paying.send(replace(prepared, pay=pay))
    gateway.broken = None
    assert paying.send(prepared).vectors
    assert len(gateway.desk.paid) == 1


def _same(prepared: Any) -> Any:
    return {"deadline_ms": prepared.request.deadline_ms}


async def test_without_blocking(gateway: FakeGateway) -> None:
    async def pay(due: PaymentDue) -> str:
        return "0x" + gateway.desk.pay(due).hex()

    class Payer:
        async def __call__(self, due: PaymentDue) -> bytes:
            return gateway.desk.pay(due)

    transport = httpx.MockTransport(gateway)
    async with AsyncClient("http://gateway", signer=CLIENT, payment="escrow", transport=transport) as client:
        for each in (pay, gateway.desk.pay, Payer()):
            assert (await client.infer("minilm", TEXT, pay=each)).vectors
        task = await client.submit("minilm", TEXT)
        with pytest.raises(PaymentRequired, match="pay"):
            await client.pay(task)
        task = await client.submit("minilm", TEXT, pay=gateway.desk.pay)
        assert (await client.confirm(task, await client.pay(task))).state == "PAID"
        assert (await client.payment_due(task)).terms.gateway == GATEWAY.address
        assert (await client.wait(task)).vectors
        assert [move.state for move in await client.moves(task)][3:5] == ["AWAITING_PAYMENT", "PAID"]
        assert (await client.network()).gateway == GATEWAY.address
        assert (await client.standing()).charged_wei == 0


def test_step_by_step(paying: Client, gateway: FakeGateway) -> None:
    task = paying.submit("minilm", TEXT, payment="escrow")
    assert task.status.state == "AWAITING_PAYMENT"
    due = paying.payment_due(task)
    with pytest.raises(PaymentRequired, match="did not pay"):
        paying.confirm(task, bytes(32))
    assert due.terms.request_hash == task.prepared.request.request_hash
    status = paying.confirm(task, paying.pay(task))
    assert isinstance(status, StatusJson)
    assert isinstance(paying.get(task), Answer)
    with pytest.raises(TaskEnded, match="nothing is to be paid"):
        paying.payment_due(replace(task, status=status))


def test_a_task_that_fails_after_it_was_paid(paying: Client, gateway: FakeGateway) -> None:
    gateway.failing = ModelFailed("the model raised")
    with pytest.raises(ModelFailed, match="the model raised"):
        paying.infer("minilm", TEXT, payment="escrow")


def test_more_than_it_may_cost_is_not_sent(paying: Client, gateway: FakeGateway) -> None:
    with pytest.raises(PaymentRequired, match="max_fee_wei"):
        paying.infer("minilm", TEXT, payment="escrow", limit_units=100, max_fee_wei=309)
    assert not gateway.awaiting


# --- who pays ---


def cancelled(gateway: FakeGateway) -> bool:
    (task,) = gateway.failed
    return f"DELETE /api/v1/inference/{task}" in gateway.seen and not gateway.desk.paid


def test_nobody_to_pay(gateway: FakeGateway) -> None:
    transport = httpx.MockTransport(gateway)
    with (
        Client("http://gateway", signer=CLIENT, transport=transport) as client,
        pytest.raises(PaymentRequired, match="pay"),
    ):
        client.infer("minilm", TEXT, payment="escrow")
    assert cancelled(gateway)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(TransactionReverted("too little ether"), TransactionReverted), (RuntimeError("a bug"), RuntimeError)],
)
def test_paying_fails(gateway: FakeGateway, paying: Client, error: Exception, kind: type[Exception]) -> None:
    def pay(due: PaymentDue) -> bytes:
        raise error

    with pytest.raises(kind):
        paying.infer("minilm", TEXT, payment="escrow", pay=pay)
    assert cancelled(gateway)


@pytest.mark.parametrize("transaction", [b"short", "0x12", None, 7])
def test_a_function_that_returns_no_hash(gateway: FakeGateway, paying: Client, transaction: Any) -> None:
    with pytest.raises(MalformedRequest, match="transaction"):
        paying.infer("minilm", TEXT, payment="escrow", pay=lambda due: transaction)


def test_a_coroutine_in_a_client_that_blocks(gateway: FakeGateway, paying: Client) -> None:
    async def pay(due: PaymentDue) -> bytes:
        return bytes(32)

    with pytest.raises(ConfigError, match="AsyncClient"):
        paying.infer("minilm", TEXT, payment="escrow", pay=pay)


# --- wrong terms ---

Change = Callable[[EscrowDesk], object]


def terms(**changes: Any) -> Change:
    return lambda desk: setattr(desk, "terms", lambda made: replace(made, **changes))


def due(**changes: Any) -> Change:
    return lambda desk: setattr(desk, "due", lambda made: replace(made, **changes))


def quorum(change: Callable[[Quorum], Quorum]) -> Change:
    return lambda desk: setattr(desk, "due", lambda made: replace(made, quorum=change(made.quorum)))


def signers(*chosen: Signer) -> Change:
    def change(desk: EscrowDesk) -> None:
        desk.signers, desk.bitmap = chosen, (1 << len(chosen)) - 1

    return change


def unsigned(desk: EscrowDesk) -> None:
    """Raise the amount by a wei behind the validators' backs."""
    desk.due = lambda made: replace(made, terms=replace(made.terms, amount_wei=made.terms.amount_wei - 1))


WRONG: list[tuple[str, Change]] = [
    ("terms.client", terms(client=OTHER.address)),
    ("terms.request_hash", terms(request_hash=bytes(32))),
    ("terms.gateway", terms(gateway=OTHER.address)),
    ("terms.amount_wei", terms(amount_wei=71)),
    ("terms.expiry_s", terms(expiry_s=int(time.time()) - 1)),
    ("quorum.epoch", terms(epoch=8)),
    ("chain_id", due(chain_id=1)),
    ("contract", due(contract=OTHER.address)),
    ("escrow_id", due(escrow_id=bytes(32))),
    ("quorum.bitmap", quorum(lambda made: replace(made, bitmap=0b0110))),
    ("quorum.bitmap", quorum(lambda made: replace(made, bitmap=0, signatures=()))),
    ("quorum.signatures[1]", quorum(lambda made: replace(made, signatures=made.signatures[:1] * 3))),
    ("quorum.signatures[0]", quorum(lambda made: replace(made, signatures=(bytes(65), *made.signatures[1:])))),
    ("quorum.signatures[2]", signers(VALIDATORS[0], VALIDATORS[1], GATEWAY)),
    ("quorum.signatures[0]", signers(NODE, VALIDATORS[0], VALIDATORS[1])),
    ("", quorum(lambda made: replace(made, signatures=(b"short",) * 3))),
]


@pytest.mark.parametrize(("where", "change"), WRONG)
def test_wrong_terms_are_not_paid(paying: Client, gateway: FakeGateway, where: str, change: Change) -> None:
    change(gateway.desk)
    with pytest.raises(VerificationError) as caught:
        paying.infer("minilm", TEXT, payment="escrow", limit_units=20)
    assert caught.value.where == f"payment.{where}".rstrip(".")
    assert cancelled(gateway)


def test_terms_that_validators_did_not_sign(paying: Client, gateway: FakeGateway) -> None:
    """Their signatures then are anybody's; the contract, which knows the members, is the one to say so."""
    unsigned(gateway.desk)
    with pytest.raises(AssertionError):
        paying.infer("minilm", TEXT, payment="escrow", limit_units=20)
    assert cancelled(gateway)


def test_a_node_that_is_not_the_one_wanted(gateway: FakeGateway) -> None:
    transport = httpx.MockTransport(gateway)
    with (
        Client(
            "http://gateway", signer=CLIENT, node=OTHER.address, pay=gateway.desk.pay, transport=transport
        ) as client,
        pytest.raises(VerificationError, match=r"payment\.terms\.node"),
    ):
        client.infer("minilm", TEXT, payment="escrow", pay=gateway.desk.pay)


def test_an_answer_of_a_node_that_was_not_paid(paying: Client, gateway: FakeGateway) -> None:
    change: Callable[[EscrowTerms], EscrowTerms] = lambda made: replace(made, node=OTHER.address)  # noqa: E731
    gateway.desk.terms = change
    with pytest.raises(VerificationError, match=r"receipt\.node.*was paid"):
        paying.infer("minilm", TEXT, payment="escrow")


def test_a_refusal_to_cancel_does_not_hide_why(paying: Client, gateway: FakeGateway) -> None:
    def pay(due: PaymentDue) -> bytes:
        gateway.broken = httpx.Response(500, content=b"")
        raise TransactionReverted("too little")

    with pytest.raises(TransactionReverted, match="too little"):
        paying.infer("minilm", TEXT, payment="escrow", pay=pay)


def test_a_stream_of_events_that_is_cut(paying: Client, gateway: FakeGateway) -> None:
    gateway.deferred = True
    task = paying.submit("minilm", TEXT, payment="voucher")
    looks = 0

    def cut(http: httpx.Request) -> httpx.Response:
        nonlocal looks
        if http.headers["accept"].startswith("text/event-stream"):
            looks += 1
            if looks == 3:
                gateway.finish(task.id)
            return httpx.Response(200, content=b"event: event\n", headers={"content-type": "text/event-stream"})
        return gateway(http)

    with Client("http://gateway", transport=httpx.MockTransport(cut)) as client:
        assert client.wait(task).vectors
    assert looks == 3


def test_a_gateway_that_ends_every_stream(paying: Client, gateway: FakeGateway) -> None:
    gateway.settled = False
    task = paying.submit("minilm", TEXT)
    with pytest.raises(NcnError, match="ends every stream"):
        paying.wait(task)
