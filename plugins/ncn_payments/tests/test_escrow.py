"""Escrow, on real contracts: paid before, settled after, and given back wherever it comes to nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ncn_framework.errors import (
    ChainError,
    EndorsementRefused,
    PaymentRequired,
    RequestError,
    SignatureRejected,
    TaskEnded,
)
from ncn_framework.models import InferenceRequest, Route
from ncn_framework.payments import ESCROW, PaymentConfirmation, PaymentDue, Quorum
from ncn_framework.statements import Statement
from ncn_payments.escrow import EscrowDesk, EscrowLease
from ncn_payments.ledger import Ledger
from ncn_payments.onchain import OnChain

from .conftest import KINDS
from .network import Network
from .payments import CLIENT, GATEWAY, NODE, make_receipt, make_request, priced

UNIT = 10**15 + 7
MANIFEST = priced(base_wei=5, unit_wei=UNIT)
LIMIT = 10 * UNIT + 5
ROUTE = Route(NODE.address, MANIFEST)
GRACE_S = 300


class Clock:
    """The wall clock, which may be ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_s * 1000


@dataclass
class Open:
    """A gateway's escrows and what they rest on."""

    desk: EscrowDesk
    ledger: Ledger
    chain: OnChain
    clock: Clock


@asynccontextmanager
async def open_desk(network: Network, clock: Clock | None = None) -> AsyncIterator[Open]:
    """Open the desk; what it had open before is open in its ledger alone, as after a crash."""
    clock = clock or Clock()
    async with AsyncExitStack() as stack:
        own = replace(network, stack=stack)
        chain = await own.onchain(GATEWAY)
        ledger = await stack.enter_async_context(network.ledger())
        committee = own.committee(chain)
        committee.clock = clock
        desk = EscrowDesk(
            network.domain,
            GATEWAY,
            chain,
            committee.endorse,
            committee.validation.epoch,
            ledger,
            GRACE_S,
            clock,
        )
        yield Open(desk, ledger, chain, clock)


async def a_client(network: Network, account_wei: int = 10**18) -> OnChain:
    """Return the contracts as the client uses them, with money in its account."""
    client = await network.onchain(CLIENT)
    await client.fund_account(account_wei, "account")
    return client


def a_request(network: Network, number: int = 1, **changes: Any) -> InferenceRequest:
    fields = {"payment": ESCROW, "limit_units": 10, "deadline_ms": time.time_ns() // 1_000_000 + 60_000}
    return make_request(number, CLIENT, MANIFEST, network.domain, **(fields | changes))


async def entered(opened: Open, request: InferenceRequest) -> tuple[EscrowLease, PaymentDue]:
    """Have the escrow of a request opened, and return what is due."""
    lease = opened.desk.lease(request, ROUTE)
    held = await lease.__aenter__()
    assert held.escrow is lease
    return lease, lease.due


async def pay(client: OnChain, due: PaymentDue, key: str = "pay") -> bytes:
    """Pay what is due, and return the transaction's hash."""
    return (await client.pay_escrow(due.terms, due.quorum, key)).hash


async def confirm(opened: Open, request: InferenceRequest, transaction: bytes) -> None:
    confirming = opened.desk.confirm(PaymentConfirmation(request.request_id, transaction))
    assert confirming is not None
    await confirming


async def free_wei(network: Network, address: bytes = CLIENT.address) -> int:
    return int((await network.contracts.payment.read("accounts", address))[0])


@pytest.mark.parametrize("network", KINDS, indirect=True)
async def test_a_request_is_paid_and_done(network: Network) -> None:
    client, request, fee = await a_client(network), a_request(network), 7 * UNIT
    async with open_desk(network) as opened:
        lease, due = await entered(opened, request)
        assert (due.terms.amount_wei, due.contract, due.chain_id) == (LIMIT, network.domain.contract, 31337)
        assert opened.ledger.open_escrows() == [due.terms]
        paid = asyncio.create_task(lease.paid())
        await confirm(opened, request, await pay(client, due))
        await paid
        assert await free_wei(network) == 10**18 - LIMIT
        node_before, gateway_before = await network.tokens(NODE.address), await free_wei(network, GATEWAY.address)
        settlement = await opened.desk.settle(make_receipt(request, fee, domain=network.domain))
        await lease.__aexit__()
        assert (settlement.mode, settlement.charged_wei) == (ESCROW, fee)
        assert await opened.chain.receipt(bytes.fromhex(settlement.reference[2:]))
        assert await network.tokens(NODE.address) - node_before == fee * 80 // 100
        assert await free_wei(network, GATEWAY.address) - gateway_before == fee // 10
        assert await free_wei(network) == 10**18 - fee  # what was not used came back
        assert opened.ledger.open_escrows() == []
        assert opened.desk.open == {}
        assert not await opened.chain.is_escrowed(due.terms)


async def test_a_request_that_fails_is_given_back(network: Network) -> None:
    client, request = await a_client(network), a_request(network)
    async with open_desk(network) as opened:
        lease, due = await entered(opened, request)
        await confirm(opened, request, await pay(client, due))
        await lease.__aexit__()
        assert await lease.refund()
        assert await free_wei(network) == 10**18
        assert opened.ledger.open_escrows() == []
        assert opened.desk.open == {}
        # and then it cannot be completed any more
        late, _ = await entered(opened, request)
        late.due = due
        with pytest.raises(EndorsementRefused, match="these terms are not in escrow"):
            await opened.desk.settle(make_receipt(request, UNIT, domain=network.domain))


async def test_nothing_is_given_back_that_was_not_paid(network: Network) -> None:
    await a_client(network)
    clock = Clock()
    async with open_desk(network, clock) as opened:
        lease, due = await entered(opened, a_request(network))
        await lease.__aexit__()
        assert not await lease.refund()
        await opened.desk.recover()
        assert opened.ledger.open_escrows() == [due.terms]  # the client may pay yet
        clock.ahead_s = 400
        await opened.desk.recover()
        assert opened.ledger.open_escrows() == []


async def test_what_is_paid_too_late_is_given_back(network: Network) -> None:
    """The request has failed, for nobody paid in time; then the payment arrives."""
    client = await a_client(network)
    async with open_desk(network) as opened:
        lease, due = await entered(opened, a_request(network))
        assert not await lease.refund()
        await pay(client, due)
        await opened.desk.recover()
        assert await free_wei(network) == 10**18
        assert opened.ledger.open_escrows() == []


async def test_after_a_crash_it_is_given_back(network: Network) -> None:
    client = await a_client(network)
    async with open_desk(network) as opened:
        _, due = await entered(opened, a_request(network))
        await pay(client, due)
    async with open_desk(network) as opened:
        assert opened.ledger.open_escrows() == [due.terms]
        await opened.desk.recover()
        assert await free_wei(network) == 10**18
        assert opened.ledger.open_escrows() == []


async def test_without_validators_it_is_given_back_after_its_expiry(network: Network) -> None:
    client, clock = await a_client(network), Clock()
    async with open_desk(network) as opened:
        _, due = await entered(opened, a_request(network))
        await pay(client, due)

    async def nobody(_: Statement) -> Quorum:
        raise EndorsementRefused("nobody is there")

    async with open_desk(network, clock) as opened:
        opened.desk.endorse = nobody
        await opened.desk.recover()
        assert opened.ledger.open_escrows() == [due.terms]
        assert await free_wei(network) == 10**18 - LIMIT
        clock.ahead_s = 60 + GRACE_S + 5
        await opened.desk.recover()  # our clock is ahead of the chain's: it says no, and it stays open
        assert opened.ledger.open_escrows() == [due.terms]
        await network.pass_time(clock.ahead_s)
        await opened.desk.recover()
        assert await free_wei(network) == 10**18
        assert opened.ledger.open_escrows() == []


async def test_a_refund_that_is_refused_waits(network: Network) -> None:
    client = await a_client(network)
    async with open_desk(network) as opened:
        lease, due = await entered(opened, a_request(network))
        await pay(client, due)
        endorse = opened.desk.endorse

        async def nobody(_: Statement) -> Quorum:
            raise EndorsementRefused("nobody is there")

        opened.desk.endorse = nobody
        assert not await lease.refund()
        assert opened.ledger.open_escrows() == [due.terms]
        opened.desk.endorse = endorse
        await opened.desk.recover()
        assert await free_wei(network) == 10**18


async def test_what_is_in_flight_is_left_alone(network: Network) -> None:
    client, request = await a_client(network), a_request(network)
    async with open_desk(network) as opened:
        lease, due = await entered(opened, request)
        await pay(client, due)
        await opened.desk.recover()
        assert await opened.chain.is_escrowed(due.terms)
        await opened.desk.settle(make_receipt(request, UNIT, domain=network.domain))
        await lease.__aexit__()


async def test_a_transaction_that_paid_nothing_confirms_nothing(network: Network) -> None:
    client, request = await a_client(network), a_request(network)
    other = (await client.fund_account(5, "something else")).hash
    async with open_desk(network) as opened:
        lease, due = await entered(opened, request)
        for wrong, why in ((b"\x05" * 32, "not on the chain yet"), (other, "has not paid .* into escrow")):
            with pytest.raises(PaymentRequired, match=why):
                await confirm(opened, request, wrong)
        assert not lease._paid.done()
        transaction = await pay(client, due)
        await confirm(opened, request, transaction)
        await lease.paid()
        with pytest.raises(TaskEnded, match="was paid already"):
            await confirm(opened, request, transaction)
        assert opened.desk.confirm(PaymentConfirmation(bytes(32), transaction)) is None


async def test_of_two_requests_with_one_nonce_the_contract_takes_one(network: Network) -> None:
    """A client that asks twice before it pays: both wait for the same nonce."""
    client, first, second = await a_client(network), a_request(network, 1), a_request(network, 2)
    async with open_desk(network) as opened:
        one, due = await entered(opened, first)
        two, other = await entered(opened, second)
        assert due.escrow_id == other.escrow_id
        transaction = await pay(client, due)
        with pytest.raises(PaymentRequired, match="has not paid"):
            await confirm(opened, second, transaction)
        await confirm(opened, first, transaction)
        await one.paid()
        assert not await two.refund()
    async with open_desk(network) as opened:  # a crash: of both, the ledger still knows which one was paid
        assert len(opened.ledger.open_escrows()) == 2
        await opened.desk.recover()
        assert await free_wei(network) == 10**18
        assert opened.ledger.open_escrows() == [other.terms]


async def test_a_client_without_money_cannot_pay(network: Network) -> None:
    client, request = await a_client(network, LIMIT - 1), a_request(network)
    async with open_desk(network) as opened:
        _, due = await entered(opened, request)
        with pytest.raises(Exception, match="InferencePayment__InsufficientFunds"):
            await pay(client, due)


async def test_what_cannot_be_paid_by_escrow_is_refused_at_once(network: Network) -> None:
    async with open_desk(network) as opened:
        anonymous = make_request(1, None, MANIFEST, network.domain, payment=ESCROW)
        with pytest.raises(SignatureRejected, match="needs a client who signs"):
            opened.desk.check(anonymous)
        farthest = opened.clock() + (3_600 - GRACE_S) * 1000
        opened.desk.check(a_request(network, deadline_ms=farthest))
        with pytest.raises(RequestError, match="kept for 3300 s; name an earlier deadline"):
            opened.desk.check(a_request(network, deadline_ms=farthest + 60_000))


async def test_an_escrow_is_not_opened_while_the_chain_is_gone(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(network) as opened:

        async def gone(_: bytes) -> Any:
            raise ChainError("no answer")

        monkeypatch.setattr(opened.chain, "account", gone)
        with pytest.raises(ChainError):
            await entered(opened, a_request(network))
        assert opened.desk.open == {}
        assert opened.ledger.open_escrows() == []
