"""Work that waits its turn, and what is refused where too much waits."""

from __future__ import annotations

import asyncio

import pytest

from ncn_framework.errors import NoCapacity
from ncn_registry.gate import Gate


async def test_so_many_at_once_so_many_waiting_and_no_more() -> None:
    gate, inside, end = Gate("checked", 2, 4, 1_000), list[int](), asyncio.Event()

    async def pass_through(number: int) -> None:
        async with gate.passed(10):
            inside.append(number)
            await end.wait()

    tasks = [asyncio.create_task(pass_through(number)) for number in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside == [0, 1]
    with pytest.raises(NoCapacity, match="4 statements of 40 bytes wait already to be checked here"):
        async with gate.passed(10):
            pass
    tasks[3].cancel()
    await asyncio.gather(tasks[3], return_exceptions=True)
    end.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks[:3])
        async with gate.passed(10):
            pass
    assert inside == [0, 1, 2]


async def test_bytes_are_bounded_but_one_alone_always_passes() -> None:
    gate = Gate("checked", 2, 4, 100)
    async with gate.passed(1_000):
        with pytest.raises(NoCapacity, match="1000 bytes"):
            async with gate.passed(1):
                pass
    async with gate.passed(60), gate.passed(40):
        pass
