"""The store: who commits, when a future is done, and when SQLite's log is copied."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ncn_framework.errors import StoreError
from ncn_framework.models import InferenceRequest
from ncn_framework.states import State
from ncn_gateway import store as module
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


async def test_after_a_slow_commit_the_loop_does_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUICK_S", -1.0)
    assert store.put(row(1), MANIFEST, alone=True).done()
    waiting = store.put(row(2), MANIFEST, alone=True)
    assert not waiting.done()
    await waiting


async def test_a_commit_under_way_is_not_waited_for(store: Store) -> None:
    with store._writing:
        waiting = store.put(row(), MANIFEST, alone=True)
        assert not waiting.done()
    await waiting


async def test_what_cannot_be_written_is_said(store: Store) -> None:
    store._connection.cursor().execute("DROP TABLE tasks")
    with pytest.raises(StoreError, match="could not be stored"):
        await store.put(row(), MANIFEST, alone=True)
    with pytest.raises(StoreError, match="could not be stored"):
        await store.put(row(), MANIFEST)


async def test_the_log_is_copied_now_and_then(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECKPOINT_ROWS", 10)
    for n in range(1, 200):
        store.put(row(n), MANIFEST, alone=True)
    await store.put(row(200), MANIFEST)
    async with asyncio.timeout(10):
        while store._unchecked >= 200:  # the thread copies when it comes to it
            await asyncio.sleep(0.01)
    assert stored(tmp_path) == 200
