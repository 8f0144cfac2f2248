"""The same request twice: the first answer again, however it comes, and whenever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ncn_framework.errors import DeadlineExpired, Draining, ReplayConflict
from ncn_framework.lifecycle import now_ms
from ncn_framework.wire.json import SubmitJson, decode, encode
from ncn_gateway.tasks import Tasks

from .fakes import World, body, world

NONCE = "0x" + "07" * 32


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as opened:
        yield opened


def form(**changes: Any) -> SubmitJson:
    """Return the request ``body(**changes)``."""
    asked: SubmitJson = decode(encode(body(**changes)), SubmitJson)
    return asked


def forget(gateway: World) -> Tasks:
    """Return the gateway's tasks as after a restart: nothing in memory, everything on disk."""
    tasks = gateway.tasks
    return Tasks(tasks.lifecycle, tasks.directory, tasks.store, tasks.settings)


async def test_a_key_without_a_deadline_gives_the_first_answer_again(gateway: World) -> None:
    first = await gateway.tasks.submit(gateway.tasks.admit(form(), idempotency_key="k"))
    await first.wait()
    await asyncio.sleep(0.002)  # another millisecond, so that the drawn deadline differs
    again = await gateway.tasks.submit(gateway.tasks.admit(form(), idempotency_key="k"))
    assert again.request == first.request
    assert gateway.node.executed == 1


async def test_a_named_deadline_is_part_of_the_content(gateway: World) -> None:
    at = now_ms() + 60_000
    await (await gateway.tasks.submit(gateway.tasks.admit(form(nonce=NONCE, deadline_ms=at)))).wait()
    with pytest.raises(ReplayConflict):
        await gateway.tasks.submit(gateway.tasks.admit(form(nonce=NONCE, deadline_ms=at + 1)))


async def test_other_content_is_refused_from_memory_and_from_disk(gateway: World) -> None:
    await (await gateway.tasks.submit(gateway.tasks.admit(form(nonce=NONCE)))).wait()
    other = form(nonce=NONCE, inputs=[{"name": "x", "data": [3.0]}])
    for tasks in (gateway.tasks, forget(gateway)):
        with pytest.raises(ReplayConflict):
            await tasks.submit(tasks.admit(other))
    assert gateway.node.executed == 1


async def test_many_at_once_after_a_restart_all_get_the_first_answer(gateway: World) -> None:
    first = await gateway.tasks.submit(gateway.tasks.admit(form(nonce=NONCE)))
    outcome = await first.wait()
    tasks = forget(gateway)
    again = await asyncio.gather(*(tasks.submit(tasks.admit(form(nonce=NONCE))) for _ in range(8)))
    async with asyncio.timeout(5):
        outcomes = [await task.wait() for task in again]
    assert {found.receipt for found in outcomes} == {outcome.receipt}
    assert gateway.node.executed == 1


async def test_many_at_once_of_a_new_one_execute_once(gateway: World) -> None:
    tasks = gateway.tasks
    found = await asyncio.gather(*(tasks.submit(tasks.admit(form(nonce=NONCE))) for _ in range(8)))
    assert len({id(task) for task in found}) == 1
    await found[0].wait()
    assert gateway.node.executed == 1


async def test_an_answer_outlives_its_deadline(gateway: World) -> None:
    at = now_ms() + 60_000
    first = await gateway.tasks.submit(gateway.tasks.admit(form(nonce=NONCE, deadline_ms=at)))
    outcome = await first.wait()
    tasks = forget(gateway)
    tasks.lifecycle.clock = lambda: at + 1
    again = await tasks.submit(tasks.admit(form(nonce=NONCE, deadline_ms=at)))
    assert (await again.wait()).receipt == outcome.receipt
    with pytest.raises(DeadlineExpired):
        await tasks.submit(tasks.admit(form(nonce="0x" + "08" * 32, deadline_ms=at)))


async def test_while_draining_the_known_are_answered_and_the_new_refused(gateway: World) -> None:
    await (await gateway.tasks.submit(gateway.tasks.admit(form(nonce=NONCE)))).wait()
    await gateway.tasks.drain(1)
    assert (await gateway.tasks.submit(gateway.tasks.admit(form(nonce=NONCE)))).resting
    with pytest.raises(Draining):
        await gateway.tasks.submit(gateway.tasks.admit(form()))
