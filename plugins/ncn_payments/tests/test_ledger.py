"""The ledger: what was acknowledged is there after any crash, once, and adds up."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ncn_framework.digests import channel_id
from ncn_framework.errors import StoreError
from ncn_framework.payments import EscrowTerms
from ncn_framework.statements import BatchStatement
from ncn_payments import batches
from ncn_payments.ledger import Ledger
from ncn_payments.ledger_lock import writing_process
from ncn_payments.ledger_reader import BatchState, LedgerReader

from .payments import CLIENT, GATEWAY, NODE, make_charge

CHANNEL = channel_id(CLIENT.address, CLIENT.address, GATEWAY.address)
IDENTITY = "chain 31337, contract 0x0"
TERMS = EscrowTerms(CLIENT.address, 3, GATEWAY.address, NODE.address, 10**20, 1, 1_900_000_000, bytes(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(path, IDENTITY) as opened:
        yield opened


def statement_of(ledger: Ledger, nonce: int) -> tuple[BatchStatement, list[int]]:
    """Return a batch of all that is unsettled, and the numbers of its charges."""
    numbers = [owed.number for owed in ledger.unsettled()]
    return batches.build(GATEWAY.address, nonce, 1, ledger.charges(numbers), {CHANNEL: 0}), numbers


async def test_a_charge_comes_back_as_it_went_in(path: Path) -> None:
    charge = make_charge(1, 2**96 - 1, 2**96 - 1)
    async with Ledger(path, IDENTITY) as ledger:
        await ledger.enter(charge, 17)
    async with Ledger(path, IDENTITY) as ledger:
        (owed,) = ledger.unsettled()
        assert (owed.fee_wei, owed.at_ms, owed.channel, owed.gateway) == (2**96 - 1, 17, CHANNEL, GATEWAY.address)
        assert owed.request_id == charge.receipt.receipt.request_id
        assert ledger.charges([owed.number]) == [charge]
        assert ledger.open_charge(owed.request_id) == charge
        assert ledger.has_charge(owed.request_id)
        balance = ledger.balances()[CHANNEL]
        assert (balance.voucher, balance.charged_wei) == (charge.voucher, 2**96 - 1)


async def test_the_same_request_is_entered_once(ledger: Ledger) -> None:
    await ledger.enter(make_charge(1, 5, 10), 1)
    await ledger.enter(make_charge(1, 7, 20), 2)
    assert [owed.fee_wei for owed in ledger.unsettled()] == [5]
    assert ledger.balances()[CHANNEL].charged_wei == 5
    assert ledger.balances()[CHANNEL].voucher.cumulative_wei == 20


async def test_a_voided_charge_is_gone_and_may_come_again(ledger: Ledger) -> None:
    charge = make_charge(1, 5, 10)
    await ledger.enter(charge, 1)
    ledger.void(charge.receipt.receipt.request_id)
    await ledger.enter(make_charge(2, 1, 10), 2)
    assert [owed.fee_wei for owed in ledger.unsettled()] == [1]
    await ledger.enter(charge, 3)
    assert ledger.balances()[CHANNEL].charged_wei == 6


async def test_a_batch_takes_its_charges_until_it_is_dropped(ledger: Ledger) -> None:
    for number in range(5):
        await ledger.enter(make_charge(number, 10 + number, 100), number)
    statement, numbers = statement_of(ledger, 1)
    batch = await ledger.add_batch(statement, numbers, 9)
    assert ledger.unsettled() == []
    assert ledger.statement(GATEWAY.address, 1) == statement
    ledger.void(statement.charges[0].receipt.receipt.request_id)  # a batch has it: nothing is taken back
    await ledger.drop_batch(batch, "no quorum")
    assert [owed.number for owed in ledger.unsettled()] == numbers
    (row,) = ledger.batches()
    assert (row.state, row.detail, row.receipts, row.credits) == (
        BatchState.DEAD,
        "no quorum",
        5,
        statement.credits,
    )
    assert ledger.statement(GATEWAY.address, 1) is None
    assert ledger.highest_nonce(GATEWAY.address) == 1
    assert ledger.highest_nonce(CLIENT.address) == 0


async def test_a_settled_batch_says_what_it_cost(ledger: Ledger) -> None:
    await ledger.enter(make_charge(1, 10, 100), 1)
    statement, numbers = statement_of(ledger, 4)
    batch = await ledger.add_batch(statement, numbers, 9)
    await ledger.settle_batch(batch, "0xab", 95_000)
    (row,) = ledger.batches(BatchState.SETTLED)
    assert (row.nonce, row.tx, row.gas, row.receipts) == (4, "0xab", 95_000, 1)
    assert ledger.batches(BatchState.SIGNED) == []
    assert ledger.newest_batches(10) == [(row, 1, 10)]
    assert ledger.balances()[CHANNEL].charged_wei == 10  # charged stays charged


async def test_what_is_refused_is_in_no_batch_and_draws_on_nothing(ledger: Ledger) -> None:
    for number in range(3):
        await ledger.enter(make_charge(number, 10, 100), number)
    first, second, third = ledger.unsettled()
    await ledger.refuse(GATEWAY.address, [first.number, third.number], "the results are wrong", 9)
    assert ledger.unsettled() == [second]
    assert ledger.balances()[CHANNEL].charged_wei == 10
    assert ledger.highest_nonce(GATEWAY.address) == 0
    assert ledger.statement(GATEWAY.address, 0) is None
    assert ledger.newest_batches(9) == []
    shown = [(entry.number, batch and (batch.state, batch.detail)) for entry, batch in ledger.history(9)]
    refused = (BatchState.REFUSED, "the results are wrong")
    assert shown == [(third.number, refused), (second.number, None), (first.number, refused)]
    assert ledger.has_charge(first.request_id)  # so that it is not charged again
    assert ledger.in_doubt() == [second.request_id]


async def test_what_is_in_a_batch_is_not_refused(ledger: Ledger) -> None:
    await ledger.enter(make_charge(1, 10, 100), 1)
    statement, numbers = statement_of(ledger, 1)
    await ledger.add_batch(statement, numbers, 2)
    await ledger.refuse(GATEWAY.address, numbers, "too late", 3)
    assert ledger.statement(GATEWAY.address, 1) == statement
    assert ledger.balances()[CHANNEL].charged_wei == 10


async def test_what_somebody_else_settled_is_settled(ledger: Ledger) -> None:
    charges = [make_charge(number, 10, 100) for number in range(3)]
    for charge in charges:
        await ledger.enter(charge, 1)
    ids = [charge.receipt.receipt.request_id for charge in charges[:2]]
    await ledger.settle_elsewhere(GATEWAY.address, 7, [*ids, bytes(32)], 5)
    assert [owed.request_id for owed in ledger.unsettled()] == [charges[2].receipt.receipt.request_id]
    (row,) = ledger.batches()
    assert (row.state, row.nonce, row.receipts, row.credits) == (BatchState.SETTLED, 7, 0, ())
    assert ledger.newest_batches(10) == [(row, 2, 20)]
    assert ledger.statement(GATEWAY.address, 7) is None
    assert ledger.highest_nonce(GATEWAY.address) == 7


async def test_batches_of_an_earlier_run_keep_their_numbers(path: Path) -> None:
    async with Ledger(path, IDENTITY) as ledger:
        await ledger.enter(make_charge(1, 10, 100), 1)
        first = await ledger.add_batch(*statement_of(ledger, 1), at_ms=1)
    async with Ledger(path, IDENTITY) as ledger:
        await ledger.enter(make_charge(2, 10, 100), 1)
        assert await ledger.add_batch(*statement_of(ledger, 2), at_ms=1) == first + 1
        assert [row.nonce for row in ledger.batches()] == [1, 2]


async def test_a_charge_is_in_doubt_until_it_was_delivered(path: Path) -> None:
    first, second = make_charge(1, 10, 100), make_charge(2, 10, 100)
    ids = [charge.receipt.receipt.request_id for charge in (first, second)]
    async with Ledger(path, IDENTITY) as ledger:
        await ledger.enter(first, 1)
        ledger.deliver(ids[0])
        await ledger.enter(second, 1)  # takes the note along
        assert ledger.in_doubt() == [ids[1]]
        ledger.deliver(ids[1])
        assert ledger.in_doubt() == [ids[1]]
    with LedgerReader(path) as reader:
        assert reader.in_doubt() == []


async def test_escrows_are_known_by_their_terms(path: Path) -> None:
    second = replace(TERMS, request_hash=b"\1" * 32)  # the same id: a client that asked twice before it paid
    async with Ledger(path, IDENTITY) as ledger:
        await ledger.open_escrow(TERMS)
        await ledger.open_escrow(second)
        await ledger.open_escrow(TERMS)
    async with Ledger(path, IDENTITY) as ledger:
        assert sorted(ledger.open_escrows(), key=lambda terms: terms.request_hash) == [TERMS, second]
        await ledger.close_escrow(TERMS)
        assert ledger.open_escrows() == [second]


async def test_another_contracts_ledger_is_refused(path: Path) -> None:
    async with Ledger(path, IDENTITY):
        pass
    with pytest.raises(StoreError, match=r"is of chain 31337.*not of chain 1; move it away"):
        async with Ledger(path, "chain 1"):
            pass
    async with Ledger(path, IDENTITY):  # the lock of the one that was refused is free
        pass


async def test_only_one_process_writes(ledger: Ledger, path: Path) -> None:
    assert writing_process(path) == str(os.getpid())
    with pytest.raises(StoreError, match=rf"process {os.getpid()} writes the ledger .* already"):
        async with Ledger(path, IDENTITY):
            pass


async def test_a_ledger_that_is_none_is_refused(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"no database" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        async with Ledger(path, IDENTITY):
            pass
    with pytest.raises(StoreError, match="there is no ledger"), LedgerReader(path.with_name("other")):
        pass


async def test_a_failed_commit_is_said_and_changes_nothing(ledger: Ledger) -> None:
    ledger._connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON charges BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    with pytest.raises(StoreError, match="could not be stored: disk full"):
        await ledger.enter(make_charge(1, 10, 100), 1)
    assert ledger.unsettled() == []
    assert ledger.balances() == {}


# --- crashes ---

CHARGER = f"""
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from payments import CLIENT, NODE, make_charge, make_voucher
from ncn_payments.ledger import Ledger

async def charging(path, first):
    async with Ledger(path, {IDENTITY!r}) as ledger:
        async def charge(number):
            client, fee = (CLIENT, NODE)[number % 3 == 0], 1 + number % 97
            made = make_charge(number, fee, make_voucher(10**9 + number, client), client=client)
            await ledger.enter(made, number, alone=number % 5 == 0)
            os.write(1, made.receipt.receipt.request_id + fee.to_bytes(2, "big"))
        while True:
            await asyncio.gather(*map(charge, range(first, first + 8)))
            first += 8

for line in sys.stdin:
    path, first = line.split()
    child = os.fork()
    if not child:
        asyncio.run(charging(Path(path), int(first)))
    print(child, file=sys.stderr, flush=True)
    os.waitpid(child, 0)
    os.write(1, bytes(34))
"""
"""For each line with a path and a number, forks a child that charges eight requests at a time from this number on, and
says of each that it was acknowledged: id and fee. Once the child is dead, it says 34 zeros."""

_ROW = 34


def _charged_until_killed(charger: subprocess.Popen[bytes], path: Path, first: int, rows: int) -> dict[bytes, int]:
    """Have charges made, kill who makes them once ``rows`` are acknowledged, and return all that were by then."""
    assert charger.stdin
    assert charger.stdout
    assert charger.stderr
    charger.stdin.write(f"{path} {first}\n".encode())
    charger.stdin.flush()
    child, told = int(charger.stderr.readline()), list[bytes]()
    while (row := charger.stdout.read(_ROW)) != bytes(_ROW):
        told.append(row)
        if len(told) == rows:
            os.kill(child, signal.SIGKILL)
    assert len(told) >= rows, "the child ended by itself"
    return {row[:32]: int.from_bytes(row[32:], "big") for row in told}


@pytest.fixture
def charger() -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CHARGER], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield process
        assert process.stdin
        process.stdin.close()


async def test_twenty_kills_lose_no_acknowledged_charge(charger: subprocess.Popen[bytes], path: Path) -> None:
    draw, acknowledged, first = random.Random(20), dict[bytes, int](), 0
    for _ in range(20):
        told = _charged_until_killed(charger, path, first, draw.randrange(1, 60))
        assert not acknowledged.keys() & told.keys()
        acknowledged |= told
        async with Ledger(path, IDENTITY) as ledger:
            owed = ledger.unsettled()
            fees = {charge.request_id: charge.fee_wei for charge in owed}
            assert len(fees) == len(owed), "a charge is there twice"
            assert {request_id: fees.get(request_id) for request_id in acknowledged} == acknowledged
            sums = Counter[bytes]()
            for charge in owed:
                sums[charge.channel] += charge.fee_wei
            assert {channel: balance.charged_wei for channel, balance in ledger.balances().items()} == dict(sums)
            whole = ledger.charges([charge.number for charge in owed])
            assert [charge.receipt.receipt.request_id for charge in whole] == list(fees)
            first = max(charge.at_ms for charge in owed) + 1
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
