"""One round of asking: who is asked, when others are, when it ends, and what counts of what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ncn_framework.committees import Epoch, draw
from ncn_framework.errors import EndorsementRefused, NcnError
from ncn_framework.models import Signature
from ncn_framework.quorums import check_quorum
from ncn_framework.signing import Signer
from ncn_framework.statements import Statement, excluded_from, subject_of
from ncn_framework.testing.fakes import fake_signer
from ncn_registry.outcomes import Answered
from ncn_registry.rounds import Question, Round

from .committee import GATEWAY, REQUEST, VALIDATORS, a_batch, a_completion, a_failure, an_epoch, signed_by
from .network import DOMAIN

NEVER_S = 3_600.0

Answer = Callable[[], Awaitable[tuple[Signature, ...]]]


class Asked:
    """Validators, each in a process of its own, that answer as a test says; by default each signs."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.asked: list[bytes] = []
        self.answers: dict[bytes, Answer] = {}
        self.hanging: list[asyncio.Future[None]] = []

    def signs(self, validator: bytes, *signers: Signer) -> None:
        async def answer() -> tuple[Signature, ...]:
            return signed_by(self.statement, *signers)

        self.answers[validator] = answer

    def fails(self, validator: bytes, error: Exception) -> None:
        async def answer() -> tuple[Signature, ...]:
            raise error

        self.answers[validator] = answer

    def hangs(self, validator: bytes) -> None:
        async def answer() -> tuple[Signature, ...]:
            await asyncio.Event().wait()
            raise AssertionError

        self.answers[validator] = answer

    async def ask(self, validator: bytes) -> tuple[str, Question]:
        self.asked.append(validator)
        if validator not in self.answers:
            (signer,) = (s for s in everybody(20) if s.address == validator)
            self.signs(validator, signer)
        return validator.hex(), self.answers[validator]


def everybody(count: int) -> list[Signer]:
    return [fake_signer(f"validator {number}") for number in range(count)]


def a_round(
    asked: Asked, epoch: Epoch | None = None, hedge_s: float = NEVER_S, shown: frozenset[bytes] = frozenset()
) -> Round:
    return Round(DOMAIN, epoch or an_epoch(), asked.statement, shown, asked.ask, hedge_s)


def order_of(epoch: Epoch, statement: Statement) -> list[bytes]:
    return [epoch.members[place].address for place in draw(epoch, subject_of(statement), excluded_from(statement))]


async def run(round_: Round) -> None:
    async with asyncio.timeout(20):
        await round_.run()


async def test_all_five_are_asked_and_a_quorum_is_what_the_contract_takes() -> None:
    asked = Asked(a_failure())
    round_ = a_round(asked)
    await run(round_)
    assert asked.asked == order_of(an_epoch(), asked.statement)
    quorum = round_.result().quorum()
    assert quorum.bitmap.bit_count() == len(quorum.signatures) == 3
    check_quorum(DOMAIN, asked.statement, quorum, an_epoch())
    assert {outcome.answered for outcome in round_.outcomes()} == {Answered.SIGNED}
    assert all(outcome.agreed for outcome in round_.outcomes())


async def test_of_many_as_many_are_asked_as_must_sign_and_the_next_for_each_that_fails() -> None:
    epoch = an_epoch(11, 6)
    asked = Asked(a_failure())
    order = order_of(epoch, asked.statement)
    asked.fails(order[0], NcnError("it cannot be reached"))
    asked.fails(order[3], EndorsementRefused("it is wrong"))
    round_ = a_round(asked, epoch)
    await run(round_)
    assert asked.asked == order[:8]
    check_quorum(DOMAIN, asked.statement, round_.result().quorum(), epoch)
    answered = {outcome.validator: outcome.answered for outcome in round_.outcomes()}
    assert answered[order[0]] is Answered.SILENT
    assert answered[order[3]] is Answered.REFUSED


async def test_who_hangs_is_hedged_around() -> None:
    epoch = an_epoch(7, 4)
    asked = Asked(a_failure())
    order = order_of(epoch, asked.statement)
    for hanging in order[:3]:
        asked.hangs(hanging)
    round_ = a_round(asked, epoch, hedge_s=0.02)
    await run(round_)
    assert asked.asked == order
    assert len(round_.result()) == 4
    answered = {outcome.validator: outcome.answered for outcome in round_.outcomes()}
    assert all(answered[hanging] is Answered.SILENT for hanging in order[:3])


async def test_a_quorum_waits_for_the_others_until_the_first_hedge_and_no_longer() -> None:
    asked = Asked(a_failure())
    order = order_of(an_epoch(), asked.statement)
    asked.hangs(order[4])
    round_ = a_round(asked, hedge_s=0.05)
    await run(round_)
    assert len(round_.result()) == 4


async def test_too_few_is_a_refusal_that_says_who_and_why() -> None:
    asked = Asked(a_failure())
    order = order_of(an_epoch(), asked.statement)
    for validator in order[:2]:
        asked.fails(validator, EndorsementRefused("the price is another\none"))
    asked.fails(order[2], NcnError("it cannot be reached"))
    round_ = a_round(asked)
    await run(round_)
    with pytest.raises(EndorsementRefused, match="2 of the 5 validators of epoch 7 signed; 3 are needed") as caught:
        round_.result()
    assert str(caught.value).count("the price is another one") == 1, "one reason is told once, with all who gave it"
    assert "it cannot be reached" in str(caught.value)
    assert not any(outcome.agreed for outcome in round_.outcomes())


async def test_time_that_runs_out_leaves_what_came_in() -> None:
    asked = Asked(a_failure())
    order = order_of(an_epoch(), asked.statement)
    for hanging in order[:3]:
        asked.hangs(hanging)
    round_ = a_round(asked)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await round_.run()
    with pytest.raises(EndorsementRefused, match=r"2 of the 5 .* it gave no answer in time"):
        round_.result()
    assert [outcome.answered for outcome in round_.outcomes()] == [Answered.SIGNED] * 2, "NEVER_S has not passed"


async def test_who_may_not_sign_is_not_asked_and_its_signature_does_not_count() -> None:
    statement = a_batch(payees=(VALIDATORS[0].address,))
    asked = Asked(statement)
    round_ = a_round(asked)
    await run(round_)
    assert VALIDATORS[0].address not in asked.asked
    asked = Asked(statement)
    for validator in VALIDATORS[1:]:
        asked.signs(validator.address, VALIDATORS[0], VALIDATORS[1])
    round_ = a_round(asked)
    await run(round_)
    with pytest.raises(EndorsementRefused, match="1 of the 4"):
        round_.result()


@pytest.mark.parametrize("lie", ["another's", "a stranger's", "over something else", "nothing", "torn"])
async def test_a_member_gives_what_is_not_its_signature(lie: str) -> None:
    """One of five lies: the others make the quorum. Three lie: there is none."""
    statement = a_failure()
    (honest,) = signed_by(statement, VALIDATORS[4])

    def given(liar: Signer) -> tuple[Signature, ...]:
        return {
            "another's": (Signature(liar.address, honest.value),),
            "a stranger's": signed_by(statement, GATEWAY),
            "over something else": signed_by(a_failure(nonce=5), liar),
            "nothing": (),
            "torn": (Signature(liar.address, b"\0" * 65),),
        }[lie]

    for liars in (VALIDATORS[:1], VALIDATORS[:3]):
        asked = Asked(statement)
        for liar in liars:

            async def answer(liar: Signer = liar) -> tuple[Signature, ...]:
                return given(liar)

            asked.answers[liar.address] = answer
        round_ = a_round(asked)
        await run(round_)
        answered = {outcome.validator: outcome.answered for outcome in round_.outcomes()}
        assert all(answered[liar.address] is Answered.REFUSED for liar in liars)
        if len(liars) == 1:
            check_quorum(DOMAIN, statement, round_.result().quorum(), an_epoch())
        else:
            with pytest.raises(EndorsementRefused, match="not its signature"):
                round_.result()


async def test_who_speaks_for_several_is_asked_once_and_one_signature_counts_once() -> None:
    statement = a_failure()
    asked, calls = Asked(statement), 0

    async def together() -> tuple[Signature, ...]:
        nonlocal calls
        calls += 1
        return signed_by(statement, *VALIDATORS[:2], *VALIDATORS[:2])

    async def ask(validator: bytes) -> tuple[str, Question]:
        if validator in (VALIDATORS[0].address, VALIDATORS[1].address):
            return "both", together
        raise NcnError("it is not known which registry speaks for it")

    round_ = Round(DOMAIN, an_epoch(), statement, frozenset(), ask, NEVER_S)
    await run(round_)
    assert calls == 1
    assert len(round_.signatures) == 2
    with pytest.raises(EndorsementRefused, match="2 of the 5"):
        round_.result()
    assert asked.asked == []


async def test_who_wants_to_see_an_answer_is_heeded_though_a_quorum_signs() -> None:
    asked = Asked(a_completion())
    order = order_of(an_epoch(), asked.statement)
    wants = EndorsementRefused("show me", wanted={REQUEST.request_id, b"\x99" * 32})
    asked.fails(order[4], wants)
    round_ = a_round(asked)
    await run(round_)
    assert len(round_.signatures) == 4
    with pytest.raises(EndorsementRefused) as caught:
        round_.result()
    assert caught.value.wanted == {REQUEST.request_id}, "what is not in the statement is nobody's business"
    assert order[4] not in {outcome.validator for outcome in round_.outcomes()}


async def test_who_wants_more_once_something_was_shown_holds_nobody_up() -> None:
    asked = Asked(a_batch(2))
    order = order_of(an_epoch(), asked.statement)
    asked.fails(order[4], EndorsementRefused("show me", wanted={(1).to_bytes(32, "big")}))
    asked.hangs(order[3])
    round_ = a_round(asked, shown=frozenset({REQUEST.request_id}))
    await run(round_)
    assert len(round_.result()) == 3


async def test_what_wants_cannot_be_shown_for_is_refused_plainly() -> None:
    asked = Asked(a_failure())
    for validator in VALIDATORS:
        asked.fails(validator.address, EndorsementRefused("show me", wanted={REQUEST.request_id}))
    round_ = a_round(asked)
    await run(round_)
    with pytest.raises(EndorsementRefused) as caught:
        round_.result()
    assert not caught.value.wanted


async def test_a_fault_in_asking_is_one_validators_alone(caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked(a_failure())
    asked.fails(VALIDATORS[0].address, RuntimeError("a defect"))
    round_ = a_round(asked)
    await run(round_)
    assert round_.result().enough
    assert "a defect" in caplog.text
