"""One-off payments by a signed transfer, on the real token."""

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
    MalformedRequest,
    NcnError,
    NoCapacity,
    PaymentRequired,
    SignatureRejected,
    StoreError,
    TransactionReverted,
)
from ncn_framework.models import InferenceRequest
from ncn_framework.payments import EXACT, Offer, TransferAuthorization
from ncn_framework.signing import Signer
from ncn_framework.testing.fakes import fake_signer
from ncn_payments import accounts as accounts_module
from ncn_payments.accounts import Accounts
from ncn_payments.exact import ExactDesk
from ncn_payments.ledger import Ledger
from ncn_payments.onchain import OnChain
from ncn_payments.settlement import Settler

from .network import CLIENTS, Network, settings_of
from .payments import CLIENT, GATEWAY, NODE, make_receipt, make_request, make_transfer, make_voucher, priced, written

FEE = 10**15 + 7
MANIFEST = priced(base_wei=FEE, unit_wei=0)
OWN = 10**18


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gateway's channel be asked for again without a pause."""
    monkeypatch.setattr(accounts_module, "_PAUSE_S", 0.0)


@dataclass
class Open:
    """A gateway that takes one-off payments."""

    desk: ExactDesk
    accounts: Accounts
    ledger: Ledger
    chain: OnChain


@asynccontextmanager
async def open_desk(network: Network, own_wei: int = OWN) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:
        chain = await replace(network, stack=stack).onchain(GATEWAY)
        ledger = await stack.enter_async_context(network.ledger())
        accounts = Accounts(network.domain, GATEWAY.address, ledger, chain.deposit, 60.0)
        desk = ExactDesk(network.domain, GATEWAY, accounts, chain)
        await desk.top_up(own_wei)
        yield Open(desk, accounts, ledger, chain)


def a_request(
    network: Network, number: int = 1, client: Signer | None = None, payer: Signer = CLIENT, **changes: Any
) -> InferenceRequest:
    """Return a request that brings a transfer with this number; ``changes`` are the transfer's."""
    transfer = make_transfer(changes.pop("value_wei", FEE), network.token, number, payer, **changes)
    return make_request(number, client, MANIFEST, network.domain, payment=EXACT, authorization=transfer)


async def serve(opened: Open, request: InferenceRequest, network: Network) -> Any:
    """Check, hold, settle and release, as the life cycle does."""
    await opened.desk.check(request, MANIFEST)
    async with opened.desk.lease(request, MANIFEST):
        settlement = await opened.desk.settle(make_receipt(request, FEE, domain=network.domain), request)
    opened.accounts.delivered(request.request_id)
    return settlement


@pytest.mark.parametrize("client", [None, CLIENTS[1]])
async def test_a_transfer_pays_and_the_network_is_paid(network: Network, client: Signer | None) -> None:
    """The payer pays the gateway; the gateway's own channel pays the node and all others, in the next batch."""
    async with open_desk(network) as opened:
        payer, gateway = await network.tokens(CLIENT.address), await network.tokens(GATEWAY.address)
        request = a_request(network, client=client)
        settlement = await serve(opened, request, network)
        assert (settlement.mode, settlement.charged_wei) == (EXACT, FEE)
        assert await opened.chain.receipt(bytes.fromhex(settlement.reference[2:]))
        assert await network.tokens(CLIENT.address) == payer - FEE
        assert await network.tokens(GATEWAY.address) == gateway + FEE
        (owed,) = opened.ledger.unsettled()
        assert (owed.fee_wei, owed.channel) == (FEE, opened.desk.channel)
        node = await network.tokens(NODE.address)
        committee = network.committee(opened.chain)
        settings = settings_of(network.home)
        settler = Settler(
            network.domain,
            opened.ledger,
            opened.chain,
            committee.endorse,
            settings,
            epoch=committee.validation.epoch,
        )
        (batch,) = await settler.settle(everything=True)
        assert batch.statement.charges[0].client == request.client
        assert await network.tokens(NODE.address) - node == FEE * 80 // 100


async def test_twenty_at_once_are_all_covered(network: Network) -> None:
    """Each brings a voucher of the gateway to itself for just what is held: none may fall short of another's hold."""
    async with open_desk(network, 20 * FEE) as opened:
        opened.accounts.account(opened.desk.channel).asked_at = float("-inf")
        requests = [a_request(network, number, payer=CLIENTS[number % 3]) for number in range(20)]
        await asyncio.gather(*(serve(opened, request, network) for request in requests))
        account = opened.accounts.account(opened.desk.channel)
        assert (account.charged_wei, account.held_wei) == (20 * FEE, 0)
        assert len(opened.ledger.unsettled()) == 20
        with pytest.raises(NoCapacity, match="has 0 wei left"):
            await opened.desk.check(a_request(network, 21), MANIFEST)


# --- offers ---


async def test_it_is_offered_where_the_price_is_fixed(network: Network) -> None:
    async with open_desk(network) as opened:
        request = a_request(network)
        assert opened.desk.offers(request, MANIFEST) == (
            Offer(
                mode=EXACT,
                amount_wei=FEE,
                token=network.token.contract,
                pay_to=GATEWAY.address,
                chain_id=31337,
                timeout_s=300,
                extra={"name": "NCN Token", "version": "1"},
            ),
        )
        for manifest in (priced(base_wei=5, unit_wei=1), priced(0, 0)):
            assert opened.desk.offers(request, manifest) == ()
            with pytest.raises(PaymentRequired, match="has no fixed price") as refused:
                await opened.desk.check(request, manifest)
            assert refused.value.offers == ()


# --- what does not pay ---

NOW_S = int(time.time())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"value_wei": FEE - 1}, f"due are {FEE} wei"),
        ({"value_wei": FEE + 1}, f"due are {FEE} wei"),
        ({"payee": NODE.address}, "due are"),
        ({"valid_after_s": NOW_S + 3_600}, "it must hold from now"),
        ({"valid_before_s": NOW_S + 200}, "it must hold from now to the request's deadline, or for 270 s"),
    ],
)
async def test_another_transfer_than_is_due_is_refused(network: Network, changes: dict[str, Any], why: str) -> None:
    async with open_desk(network) as opened:
        with pytest.raises(PaymentRequired, match=why) as refused:
            await opened.desk.check(a_request(network, **changes), MANIFEST)
        assert refused.value.offers == opened.desk.offers(a_request(network), MANIFEST)


async def test_a_transfer_need_not_hold_longer_than_the_request(network: Network) -> None:
    now = int(time.time())
    async with open_desk(network) as opened:
        request = replace(a_request(network, valid_before_s=now + 61), deadline_ms=(now + 60) * 1000)
        await opened.desk.check(request, MANIFEST)
        with pytest.raises(PaymentRequired):
            await opened.desk.check(replace(request, deadline_ms=(now + 61) * 1000), MANIFEST)


async def test_what_is_no_transfer_is_refused(network: Network) -> None:
    async with open_desk(network) as opened:
        for authorization in (None, make_voucher(10**18)):
            request = replace(a_request(network), authorization=authorization)
            with pytest.raises(PaymentRequired, match="needs a signed transfer") as refused:
                await opened.desk.check(request, MANIFEST)
            assert refused.value.offers
            with pytest.raises(PaymentRequired):
                opened.desk.lease(request, MANIFEST)


async def test_a_forged_transfer_is_refused(network: Network) -> None:
    async with open_desk(network) as opened:
        request = a_request(network)
        transfer = request.authorization
        assert isinstance(transfer, TransferAuthorization)
        forged = make_transfer(FEE, network.token, 1, CLIENTS[1])
        stolen = TransferAuthorization(CLIENT.address, GATEWAY.address, FEE, 0, 2**40, transfer.nonce, forged.signature)
        with pytest.raises(SignatureRejected, match="the transfer is signed by"):
            await opened.desk.check(replace(request, authorization=stolen), MANIFEST)


async def test_an_empty_wallet_is_refused_before_anything_is_done(network: Network) -> None:
    async with open_desk(network) as opened:
        with pytest.raises(PaymentRequired, match=r"the transfer would fail: .*ERC20InsufficientBalance") as refused:
            await opened.desk.check(a_request(network, payer=fake_signer("poor")), MANIFEST)
        assert refused.value.offers


async def test_a_wallet_that_is_emptied_meanwhile_pays_nothing_and_is_charged_nothing(network: Network) -> None:
    async with open_desk(network) as opened:
        request, client = a_request(network), await network.onchain(CLIENT)
        await opened.desk.check(request, MANIFEST)
        async with opened.desk.lease(request, MANIFEST):
            everything = await network.tokens(CLIENT.address)
            token = network.contracts.token
            await client.writer.send(token.call("transfer", NODE.address, everything), key="empty")
            with pytest.raises(PaymentRequired, match="the transfer failed"):
                await opened.desk.settle(make_receipt(request, FEE, domain=network.domain), request)
        opened.accounts.void(request.request_id)  # as the desk does when it hears that the request failed
        await written(opened.ledger)
        assert opened.ledger.unsettled() == []
        assert opened.accounts.account(opened.desk.channel).charged_wei == 0


async def test_a_charge_that_cannot_be_stored_takes_no_transfer(network: Network) -> None:
    async with open_desk(network) as opened:
        request, payer = a_request(network), await network.tokens(CLIENT.address)
        refuse = "CREATE TRIGGER full BEFORE INSERT ON charges BEGIN SELECT RAISE(ABORT, 'full'); END"
        opened.ledger._connection.execute(refuse)
        with pytest.raises(StoreError):
            await serve(opened, request, network)
        assert await network.tokens(CLIENT.address) == payer


async def test_a_gateway_without_ether_does_not_blame_the_payer(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk(network) as opened:

        async def poor(*_: Any) -> str:
            raise TransactionReverted("0x.. has too little ether for the fee", "InsufficientFunds")

        monkeypatch.setattr(opened.chain, "take_transfer", poor)
        with pytest.raises(ChainError, match="cannot be taken now"):
            await serve(opened, a_request(network), network)


# --- one transfer, one request ---


def another(network: Network, first: InferenceRequest) -> InferenceRequest:
    """Return another request with the transfer of the first."""
    request = make_request(2, None, MANIFEST, network.domain, payment=EXACT)
    return replace(request, authorization=first.authorization)


async def test_a_transfer_is_taken_once(network: Network) -> None:
    async with open_desk(network) as opened:
        first = a_request(network)
        await serve(opened, first, network)
        again = another(network, first)
        with pytest.raises(PaymentRequired, match="the transfer would fail"):
            await opened.desk.check(again, MANIFEST)


async def test_a_transfer_does_not_pay_for_two_requests_at_once(network: Network) -> None:
    async with open_desk(network) as opened:
        first = a_request(network)
        second = another(network, first)
        await opened.desk.check(first, MANIFEST)
        await opened.desk.check(second, MANIFEST)  # neither is in flight yet
        async with opened.desk.lease(first, MANIFEST):
            with pytest.raises(MalformedRequest, match="pays for another request"):
                await opened.desk.check(second, MANIFEST)
            with pytest.raises(MalformedRequest, match="pays for another request"):
                await opened.desk.lease(second, MANIFEST).__aenter__()
            await opened.desk.check(first, MANIFEST)  # the same request again is no second one
        async with opened.desk.lease(second, MANIFEST):  # the first has let go of it
            pass


async def test_the_same_number_of_another_payer_is_another_transfer(network: Network) -> None:
    async with open_desk(network) as opened:
        first, second = a_request(network, 1), a_request(network, 1, CLIENTS[1], CLIENTS[1])
        assert isinstance(first.authorization, TransferAuthorization)
        assert isinstance(second.authorization, TransferAuthorization)
        assert first.authorization.nonce == second.authorization.nonce
        await asyncio.gather(serve(opened, first, network), serve(opened, second, network))
        assert len(opened.ledger.unsettled()) == 2


# --- the gateway's own channel ---


async def test_a_hold_that_fails_lets_go_of_the_transfer(network: Network) -> None:
    async with open_desk(network, 0) as opened:
        request = a_request(network)
        with pytest.raises(NoCapacity, match="no one-off payments for now"):
            await opened.desk.lease(request, MANIFEST).__aenter__()
        assert opened.desk._using == {}
        await opened.desk.top_up(FEE)
        await serve(opened, request, network)
        assert opened.desk._using == {}


async def test_it_is_topped_up_once_less_than_half_is_left(network: Network) -> None:
    async with open_desk(network, 4 * FEE) as opened:
        account = opened.accounts.account(opened.desk.channel)
        for number in range(2):
            await serve(opened, a_request(network, number), network)
        await opened.desk.top_up(4 * FEE)  # half is left
        assert account.deposit.deposited_wei == 4 * FEE
        await serve(opened, a_request(network, 2), network)
        await opened.desk.top_up(4 * FEE)
        await opened.desk.top_up(4 * FEE)
        assert account.deposit.deposited_wei == 7 * FEE
        assert (await opened.chain.deposit(opened.desk.channel)).deposited_wei == 7 * FEE


async def test_it_is_topped_up_with_what_there_is(network: Network) -> None:
    async with open_desk(network, 0) as opened:
        has = await network.tokens(GATEWAY.address)
        await opened.desk.top_up(3 * has)
        assert opened.accounts.account(opened.desk.channel).deposit.deposited_wei == has
        await opened.desk.top_up(3 * has)  # nothing is left: nothing happens


async def test_a_channel_that_is_being_withdrawn_covers_nothing(network: Network) -> None:
    async with open_desk(network) as opened:
        await opened.chain.leave(GATEWAY.address, GATEWAY.address, "leave")
        opened.accounts.account(opened.desk.channel).deposit = await opened.chain.deposit(opened.desk.channel)
        with pytest.raises(NcnError):
            await opened.desk.check(a_request(network), MANIFEST)
