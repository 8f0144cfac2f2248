"""What validators will not sign: it is left out, given back or tried again, and few of them alone change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from ncn_framework.errors import EndorsementRefused
from ncn_framework.payments import Charge, Quorum
from ncn_framework.statements import BatchStatement, Statement
from ncn_framework.testing.fakes import ManualClock
from ncn_payments import batches
from ncn_payments.ledger_reader import BatchState

from .network import NODES, Network
from .test_settlement import ROWS, UNIT, Desk, charges_in, enter, fund, settling

AGE_MS = 1_000


def id_of(charge: Charge) -> bytes:
    return charge.receipt.receipt.request_id


def ids_of(charges: Iterable[Charge]) -> set[bytes]:
    return {id_of(charge) for charge in charges}


class Heard:
    """What a settler tells."""

    def __init__(self) -> None:
        self.refused: list[Charge] = []
        self.out: list[tuple[bytes, bool]] = []

    def standing(self, account: bytes, out: bool, reason: str) -> None:
        assert reason
        self.out.append((account, out))


def listening(desk: Desk, object_to: Callable[[set[bytes]], EndorsementRefused | None]) -> Heard:
    """Have a desk's validators object, by the requests of a batch; return what the settler tells."""
    heard, endorse = Heard(), desk.settler.endorse
    desk.settler.refused, desk.settler.standing = heard.refused.append, heard.standing

    async def objecting(statement: Statement) -> Quorum:
        assert isinstance(statement, BatchStatement)
        objection = object_to(ids_of(statement.charges))
        if objection is not None:
            raise objection
        return await endorse(statement)

    desk.settler.endorse = objecting
    return heard


async def test_the_charge_for_a_wrong_result_is_never_settled(network: Network) -> None:
    """Its money is free again, its node is out, the rest is paid; after a restart it is the same."""
    await fund(network)
    charges = charges_in(network, ROWS)
    wrong = {id_of(charges[1]), id_of(charges[3])}
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        heard = listening(desk, lambda ids: _invalid(wrong & ids))
        (settled,) = await desk.settler.settle(everything=True)
        assert ids_of(settled.statement.charges) == ids_of(charges) - wrong
        assert ids_of(heard.refused) == wrong
        assert sorted(heard.out) == sorted([(NODES[1].address, True), (NODES[2].address, True)])
        assert await desk.settler.settle(everything=True) == []
    async with settling(network) as desk:
        assert desk.ledger.unsettled() == []
        channel = batches.channel_of(charges[1])
        assert desk.ledger.balances()[channel].charged_wei == 2 * UNIT  # of 7: the other five were for a wrong result
        states = {id_of(entry.charge): batch for entry, batch in desk.ledger.history(99)}
        for request_id, batch in states.items():
            assert batch is not None
            assert (batch.state == BatchState.REFUSED) == (request_id in wrong)
        assert states[id_of(charges[1])].detail == "validators found the result wrong"  # type: ignore[union-attr]
        assert [row.state for row, _, _ in desk.ledger.newest_batches(9)] == [BatchState.SETTLED, BatchState.DEAD]


def _invalid(wrong: set[bytes]) -> EndorsementRefused | None:
    return EndorsementRefused("results are wrong", invalid=wrong) if wrong else None


async def test_wrong_results_one_by_one(network: Network) -> None:
    """Validators look at a sample: each time they find another one."""
    await fund(network)
    charges = charges_in(network, ROWS)
    wrong = {id_of(charge) for charge in charges[:5]}
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        heard = listening(desk, lambda ids: _invalid(set(sorted(wrong & ids)[:1])))
        (settled,) = await desk.settler.settle(everything=True)
        assert ids_of(settled.statement.charges) == ids_of(charges) - wrong
        assert ids_of(heard.refused) == wrong
        assert desk.ledger.unsettled() == []


async def test_nothing_but_wrong_results_is_no_batch(network: Network) -> None:
    await fund(network)
    charges = charges_in(network, ROWS[:2])
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        listening(desk, _invalid)
        assert await desk.settler.settle(everything=True) == []
        assert desk.ledger.unsettled() == []


# --- what few validators say ---


LIES: dict[str, Callable[[set[bytes]], dict[str, Any]]] = {
    "a batch that is nowhere": lambda ids: {"settled": dict.fromkeys(ids, 7)},
    "a batch of our own": lambda ids: {"settled": dict.fromkeys(ids, 1)},
    "no nonce is left": lambda ids: {"next_nonce": 2**64 - 1},
    "requests of nobody": lambda ids: {"invalid": [bytes(32)], "wanted": [bytes(32)]},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_is_not_acted_upon(network: Network, lie: str) -> None:
    await fund(network)
    first, *charges = charges_in(network, ROWS)
    lying = True
    async with settling(network) as desk:
        await enter(desk.ledger, first)
        await desk.settler.settle(everything=True)
        await enter(desk.ledger, *charges)
        heard = listening(desk, lambda ids: EndorsementRefused("so it is", **LIES[lie](ids)) if lying else None)
        with pytest.raises(EndorsementRefused, match="so it is"):
            await desk.settler.settle(everything=True)
        assert len(desk.ledger.unsettled()) == len(charges)
        lying = False
        (settled,) = await desk.settler.settle(everything=True)
        assert ids_of(settled.statement.charges) == ids_of(charges)
        assert settled.statement.batch.nonce == 3
        assert (heard.refused, heard.out) == ([], [])


async def test_a_lie_beside_a_good_reason_is_not_acted_upon(network: Network) -> None:
    """Everybody refuses the nonce; one of them says as well that all results are wrong."""
    await fund(network)
    charges = charges_in(network, ROWS)
    refusals = [EndorsementRefused("use 5", None, 5, invalid=ids_of(charges), wanted=ids_of(charges))]
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        heard = listening(desk, lambda ids: refusals.pop() if refusals else None)
        (settled,) = await desk.settler.settle(everything=True)
        assert settled.statement.batch.nonce == 5
        assert ids_of(settled.statement.charges) == ids_of(charges)
        assert (heard.refused, heard.out) == ([], [])


# --- answers that are gone ---


async def test_an_answer_that_is_gone_is_left_out_for_a_while_and_then_for_ever(
    network: Network, manual_clock: ManualClock
) -> None:
    await fund(network)
    charges = charges_in(network, ROWS[:3])
    gone, looked = id_of(charges[0]), list[bool]()

    def object_to(ids: set[bytes]) -> EndorsementRefused | None:
        looked.append(gone in ids)
        return EndorsementRefused("show it", wanted=[gone]) if gone in ids else None

    async with settling(network, clock=manual_clock, batch_age_ms=AGE_MS, channel_min_wei=0) as desk:
        await enter(desk.ledger, *charges, at_ms=manual_clock.at_ms)
        heard = listening(desk, object_to)
        manual_clock.advance(AGE_MS)
        (settled,) = await desk.settler.settle()
        assert ids_of(settled.statement.charges) == ids_of(charges[1:])
        assert looked == [True, False]
        for _ in range(3):
            assert await desk.settler.settle() == []
            assert len(desk.ledger.unsettled()) == 1
            manual_clock.advance(AGE_MS)
            assert await desk.settler.settle() == []
        assert looked == [True, False, True, True, True]
        assert heard.refused == []
        manual_clock.advance(AGE_MS)
        assert await desk.settler.settle() == []  # the fifth time
        assert ids_of(heard.refused) == {gone}
        assert heard.out == []  # nobody knows whether the node was at fault
        assert desk.ledger.unsettled() == []
        ((_, batch), *_) = [row for row in desk.ledger.history(9) if id_of(row[0].charge) == gone]
        assert batch is not None
        assert batch.detail == "validators want to see the answer, which is kept no more"


async def test_an_answer_that_another_batch_is_not_asked_for_is_paid(
    network: Network, manual_clock: ManualClock
) -> None:
    await fund(network)
    charges = charges_in(network, ROWS[:1])
    refusals = [EndorsementRefused("show it", wanted=ids_of(charges))]
    async with settling(network, clock=manual_clock, batch_age_ms=AGE_MS, channel_min_wei=0) as desk:
        await enter(desk.ledger, *charges, at_ms=manual_clock.at_ms)
        listening(desk, lambda ids: refusals.pop() if refusals else None)
        manual_clock.advance(AGE_MS)
        assert await desk.settler.settle() == []
        manual_clock.advance(AGE_MS)
        assert len(await desk.settler.settle()) == 1
