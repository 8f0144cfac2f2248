"""The bridge between asyncio and the trio thread: results, errors, cancellation, and ends of every kind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
import trio.lowlevel

from ncn_registry.swarm import SwarmDown
from ncn_registry.swarm.bridge import Bridge


class Service:
    """Lives in the thread."""

    def __init__(self) -> None:
        self.cancelled, self.crash = threading.Event(), trio.Event()

    async def double(self, number: int) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number

    async def fail(self) -> None:
        raise LookupError("as asked")

    async def hang(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()

    async def end(self) -> None:
        self.crash.set()
        await trio.sleep_forever()


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    made = Service()

    async def crash() -> None:
        await made.crash.wait()
        raise OSError("the service crashed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash)
        yield made
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def failing() -> AsyncIterator[Service]:
    raise OSError("no start")
    yield


@asynccontextmanager
async def slow() -> AsyncIterator[Service]:
    await trio.sleep_forever()
    yield Service()


def threads() -> int:
    return sum(thread.name == "bridge-test" for thread in threading.enumerate())


def bridge(opener: Callable[[], AbstractAsyncContextManager[Service]] = service) -> Bridge[Service]:
    return Bridge(opener, "bridge-test")


async def test_results_and_errors_come_back() -> None:
    async with bridge() as under_test:
        results = await asyncio.gather(*(under_test.call(under_test.service.double, n) for n in range(50)))
        assert results == [2 * n for n in range(50)]
        with pytest.raises(LookupError, match="as asked"):
            await under_test.call(under_test.service.fail)
        assert await under_test.call(under_test.service.double, 4) == 8, "an error in a call harms no other"
    assert threads() == 0


async def test_a_time_limit_cancels_the_call() -> None:
    async with bridge() as under_test:
        with pytest.raises(TimeoutError):
            await under_test.call(under_test.service.hang, timeout_s=0.05)
        assert await asyncio.to_thread(under_test.service.cancelled.wait, 5)


async def test_cancelling_the_caller_cancels_the_call() -> None:
    async with bridge() as under_test:
        task = asyncio.create_task(under_test.call(under_test.service.hang))
        await under_test.call(under_test.service.double, 1)  # behind it in the queue: the other has begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(under_test.service.cancelled.wait, 5)


async def test_a_failing_start_raises_its_reason() -> None:
    with pytest.raises(OSError, match="no start"):
        await bridge(failing).__aenter__()
    assert threads() == 0


async def test_a_crash_ends_running_and_later_calls() -> None:
    under_test = await bridge().__aenter__()
    with pytest.raises(SwarmDown):
        await under_test.call(under_test.service.end)
    with pytest.raises(OSError, match="the service crashed"):
        await under_test.wait_down()
    with pytest.raises(SwarmDown):
        await under_test.call(under_test.service.double, 1)
    with pytest.raises(OSError, match="the service crashed"):
        await under_test.__aexit__(None, None, None)
    assert threads() == 0


async def test_closing_ends_running_calls() -> None:
    async with bridge() as under_test:
        task = asyncio.create_task(under_test.call(under_test.service.hang))
        await under_test.call(under_test.service.double, 1)
    with pytest.raises(SwarmDown):
        await task
    await under_test.wait_down()


async def test_a_start_that_is_cancelled_leaves_no_thread() -> None:
    task = asyncio.create_task(bridge(slow).__aenter__())
    while not threads():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert threads() == 0
