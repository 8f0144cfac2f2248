"""Accounts: never a unit more than was deposited and signed, and nothing refused that fits."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ncn_framework.digests import channel_id
from ncn_framework.errors import ChainError, MalformedRequest, PaymentRequired, SignatureRejected, StoreError
from ncn_framework.models import ANONYMOUS, InferenceRequest, Lease
from ncn_framework.payments import Voucher
from ncn_framework.signing import Signer
from ncn_framework.testing.fakes import fake_signer
from ncn_payments import accounts as module
from ncn_payments.accounts import Accounts, Deposit, FundsLease, check_voucher
from ncn_payments.ledger import Ledger

from .payments import CLIENT, DOMAIN, GATEWAY, NOW_MS, make_receipt, make_request, make_voucher, written

T = TypeVar("T")
SESSION = fake_signer("session")
CHANNEL = channel_id(CLIENT.address, CLIENT.address, GATEWAY.address)
IDENTITY = "accounts"


class Deposits:
    """What the chain says of channels; each answer comes a turn of the loop later.

    Attributes:
        asked: how often the chain was asked.
        broken: raised instead of an answer.
    """

    def __init__(self, *funded: tuple[bytes, int]) -> None:
        self.found = {channel: Deposit(amount, 0) for channel, amount in funded}
        self.asked = 0
        self.broken: Exception | None = None

    async def __call__(self, channel: bytes) -> Deposit:
        self.asked += 1
        await asyncio.sleep(0)
        if self.broken is not None:
            raise self.broken
        return self.found.get(channel, Deposit(0, 0))

    def put(self, channel: bytes, amount: int) -> None:
        """Deposit more."""
        before = self.found.get(channel, Deposit(0, 0))
        self.found[channel] = replace(before, deposited_wei=before.deposited_wei + amount)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a channel be asked for again without a pause."""
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(tmp_path / "ledger.db", IDENTITY) as opened:
        yield opened


def accounts_of(ledger: Ledger, deposits: Callable[[bytes], Awaitable[Deposit]], stale_s: float = 60.0) -> Accounts:
    return Accounts(DOMAIN, GATEWAY.address, ledger, deposits, stale_s)


async def serve(accounts: Accounts, number: int, voucher: Voucher, limit_wei: int, fee_wei: int) -> Lease:
    """Hold, charge and release, as the life cycle does."""
    request = make_request(number)
    async with accounts.lease(request, voucher, limit_wei) as lease:
        await accounts.charge(make_receipt(request, fee_wei), NOW_MS)
    accounts.delivered(request.request_id)
    return lease


# --- what is refused ---


async def test_a_request_without_a_voucher_is_not_served(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits())
    with pytest.raises(PaymentRequired, match="needs a voucher"):
        accounts.voucher_of(make_request(1))


async def test_a_voucher_for_another_gateway_is_refused(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits())
    voucher = make_voucher(10, gateway=fake_signer("another gateway"))
    with pytest.raises(MalformedRequest, match="is for gateway"):
        accounts.voucher_of(make_request(1, authorization=voucher))


@pytest.mark.parametrize("client", [fake_signer("stranger"), None])
async def test_a_voucher_of_somebody_else_is_refused(ledger: Ledger, client: Signer | None) -> None:
    accounts = accounts_of(ledger, Deposits())
    with pytest.raises(MalformedRequest, match="one of the two must sign it"):
        accounts.voucher_of(make_request(1, client, authorization=make_voucher(10)))


@pytest.mark.parametrize("client", [CLIENT, SESSION])
async def test_the_client_and_its_session_key_may_ask(ledger: Ledger, client: Signer) -> None:
    voucher = make_voucher(10, CLIENT, SESSION)
    assert accounts_of(ledger, Deposits()).voucher_of(make_request(1, client, authorization=voucher)) == voucher


@pytest.mark.parametrize(
    "forged",
    [
        Voucher(CLIENT.address, CLIENT.address, GATEWAY.address, 11, make_voucher(10).signature),
        Voucher(CLIENT.address, SESSION.address, GATEWAY.address, 10, make_voucher(10).signature),
        Voucher(SESSION.address, CLIENT.address, GATEWAY.address, 10, make_voucher(10).signature),
        Voucher(CLIENT.address, CLIENT.address, GATEWAY.address, 10),
        Voucher(CLIENT.address, ANONYMOUS, GATEWAY.address, 10, make_voucher(10).signature),
    ],
)
def test_a_forged_voucher_is_refused_each_time(forged: Voucher) -> None:
    for _ in range(2):
        with pytest.raises(SignatureRejected):
            check_voucher(DOMAIN, forged)
    with pytest.raises(SignatureRejected):
        check_voucher(replace(DOMAIN, chain_id=1), make_voucher(10))


async def test_the_refusal_says_what_is_missing(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    with pytest.raises(PaymentRequired, match=r"vouchers of 30 wei do not cover 0 .* and 40 .*; sign 10 wei more"):
        await accounts.cover(make_voucher(30), 40)
    with pytest.raises(PaymentRequired, match=r"a deposit of 100 wei does not cover .*; deposit more"):
        await accounts.cover(make_voucher(1000), 101)


async def test_a_channel_that_is_being_withdrawn_pays_nothing(ledger: Ledger, at_once: None) -> None:
    deposits = Deposits((CHANNEL, 100))
    accounts = accounts_of(ledger, deposits)
    deposits.found[CHANNEL] = Deposit(100, 0, unlock_at_s=1_900_000_000)
    with pytest.raises(PaymentRequired, match="is being withdrawn"):
        await accounts.cover(make_voucher(100), 1)
    deposits.found[CHANNEL] = Deposit(100, 0)  # cancelled
    await accounts.cover(make_voucher(100), 1)


async def test_a_chain_that_does_not_answer_is_not_a_refusal(ledger: Ledger, at_once: None) -> None:
    deposits = Deposits((CHANNEL, 100))
    deposits.broken = ChainError("no answer")
    accounts = accounts_of(ledger, deposits, stale_s=0.0)
    with pytest.raises(ChainError):
        await accounts.cover(make_voucher(100), 1)
    deposits.broken = None
    await accounts.cover(make_voucher(100), 1)
    deposits.broken = ChainError("no answer")  # asked beside the request, which goes on with what is known
    for _ in range(5):
        await accounts.cover(make_voucher(100), 1)
        await asyncio.sleep(0)


async def test_refused_requests_cost_the_chain_one_question(ledger: Ledger) -> None:
    deposits = Deposits((CHANNEL, 10))
    accounts = accounts_of(ledger, deposits)
    results = await asyncio.gather(*(accounts.cover(make_voucher(100), 11) for _ in range(100)), return_exceptions=True)
    assert all(isinstance(result, PaymentRequired) for result in results)
    assert deposits.asked == 1


async def test_what_is_known_is_not_asked_for_again(ledger: Ledger) -> None:
    deposits = Deposits((CHANNEL, 1000))
    accounts = accounts_of(ledger, deposits)
    for number in range(5):
        await serve(accounts, number, make_voucher(1000), 10, 10)
    with pytest.raises(PaymentRequired, match="a deposit of 1000 wei"):
        await accounts.cover(make_voucher(2000), 951)
    assert deposits.asked == 2


async def test_a_voucher_that_falls_short_is_no_question_to_the_chain(ledger: Ledger) -> None:
    deposits = Deposits((CHANNEL, 1000))
    accounts = accounts_of(ledger, deposits)
    await serve(accounts, 1, make_voucher(50), 10, 10)
    with pytest.raises(PaymentRequired, match="vouchers of 50 wei"):
        await accounts.cover(make_voucher(40), 41)
    assert deposits.asked == 1


async def test_a_deposit_that_grew_since_the_chain_was_asked_counts(ledger: Ledger, at_once: None) -> None:
    """The chain is asked for the first request; the deposit grows before the second comes, and the answer is old."""
    answers: list[asyncio.Future[Deposit]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    asked: list[bytes] = []

    async def deposit_of(channel: bytes) -> Deposit:
        asked.append(channel)
        return await answers[len(asked) - 1]

    accounts = accounts_of(ledger, deposit_of)
    first = asyncio.create_task(accounts.cover(make_voucher(100), 50))
    while not asked:
        await asyncio.sleep(0)
    second = asyncio.create_task(accounts.cover(make_voucher(100), 50))
    await asyncio.sleep(0)
    answers[0].set_result(Deposit(49, 0))
    answers[1].set_result(Deposit(50, 0))
    with pytest.raises(PaymentRequired):
        await first
    assert (await second).deposit.deposited_wei == 50
    assert len(asked) == 2


async def test_who_stops_waiting_for_the_chain_harms_nobody(ledger: Ledger) -> None:
    answer = asyncio.get_running_loop().create_future()
    accounts = accounts_of(ledger, lambda _: answer)
    waiting = [asyncio.create_task(accounts.cover(make_voucher(100), 50)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    answer.set_result(Deposit(50, 0))
    assert (await waiting[1]).deposit.deposited_wei == 50


async def test_an_account_without_a_deposit_is_not_kept(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits())
    for number in range(50):
        with pytest.raises(PaymentRequired):
            await accounts.cover(make_voucher(1, fake_signer(f"stranger {number}")), 1)
    assert not accounts._accounts
    assert not accounts._looked_at


# --- charges ---


async def test_the_node_is_shown_the_best_voucher(ledger: Ledger) -> None:
    """Vouchers that come in another order than they were signed: the lower one does not cover what is held by now."""
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    async with accounts.lease(make_request(2), make_voucher(80), 40) as lease:
        assert lease.authorization == make_voucher(80)
        async with accounts.lease(make_request(1), make_voucher(40), 40) as lower:
            assert lower.authorization == make_voucher(80)
            assert lower.token > lease.token


async def test_a_charge_is_on_disk_with_the_best_voucher(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    request = make_request(1)
    async with accounts.lease(make_request(2), make_voucher(80), 40), accounts.lease(request, make_voucher(40), 40):
        assert await accounts.charge(make_receipt(request, 7), NOW_MS) == CHANNEL
    (owed,) = ledger.unsettled()
    (charge,) = ledger.charges([owed.number])
    assert (charge.voucher, charge.receipt.receipt.fee_wei) == (make_voucher(80), 7)
    assert (charge.client, charge.request_signature) == (CLIENT.address, request.signature)


async def test_nothing_is_charged_beyond_the_hold(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    request = make_request(1)
    async with accounts.lease(request, make_voucher(100), 40):
        for fee in (41, -1):
            with pytest.raises(PaymentRequired, match="not covered by the 40 wei held"):
                await accounts.charge(make_receipt(request, max(fee, 41)), NOW_MS)
    assert accounts.account(CHANNEL).held_wei == 0
    assert ledger.unsettled() == []


async def test_what_costs_nothing_is_not_entered(ledger: Ledger) -> None:
    """A batch of nothing but zeros would be refused by the contract, for ever."""
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    await serve(accounts, 1, make_voucher(100), 40, 0)
    assert ledger.unsettled() == []
    assert accounts.account(CHANNEL).held_wei == 0


async def test_a_charge_that_cannot_be_stored_is_none(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    ledger._connection.execute("CREATE TRIGGER full BEFORE INSERT ON charges BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(StoreError):
        await serve(accounts, 1, make_voucher(100), 100, 60)
    account = accounts.account(CHANNEL)
    assert (account.charged_wei, account.held_wei, accounts.undelivered()) == (0, 0, set())
    accounts.void(make_request(1).request_id)
    ledger._connection.execute("DROP TRIGGER full")
    await serve(accounts, 1, make_voucher(100), 100, 60)


async def test_a_charge_may_be_taken_back_until_a_batch_has_it(ledger: Ledger) -> None:
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    request = make_request(1)
    async with accounts.lease(request, make_voucher(100), 100):
        await accounts.charge(make_receipt(request, 60), NOW_MS)
        assert accounts.undelivered() == {request.request_id}
    accounts.void(request.request_id)
    accounts.void(request.request_id)
    assert accounts.account(CHANNEL).charged_wei == 0
    await serve(accounts, 2, make_voucher(100), 100, 100)
    assert [owed.fee_wei for owed in ledger.unsettled()] == [100]


async def test_a_cancelled_charge_is_taken_back(ledger: Ledger) -> None:
    """The wait for the disk is cancelled: the charge gets there, and the void right behind it."""
    accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
    request = make_request(1)

    async def charge() -> None:
        async with accounts.lease(request, make_voucher(100), 100):
            await accounts.charge(make_receipt(request, 60), NOW_MS)

    with ledger._commits._writing:  # the disk is busy
        task = asyncio.create_task(charge())
        while not accounts.undelivered():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        accounts.void(request.request_id)
    await serve(accounts, 2, make_voucher(100), 100, 1)
    assert [owed.fee_wei for owed in ledger.unsettled()] == [1]
    assert accounts.account(CHANNEL).charged_wei == 1


async def test_a_request_of_an_earlier_run_is_charged_once(tmp_path: Path) -> None:
    """A crash behind the charge and before the answer: the client asks again, and nothing is charged again."""
    path, request = tmp_path / "ledger.db", make_request(1)
    async with Ledger(path, IDENTITY) as ledger:
        accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
        async with accounts.lease(request, make_voucher(100), 100):
            await accounts.charge(make_receipt(request, 60), NOW_MS)
    async with Ledger(path, IDENTITY) as ledger:
        accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
        assert accounts.in_doubt() == {request.request_id}
        assert accounts.undelivered() == {request.request_id}  # nothing of it is settled yet
        await serve(accounts, 1, make_voucher(100), 40, 40)
        assert accounts.account(CHANNEL).charged_wei == ledger.balances()[CHANNEL].charged_wei == 60
        assert accounts.undelivered() == set()
    async with Ledger(path, IDENTITY) as ledger:
        accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
        assert accounts.in_doubt() == set()
        assert accounts.account(CHANNEL).charged_wei == 60


async def test_a_charge_of_an_earlier_run_may_be_taken_back(tmp_path: Path) -> None:
    path, request = tmp_path / "ledger.db", make_request(1)
    async with Ledger(path, IDENTITY) as ledger:
        accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
        async with accounts.lease(request, make_voucher(100), 100):
            await accounts.charge(make_receipt(request, 60), NOW_MS)
    async with Ledger(path, IDENTITY) as ledger:
        accounts = accounts_of(ledger, Deposits((CHANNEL, 100)))
        accounts.void(request.request_id)
        assert (accounts.account(CHANNEL).charged_wei, accounts.undelivered()) == (0, set())
        await serve(accounts, 1, make_voucher(100), 100, 70)
    async with Ledger(path, IDENTITY) as ledger:
        assert ledger.balances()[CHANNEL].charged_wei == 70


# --- a thousand at once ---


async def wave(accounts: Accounts, numbers: list[int], limit_wei: int, fees: dict[int, int], base: int) -> set[int]:
    """Have all these requests come at once, signed as the client does it, and return which were served.

    Those that are let through hold their funds until all have been looked at; then they are charged in any order.
    """
    requests = {number: make_request(number) for number in numbers}
    vouchers = {number: make_voucher(base + (place + 1) * limit_wei) for place, number in enumerate(numbers)}
    draw, looked_at, served = random.Random(len(numbers)), asyncio.Barrier(len(numbers)), set[int]()

    async def ask(number: int) -> None:
        try:
            async with accounts.lease(requests[number], vouchers[number], limit_wei):
                await looked_at.wait()
                for _ in range(draw.randrange(5)):
                    await asyncio.sleep(0)
                await accounts.charge(make_receipt(requests[number], fees[number]), NOW_MS)
            accounts.delivered(requests[number].request_id)
            served.add(number)
        except PaymentRequired:
            await looked_at.wait()

    shuffled = draw.sample(numbers, len(numbers))
    await asyncio.gather(*map(ask, shuffled))
    return served


async def test_a_thousand_at_once_spend_a_deposit_to_the_last_unit(ledger: Ledger) -> None:
    deposits = Deposits((CHANNEL, 500 * 7))
    accounts = accounts_of(ledger, deposits)
    served = await wave(accounts, list(range(1000)), 7, dict.fromkeys(range(1000), 7), 0)
    assert len(served) == 500
    account = accounts.account(CHANNEL)
    assert (account.charged_wei, account.held_wei) == (3500, 0)
    assert ledger.balances()[CHANNEL].charged_wei == 3500
    assert len(ledger.unsettled()) == 500
    assert deposits.asked <= 2
    with pytest.raises(PaymentRequired):
        await accounts.cover(make_voucher(10_000), 1)


async def test_what_a_thousand_did_not_use_is_used_by_the_next(ledger: Ledger, at_once: None) -> None:
    """Fees below the limit: what is left over serves just as many more, wave after wave, to the last unit."""
    limit, deposited, draw = 10, 500 * 10, random.Random(7)
    accounts = accounts_of(ledger, Deposits((CHANNEL, deposited)))
    fees = {number: draw.randrange(1, limit + 1) for number in range(3000)}
    waiting, charged = list(range(1000)), 0
    while True:
        fits = min(len(waiting), (deposited - charged) // limit)
        served = await wave(accounts, waiting, limit, fees, charged)
        assert len(served) == fits
        charged += sum(fees[number] for number in served)
        assert accounts.account(CHANNEL).charged_wei == ledger.balances()[CHANNEL].charged_wei == charged
        if not fits:
            break
        waiting = [number for number in waiting if number not in served]
    assert deposited - charged < limit
    assert accounts.account(CHANNEL).held_wei == 0
    assert len(ledger.unsettled()) > 500


# --- everything in any order ---


@dataclass
class Model:
    """A channel, told in the simplest way: what is held and charged, by request."""

    deposited: int = 0
    best: int = 0
    leaving: bool = False
    held: dict[int, int] = field(default_factory=dict)
    charged: dict[int, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.held.values()) + sum(self.charged.values())

    def fits(self, signed: int, limit: int) -> bool:
        return not self.leaving and self.used + limit <= min(self.deposited, max(self.best, signed))


CHANNELS = [(CLIENT, CLIENT), (CLIENT, SESSION)]
AMOUNTS = st.integers(1, 60)


class AnyOrder(RuleBasedStateMachine):
    """Accounts on a real ledger, beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.deposits = Deposits()
        self.models = [Model(), Model()]
        self.leases: dict[int, tuple[int, InferenceRequest, FundsLease]] = {}
        self.ids: dict[int, tuple[int, InferenceRequest]] = {}
        self.count = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def opens(self) -> None:
        self.ledger = self.run(Ledger(self.folder / "ledger.db", IDENTITY).__aenter__())
        self.accounts = accounts_of(self.ledger, self.deposits, stale_s=0.0)

    def channel(self, at: int) -> bytes:
        client, signer = CHANNELS[at]
        return channel_id(client.address, signer.address, GATEWAY.address)

    @rule(at=st.integers(0, 1), amount=AMOUNTS)
    def deposit(self, at: int, amount: int) -> None:
        self.deposits.put(self.channel(at), amount)
        self.models[at].deposited += amount

    @rule(at=st.integers(0, 1))
    def begin_or_cancel_a_withdrawal(self, at: int) -> None:
        model, channel = self.models[at], self.channel(at)
        model.leaving = not model.leaving
        found = self.deposits.found.get(channel, Deposit(0, 0))
        self.deposits.found[channel] = replace(found, unlock_at_s=int(model.leaving))
        account = self.accounts.account(channel)
        account.asked_at = float("-inf")  # otherwise it counts once it is asked for again, which is soon enough
        self.run(self.accounts.ask(account, 0.0))

    @rule(at=st.integers(0, 1), limit=AMOUNTS, extra=st.integers(-20, 40))
    def hold(self, at: int, limit: int, extra: int) -> None:
        model, signed = self.models[at], max(0, self.models[at].used + limit + extra)
        self.count += 1
        request = make_request(self.count)
        lease = self.accounts.lease(request, make_voucher(signed, *CHANNELS[at]), limit)
        fits = model.fits(signed, limit)
        try:
            self.run(lease.__aenter__())
        except PaymentRequired:
            assert not fits, "refused, though it fits"
            return
        assert fits, "let through, though it does not fit"
        model.held[self.count] = limit
        model.best = max(model.best, signed)
        self.leases[self.count] = (at, request, lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        number, (at, request, lease) = self.take(data)
        self.run(lease.__aexit__())
        self.accounts.void(request.request_id)
        del self.models[at].held[number]

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), end=st.sampled_from(["settled", "failed", "cancelled"]), share=st.integers(0, 100))
    def charge(self, data: st.DataObject, end: str, share: int) -> None:
        number, (at, request, lease) = self.take(data)
        model = self.models[at]
        fee = model.held.pop(number) * share // 100
        self.run(self.accounts.charge(make_receipt(request, fee), NOW_MS))
        self.run(lease.__aexit__())
        if end == "settled":
            self.accounts.delivered(request.request_id)
            model.charged[number] = fee
        else:
            self.accounts.void(request.request_id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def charge_on_a_full_disk(self, data: st.DataObject) -> None:
        number, (at, request, lease) = self.take(data)
        refuse = "CREATE TEMP TRIGGER full BEFORE INSERT ON charges BEGIN SELECT RAISE(ABORT, 'full'); END"
        self.ledger._connection.execute(refuse)
        with pytest.raises(StoreError):
            self.run(self.accounts.charge(make_receipt(request, 1), NOW_MS))
        self.ledger._connection.execute("DROP TRIGGER full")
        self.run(lease.__aexit__())
        self.accounts.void(request.request_id)
        del self.models[at].held[number]

    @precondition(lambda self: not self.leases)
    @rule()
    def restart(self) -> None:
        self.run(self.ledger.__aexit__())
        self.opens()
        for at, model in enumerate(self.models):
            balance = self.ledger.balances().get(self.channel(at))
            model.best = balance.voucher.cumulative_wei if balance else 0  # of vouchers, those that were charged on
            assert model.best >= sum(model.charged.values())

    def take(self, data: st.DataObject) -> tuple[int, tuple[int, InferenceRequest, FundsLease]]:
        number = data.draw(st.sampled_from(sorted(self.leases)))
        return number, self.leases.pop(number)

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for at, model in enumerate(self.models):
            account = self.accounts.account(self.channel(at))
            assert account.charged_wei == sum(model.charged.values())
            assert account.held_wei == sum(model.held.values())
            assert account.charged_wei + account.held_wei <= min(model.deposited, model.best)

    @invariant()
    def is_on_disk(self) -> None:
        if hasattr(self, "ledger"):
            self.run(written(self.ledger))
            fees = sorted(owed.fee_wei for owed in self.ledger.unsettled())
            assert fees == sorted(fee for model in self.models for fee in model.charged.values() if fee)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.run(self.ledger.__aexit__())
        self.runner.close()
        shutil.rmtree(self.folder)


@pytest.mark.usefixtures("at_once")
def test_in_any_order_nothing_is_overspent_and_nothing_refused_that_fits() -> None:
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
