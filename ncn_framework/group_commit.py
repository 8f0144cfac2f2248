"""One writer of a database: whatever waits is committed together, and the future of each item says when it is durable.

An item that is alone is committed by the event loop itself: waking a thread and being woken by it costs 0.4 ms, more
than the commit (0.2 ms). A disk that stalls then stalls the loop, once: after a commit that took longer than
``_QUICK_S``, the thread does them all for ``_WARY_S``, and until one is quick again. What takes long (``checkpoint``)
is always the thread's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .errors import StoreError

__all__ = ["CHECKPOINT_ITEMS", "SQLITE_PRAGMAS", "GroupCommit", "sqlite_pragmas"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Done = Callable[[BaseException | None], None]

SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # a commit is on the disk, not only in the operating system
    "PRAGMA busy_timeout=5000",
    "PRAGMA wal_autocheckpoint=0",  # the writer's thread does it, not a request
)
"""How a SQLite database is opened whose commits are made here."""

_QUICK_S = 0.05
_WARY_S = 10.0
CHECKPOINT_ITEMS = 400
"""Items after which ``checkpoint`` is called: with 10 kB each it is about 4 MB, SQLite's own measure."""


class GroupCommit(Generic[T]):
    """Opened as an asynchronous context manager, in the loop that uses it.

    Args:
        what: is written, for messages: ``tasks``.
        write: commits the given items in one transaction, or raises with nothing written; called by one thread at a
            time, not always the same.
        checkpoint: copies the log into the database, where there is one.
        on_loop: whether the loop may call ``write`` itself: only for a database on this machine.
        linger_s: how long the thread waits for more after the first item, where nobody waits for it to be durable.
    """

    def __init__(
        self,
        what: str,
        write: Callable[[list[T]], None],
        *,
        checkpoint: Callable[[], None] | None = None,
        on_loop: bool = True,
        linger_s: float = 0.0,
    ) -> None:
        self.what, self._write, self._checkpoint = what, write, checkpoint
        self._on_loop, self._linger_s = on_loop, linger_s
        self._items: list[T] = []
        self._waiting: list[Done] = []
        self._wake = threading.Condition()
        self._writing = threading.Lock()
        self._wary_until = 0.0
        self._unchecked = 0  # items since the last checkpoint
        self._closing = False

    async def __aenter__(self) -> GroupCommit[T]:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._commit_all, name=f"ncn-{self.what}", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def put(self, item: T, *, alone: bool = False) -> asyncio.Future[None]:
        """Write ``item`` with the next commit, behind all that was put before.

        ``alone`` says that nobody else would have to wait for this item's commit. The future raises StoreError where
        it could not be written.

        Raises:
            StoreError: the context was left.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def done(error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(StoreError(f"the {self.what} could not be stored: {error}"))

        with self._wake:
            if self._closing:
                raise StoreError(f"the {self.what} are closed; nothing more is stored")
            self._items.append(item)
            self._waiting.append(done)
            at_once = alone and self._on_loop and time.monotonic() > self._wary_until
            if not (at_once and self._writing.acquire(blocking=False)):
                self._wake.notify()
                return future
        try:
            _call_all(*self._commit())
        finally:
            self._writing.release()
        if self._checkpoint_is_due():
            with self._wake:
                self._wake.notify()
        return future

    def _commit_all(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._closing or self._checkpoint_is_due()):
                    self._wake.wait()
                if self._closing and not self._waiting:
                    return
                if self._linger_s and not self._closing:
                    self._wake.wait_for(lambda: self._closing, self._linger_s)
            with self._writing:
                done = self._commit()
            if done[0]:
                self._loop.call_soon_threadsafe(_call_all, *done)
            if self._checkpoint_is_due():
                self._run_checkpoint()

    def _checkpoint_is_due(self) -> bool:
        return self._checkpoint is not None and self._unchecked >= CHECKPOINT_ITEMS

    def _run_checkpoint(self) -> None:
        self._unchecked = 0
        try:
            with self._writing:
                if self._checkpoint is not None:
                    self._checkpoint()
        except Exception:  # what was committed stays in the log, and the next attempt comes
            log.exception("the log of the %s could not be copied into the database", self.what)

    def _commit(self) -> tuple[list[Done], BaseException | None]:
        """Write what waits, while holding ``_writing``; return who waits for it, and what went wrong."""
        with self._wake:
            items, self._items = self._items, []
            waiting, self._waiting = self._waiting, []
        began = time.monotonic()
        try:
            if items:
                self._write(items)
        except Exception as cause:  # whatever the driver raises must reach those who wait
            log.exception("%d %s could not be written", len(items), self.what)
            return waiting, cause
        self._unchecked += len(items)
        ended = time.monotonic()
        if ended - began > _QUICK_S:
            self._wary_until = ended + _WARY_S
        return waiting, None


def _call_all(waiting: list[Done], error: BaseException | None) -> None:
    for done in waiting:
        done(error)


def sqlite_pragmas(connection: Any) -> None:
    """Prepare a connection to SQLite for ``GroupCommit``."""
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(pragma)
    cursor.close()
