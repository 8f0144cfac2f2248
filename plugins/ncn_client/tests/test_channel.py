"""What a client signs away, whatever becomes of its requests: never more than they may cost, never too little."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec.structs import replace

from ncn_client import Answer, Client, Task
from ncn_client.channel import Channel
from ncn_framework.digests import channel_id, voucher_digest
from ncn_framework.errors import CapacityError, ModelFailed, NcnError, NodeLost, PaymentRequired, VerificationError
from ncn_framework.lifecycle import now_ms
from ncn_framework.payments import MAX_WEI
from ncn_framework.signing import Signer, address_hex, check_signature

from .fakes import CLIENT, DOMAIN, EMBEDDER, GATEWAY, OTHER, FakeGateway
from .ledger import Ledger

FEE = EMBEDDER.fee_wei(5, "voucher")  # of every answer of the fake gateway
LATER = now_ms() + 3_600_000


def made(signer: Signer = CLIENT, client: bytes = CLIENT.address) -> Channel:
    return Channel(client, signer, GATEWAY.address, DOMAIN)


@pytest.fixture
def channel() -> Channel:
    return made()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(DOMAIN, GATEWAY.address, deposit=1_000)


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def see(seeing: Channel, ledger: Ledger, **changes: Any) -> Any:
    since = seeing.changes
    form = ledger.form(seeing.client, seeing.signer.address)
    for field, value in changes.items():
        setattr(form, field, value)
    return seeing.see(form, since)


# --- what a voucher says ---


def test_a_voucher_sums_up(channel: Channel) -> None:
    first = channel.hold(name(1), 10, LATER)
    second = channel.hold(name(2), 20, LATER)
    assert (first.cumulative_wei, second.cumulative_wei) == (10, 30)
    channel.settle(name(1), 4)
    assert channel.hold(name(3), 5, LATER).cumulative_wei == 4 + 20 + 5
    channel.release(name(2))
    assert channel.hold(name(4), 1, LATER).cumulative_wei == 4 + 5 + 1
    assert (channel.charged_wei, channel.outstanding_wei, channel.signed_wei) == (4, 6, 30)


def test_a_voucher_is_signed_by_the_session_key() -> None:
    channel = made(OTHER, CLIENT.address)
    voucher = channel.hold(name(1), 10, LATER)
    assert (voucher.client, voucher.signer, voucher.gateway) == (CLIENT.address, OTHER.address, GATEWAY.address)
    digest = voucher_digest(DOMAIN, channel_id(CLIENT.address, OTHER.address, GATEWAY.address), 10)
    check_signature(digest, voucher.signature, OTHER.address, "the voucher")
    assert channel.path == f"/api/v1/channels/{address_hex(CLIENT.address)}/{address_hex(OTHER.address)}"


def test_what_is_sent_again_is_counted_once(channel: Channel) -> None:
    assert [channel.hold(name(1), 10, LATER).cumulative_wei for _ in range(3)] == [10, 10, 10]
    channel.settle(name(1), 4)
    channel.settle(name(1), 4)
    assert channel.charged_wei == 4
    assert channel.hold(name(1), 10, LATER).cumulative_wei == 4  # its answer comes again, for nothing
    assert channel.outstanding_wei == 0
    assert channel.hold(name(1), 10, LATER, again=True).cumulative_wei == 14  # the gateway does not know it after all
    channel.settle(name(1), 4)
    assert channel.charged_wei == 8


def test_an_answer_that_was_not_asked_for_is_not_counted(channel: Channel) -> None:
    channel.settle(name(1), 4)
    channel.release(name(1))
    assert (channel.charged_wei, channel.outstanding_wei) == (0, 0)


def test_more_than_the_contract_holds_is_not_signed(channel: Channel) -> None:
    channel.hold(name(1), MAX_WEI, LATER)
    with pytest.raises(PaymentRequired, match="96 bits"):
        channel.hold(name(2), 1, LATER)
    assert channel.outstanding_wei == MAX_WEI


@pytest.mark.parametrize(
    ("error", "over"),
    [
        (PaymentRequired("short"), True),
        (NodeLost("gone"), True),
        (NcnError("who knows"), False),
        (VerificationError("chunks", "wrong"), False),
        (KeyboardInterrupt(), False),
        (GeneratorExit(), False),
    ],
)
def test_what_is_over_and_what_is_in_doubt(channel: Channel, error: BaseException, over: bool) -> None:
    channel.hold(name(1), 10, LATER)
    with pytest.raises(type(error)), channel.watched(name(1)):
        raise error
    assert channel.outstanding_wei == (0 if over else 10)


@pytest.mark.parametrize(
    ("cause", "over"), [(httpx.ConnectError(""), True), (httpx.PoolTimeout(""), True), (httpx.ReadError(""), False)]
)
def test_what_was_not_sent_is_over(channel: Channel, cause: Exception, over: bool) -> None:
    channel.hold(name(1), 10, LATER)
    with pytest.raises(CapacityError), channel.watched(name(1)):
        raise CapacityError("no gateway") from cause
    assert channel.outstanding_wei == (0 if over else 10)


# --- what the gateway says ---


def test_a_channel_is_looked_at_before_its_first_voucher(channel: Channel, ledger: Ledger) -> None:
    assert channel.must_ask()
    earlier = made()
    ledger.admit(name(9), CLIENT.address, 100, earlier.hold(name(9), 100, LATER))
    ledger.charge(name(9), 60)
    standing = see(channel, ledger)
    assert (standing.deposited_wei, standing.charged_wei, standing.drawn_wei) == (1_000, 60, 60)
    assert not channel.must_ask()
    assert channel.hold(name(1), 10, LATER).cumulative_wei == 70


def test_a_channel_is_looked_at_when_nothing_but_doubt_is_left(channel: Channel, ledger: Ledger) -> None:
    see(channel, ledger)
    for number in (1, 2):
        ledger.admit(name(number), CLIENT.address, 10, channel.hold(name(number), 10, LATER))
    with pytest.raises(KeyboardInterrupt), channel.watched(name(1)):
        raise KeyboardInterrupt
    assert not channel.must_ask()  # the other one is waited for
    channel.settle(name(2), 10)
    ledger.charge(name(2), 10)
    ledger.charge(name(1), 3)
    assert channel.must_ask()
    see(channel, ledger)
    assert (channel.charged_wei, channel.outstanding_wei) == (13, 0)
    channel.settle(name(1), 3)  # its answer is seen after all, and is counted already
    assert channel.charged_wei == 13


def test_a_task_that_nobody_looked_after_ends_with_its_deadline(channel: Channel, ledger: Ledger) -> None:
    see(channel, ledger)
    channel.hold(name(1), 10, now_ms() - 3_600_000)
    assert channel.must_ask()
    see(channel, ledger)
    assert channel.outstanding_wei == 0


def test_an_old_look_does_not_undo_what_came_since(channel: Channel, ledger: Ledger) -> None:
    see(channel, ledger)
    since, form = channel.changes, ledger.form(CLIENT.address, CLIENT.address)
    ledger.admit(name(1), CLIENT.address, 10, channel.hold(name(1), 10, LATER))
    channel.settle(name(1), 10)
    channel.see(form, since)
    assert channel.charged_wei == 10


def test_what_others_drew_is_added(channel: Channel, ledger: Ledger) -> None:
    other = made()
    see(channel, ledger)
    ledger.admit(name(1), CLIENT.address, 10, channel.hold(name(1), 10, LATER))
    see(other, ledger)
    ledger.admit(name(2), CLIENT.address, 300, other.hold(name(2), 300, LATER))
    for number in (3, 4, 5):
        with pytest.raises(PaymentRequired):
            ledger.admit(name(number), CLIENT.address, 10, channel.hold(name(number), 10, LATER))
        channel.release(name(number))
    for _ in (3, 4, 5):  # each asked before any of them was sent again
        see(channel, ledger)
    vouchers = [channel.hold(name(number), 10, LATER, again=True) for number in (3, 4, 5)]
    for number in (5, 3, 4):
        ledger.admit(name(number), CLIENT.address, 10, vouchers[number - 3])
    assert [voucher.cumulative_wei for voucher in vouchers] == [320, 330, 340]
    ledger.admit(name(6), CLIENT.address, 10, channel.hold(name(6), 10, LATER))  # that is known now


def test_several_that_fall_short_at_once_are_all_served(channel: Channel, ledger: Ledger) -> None:
    other = made()
    see(channel, ledger)
    vouchers = {number: channel.hold(name(number), 10, LATER) for number in (1, 2, 3)}
    ledger.admit(name(9), CLIENT.address, 300, other.hold(name(9), 300, LATER))
    for number, voucher in vouchers.items():
        with pytest.raises(PaymentRequired):
            ledger.admit(name(number), CLIENT.address, 10, voucher)
    for number in vouchers:  # each hears of it while the others count as in flight, and asks before any is sent again
        channel.release(name(number))
        see(channel, ledger)
        vouchers[number] = channel.hold(name(number), 10, LATER, again=True)
    for number in (2, 1, 3):
        ledger.admit(name(number), CLIENT.address, 10, vouchers[number])
    assert channel.signed_wei == 330


def test_a_voucher_of_one_that_is_alone_goes_by_what_is_drawn(channel: Channel, ledger: Ledger) -> None:
    see(channel, ledger)
    ledger.admit(name(9), CLIENT.address, 40, made().hold(name(9), 40, LATER))
    with pytest.raises(PaymentRequired):
        ledger.admit(name(1), CLIENT.address, 10, channel.hold(name(1), 10, LATER))
    channel.release(name(1))
    see(channel, ledger)
    assert channel.hold(name(1), 10, LATER, again=True).cumulative_wei == 50


LIES: list[tuple[str, dict[str, Any]]] = [
    ("charged_wei", {"charged_wei": "11"}),
    ("charged_wei", {"held_wei": "11"}),
    ("charged_wei", {"voucher": None}),
    ("channel", {"channel": "0x" + "00" * 32}),
    ("/api/v1/channels", {"charged_wei": "-1"}),
    ("/api/v1/channels", {"deposited_wei": "1e9"}),
    ("/api/v1/channels", {"channel": "0x12"}),
]


@pytest.mark.parametrize(("where", "changes"), LIES)
def test_lies(channel: Channel, ledger: Ledger, where: str, changes: dict[str, Any]) -> None:
    ledger.admit(name(9), CLIENT.address, 10, made().hold(name(9), 10, LATER))
    ledger.charge(name(9), 10)
    with pytest.raises(VerificationError) as caught:
        see(channel, ledger, **changes)
    assert caught.value.where.startswith(where)
    assert channel.must_ask()
    assert channel.hold(name(1), 1, LATER).cumulative_wei == 1


def test_a_voucher_that_the_client_did_not_sign(channel: Channel, ledger: Ledger) -> None:
    forged = Channel(CLIENT.address, OTHER, GATEWAY.address, DOMAIN).hold(name(9), 500, LATER)
    ledger.account(CLIENT.address, CLIENT.address).best = replace(forged, signer=CLIENT.address)
    ledger.account(CLIENT.address, CLIENT.address).charged = 500
    with pytest.raises(VerificationError) as caught:
        see(channel, ledger)
    assert caught.value.where == "voucher.signature"
    assert channel.charged_wei == 0


# --- refusals ---


def test_refusals_say_what_to_do(channel: Channel, ledger: Ledger) -> None:
    standing = see(channel, ledger)
    assert channel.refused(standing, 1_000, "") is None
    error = channel.refused(standing, 1_001, "")
    assert "0.000000000000000001 NCN (1 wei) are missing" in str(error)
    assert "`ncn payments deposit`" in str(error)
    assert address_hex(CLIENT.address) in str(error)
    assert "because I say so" in str(channel.refused(standing, 10, "because I say so"))
    closing = see(channel, ledger, unlock_at_s=1_800_000_000)
    assert "being closed" in str(channel.refused(closing, 1, ""))
    assert "session key " + address_hex(OTHER.address) in str(made(OTHER, CLIENT.address).refused(standing, 1_001, ""))


# --- whatever happens ---


class Traffic(RuleBasedStateMachine):
    """One client, whose requests are answered, fail, or are lost before or after they arrive."""

    tasks = Bundle("tasks")

    @initialize(deposit=st.integers(0, 500))
    def start(self, deposit: int) -> None:
        self.gateway = FakeGateway()
        self.gateway.deferred = True
        self.gateway.ledger.deposit = deposit
        self.client = Client("http://gateway", signer=CLIENT, transport=httpx.MockTransport(self.gateway))
        self.account = self.gateway.ledger.account(CLIENT.address, CLIENT.address)
        self.lost: dict[str, int] = {}
        self.fees = 0

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.close()

    @rule(target=tasks, units=st.integers(5, 20))
    def submit(self, units: int) -> Any:
        limit, drawn, refused = EMBEDDER.fee_wei(units, "voucher"), self.account.drawn, self.gateway.ledger.refused
        try:
            task = self.client.submit("minilm", {"text": "a"}, limit_units=units)
        except PaymentRequired:
            assert drawn + limit > self.account.deposited
            assert self.gateway.ledger.refused == refused + 1  # it was not tried again in vain
            return None
        assert self.gateway.ledger.refused == refused  # the first voucher was enough
        voucher = self.gateway.bodies[-1].voucher
        assert voucher is not None
        assert drawn + limit <= int(voucher.cumulative_wei) <= drawn + limit + sum(self.lost.values())
        return task

    @rule(units=st.integers(5, 20), arrives=st.booleans())
    def lose(self, units: int, arrives: bool) -> None:
        prepared = self.client.prepare("minilm", {"text": "a"}, limit_units=units)
        self.client.standing()
        if arrives:
            self.gateway.losing = 1
        else:
            self.gateway.broken = httpx.ReadError("cut")
        try:
            self.client.send(prepared)
        except CapacityError:
            self.lost[prepared.id] = prepared.limit_wei
        except PaymentRequired:
            assert arrives
        self.gateway.losing, self.gateway.broken = 0, None

    @rule()
    def end_what_was_lost(self) -> None:
        for task in [task for task in self.lost if task in self.gateway.running]:
            self.fees += self.gateway.finish(task)

    @rule(task=tasks)
    def look(self, task: Task | None) -> None:
        if task is not None and (task.id in self.gateway.tasks or task.id in self.gateway.running):
            self.client.get(task)

    @rule(task=consumes(tasks), ends=st.sampled_from(["well", "badly"]))
    def end(self, task: Task | None, ends: str) -> None:
        if task is None:
            return
        if ends == "well":
            self.fees += self.gateway.finish(task.id)
            assert isinstance(self.client.get(task), Answer)
        else:
            self.gateway.fail(task.id)
            with pytest.raises(ModelFailed):
                self.client.wait(task)

    @rule(amount=st.integers(1, 200))
    def deposit(self, amount: int) -> None:
        self.account.deposited += amount

    @invariant()
    def charged_is_what_was_answered(self) -> None:
        if hasattr(self, "account"):
            assert self.account.charged == self.fees
            assert self.fees <= self.account.deposited


class Sharing(RuleBasedStateMachine):
    """Three processes that share one channel: whoever fits in is served, at the latest when it asks again."""

    tasks = Bundle("tasks")

    @initialize(deposit=st.integers(0, 2_000))
    def start(self, deposit: int) -> None:
        self.gateway = FakeGateway()
        self.gateway.deferred = True
        self.gateway.ledger.deposit = deposit
        transport = httpx.MockTransport(self.gateway)
        self.clients = [Client("http://gateway", signer=CLIENT, transport=transport) for _ in range(3)]
        self.account = self.gateway.ledger.account(CLIENT.address, CLIENT.address)

    def teardown(self) -> None:
        for client in getattr(self, "clients", ()):
            client.close()

    @rule(target=tasks, who=st.integers(0, 2), units=st.integers(5, 30))
    def submit(self, who: int, units: int) -> Any:
        fits = self.account.drawn + EMBEDDER.fee_wei(units, "voucher") <= self.account.deposited
        try:
            task = self.clients[who].submit("minilm", {"text": "a"}, limit_units=units)
        except PaymentRequired:
            assert not fits
            return None
        assert fits
        return who, task

    @rule(found=consumes(tasks))
    def end(self, found: tuple[int, Task] | None) -> None:
        if found is not None:
            who, task = found
            self.gateway.finish(task.id)
            self.clients[who].get(task)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
