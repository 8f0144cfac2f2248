"""Paid requests through a real life cycle, on real contracts; only the node's work is a stand-in's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ncn_framework import hookimpl
from ncn_framework.digests import failure_digest
from ncn_framework.errors import (
    EndorsementRefused,
    NcnError,
    NodeLost,
    NoHandlerError,
    PaymentRequired,
    RequestError,
    SignatureRejected,
    StoreError,
    TransactionReverted,
)
from ncn_framework.lifecycle import Lifecycle, Outcome
from ncn_framework.models import (
    FREE,
    Chunk,
    Event,
    InferenceRequest,
    Lease,
    Leases,
    ModelManifest,
    Route,
    SignedReceipt,
)
from ncn_framework.node import Node
from ncn_framework.payments import ESCROW, EXACT, VOUCHER, PaymentConfirmation, PaymentDue, Quorum
from ncn_framework.statements import FailureStatement, Statement
from ncn_framework.states import State
from ncn_framework.testing.fakes import FakeRuntime, RecordingPlugin, fake_candidates
from ncn_payments import accounts as accounts_module
from ncn_payments.desk import Desk
from ncn_payments.ledger import Ledger
from ncn_payments.ledger_reader import BatchState
from ncn_payments.onchain import OnChain
from ncn_payments.plugin import Plugin
from ncn_payments.stakes import Stakes

from .network import Network
from .payments import CLIENT, GATEWAY, NODE, make_request, make_transfer, priced, written

UNIT = 10**15 + 7
LIMIT_UNITS = 5
FEE = 10 + 2 * UNIT
"""Of a request: the stand-in does two units."""


BY_UNIT, FIXED, COSTLESS = priced(10, UNIT), priced(FEE, 0), priced(0, 0)


class Runtime(FakeRuntime):
    """A node's work: two chunks, two units; or whatever goes wrong.

    Attributes:
        trouble: raised behind the first chunk.
        seen: leases of each request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Exception | None = None
        self.seen: list[Leases] = []

    @hookimpl
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None] | None:
        self.seen.append(leases)
        return self._work(leases.route.manifest)

    async def _work(self, manifest: ModelManifest) -> AsyncGenerator[Chunk, None]:
        async for chunk in self._execute(manifest):
            yield chunk
            if self.trouble is not None:
                raise self.trouble


class Others(RecordingPlugin):
    """Routes and signs; settles nothing; knows how requests of an earlier run ended."""

    def __init__(self, network: Network) -> None:
        super().__init__("others", domain=network.domain)
        self.ended: dict[bytes, State | Exception] = {}
        self.out: set[bytes] = set()

    @hookimpl
    def ncn_standing(self, account: bytes, out: bool) -> None:
        (self.out.add if out else self.out.discard)(account)

    @hookimpl
    def ncn_settle(self) -> None:  # type: ignore[override]
        return None

    @hookimpl
    def ncn_recall(self, request_id: bytes) -> Awaitable[State | None]:
        return self._recall(request_id)

    async def _recall(self, request_id: bytes) -> State | None:
        found = self.ended.get(request_id)
        if isinstance(found, Exception):
            raise found
        return found


@dataclass
class Gateway:
    """A gateway's node with the payments plugin, and what a test looks at."""

    node: Node
    desk: Desk
    chain: OnChain
    ledger: Ledger
    runtime: Runtime
    others: Others
    moves: list[Event] = field(default_factory=list)

    @property
    def life(self) -> Lifecycle:
        return self.node.lifecycle

    def observe(self, update: Event | Chunk) -> None:
        if isinstance(update, Event):
            self.moves.append(update)

    @property
    def states(self) -> list[str]:
        return [str(move.state) for move in self.moves]

    async def ask(self, request: InferenceRequest, manifest: ModelManifest) -> Outcome:
        """Admit a request and walk it, as a gateway does."""
        self.life.check(request, manifest)
        await self.life.admit(request, manifest)
        return await self.life.run(request, self.observe, candidates=fake_candidates(1, manifest))

    async def due(self) -> PaymentDue:
        """Return what the request in flight has to pay, once it is known."""
        while not (self.moves and self.moves[-1].payment):
            await asyncio.sleep(0)
        found = self.moves[-1].payment
        assert found is not None
        return found


MakeNode = Callable[..., Node]


@asynccontextmanager
async def opened(
    network: Network, make_node: MakeNode, *, quorum: bool = True, **settings: Any
) -> AsyncIterator[Gateway]:
    """Open a gateway; the ledger is that of the last one."""
    made: list[Plugin] = []

    class Payments(Plugin):
        def __init__(self, node: Node) -> None:
            super().__init__(node)
            made.append(self)

    others, runtime = Others(network), Runtime()
    options = {f"payments.{name}": value for name, value in settings.items()}
    node = make_node("gateway", Payments, others, runtime, settings=options)
    node.bind(network.domain)
    node.signer = GATEWAY
    async with AsyncExitStack() as stack:
        own = replace(network, stack=stack)
        chain = await own.onchain(GATEWAY)
        ledger = await stack.enter_async_context(network.ledger())
        made[0].payments.stakes = Stakes(chain.contracts, chain.writer)
        made[0].payments.validators = own.committee(chain) if quorum else None
        desk = made[0].payments.desk = Desk(node, made[0].payments.settings, ledger, chain)
        yield Gateway(node, desk, chain, ledger, runtime, others)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a channel be asked for again without a pause."""
    monkeypatch.setattr(accounts_module, "_PAUSE_S", 0.0)


@pytest.fixture
async def gateway(network: Network, make_node: MakeNode) -> AsyncIterator[Gateway]:
    async with opened(network, make_node) as made:
        yield made


def a_request(network: Network, number: int = 1, **changes: Any) -> InferenceRequest:
    manifest = changes.pop("manifest", None) or BY_UNIT
    fields: dict[str, Any] = {
        "limit_units": LIMIT_UNITS,
        "deadline_ms": time.time_ns() // 1_000_000 + 60_000,
        "authorization": network.voucher(number * (10 + LIMIT_UNITS * UNIT)),
    }
    return make_request(number, changes.pop("client", CLIENT), manifest, network.domain, **(fields | changes))


# --- vouchers ---


async def test_a_paid_request(network: Network, gateway: Gateway) -> None:
    channel = await network.deposit(10**18)
    request = a_request(network)
    outcome = await gateway.ask(request, BY_UNIT)
    assert gateway.states[-1] == "SETTLED"
    settlement = outcome.settlement
    assert (settlement.mode, settlement.charged_wei, settlement.reference) == (VOUCHER, FEE, "0x" + channel.hex())
    account = gateway.desk.accounts.account(channel)
    assert (account.charged_wei, account.held_wei) == (FEE, 0)
    assert gateway.desk.accounts.undelivered() == set()
    (owed,) = gateway.ledger.unsettled()
    (charge,) = gateway.ledger.charges([owed.number])
    assert (charge.receipt, charge.voucher) == (outcome.receipt, request.authorization)
    (funds,) = [lease for lease in gateway.runtime.seen[0] if lease.kind == "funds"]
    assert funds.authorization == request.authorization
    (settled,) = await gateway.desk.settler.settle(everything=True)
    assert settled.statement.charges == (charge,)


async def test_many_at_once_are_paid_from_one_channel(network: Network, gateway: Gateway) -> None:
    """The client signs for all that is in flight; the deposit fits them all, and not one more."""
    limit = 10 + LIMIT_UNITS * UNIT
    channel = await network.deposit(20 * limit)
    outcomes = await asyncio.gather(
        *(gateway.ask(a_request(network, number), BY_UNIT) for number in range(1, 21)), return_exceptions=True
    )
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    assert gateway.desk.accounts.account(channel).charged_wei == 20 * FEE
    (settled,) = await gateway.desk.settler.settle(everything=True)
    assert settled.statement.batch.count == 20


async def test_a_request_that_is_not_covered_leaves_no_trace(network: Network, gateway: Gateway) -> None:
    with pytest.raises(PaymentRequired, match="deposit more") as refused:
        await gateway.ask(a_request(network), BY_UNIT)
    assert [offer.mode for offer in refused.value.offers] == [VOUCHER]
    assert refused.value.offers[0].amount_wei == 10 + LIMIT_UNITS * UNIT
    assert refused.value.offers[0].extra == {"contract": "0x" + network.domain.contract.hex()}
    with pytest.raises(PaymentRequired, match="needs a voucher") as refused:
        await gateway.ask(a_request(network, manifest=FIXED, authorization=None), FIXED)
    assert [offer.mode for offer in refused.value.offers] == [EXACT, VOUCHER]
    assert gateway.moves == []
    assert gateway.ledger.balances() == {}


async def test_it_is_covered_once_the_deposit_is_there(network: Network, gateway: Gateway) -> None:
    request = a_request(network)
    with pytest.raises(PaymentRequired):
        await gateway.ask(request, BY_UNIT)
    await network.deposit(10 + LIMIT_UNITS * UNIT)
    assert (await gateway.ask(request, BY_UNIT)).settlement.charged_wei == FEE


async def test_a_request_that_fails_costs_nothing(network: Network, gateway: Gateway) -> None:
    channel = await network.deposit(10**18)
    gateway.runtime.trouble = NodeLost("the node left")
    with pytest.raises(NodeLost):
        await gateway.ask(a_request(network), BY_UNIT)
    account = gateway.desk.accounts.account(channel)
    assert (account.charged_wei, account.held_wei) == (0, 0)
    assert gateway.states[-1] == "FAILED"
    assert not gateway.desk.accounts.holds(a_request(network).request_id)
    gateway.runtime.trouble = None
    await gateway.ask(a_request(network), BY_UNIT)
    assert account.charged_wei == FEE


async def test_what_is_cancelled_behind_the_charge_is_taken_back(network: Network, gateway: Gateway) -> None:
    channel = await network.deposit(10**18)
    charge, charged = gateway.desk.accounts.charge, asyncio.Event()

    async def stuck(receipt: SignedReceipt, at_ms: int) -> bytes:
        await charge(receipt, at_ms)
        charged.set()
        await asyncio.Event().wait()
        raise AssertionError

    gateway.desk.accounts.charge = stuck  # type: ignore[method-assign]
    asking = asyncio.create_task(gateway.ask(a_request(network), BY_UNIT))
    await charged.wait()
    assert len(gateway.ledger.unsettled()) == 1
    assert await gateway.desk.settler.settle(everything=True) == []  # it has not arrived yet
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert gateway.states[-1] == "CANCELLED"
    await written(gateway.ledger)
    assert gateway.ledger.unsettled() == []
    account = gateway.desk.accounts.account(channel)
    assert (account.charged_wei, account.held_wei) == (0, 0)


async def test_an_answer_that_cannot_be_kept_is_taken_back(network: Network, gateway: Gateway) -> None:
    """Who hears the moves refuses the last one: the request fails though it was charged."""
    await network.deposit(10**18)
    observe = gateway.observe

    def refuse(update: Event | Chunk) -> None:
        if isinstance(update, Event) and update.state is State.SETTLED:
            raise StoreError("the disk is full")
        observe(update)

    gateway.observe = refuse  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        await gateway.ask(a_request(network), BY_UNIT)
    assert gateway.states[-1] == "FAILED"
    await written(gateway.ledger)
    assert gateway.ledger.unsettled() == []


async def test_what_costs_nothing_needs_no_funds(network: Network, gateway: Gateway) -> None:
    for mode in (VOUCHER, ESCROW):
        outcome = await gateway.ask(a_request(network, manifest=COSTLESS, payment=mode), COSTLESS)
        assert (outcome.settlement.mode, outcome.settlement.charged_wei) == (mode, 0)
        gateway.moves.clear()
    assert gateway.ledger.unsettled() == []


async def test_what_is_free_is_not_ours(network: Network, gateway: Gateway) -> None:
    request = a_request(network, payment=FREE, authorization=None)
    with pytest.raises(NoHandlerError, match="ncn_settle for payment mode 'free'"):
        await gateway.ask(request, BY_UNIT)


async def test_an_unknown_mode_is_refused(network: Network, gateway: Gateway) -> None:
    with pytest.raises(RequestError, match="payment mode 'gold' is unknown; known: voucher, escrow, exact, free"):
        await gateway.ask(a_request(network, payment="gold"), BY_UNIT)


# --- one-off payments ---


async def test_a_request_paid_by_a_transfer(network: Network, gateway: Gateway) -> None:
    await gateway.desk.exact.top_up(10**18)
    request = a_request(
        network, client=None, manifest=FIXED, payment=EXACT, authorization=make_transfer(FEE, network.token)
    )
    outcome = await gateway.ask(request, FIXED)
    assert (outcome.settlement.mode, outcome.settlement.charged_wei) == (EXACT, FEE)
    assert await gateway.chain.receipt(bytes.fromhex(outcome.settlement.reference[2:]))
    assert gateway.desk.accounts.undelivered() == set()
    (funds,) = [lease for lease in gateway.runtime.seen[0] if lease.kind == "funds"]
    assert funds.authorization is not None
    assert funds.authorization != request.authorization  # the node sees the gateway's own voucher
    (settled,) = await gateway.desk.settler.settle(everything=True)
    assert settled.statement.batch.count == 1


async def test_a_transfer_that_fails_in_the_end_costs_nobody(
    network: Network, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gateway.desk.exact.top_up(10**18)

    async def fails(*_: Any) -> str:
        raise TransactionReverted("the token refused", "ERC20InsufficientBalance")

    monkeypatch.setattr(gateway.chain, "take_transfer", fails)
    request = a_request(
        network, client=None, manifest=FIXED, payment=EXACT, authorization=make_transfer(FEE, network.token)
    )
    with pytest.raises(PaymentRequired, match="the transfer failed"):
        await gateway.ask(request, FIXED)
    await written(gateway.ledger)
    assert gateway.ledger.unsettled() == []
    account = gateway.desk.accounts.account(gateway.desk.exact.channel)
    assert (account.charged_wei, account.held_wei) == (0, 0)


# --- escrow ---


async def test_a_request_paid_into_escrow(network: Network, gateway: Gateway) -> None:
    client = await network.onchain(CLIENT)
    await client.fund_account(10**18, "account")
    request = a_request(network, payment=ESCROW, authorization=None)
    asking = asyncio.create_task(gateway.ask(request, BY_UNIT))
    due = await gateway.due()
    paid = await client.pay_escrow(due.terms, due.quorum, "pay")
    with pytest.raises(NcnError, match="awaits no payment"):
        await gateway.life.confirm_payment(PaymentConfirmation(bytes(32), paid.hash))
    await gateway.life.confirm_payment(PaymentConfirmation(request.request_id, paid.hash))
    outcome = await asking
    assert (outcome.settlement.mode, outcome.settlement.charged_wei) == (ESCROW, FEE)
    assert [state for state in gateway.states if state in ("AWAITING_PAYMENT", "PAID", "SETTLED")] == [
        "AWAITING_PAYMENT",
        "PAID",
        "SETTLED",
    ]
    assert (await client.account(CLIENT.address)).free_wei == 10**18 - FEE
    assert gateway.desk.escrow.open == {}
    assert gateway.ledger.open_escrows() == []
    assert gateway.ledger.unsettled() == []


async def test_an_escrow_whose_request_fails_is_given_back(network: Network, gateway: Gateway) -> None:
    client = await network.onchain(CLIENT)
    await client.fund_account(10**18, "account")
    gateway.runtime.trouble = NodeLost("the node left")
    request = a_request(network, payment=ESCROW, authorization=None)
    asking = asyncio.create_task(gateway.ask(request, BY_UNIT))
    due = await gateway.due()
    paid = await client.pay_escrow(due.terms, due.quorum, "pay")
    await gateway.life.confirm_payment(PaymentConfirmation(request.request_id, paid.hash))
    with pytest.raises(NodeLost):
        await asking
    assert gateway.states[-2:] == ["FAILED", "REFUNDED"]
    assert (await client.account(CLIENT.address)).free_wei == 10**18
    assert gateway.desk.escrow.open == {}


async def test_nobody_without_a_key_pays_by_escrow(network: Network, gateway: Gateway) -> None:
    with pytest.raises(SignatureRejected):
        await gateway.ask(a_request(network, client=None, payment=ESCROW, authorization=None), BY_UNIT)
    assert gateway.moves == []


# --- validators ---


async def test_validators_of_this_process_are_asked(network: Network, gateway: Gateway) -> None:
    client = await network.onchain(CLIENT)
    await client.fund_account(10**18, "account")
    asking = asyncio.create_task(gateway.ask(a_request(network, payment=ESCROW, authorization=None), BY_UNIT))
    due = await gateway.due()
    endorse = gateway.node.validation.endorse
    signature = GATEWAY.sign(failure_digest(network.domain, due.escrow_id)).value
    statement = FailureStatement(due.terms, due.escrow_id, "why not", signature)
    with pytest.raises(EndorsementRefused, match="these terms are not in escrow"):
        await endorse(statement)
    await client.pay_escrow(due.terms, due.quorum, "pay")
    with pytest.raises(EndorsementRefused, match="the failure is signed by"):
        await endorse(replace(statement, signature=CLIENT.sign(failure_digest(network.domain, due.escrow_id)).value))
    assert len((await endorse(statement)).signatures) == 3
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_without_their_keys_others_are_to_be_asked(network: Network, make_node: MakeNode) -> None:
    async with opened(network, make_node, quorum=False) as gateway:
        with pytest.raises(NoHandlerError, match="ncn_endorse"):
            await gateway.ask(a_request(network, payment=ESCROW, authorization=None), BY_UNIT)
        assert gateway.states[-1] == "FAILED"


async def test_a_client_has_the_money_for_a_wrong_result_back(network: Network, make_node: MakeNode) -> None:
    """Its channel is as free as before, also after a restart; and the node is out."""
    channel = await network.deposit(FEE + LIMIT_UNITS * UNIT)
    async with opened(network, make_node) as gateway:
        outcome = await gateway.ask(a_request(network), BY_UNIT)
        account, wrong = gateway.desk.accounts.account(channel), outcome.receipt.receipt.request_id
        assert account.charged_wei == FEE

        async def refuse(statement: Statement) -> Quorum:
            raise EndorsementRefused("the result is wrong", invalid=[wrong])

        gateway.desk.settler.endorse = refuse
        assert await gateway.desk.settler.settle(everything=True) == []
        assert account.charged_wei == 0
        assert gateway.others.out == {NODE.address}
        await gateway.ask(a_request(network, 2), BY_UNIT)
    async with opened(network, make_node) as gateway:
        assert gateway.desk.accounts.account(channel).charged_wei == FEE


# --- in the background ---


async def settled(gateway: Gateway, count: int) -> None:
    """Return once so many charges are settled."""
    async with asyncio.timeout(30):
        while sum(row.receipts for row in gateway.ledger.batches(BatchState.SETTLED)) < count:
            await asyncio.sleep(0.01)


async def test_what_was_charged_is_settled_in_the_background(network: Network, make_node: MakeNode) -> None:
    await network.deposit(10**18)
    async with (
        opened(network, make_node, batch_count=2, batch_poll_ms=3_600_000, own_deposit_wei=0) as gateway,
        gateway.desk.running(),
    ):
        for number in (1, 2):
            await gateway.ask(a_request(network, number), BY_UNIT)
            gateway.moves.clear()
        await settled(gateway, 2)


async def test_its_own_channel_is_funded_from_the_start(network: Network, make_node: MakeNode) -> None:
    async with opened(network, make_node, own_deposit_wei=12345) as gateway, gateway.desk.running():
        async with asyncio.timeout(30):
            while (await gateway.chain.deposit(gateway.desk.exact.channel)).deposited_wei != 12345:
                pass


async def test_what_a_leaving_client_owes_is_settled_at_once(network: Network, make_node: MakeNode) -> None:
    channel = await network.deposit(10**18)
    client = await network.onchain(CLIENT)
    async with opened(network, make_node, batch_poll_ms=1, own_deposit_wei=0) as gateway, gateway.desk.running():
        await gateway.ask(a_request(network, 1), BY_UNIT)
        assert gateway.ledger.batches() == []
        await client.leave(CLIENT.address, GATEWAY.address, "leave")
        await settled(gateway, 1)
        with pytest.raises(PaymentRequired, match="is being withdrawn"):
            await gateway.ask(a_request(network, 2), BY_UNIT)
        await client.stay(CLIENT.address, GATEWAY.address, "stay")
        async with asyncio.timeout(30):
            while gateway.desk.settler.leaving:
                await asyncio.sleep(0.01)
        await gateway.ask(a_request(network, 2), BY_UNIT)
        assert await gateway.desk.settler.settle() == []  # it waits for others again
        assert gateway.desk.accounts.account(channel).charged_wei == 2 * FEE


async def test_after_a_crash_only_what_arrived_is_charged(network: Network, make_node: MakeNode) -> None:
    """The gateway's store says how each request of the last run ended; what it has never heard of did not arrive."""
    channel = await network.deposit(10**18)
    requests = [a_request(network, number) for number in range(1, 6)]
    async with opened(network, make_node) as gateway:
        gateway.desk.accounts.delivered = lambda request_id: None  # type: ignore[method-assign]
        for request in requests:
            await gateway.ask(request, BY_UNIT)
            gateway.moves.clear()
    async with opened(network, make_node, batch_poll_ms=3_600_000, own_deposit_wei=0) as gateway:
        ended = gateway.others.ended
        ended[requests[0].request_id] = State.SETTLED
        ended[requests[1].request_id] = State.FAILED
        ended[requests[2].request_id] = State.SETTLED
        ended[requests[3].request_id] = StoreError("not now")
        doubts = gateway.desk.accounts.in_doubt()
        assert doubts == {request.request_id for request in requests}
        async with gateway.desk.running():
            async with asyncio.timeout(30):
                while len(gateway.desk.accounts.in_doubt()) > 1:
                    await asyncio.sleep(0)
        await written(gateway.ledger)
        kept = {requests[place].request_id for place in (0, 2, 3)}
        assert {owed.request_id for owed in gateway.ledger.unsettled()} == kept
        assert gateway.desk.accounts.in_doubt() == {requests[3].request_id}  # it stays so, and is not settled
        assert gateway.desk.accounts.account(channel).charged_wei == 3 * FEE
        (batch,) = await gateway.desk.settler.settle(everything=True)
        assert batch.statement.batch.count == 2
        # the client asks for it again: it is served, and not charged again
        outcome = await gateway.ask(requests[3], BY_UNIT)
        assert outcome.settlement.charged_wei == FEE
        assert gateway.desk.accounts.account(channel).charged_wei == 3 * FEE
        (batch,) = await gateway.desk.settler.settle(everything=True)
        assert batch.statement.batch.count == 1


async def test_a_request_that_is_asked_again_meanwhile_is_not_taken_back(network: Network, make_node: MakeNode) -> None:
    await network.deposit(10**18)
    request = a_request(network)
    async with opened(network, make_node) as gateway:
        gateway.desk.accounts.delivered = lambda request_id: None  # type: ignore[method-assign]
        await gateway.ask(request, BY_UNIT)
    async with opened(network, make_node, batch_poll_ms=3_600_000, own_deposit_wei=0) as gateway:
        again = a_request(network, 2).authorization
        lease = gateway.desk.reserve(replace(request, authorization=again), Route(NODE.address, BY_UNIT))
        assert lease is not None
        async with lease as held:
            assert isinstance(held, Lease)
            await gateway.desk._clear_doubts()
            assert gateway.desk.accounts.in_doubt() == {request.request_id}
