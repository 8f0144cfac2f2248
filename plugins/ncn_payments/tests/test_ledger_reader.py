"""Reading a ledger: beside whoever writes it, and without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ncn_framework.digests import channel_id
from ncn_framework.errors import StoreError
from ncn_payments import batches
from ncn_payments.ledger import Ledger
from ncn_payments.ledger_reader import BatchState, LedgerReader

from .payments import CLIENT, GATEWAY, NODE, make_charge, make_voucher

CHANNEL = channel_id(CLIENT.address, CLIENT.address, GATEWAY.address)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(tmp_path / "ledger.db", "reader") as opened:
        yield opened


async def settle(ledger: Ledger, nonce: int) -> None:
    """Put all that is unsettled into a batch that is on chain."""
    numbers = [owed.number for owed in ledger.unsettled()]
    statement = batches.build(GATEWAY.address, nonce, 1, ledger.charges(numbers), {CHANNEL: 0})
    await ledger.settle_batch(await ledger.add_batch(statement, numbers, 2), "0x1", 5)


async def test_it_reads_beside_the_writer(ledger: Ledger) -> None:
    await ledger.enter(make_charge(1, 10, 100), 1)
    with LedgerReader(ledger.path) as reader:
        assert [owed.fee_wei for owed in reader.unsettled()] == [10]
        await ledger.enter(make_charge(2, 20, 200), 1)
        assert [owed.fee_wei for owed in reader.unsettled()] == [10, 20]
        assert [owed.fee_wei for owed in reader.unsettled(1)] == [10]
        await settle(ledger, 1)
        assert reader.unsettled() == []
        assert reader.vouchers([CHANNEL, bytes(32)]) == {CHANNEL: make_voucher(200)}
        with pytest.raises(StoreError, match="readonly"):
            list(reader._rows("DELETE FROM charges"))


async def test_history_has_the_newest_first_with_their_batches(ledger: Ledger) -> None:
    other = make_voucher(100, NODE)
    await ledger.enter(make_charge(1, 10, 100), 1)
    await settle(ledger, 1)
    await ledger.enter(make_charge(2, 20, other, client=NODE), 3)
    newest, oldest = ledger.history(10)
    assert (newest[0].charge.receipt.receipt.fee_wei, newest[1]) == (20, None)
    assert oldest[0].charge.receipt.receipt.fee_wei == 10
    assert oldest[1] is not None
    assert (oldest[1].state, oldest[1].tx) == (BatchState.SETTLED, "0x1")
    assert [entry.charge.receipt.receipt.fee_wei for entry, _ in ledger.history(10, CHANNEL)] == [10]
    assert len(ledger.history(1)) == 1


async def test_the_newest_batches_come_first(ledger: Ledger) -> None:
    for nonce in (1, 2, 3):
        await ledger.enter(make_charge(nonce, 10 * nonce, 100), nonce)
        await settle(ledger, nonce)
    assert [(row.nonce, count, fees) for row, count, fees in ledger.newest_batches(2)] == [(3, 1, 30), (2, 1, 20)]
    assert [row.nonce for row in ledger.batches()] == [1, 2, 3]
    assert ledger.newest_batches(0) == []


async def test_a_ledger_that_cannot_be_read_says_so(ledger: Ledger) -> None:
    ledger._connection.execute("DROP TABLE charges")
    with pytest.raises(StoreError, match="cannot be read: no such table"):
        ledger.unsettled()


async def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    await asyncio.to_thread(path.write_bytes, b"no database" * 100)
    with LedgerReader(path) as reader, pytest.raises(StoreError, match="cannot be read"):
        reader.unsettled()
