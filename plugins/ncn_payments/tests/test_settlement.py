"""Settling, on real contracts: who gets what, to the last unit, and once, wherever it is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from ncn_framework.digests import channel_id
from ncn_framework.errors import ChainError, EndorsementRefused, TransactionReverted
from ncn_framework.payments import Charge, Quorum
from ncn_framework.signing import Signer
from ncn_framework.statements import Statement
from ncn_framework.testing.fakes import ManualClock, fake_signer
from ncn_payments import batches
from ncn_payments.ledger import Ledger
from ncn_payments.ledger_reader import BatchState
from ncn_payments.onchain import OnChain
from ncn_payments.settlement import Settled, Settler

from .conftest import KINDS
from .network import CLIENTS, NODES, VALIDATORS, Network, settings_of
from .payments import CLIENT, GATEWAY, NODE, make_charge, make_voucher

SESSION = fake_signer("session")
DEPOSIT = 10**18
UNIT = 10**15 + 7
"""Of a fee; odd, so that every share is rounded."""


@dataclass
class Desk:
    """One who settles: a ledger, the chain by a key, the validators; closed and opened again as after a crash."""

    ledger: Ledger
    chain: OnChain
    settler: Settler


@asynccontextmanager
async def settling(
    network: Network,
    signer: Signer = GATEWAY,
    name: str = "ledger.db",
    clock: Callable[[], int] | None = None,
    **settings: Any,
) -> AsyncIterator[Desk]:
    """Open what it takes to settle; what was opened before must be closed by then."""
    async with AsyncExitStack() as stack:
        own = replace(network, stack=stack)
        chain = await own.onchain(signer)
        ledger = await stack.enter_async_context(network.ledger(name))
        committee = own.committee(chain)
        options: dict[str, Any] = {"epoch": committee.validation.epoch} | ({} if clock is None else {"clock": clock})
        settler = Settler(
            network.domain, ledger, chain, committee.endorse, settings_of(network.home, **settings), **options
        )
        yield Desk(ledger, chain, settler)


async def enter(ledger: Ledger, *charges: Charge, at_ms: int = 0) -> None:
    await asyncio.gather(*(ledger.enter(charge, at_ms) for charge in charges))


def charges_in(
    network: Network, rows: list[tuple[int, int, int]], first: int = 0, drawn: dict[int, int] | None = None
) -> list[Charge]:
    """Return charges (client, node, units), each under a voucher of its channel that covers all before it."""
    charges, owed = [], dict(drawn or {})
    for number, (client, node, units) in enumerate(rows, first):
        owed[client] = owed.get(client, 0) + units * UNIT
        voucher = network.voucher(owed[client], CLIENTS[client])
        charges.append(make_charge(number, units * UNIT, voucher, NODES[node], CLIENTS[client], domain=network.domain))
    return charges


ROWS = [(0, 0, 3), (1, 1, 5), (0, 1, 1), (2, 2, 7), (1, 0, 2), (2, 3, 1), (0, 2, 11)]


@dataclass
class Paid:
    """What everybody has: nodes by place, the gateway, the validators' pool, the treasury."""

    nodes: list[int]
    gateway: int
    pool: int
    treasury: int

    @classmethod
    async def now(cls, network: Network) -> Paid:
        treasury, pool = await network.globals()
        nodes = [await network.tokens(node.address) for node in NODES]
        return cls(nodes, await network.tokens(GATEWAY.address), pool, treasury)

    def since(self, before: Paid) -> Paid:
        nodes = [now - then for now, then in zip(self.nodes, before.nodes, strict=True)]
        return Paid(nodes, self.gateway - before.gateway, self.pool - before.pool, self.treasury - before.treasury)


def due(charges: list[Charge], *, in_batches: int = 1) -> Paid:
    """Return what charges pay: 80 % of each to its node, 10 % and 5 % of all, each rounded down, and the rest."""
    assert in_batches == 1
    fees = [charge.receipt.receipt.fee_wei for charge in charges]
    nodes = [
        sum(fee * 80 // 100 for fee, c in zip(fees, charges, strict=True) if c.receipt.receipt.node == node.address)
        for node in NODES
    ]
    gateway, pool = sum(fees) // 10, sum(fees) // 20
    return Paid(nodes, gateway, pool, sum(fees) - sum(nodes) - gateway - pool)


async def fund(network: Network, *clients: int) -> None:
    for client in clients or (0, 1, 2):
        await network.deposit(DEPOSIT, CLIENTS[client])


async def batches_on_chain(network: Network) -> list[Any]:
    return await network.contracts.payment.past_events("BatchSettled", 0)


# --- one batch ---


@pytest.mark.parametrize("network", KINDS, indirect=True)
async def test_everybody_gets_his_share_to_the_last_unit(network: Network) -> None:
    """Four channels, one of them by a session key, four nodes, one batch."""
    await fund(network)
    by_session = await network.deposit(DEPOSIT, CLIENT, SESSION)
    charges = charges_in(network, ROWS)
    voucher = network.voucher(9 * UNIT, CLIENT, SESSION)
    charges.append(make_charge(90, 9 * UNIT, voucher, NODE, SESSION, domain=network.domain))
    before = await Paid.now(network)
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        (settled,) = await desk.settler.settle(everything=True)
        assert (await Paid.now(network)).since(before) == due(charges)
        total = sum(charge.receipt.receipt.fee_wei for charge in charges)
        assert (batches.total_of(settled.statement), settled.statement.batch.count) == (total, len(charges))
        split = batches.shares(total, settled.statement.credits)
        assert due(charges) == Paid(
            [split.compute_wei.get(node.address, 0) for node in NODES],
            split.gateway_wei,
            split.validators_wei,
            split.treasury_wei,
        )
        assert (await desk.chain.deposit(by_session)).spent_wei == 9 * UNIT
        (row,) = desk.ledger.batches()
        assert (row.state, row.tx, row.gas) == (BatchState.SETTLED, settled.tx, settled.gas)
        receipt = await desk.chain.receipt(bytes.fromhex(settled.tx[2:]))
        assert int(receipt["gasUsed"], 16) == settled.gas
        assert desk.ledger.unsettled() == []
        assert await desk.settler.settle(everything=True) == []
        assert await desk.chain.settled_in(settled.statement) == (settled.tx, settled.gas)
        assert await desk.chain.is_settled(GATEWAY.address, settled.statement.batch.nonce)


async def test_the_next_batch_goes_on_where_the_last_one_ended(network: Network) -> None:
    await fund(network)
    before = await Paid.now(network)
    first = charges_in(network, ROWS)
    second = charges_in(network, ROWS, first=50, drawn={0: 15 * UNIT, 1: 7 * UNIT, 2: 8 * UNIT})
    async with settling(network) as desk:
        await enter(desk.ledger, *first)
        await desk.settler.settle(everything=True)
        await enter(desk.ledger, *second)
        (settled,) = await desk.settler.settle(everything=True)
        assert settled.statement.batch.nonce == 2
        middle, now = due(first), (await Paid.now(network)).since(before)
        assert now.nodes == [a + b for a, b in zip(middle.nodes, due(second).nodes, strict=True)]
        channel = channel_id(CLIENT.address, CLIENT.address, GATEWAY.address)
        assert (await desk.chain.deposit(channel)).spent_wei == 30 * UNIT


async def test_what_does_not_fit_into_one_batch_is_settled_in_several(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_CHANNELS", 2)
    await fund(network)
    before = await Paid.now(network)
    charges = charges_in(network, ROWS)
    async with settling(network, batch_max_count=3) as desk:
        await enter(desk.ledger, *charges)
        done = await desk.settler.settle(everything=True)
        assert all(len(settled.statement.claims) <= 2 and settled.statement.batch.count <= 3 for settled in done)
        assert sum(settled.statement.batch.count for settled in done) == len(charges)
        assert (await Paid.now(network)).since(before).nodes == due(charges).nodes
        assert [row.nonce for row in desk.ledger.batches(BatchState.SETTLED)] == list(range(1, len(done) + 1))


async def test_nothing_is_no_batch(network: Network) -> None:
    async with settling(network) as desk:
        assert await desk.settler.settle(everything=True) == []
        assert desk.ledger.batches() == []


# --- when it is due ---


async def due_after(network: Network, clock: ManualClock, charges: list[Charge], **settings: Any) -> Settler:
    """Return a settler of these charges, entered now; it stays open with the network."""
    desk = await network.stack.enter_async_context(settling(network, clock=clock, **settings))
    await enter(desk.ledger, *charges, at_ms=clock.at_ms)
    return desk.settler


async def test_enough_charges_make_a_batch(network: Network, manual_clock: ManualClock) -> None:
    await fund(network)
    charges = charges_in(network, ROWS)
    settler = await due_after(network, manual_clock, charges[:3], batch_count=4, channel_min_wei=0)
    assert await settler.settle() == []
    await enter(settler.ledger, charges[3], at_ms=manual_clock.at_ms)
    assert len(await settler.settle()) == 1


async def test_enough_money_makes_a_batch(network: Network, manual_clock: ManualClock) -> None:
    await fund(network)
    charges = charges_in(network, ROWS)
    settler = await due_after(network, manual_clock, charges[:2], batch_value_wei=9 * UNIT, channel_min_wei=0)
    assert await settler.settle() == []
    await enter(settler.ledger, charges[2], at_ms=manual_clock.at_ms)
    assert len(await settler.settle()) == 1


async def test_enough_time_makes_a_batch(network: Network, manual_clock: ManualClock) -> None:
    await fund(network)
    settler = await due_after(network, manual_clock, charges_in(network, ROWS[:1]), batch_age_ms=1_000)
    manual_clock.advance(999)
    assert await settler.settle() == []
    manual_clock.advance(1)
    assert len(await settler.settle()) == 1


async def test_a_channel_that_owes_little_waits_longer(network: Network, manual_clock: ManualClock) -> None:
    await fund(network)
    charges = charges_in(network, [(0, 0, 1), (1, 0, 5)])
    settler = await due_after(
        network, manual_clock, charges, batch_age_ms=1_000, channel_min_wei=2 * UNIT, channel_age_ms=5_000
    )
    manual_clock.advance(1_000)
    (settled,) = await settler.settle()
    assert settled.statement.charges == (charges[1],)
    manual_clock.advance(3_999)
    assert await settler.settle() == []
    manual_clock.advance(1)
    (settled,) = await settler.settle()
    assert settled.statement.charges == (charges[0],)


async def test_what_has_not_arrived_yet_is_not_settled(network: Network) -> None:
    await fund(network)
    charges = charges_in(network, ROWS[:2])
    late = {charges[0].receipt.receipt.request_id}
    async with settling(network) as desk:
        desk.settler.undelivered = lambda: late
        await enter(desk.ledger, *charges)
        (settled,) = await desk.settler.settle(everything=True)
        assert settled.statement.charges == (charges[1],)
        late.clear()
        assert len(await desk.settler.settle(everything=True)) == 1


async def test_it_settles_by_itself_once_enough_was_charged(network: Network, manual_clock: ManualClock) -> None:
    await fund(network)
    charges, landed = charges_in(network, ROWS[:3]), asyncio.Event()
    settings: dict[str, Any] = {"batch_count": 3, "batch_poll_ms": 3_600_000, "channel_min_wei": 0}
    async with settling(network, clock=manual_clock, **settings) as desk:
        after(desk.ledger, "settle_batch", landed.set)
        running = asyncio.create_task(desk.settler.run())
        for charge in charges:
            await desk.ledger.enter(charge, manual_clock.at_ms)
            desk.settler.charged(charge.receipt.receipt.fee_wei)
        async with asyncio.timeout(30):
            await landed.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [row.receipts for row in desk.ledger.batches(BatchState.SETTLED)] == [3]


async def test_what_fails_in_the_background_is_tried_again(network: Network) -> None:
    await fund(network)
    landed = asyncio.Event()
    async with settling(network, batch_count=1, batch_poll_ms=1, channel_min_wei=0) as desk:
        await enter(desk.ledger, *charges_in(network, ROWS[:1]))
        after(desk.ledger, "settle_batch", landed.set)
        troubles: list[Exception] = [ChainError("no answer"), RuntimeError("a defect"), EndorsementRefused("no quorum")]
        endorse = desk.settler.endorse

        async def moody(statement: Statement) -> Quorum:
            if troubles:
                raise troubles.pop()
            return await endorse(statement)

        desk.settler.endorse = moody
        running = asyncio.create_task(desk.settler.run())
        async with asyncio.timeout(30):
            await landed.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert troubles == []
        assert len(await batches_on_chain(network)) == 1


# --- what cannot be paid ---


async def test_a_channel_that_cannot_pay_is_left_out(network: Network, manual_clock: ManualClock) -> None:
    """One deposit is too small for what was charged on it: as much as fits is taken, and the others are not held up."""
    await fund(network, 1, 2)
    await network.deposit(4 * UNIT, CLIENT)
    charges = charges_in(network, ROWS)  # client 0 owes 3, 1 and 11 units
    settler = await due_after(network, manual_clock, charges, batch_age_ms=1_000)
    manual_clock.advance(1_000)
    (settled,) = await settler.settle()
    assert set(settled.statement.charges) == set(charges[:-1])
    assert await settler.settle() == []
    await network.deposit(11 * UNIT, CLIENT)
    assert await settler.settle() == []  # it is not looked at again for a while
    manual_clock.advance(1_000)
    (settled,) = await settler.settle()
    assert settled.statement.charges == (charges[-1],)
    states = [row.state for row in settler.ledger.batches()]
    assert states == [BatchState.DEAD, BatchState.SETTLED, BatchState.SETTLED]


@pytest.mark.parametrize("known", [True, False])
async def test_a_claim_that_the_contract_refuses_is_left_out(network: Network, known: bool) -> None:
    """The client has taken its deposit out; or does so between our look at it and the batch."""
    await fund(network)
    charges = charges_in(network, ROWS)
    gone = batches.channel_of(charges[0])
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        old = await desk.chain.deposits({batches.channel_of(charge) for charge in charges})
        async with AsyncExitStack() as stack:
            client = await replace(network, stack=stack).onchain(CLIENT)
            await client.leave(CLIENT.address, GATEWAY.address, "leave")
            await network.pass_time(61)
            await client.withdraw(CLIENT.address, CLIENT.address, GATEWAY.address, "withdraw")
        if not known:
            desk.chain.deposits = lambda channels: asyncio.sleep(0, old)  # type: ignore[method-assign]
        (settled,) = await desk.settler.settle(everything=True)
        assert set(settled.statement.charges) == {charge for charge in charges if batches.channel_of(charge) != gone}
        states = [(row.state, row.nonce) for row in desk.ledger.batches()]
        assert states == [(BatchState.DEAD, 1), (BatchState.SETTLED, 2)]
        assert len(desk.ledger.unsettled()) == 3


async def test_a_damaged_charge_is_left_out(network: Network) -> None:
    await fund(network)
    charges = charges_in(network, ROWS)
    forged = msgspec.structs.replace(charges[1].voucher, signature=charges[0].voucher.signature)
    charges[1] = replace(charges[1], voucher=forged)
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        (settled,) = await desk.settler.settle(everything=True)
        assert set(settled.statement.charges) == {*charges} - {charges[1]}
        assert [owed.request_id for owed in desk.ledger.unsettled()] == [charges[1].receipt.receipt.request_id]


async def test_charges_that_no_voucher_covers_are_left_out(network: Network) -> None:
    await fund(network)
    first, second = charges_in(network, [(0, 0, 3), (0, 0, 4)])
    second = replace(second, voucher=network.voucher(6 * UNIT))
    async with settling(network) as desk:
        await enter(desk.ledger, first, second)
        (settled,) = await desk.settler.settle(everything=True)
        assert settled.statement.charges == (first,)
        assert settled.statement.claims[0].voucher == second.voucher  # the best there is


async def test_without_a_quorum_nothing_is_settled_and_nothing_lost(network: Network) -> None:
    await fund(network)
    charges = charges_in(network, ROWS[:2])
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        few = network.committee(desk.chain, VALIDATORS[:2], "few.db")
        endorse, desk.settler.endorse = desk.settler.endorse, few.endorse
        with pytest.raises(EndorsementRefused, match="2 of the 5 validators"):
            await desk.settler.settle(everything=True)
        assert [row.state for row in desk.ledger.batches()] == [BatchState.DEAD]
        assert len(desk.ledger.unsettled()) == 2
        desk.settler.endorse = endorse
        (settled,) = await desk.settler.settle(everything=True)
        assert settled.statement.batch.nonce == 2


async def test_signatures_that_the_contract_does_not_take_are_no_batch(network: Network) -> None:
    await fund(network)
    async with settling(network) as desk:
        await enter(desk.ledger, *charges_in(network, ROWS[:2]))
        strangers = [fake_signer(f"stranger {n}") for n in range(3)]
        endorse = desk.settler.endorse

        async def forged(statement: Statement) -> Quorum:
            quorum = await endorse(statement)
            return replace(quorum, signatures=tuple(signer.sign(bytes(32)).value for signer in strangers))

        desk.settler.endorse = forged
        with pytest.raises(TransactionReverted, match="Quorum__"):
            await desk.settler.settle(everything=True)
        desk.settler.endorse = endorse
        assert len(await desk.settler.settle(everything=True)) == 1
        assert len(await batches_on_chain(network)) == 1


# --- crashes ---


class Crash(BaseException):
    """The process ends here."""


def before(target: Any, name: str, do: Callable[[], None]) -> None:
    """Have ``do`` run before a coroutine method of ``target``."""
    method = getattr(target, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        do()
        return await method(*args, **kwargs)

    setattr(target, name, wrapped)


def after(target: Any, name: str, do: Callable[[], None]) -> None:
    """Have ``do`` run after a coroutine method of ``target``."""
    method: Callable[..., Awaitable[Any]] = getattr(target, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = await method(*args, **kwargs)
        do()
        return result

    setattr(target, name, wrapped)


def crash() -> None:
    raise Crash


POINTS = [
    (before, "ledger", "add_batch"),
    (after, "ledger", "add_batch"),
    (after, "settler", "endorse"),
    (after, "chain", "simulate_batch"),
    (after, "chain", "settle_batch"),
    (after, "ledger", "settle_batch"),
]


@pytest.mark.parametrize(("when", "part", "method"), POINTS)
async def test_a_crash_at_any_point_settles_everything_once(
    network: Network, when: Callable[..., None], part: str, method: str
) -> None:
    await fund(network)
    charges = charges_in(network, ROWS)
    before_all = await Paid.now(network)
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        when(getattr(desk, part), method, crash)
        with pytest.raises(Crash):
            await desk.settler.settle(everything=True)
    later = charges_in(network, [(0, 3, 2)], first=70, drawn={0: 15 * UNIT})
    async with settling(network) as desk:
        await enter(desk.ledger, *later)
        done = await desk.settler.settle(everything=True)
        assert desk.ledger.unsettled() == []
        assert desk.ledger.batches(BatchState.SIGNED) == []
        on_chain = await batches_on_chain(network)
        everything = sum(charge.receipt.receipt.fee_wei for charge in (*charges, *later))
        assert sum(event.arguments["total"] for event in on_chain) == everything
        assert len(on_chain) <= 2
        assert len(done) in (1, 2)
        expected = [a + b for a, b in zip(due(charges).nodes, due(later).nodes, strict=True)]
        assert (await Paid.now(network)).since(before_all).nodes == expected
        assert await desk.settler.settle(everything=True) == []


async def test_a_batch_on_its_way_when_the_process_ends_lands_once(network: Network) -> None:
    """The transaction is sent and in no block yet."""
    await fund(network)
    charges = charges_in(network, ROWS)
    async with settling(network) as desk:
        await enter(desk.ledger, *charges)
        await network.chain.request("evm_setAutomine", [False])
        sent = asyncio.Event()
        after(desk.chain.writer, "_broadcast", sent.set)
        task = asyncio.create_task(desk.settler.settle(everything=True))
        async with asyncio.timeout(30):
            await sent.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [row.state for row in desk.ledger.batches()] == [BatchState.SIGNED]
    async with settling(network) as desk:
        task = asyncio.create_task(desk.settler.settle(everything=True))
        await network.chain.request("evm_setAutomine", [True])
        await network.chain.request("evm_mine", [])
        async with asyncio.timeout(30):
            (settled,) = await task
        assert set(settled.statement.charges) == set(charges)
        assert len(await batches_on_chain(network)) == 1
        assert [row.state for row in desk.ledger.batches()] == [BatchState.SETTLED]


async def test_an_answer_that_never_came_is_asked_for_again(network: Network) -> None:
    """The chain takes the batch, and the connection breaks: nothing is dropped, nothing made anew."""
    await fund(network)
    async with settling(network) as desk:
        await enter(desk.ledger, *charges_in(network, ROWS))
        settle_batch = desk.chain.settle_batch

        def broken() -> None:
            desk.chain.settle_batch = settle_batch  # type: ignore[method-assign]
            raise ChainError("the connection broke")

        after(desk.chain, "settle_batch", broken)
        with pytest.raises(ChainError):
            await desk.settler.settle(everything=True)
        assert [row.state for row in desk.ledger.batches()] == [BatchState.SIGNED]
        (settled,) = await desk.settler.settle(everything=True)
        assert settled.gas > 50_000
        assert [row.nonce for row in desk.ledger.batches()] == [1]
        assert len(await batches_on_chain(network)) == 1


async def test_a_batch_that_somebody_else_sent_is_ours_all_the_same(network: Network) -> None:
    """Anybody may submit a signed batch; ours then reverts, and is on chain."""
    await fund(network)
    async with settling(network) as desk, settling(network, NODE, "node.db") as other:
        await enter(desk.ledger, *charges_in(network, ROWS))
        simulate = desk.chain.simulate_batch

        async def overtaken(statement: Any, quorum: Quorum) -> None:
            await simulate(statement, quorum)
            await other.chain.settle_batch(statement, quorum, "ahead")

        desk.chain.simulate_batch = overtaken  # type: ignore[method-assign]
        (settled,) = await desk.settler.settle(everything=True)
        assert int((await desk.chain.receipt(bytes.fromhex(settled.tx[2:])))["from"], 16) == int.from_bytes(
            NODE.address, "big"
        )
        assert [row.state for row in desk.ledger.batches()] == [BatchState.SETTLED]
        assert len(await batches_on_chain(network)) == 1


# --- a node without its gateway ---


async def test_a_node_that_its_gateway_passes_over_claims_with_the_vouchers_on_chain(network: Network) -> None:
    """The gateway settles what came later for others, so that the node's own voucher falls short by now."""
    await fund(network)
    mine, others = charges_in(network, [(0, 0, 3), (0, 1, 40)])
    async with settling(network) as gateway:
        await enter(gateway.ledger, others)
        await gateway.settler.settle(everything=True)
    before_all = await network.tokens(NODE.address)
    settled = await node_claims(network, [mine])
    assert settled.statement.claims[0].voucher == others.voucher
    assert await network.tokens(NODE.address) - before_all == 3 * UNIT * 80 // 100


async def node_claims(network: Network, mine: list[Charge]) -> Settled:
    """Have the node settle its own books, by itself."""
    async with settling(network, NODE, "node.db") as node:
        await enter(node.ledger, *mine)
        (settled,) = await node.settler.settle(everything=True)
        assert node.ledger.unsettled() == []
        return settled


async def test_a_node_claims_alone_and_the_gateway_learns_of_it(network: Network) -> None:
    await fund(network)
    before_all = await Paid.now(network)
    charges = charges_in(network, ROWS)
    mine = [charge for charge in charges if charge.receipt.receipt.node == NODE.address]
    async with settling(network) as gateway:
        await enter(gateway.ledger, *charges)
    settled = await node_claims(network, mine)
    assert set(settled.statement.charges) == set(mine)
    assert await network.tokens(NODE.address) - before_all.nodes[0] == due(mine).nodes[0]
    async with settling(network) as gateway:
        (rest,) = await gateway.settler.settle(everything=True)
        assert set(rest.statement.charges) == set(charges) - set(mine)
        assert gateway.ledger.unsettled() == []
        states = [(row.nonce, row.state, row.detail) for row in gateway.ledger.batches(BatchState.SETTLED)]
        assert (1, BatchState.SETTLED, "settled by somebody else") in states
        (elsewhere,) = [row for row in gateway.ledger.newest_batches(9) if row[0].detail.startswith("settled by")]
        assert elsewhere[1:] == (2, 5 * UNIT)
        assert await gateway.settler.settle(everything=True) == []
    assert (await Paid.now(network)).since(before_all).nodes == due(charges).nodes
    # and the node, whose gateway has settled for it in the meantime, pays nothing for asking again
    async with settling(network, NODE, "node again.db") as node:
        await enter(node.ledger, *mine)
        assert await node.settler.settle(everything=True) == []
        assert node.ledger.unsettled() == []


async def test_a_node_claims_what_its_gateway_had_signed_and_never_sent(network: Network) -> None:
    """The validators have signed the receipts under the gateway's nonces: a higher one makes those void."""
    await fund(network)
    before_all = await Paid.now(network)
    charges = charges_in(network, ROWS)
    mine = [charge for charge in charges if charge.receipt.receipt.node == NODE.address]
    async with settling(network) as gateway:
        await enter(gateway.ledger, *charges)
        for point in ("endorse", "endorse"):
            after(gateway.settler, point, crash)
            with pytest.raises(Crash):
                await gateway.settler.settle(everything=True)
            await gateway.ledger.drop_batch(gateway.ledger.batches()[-1].id, "dropped by hand")
    settled = await node_claims(network, mine)
    assert settled.statement.batch.nonce > 2
    async with settling(network) as gateway:
        await gateway.settler.settle(everything=True)
        assert gateway.ledger.unsettled() == []
    assert (await Paid.now(network)).since(before_all).nodes == due(charges).nodes


async def test_a_gateway_that_returns_with_a_signed_batch_drops_it(network: Network) -> None:
    """While it was gone its node has claimed under a higher nonce: what it had signed can never be on chain."""
    await fund(network)
    before_all = await Paid.now(network)
    charges = charges_in(network, ROWS)
    mine = [charge for charge in charges if charge.receipt.receipt.node == NODE.address]
    async with settling(network) as gateway:
        await enter(gateway.ledger, *charges)
        after(gateway.settler, "endorse", crash)
        with pytest.raises(Crash):
            await gateway.settler.settle(everything=True)
    await node_claims(network, mine)
    async with settling(network) as gateway:
        (rest,) = await gateway.settler.settle(everything=True)
        assert set(rest.statement.charges) == set(charges) - set(mine)
        assert gateway.ledger.batches()[0].state is BatchState.DEAD
    assert (await Paid.now(network)).since(before_all).nodes == due(charges).nodes


async def test_many_batches_ago_is_still_known(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract keeps the last commitments; what is older is found among its events."""
    monkeypatch.setattr("ncn_payments.onchain._KEPT_BATCHES", 1)
    await fund(network)
    async with settling(network) as desk:
        for number, charge in enumerate(charges_in(network, ROWS[:3])):
            await enter(desk.ledger, charge)
            (settled,) = await desk.settler.settle(everything=True)
            assert settled.statement.batch.nonce == number + 1
        for nonce, known in ((0, False), (1, True), (2, True), (3, True), (4, False)):
            assert await desk.chain.is_settled(GATEWAY.address, nonce) is known
        first = desk.ledger.statement(GATEWAY.address, 1)
        assert first is not None
        assert await desk.chain.settled_in(first)
        assert await desk.chain.settled_in(replace(first, batch=replace(first.batch, count=9))) is None


def test_vouchers_in_this_file_are_for_the_gateway() -> None:
    assert make_voucher(1).gateway == GATEWAY.address
