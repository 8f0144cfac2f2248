"""The store: what was put is on the disk, and what could not be is said."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ncn_framework.errors import StoreError
from ncn_framework.models import (
    Chunk,
    Event,
    InferenceRequest,
    Receipt,
    Settlement,
    Signature,
    SignedReceipt,
)
from ncn_framework.payments import EscrowTerms, PaymentDue, Quorum, TransferAuthorization, Voucher
from ncn_framework.states import State
from ncn_framework.tensors import Tensor
from ncn_gateway.store import Progress, Row, Store

from .fakes import MANIFEST


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store(f"sqlite:///{tmp_path / 'gateway.db'}") as found:
        yield found


def row(number: int = 1) -> Row:
    request = InferenceRequest(MANIFEST.digest, (), number.to_bytes(32, "big"), 1, 1)
    progress = Progress(request, ())
    return Row(request.request_id, request.request_hash, State.SETTLED, request.model, None, 1, 1, "", progress)


def stored(tmp_path: Path) -> int:
    """Return the number of tasks that another connection sees."""
    with sqlite3.connect(tmp_path / "gateway.db") as connection:
        count: int = connection.execute("SELECT count(*) FROM tasks").fetchone()[0]
    connection.close()
    return count


async def test_a_task_that_is_alone_is_durable_at_once(store: Store, tmp_path: Path) -> None:
    assert store.put(row(), MANIFEST, alone=True).done()
    assert stored(tmp_path) == 1
    assert (await store.get(row().request_id)) == (row(), MANIFEST)


async def test_the_thread_commits_for_many(store: Store, tmp_path: Path) -> None:
    futures = [store.put(row(n), MANIFEST) for n in range(1, 20)]
    for future in futures:
        await future
    assert stored(tmp_path) == 19


async def test_what_cannot_be_written_is_said(store: Store) -> None:
    store._connection.cursor().execute("DROP TABLE tasks")
    with pytest.raises(StoreError, match="could not be stored"):
        await store.put(row(), MANIFEST, alone=True)
    with pytest.raises(StoreError, match="could not be stored"):
        await store.put(row(), MANIFEST)


WIDE = 2**96 - 1
VOUCHER = Voucher(b"\1" * 20, b"\2" * 20, b"\3" * 20, 5, b"\4" * 65)
TRANSFER = TransferAuthorization(b"\1" * 20, b"\2" * 20, 5, 6, 7, b"\3" * 32, b"\4" * 65)
TERMS = EscrowTerms(b"\1" * 20, 1, b"\2" * 20, b"\3" * 20, 5, 6, 7, b"\4" * 32)
DUE = PaymentDue(TERMS, b"\5" * 32, b"\6" * 20, 31337, Quorum(1, 7, (b"\7" * 65,) * 3))


@pytest.mark.parametrize(
    ("authorization", "due", "wei"),
    [
        (None, None, 0),
        (VOUCHER, DUE, 2**64 - 1),
        (TRANSFER, None, 0),
        (structs.replace(VOUCHER, cumulative_wei=WIDE), None, 1),
        (structs.replace(TRANSFER, value_wei=2**64), None, 1),
        (None, replace(DUE, terms=replace(TERMS, amount_wei=WIDE)), 1),
        (None, replace(DUE, quorum=Quorum(1, 2**256 - 1, (b"\7" * 65,) * 256)), 1),
        (None, None, WIDE),
        (structs.replace(TRANSFER, value_wei=WIDE), replace(DUE, terms=replace(TERMS, amount_wei=WIDE)), WIDE),
    ],
)
async def test_money_survives_the_database(store: Store, authorization: Any, due: PaymentDue | None, wei: int) -> None:
    """Amounts have up to 96 bits, and a bitmap of validators 256."""
    request = InferenceRequest(
        MANIFEST.digest,
        (Tensor("x", "FP32", (2,), bytes(range(8))), Tensor("y", "UINT8", (0,), b"")),
        b"\7" * 32,
        2**63 - 1,
        1,
        parameters={"a": 1, "b": 1.0, "c": True, "d": "1", "e": 1e300, "f": -(2**63)},
        payment="escrow",
        authorization=authorization,
    )
    moves = (State.RECEIVED, State.AWAITING_PAYMENT, State.PAID, State.FAILED, State.REFUNDED)
    events = tuple(
        Event(request.request_id, state, 9, "größer", b"\1" * 20, due if state is State.AWAITING_PAYMENT else None)
        for state in moves
    )
    receipt = Receipt(b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32, 2, 3, wei, b"\1" * 20, 4, 2**63)
    progress = Progress(
        request,
        events,
        (Chunk(1, 2, b"\xff\0", b"\1" * 32), Chunk(2, 3, b"")),
        SignedReceipt(receipt, (Signature(b"\1" * 20, b"\2" * 65),)),
        Settlement("escrow", wei, "0xabc"),
    )
    saved = replace(row(), request_id=request.request_id, state=State.REFUNDED, progress=progress)
    await store.put(saved, MANIFEST, alone=True)
    found = await store.get(request.request_id)
    assert found == (saved, MANIFEST)
    assert [type(value) for value in found[0].progress.request.parameters.values()] == [
        int,
        float,
        bool,
        str,
        float,
        int,
    ]
    assert type(found[0].progress.request.authorization) is type(authorization)
