"""A node's own books: no work without a voucher that covers it, and a charge for each answer, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ncn_framework.digests import channel_id
from ncn_framework.errors import MalformedRequest, PaymentRequired, SignatureRejected
from ncn_framework.models import InferenceRequest
from ncn_framework.payments import EXACT, VOUCHER, TransferAuthorization, Voucher
from ncn_framework.signing import Signer
from ncn_framework.testing.fakes import fake_signer
from ncn_payments import batches
from ncn_payments.books import Books
from ncn_payments.ledger import Ledger

from .payments import CLIENT, DOMAIN, GATEWAY, NODE, make_receipt, make_request, make_voucher, written

CHANNEL = channel_id(CLIENT.address, CLIENT.address, GATEWAY.address)
SESSION, STRANGER = fake_signer("session"), fake_signer("stranger")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(tmp_path / "books.db", "books") as opened:
        yield opened


def a_request(
    number: int, voucher: Voucher | None, client: Signer | None = CLIENT, mode: str = VOUCHER
) -> InferenceRequest:
    return make_request(number, client, authorization=voucher, payment=mode)


async def serve(books: Books, request: InferenceRequest, limit_wei: int, fee_wei: int) -> None:
    async with books.lease(request, limit_wei):
        settlement = await books.settle(make_receipt(request, fee_wei), request)
    assert (settlement.mode, settlement.charged_wei) == (request.payment, fee_wei)


async def test_what_is_done_is_booked(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    async with Ledger(path, "books") as ledger:
        books = Books(DOMAIN, ledger, lambda: 17)
        await serve(books, a_request(1, make_voucher(100)), 60, 50)
        await serve(books, a_request(2, make_voucher(110)), 60, 60)
    async with Ledger(path, "books") as ledger:
        assert [(owed.fee_wei, owed.at_ms) for owed in ledger.unsettled()] == [(50, 17), (60, 17)]
        charges = ledger.charges([owed.number for owed in ledger.unsettled()])
        batches.check(DOMAIN, batches.build(GATEWAY.address, 1, 1, charges, {CHANNEL: 0}), {CHANNEL: 0})
        books = Books(DOMAIN, ledger)
        with pytest.raises(PaymentRequired, match="is owed 110 wei already"):  # it remembers
            await serve(books, a_request(3, make_voucher(110)), 1, 1)
        await serve(books, a_request(3, make_voucher(111)), 1, 1)


async def test_a_better_voucher_that_came_before_covers_as_well(ledger: Ledger) -> None:
    books = Books(DOMAIN, ledger)
    await serve(books, a_request(2, make_voucher(120)), 60, 60)
    await serve(books, a_request(1, make_voucher(60)), 60, 60)
    with pytest.raises(PaymentRequired):
        await serve(books, a_request(3, make_voucher(60)), 1, 1)


@pytest.mark.parametrize(
    ("request_", "error", "why"),
    [
        (a_request(1, None), PaymentRequired, "does not work for nothing"),
        (a_request(1, make_voucher(9)), PaymentRequired, "allows 9 wei"),
        (a_request(1, make_voucher(100, STRANGER)), MalformedRequest, "neither the request's client nor the gateway"),
        (a_request(1, make_voucher(100), STRANGER), MalformedRequest, "neither"),
        (a_request(1, make_voucher(100), None), MalformedRequest, "neither"),
        (
            a_request(1, Voucher(CLIENT.address, CLIENT.address, GATEWAY.address, 100, make_voucher(99).signature)),
            SignatureRejected,
            "the voucher is signed by",
        ),
        (
            make_request(1, authorization=TransferAuthorization(CLIENT.address, NODE.address, 9, 0, 9, bytes(32))),
            PaymentRequired,
            "without a voucher",
        ),
    ],
)
async def test_no_work_for_nothing(
    ledger: Ledger, request_: InferenceRequest, error: type[Exception], why: str
) -> None:
    books = Books(DOMAIN, ledger)
    with pytest.raises(error, match=why):
        await books.lease(request_, 10).__aenter__()
    assert not books._best
    assert not books._owed


@pytest.mark.parametrize("client", [CLIENT, SESSION])
async def test_a_session_keys_voucher_pays_for_both(ledger: Ledger, client: Signer) -> None:
    await serve(Books(DOMAIN, ledger), a_request(1, make_voucher(100, CLIENT, SESSION), client), 10, 10)


@pytest.mark.parametrize("client", [None, CLIENT])
async def test_a_gateway_may_pay_for_anybody(ledger: Ledger, client: Signer | None) -> None:
    request = a_request(1, make_voucher(100, GATEWAY), client, EXACT)
    await serve(Books(DOMAIN, ledger), request, 10, 10)
    await written(ledger)
    (owed,) = ledger.unsettled()
    (charge,) = ledger.charges([owed.number])
    spent = {batches.channel_of(charge): 0}
    batches.check(DOMAIN, batches.build(GATEWAY.address, 1, 1, [charge], spent), spent)


async def test_a_request_that_is_sent_again_is_booked_once(ledger: Ledger) -> None:
    """Its gateway was restarted before it had the answer."""
    books, request = Books(DOMAIN, ledger), a_request(1, make_voucher(100))
    await serve(books, request, 60, 60)
    await written(ledger)
    await serve(books, request, 40, 40)
    await serve(books, a_request(2, make_voucher(100)), 40, 40)
    await written(ledger)
    assert [owed.fee_wei for owed in ledger.unsettled()] == [60, 40]


async def test_requests_in_flight_share_no_unit(ledger: Ledger) -> None:
    """A gateway that shows one voucher for many requests at once is found out."""
    books, voucher = Books(DOMAIN, ledger), make_voucher(100)
    first, second, third = (books.lease(a_request(n, voucher), 60) for n in (1, 2, 3))
    await first.__aenter__()
    with pytest.raises(PaymentRequired, match="works for 60 wei"):
        await second.__aenter__()
    await books.settle(make_receipt(first.request, 30), first.request)
    await first.__aexit__(None, None, None)
    await third.__aenter__()
    await third.__aexit__(None, None, None)
    assert not books._held
    assert not books._in_flight


async def test_what_costs_nothing_is_not_booked(ledger: Ledger) -> None:
    books = Books(DOMAIN, ledger)
    await serve(books, a_request(1, make_voucher(100)), 10, 0)
    settlement = await books.settle(make_receipt(make_request(2), 5), replace(make_request(2), payment="escrow"))
    assert settlement.charged_wei == 5
    await written(ledger)
    assert ledger.unsettled() == []


async def test_a_charge_that_cannot_be_written_is_logged(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    refuse = "CREATE TRIGGER full BEFORE INSERT ON charges BEGIN SELECT RAISE(ABORT, 'full'); END"
    ledger._connection.execute(refuse)
    await serve(Books(DOMAIN, ledger), a_request(1, make_voucher(100)), 10, 10)
    async with asyncio.timeout(10):
        while "a charge is missing from this node's books" not in caplog.text:
            await asyncio.sleep(0)
