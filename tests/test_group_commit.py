"""The writer of a database: who commits, when a future is done, and when the log is copied."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ncn_framework import group_commit as module
from ncn_framework.errors import StoreError
from ncn_framework.group_commit import GroupCommit, sqlite_pragmas


class Numbers:
    """A table of numbers in a real SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, check_same_thread=False)
        sqlite_pragmas(self.connection)
        self.connection.execute("CREATE TABLE numbers (number INTEGER)")
        self.batches: list[int] = []
        self.checkpoints = 0

    def write(self, numbers: list[int]) -> None:
        with self.connection:
            self.connection.executemany("INSERT INTO numbers VALUES (?)", [(number,) for number in numbers])
        self.batches.append(len(numbers))

    def checkpoint(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.checkpoints += 1

    def stored(self) -> list[int]:
        """Return what another connection sees."""
        connection = sqlite3.connect(self.path)
        found = [number for (number,) in connection.execute("SELECT number FROM numbers ORDER BY rowid")]
        connection.close()
        return found


@pytest.fixture
def numbers(tmp_path: Path) -> Numbers:
    return Numbers(tmp_path / "numbers.db")


@pytest.fixture
async def commits(numbers: Numbers) -> AsyncIterator[GroupCommit[int]]:
    async with GroupCommit("numbers", numbers.write, checkpoint=numbers.checkpoint) as found:
        yield found
    numbers.connection.close()


async def test_an_item_that_is_alone_is_durable_at_once(commits: GroupCommit[int], numbers: Numbers) -> None:
    assert commits.put(1, alone=True).done()
    assert numbers.stored() == [1]


async def test_the_thread_commits_many_together_and_in_order(commits: GroupCommit[int], numbers: Numbers) -> None:
    with commits._writing:
        futures = [commits.put(n) for n in range(20)]
    await asyncio.gather(*futures)
    assert numbers.stored() == list(range(20))
    assert len(numbers.batches) <= 2


async def test_what_waits_is_written_when_the_context_is_left(numbers: Numbers) -> None:
    async with GroupCommit("numbers", numbers.write) as commits:
        futures = [commits.put(n) for n in range(5)]
    await asyncio.gather(*futures)
    assert numbers.stored() == list(range(5))
    numbers.connection.close()


async def test_after_a_slow_commit_the_loop_does_none(
    commits: GroupCommit[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUICK_S", -1.0)
    assert commits.put(1, alone=True).done()
    waiting = commits.put(2, alone=True)
    assert not waiting.done()
    await waiting


async def test_a_commit_under_way_is_not_waited_for(commits: GroupCommit[int]) -> None:
    with commits._writing:
        waiting = commits.put(1, alone=True)
        assert not waiting.done()
    await waiting


async def test_the_loop_never_commits_to_a_database_elsewhere(numbers: Numbers) -> None:
    async with GroupCommit("numbers", numbers.write, on_loop=False) as commits:
        waiting = commits.put(1, alone=True)
        assert not waiting.done()
        await waiting
    numbers.connection.close()


async def test_what_cannot_be_written_is_said(commits: GroupCommit[int], numbers: Numbers) -> None:
    numbers.connection.execute("DROP TABLE numbers")
    with pytest.raises(StoreError, match="the numbers could not be stored"):
        await commits.put(1, alone=True)
    with pytest.raises(StoreError, match="no such table"):
        await commits.put(2)


async def test_the_log_is_copied_now_and_then(
    commits: GroupCommit[int], numbers: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_ITEMS", 10)
    for n in range(200):
        await commits.put(n)
    async with asyncio.timeout(10):
        while not numbers.checkpoints:  # the thread copies when it comes to it
            await asyncio.sleep(0.01)
    assert len(numbers.stored()) == 200


async def test_nothing_is_taken_once_it_is_closed(numbers: Numbers) -> None:
    async with GroupCommit("numbers", numbers.write) as commits:
        pass
    with pytest.raises(StoreError, match="the numbers are closed"):
        commits.put(1)
    numbers.connection.close()
