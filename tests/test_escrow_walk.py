"""A request that is paid into escrow: it waits for its payment, and what it paid returns on every path that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from ncn_framework import Lifecycle
from ncn_framework.errors import (
    ChainError,
    DeadlineExpired,
    NcnError,
    NodeLost,
    NoHandlerError,
    PaymentRequired,
    SandboxError,
    StageTimeout,
    TaskEnded,
)
from ncn_framework.lifecycle import StageLimits
from ncn_framework.manager import build_manager
from ncn_framework.models import Chunk, Event, InferenceRequest
from ncn_framework.payments import ESCROW, PaymentConfirmation
from ncn_framework.reservations import finish
from ncn_framework.statements import FailureStatement
from ncn_framework.states import State
from ncn_framework.testing.fakes import FakeRuntime, ManualClock, as_plugins, fake_manifest, fake_request, fake_route
from ncn_framework.testing.funds import FakeEscrow, FakeFunds, fake_due, fake_quorum
from ncn_framework.testing.walks import RecordedWalk, asked_first, executing, fake_chunk, hang, refuse
from ncn_framework.validation import Validation

BEFORE = ["RECEIVED", "ROUTED", "RESERVED", "AWAITING_PAYMENT"]
AFTER = [*BEFORE, "PAID", "EXECUTING"]


class EscrowWalk(RecordedWalk):
    """A walk of an escrow request.

    Attributes:
        funds: which make its escrow.
        at: set when the walk first moves into the state.
    """

    def __init__(self, *plugins: Any, limits: StageLimits | None = None, clock: ManualClock | None = None) -> None:
        self.funds = FakeFunds()
        self.at = {state: asyncio.Event() for state in State}
        super().__init__(self.funds, *plugins, limits=limits, clock=clock)

    def observe(self, update: Event | Chunk) -> None:
        super().observe(update)
        if isinstance(update, Event):
            self.at[update.state].set()

    def start(self, **changes: Any) -> asyncio.Task[Any]:
        self.request = fake_request(payment=ESCROW, **changes)
        return asyncio.create_task(self.run(self.request))

    @property
    def escrow(self) -> FakeEscrow:
        return self.funds.escrows[self.request.request_id]

    async def paid(self, **changes: Any) -> asyncio.Task[Any]:
        """Start, and pay as soon as that is asked for."""
        walking = self.start(**changes)
        await self.at[State.AWAITING_PAYMENT].wait()
        self.escrow.arrived.set()
        return walking

    async def refunds(self, walking: asyncio.Task[Any], error: type[NcnError], end: str) -> None:
        """Check that the walk ends with ``error``, then REFUNDED, each with the same detail, and all released."""
        with pytest.raises(error):
            await walking
        assert self.moves[-2:] == [end, "REFUNDED"]
        details = [event.detail for event in self.recorder.events[-2:]]
        assert details[0] == details[1] != ""
        assert self.escrow.refunds == 1
        self.check_released()


async def test_it_waits_for_the_payment_and_then_executes() -> None:
    walk = EscrowWalk(FakeRuntime())
    walking = walk.start()
    await walk.at[State.AWAITING_PAYMENT].wait()
    assert walk.moves == BEFORE
    assert walk.last.payment is walk.escrow.due
    await walk.life.confirm_payment(PaymentConfirmation(walk.request.request_id, b"\7" * 32))
    outcome = await walking
    assert walk.moves == [*AFTER, "EXECUTED", "VALIDATED", "SETTLED"]
    assert outcome.settlement.mode == ESCROW
    assert [event.state for event in walk.recorder.events if event.payment is not None] == [State.AWAITING_PAYMENT]
    assert walk.funds.confirmations == [PaymentConfirmation(walk.request.request_id, b"\7" * 32)]
    assert walk.escrow.refunds == 0
    walk.check_released()


async def test_the_due_names_what_the_request_may_cost() -> None:
    manifest = fake_manifest(base_fee_wei=5, unit_fee_wei=2)
    request = fake_request(manifest, payment=ESCROW, limit_units=10)
    due = fake_due(request, fake_route(manifest))
    assert (due.terms.amount_wei, due.terms.request_hash) == (25, request.request_hash)


async def test_a_payment_that_has_arrived_already_is_not_waited_for() -> None:
    walk = EscrowWalk(FakeRuntime())
    walk.funds.prepaid = True
    await walk.start()
    assert walk.moves[:6] == AFTER


# --- refunds ---


async def test_an_execution_that_fails_is_refunded() -> None:
    walk = EscrowWalk(executing(fake_chunk(), NodeLost("gone")))
    await walk.refunds(await walk.paid(), NodeLost, "FAILED")
    assert walk.moves == [*AFTER, "FAILED", "REFUNDED"]
    assert walk.last.detail == "node-lost: gone"
    assert walk.transcript.index("outer: leave NodeLost") < walk.transcript.index("outer: move REFUNDED")


@pytest.mark.parametrize("hook", ["ncn_sign", "ncn_settle"])
async def test_a_late_failure_is_refunded(hook: str) -> None:
    walk = EscrowWalk(asked_first(**{hook: lambda: refuse(SandboxError("down"))}), FakeRuntime())
    await walk.refunds(await walk.paid(), SandboxError, "FAILED")


async def test_a_defect_of_a_plugin_is_refunded() -> None:
    walk = EscrowWalk(executing(fake_chunk(), KeyError("secret")))
    await walk.refunds(await walk.paid(), NcnError, "FAILED")
    assert walk.last.detail == "internal: a plugin failed; the log has the cause"


async def test_a_deadline_that_passes_behind_the_payment_is_refunded(manual_clock: ManualClock) -> None:
    walk = EscrowWalk(executing(fake_chunk(), hang), clock=manual_clock)
    walking = walk.start(deadline_ms=manual_clock() + 10_000)
    await walk.at[State.AWAITING_PAYMENT].wait()
    manual_clock.advance(9_999)
    walk.escrow.arrived.set()
    await walk.refunds(walking, DeadlineExpired, "EXPIRED")


async def test_cancelled_behind_the_payment_it_is_refunded() -> None:
    walk = EscrowWalk(executing(fake_chunk(), hang))
    walking = await walk.paid()
    await walk.at[State.EXECUTING].wait()
    walking.cancel()
    await asyncio.wait({walking})
    assert walking.cancelled()
    assert walk.moves == [*AFTER, "CANCELLED", "REFUNDED"]
    assert walk.last.detail == "cancelled: the caller cancelled"
    walk.check_released()


# --- nothing paid, nothing refunded ---


async def test_cancelled_while_waiting() -> None:
    walk = EscrowWalk(FakeRuntime())
    walking = walk.start()
    await walk.at[State.AWAITING_PAYMENT].wait()
    walking.cancel()
    await asyncio.wait({walking})
    assert walking.cancelled()
    assert walk.moves == [*BEFORE, "CANCELLED"]
    assert walk.escrow.refunds == 1, "it is asked for: the payment may be on its way"
    walk.check_released()


async def test_a_payment_that_does_not_come_in_time() -> None:
    walk = EscrowWalk(FakeRuntime(), limits=StageLimits(pay_ms=1))
    with pytest.raises(StageTimeout, match="stage pay took longer than its limit of 1 ms"):
        await walk.start()
    assert walk.moves == [*BEFORE, "FAILED"]
    walk.check_released()


async def test_a_deadline_that_passes_while_waiting(manual_clock: ManualClock) -> None:
    walk = EscrowWalk(FakeRuntime(), clock=manual_clock)
    with pytest.raises(DeadlineExpired, match="the deadline passed in stage pay"):
        await walk.start(deadline_ms=manual_clock() + 1)
    assert walk.moves == [*BEFORE, "EXPIRED"]


async def test_a_payment_that_arrives_while_it_ends_is_refunded() -> None:
    """Cancelled while it waits; the refund finds that the payment came after all."""
    walk = EscrowWalk(FakeRuntime())
    walking = walk.start()
    await walk.at[State.AWAITING_PAYMENT].wait()

    async def arrives() -> None:
        walk.escrow.arrived.set()

    walk.escrow.refunding = arrives()
    walking.cancel()
    await asyncio.wait({walking})
    assert walk.moves == [*BEFORE, "CANCELLED", "REFUNDED"]


async def test_what_fails_before_the_payment_is_due_asks_for_no_refund() -> None:
    walk = EscrowWalk(asked_first(ncn_reserve=lambda: "no context"), FakeRuntime())
    with pytest.raises(NcnError, match="a plugin failed"):
        await walk.start()
    assert walk.last.state is State.FAILED
    assert all(escrow.refunds == 0 for escrow in walk.funds.escrows.values())


# --- refunds that go wrong ---


async def test_a_refund_that_raises_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    walk = EscrowWalk(executing(NodeLost("gone")))
    walking = await walk.paid()
    walk.escrow.refunding = ChainError("the chain is away")
    with pytest.raises(NodeLost, match="gone"):
        await walking
    assert walk.last.state is State.FAILED
    assert "not refunded; anybody may do so after its expiry" in caplog.text
    assert "the chain is away" in caplog.text


async def test_a_refund_that_hangs_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    walk = EscrowWalk(executing(NodeLost("gone")), limits=StageLimits(settle_ms=1))
    walking = await walk.paid()
    walk.escrow.refunding = hang()
    with pytest.raises(NodeLost, match="gone"):
        await walking
    assert walk.last.state is State.FAILED
    assert "TimeoutError" in caplog.text


async def test_a_refund_goes_on_though_its_request_is_cancelled_meanwhile() -> None:
    walk = EscrowWalk(executing(NodeLost("gone")))
    walking = await walk.paid()
    reached, opened = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        reached.set()
        await opened.wait()

    walk.escrow.refunding = slowly()
    await reached.wait()
    for _ in range(3):
        walking.cancel()
        await asyncio.wait({walking}, timeout=0)
        assert not walking.done()
    opened.set()
    await asyncio.wait({walking})
    assert walking.cancelled()
    assert walk.moves[-2:] == ["FAILED", "REFUNDED"]
    assert walk.last.detail == "node-lost: gone"


# --- the hooks around it ---


async def test_a_confirmation_that_nobody_waits_for() -> None:
    walk = EscrowWalk(FakeRuntime())
    with pytest.raises(TaskEnded, match=r"task 0x0707.* awaits no payment"):
        await walk.life.confirm_payment(PaymentConfirmation(b"\7" * 32, bytes(32)))


async def test_a_confirmation_that_is_not_believed_leaves_the_request_waiting() -> None:
    walk = EscrowWalk(FakeRuntime())
    walking = walk.start()
    await walk.at[State.AWAITING_PAYMENT].wait()
    walk.funds.doubt = PaymentRequired("the transaction paid somebody else")
    with pytest.raises(PaymentRequired, match="somebody else"):
        await walk.life.confirm_payment(PaymentConfirmation(walk.request.request_id, bytes(32)))
    assert walk.last.state is State.AWAITING_PAYMENT
    walk.escrow.arrived.set()
    await walking


async def test_any_plugin_may_refuse_a_new_request() -> None:
    asked: list[bytes] = []

    async def later(request: InferenceRequest) -> None:
        asked.append(request.request_id)

    def ncn_check(request: InferenceRequest) -> Awaitable[None]:
        return later(request)

    funds, request = FakeFunds(), fake_request()
    life = Lifecycle(build_manager(as_plugins(asked_first(ncn_check=ncn_check), funds)))
    await life.admit(request, fake_manifest())
    assert asked == [request.request_id]
    funds.refusal = PaymentRequired("sign a voucher first")
    with pytest.raises(PaymentRequired, match="sign a voucher first"):
        await life.admit(request, fake_manifest())


async def test_without_a_plugin_that_refuses_every_request_is_admitted() -> None:
    await Lifecycle(build_manager([])).admit(fake_request(), fake_manifest())


async def test_a_statement_is_endorsed_by_who_reaches_validators() -> None:
    statement = FailureStatement(fake_due(fake_request(), fake_route()).terms, bytes(32), "the node is gone")
    funds = FakeFunds()
    assert await Validation(build_manager(as_plugins(funds))).endorse(statement) == fake_quorum()
    assert funds.statements == [statement]
    with pytest.raises(NoHandlerError, match="no plugin answered ncn_endorse for FailureStatement"):
        await Validation(build_manager([])).endorse(statement)


# --- finish ---


async def test_finish_gives_the_result_or_the_error() -> None:
    async def gives() -> int:
        return 7

    assert await finish(gives()) == 7
    with pytest.raises(NodeLost, match="gone"):
        await finish(refuse(NodeLost("gone")))


@pytest.mark.parametrize("error", [None, NodeLost("gone")])
async def test_finish_goes_on_to_its_end_and_then_counts_the_cancellation(error: Exception | None) -> None:
    reached, opened, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        reached.set()
        await opened.wait()
        ended.set()
        if error is not None:
            raise error

    waiting = asyncio.create_task(finish(work()))
    await reached.wait()
    for _ in range(3):
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=0)
        assert not waiting.done()
    opened.set()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert ended.is_set()


async def test_finish_passes_on_that_the_work_cancelled_itself() -> None:
    async def gives_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await finish(gives_up())
