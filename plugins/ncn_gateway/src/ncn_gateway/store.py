"""Tasks on disk: one writer thread with group commit; SQLite in WAL mode by default, PostgreSQL by URL.

A task that is alone is committed to SQLite by the loop itself: waking a thread and being woken by it costs 0.4 ms,
more than the commit (0.2 ms). A disk that stalls then stalls the loop, once: after a commit that took longer than
``_QUICK_S``, the thread does them all for ``_WARY_S``, and until one is quick again. Checkpoints, which take long,
are always the thread's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ncn_framework.digests import manifest_from_json, manifest_json
from ncn_framework.errors import StoreError
from ncn_framework.models import Chunk, Event, InferenceRequest, ModelManifest, Settlement, SignedReceipt
from ncn_framework.states import TERMINAL, State

__all__ = ["Progress", "Row", "Store"]

log = logging.getLogger(__name__)

_metadata = sa.MetaData()
_tasks = sa.Table(
    "tasks",
    _metadata,
    sa.Column("request_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("request_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("model", sa.LargeBinary(32), nullable=False),
    sa.Column("node", sa.LargeBinary(20)),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("progress", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,  # one tree to write instead of two
)
_manifests = sa.Table(
    "manifests",
    _metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("json", sa.LargeBinary, nullable=False),
)


class Progress(msgspec.Struct, frozen=True):
    """How far a task has come; receipt and settlement only where it settled."""

    request: InferenceRequest
    events: tuple[Event, ...]
    chunks: tuple[Chunk, ...] = ()
    receipt: SignedReceipt | None = None
    settlement: Settlement | None = None


@dataclass(frozen=True)
class Row:
    """A task as it is stored."""

    request_id: bytes
    request_hash: bytes
    state: State
    model: bytes
    node: bytes | None
    created_ms: int
    updated_ms: int
    detail: str
    progress: Progress


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Progress).decode
_UPDATED = ("state", "node", "updated_ms", "detail", "progress")
_QUICK_S = 0.05
_WARY_S = 10.0
_CHECKPOINT_ROWS = 400
"""Rows after which the log of SQLite is copied into the database: about 4 MB, SQLite's own measure."""


class Store:
    """Opened as an asynchronous context manager, in the loop that uses it.

    Args:
        url: SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._pending: dict[bytes, Row] = {}
        self._callbacks: list[Callable[[BaseException | None], None]] = []
        self._wake = threading.Condition()
        self._writing = threading.Lock()
        self._wary_until = 0.0
        self._unchecked = 0  # rows since the last checkpoint
        self._closing = False
        self._known_manifests: set[bytes] = set()
        self._new_manifests: dict[bytes, bytes] = {}

    async def __aenter__(self) -> Store:
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._open)
        except sa.exc.SQLAlchemyError as cause:
            raise StoreError(f"the database {self.url} cannot be opened: {cause}") from cause
        self._thread = threading.Thread(target=self._write_all, name="ncn-store", daemon=True)
        self._thread.start()
        return self

    def _open(self) -> None:
        url = sa.make_url(self.url)
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._engine = sa.create_engine(url)
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[self._engine.dialect.name]
        upsert = insert(_tasks)
        changed = {name: getattr(upsert.excluded, name) for name in _UPDATED}
        self._upsert = _Statement(
            upsert.on_conflict_do_update(index_elements=["request_id"], set_=changed), self._engine.dialect
        )
        self._insert_manifest = _Statement(insert(_manifests).on_conflict_do_nothing(), self._engine.dialect)
        self._is_local = self._engine.dialect.name == "sqlite"
        if self._is_local:
            sa.event.listen(self._engine, "connect", _sqlite_pragmas)
        _metadata.create_all(self._engine)
        with self._engine.begin() as connection:
            lost = connection.execute(
                _tasks.update()
                .where(_tasks.c.state.not_in([str(state) for state in TERMINAL]))
                .values(state=str(State.FAILED), detail="node-lost: the gateway was restarted while this task ran")
            ).rowcount
        if lost:
            log.warning("%d tasks were cut off by the last stop and are marked FAILED", lost)
        self._connection = self._engine.raw_connection()

    async def __aexit__(self, *_: object) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        self._connection.close()
        self._engine.dispose()

    def put(self, row: Row, manifest: ModelManifest, *, alone: bool = False) -> asyncio.Future[None]:
        """Write ``row`` with the next commit; the future is done when it is durable.

        Of several rows of one task in one commit, the last counts. ``alone`` says that no other task would have to
        wait for this one's commit.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def done(error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(StoreError(f"the task could not be stored: {error}"))

        with self._wake:
            if row.model not in self._known_manifests:
                self._new_manifests[row.model] = manifest_json(manifest)
            self._pending[row.request_id] = row
            self._callbacks.append(done)
            at_once = alone and self._is_local and time.monotonic() > self._wary_until
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

    def _write_all(self) -> None:
        while True:
            with self._wake:
                while not (self._callbacks or self._closing or self._checkpoint_is_due()):
                    self._wake.wait()
                if self._closing and not self._callbacks:
                    return
            with self._writing:
                done = self._commit()
            if done[0]:
                self._loop.call_soon_threadsafe(_call_all, *done)
            if self._checkpoint_is_due():
                self._checkpoint()

    def _checkpoint(self) -> None:
        self._unchecked = 0
        try:
            with self._writing:
                self._connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
        except Exception:  # what was committed stays in the log, and the next attempt comes
            log.exception("the store could not copy its log into the database")

    def _checkpoint_is_due(self) -> bool:
        return self._is_local and self._unchecked >= _CHECKPOINT_ROWS

    def _commit(self) -> tuple[list[Callable[[BaseException | None], None]], BaseException | None]:
        """Write what waits, while holding ``_writing``; return who waits for it, and what went wrong."""
        with self._wake:
            rows, self._pending = self._pending, {}
            manifests, self._new_manifests = self._new_manifests, {}
            callbacks, self._callbacks = self._callbacks, []
        connection, began = self._connection, time.monotonic()
        try:
            cursor = connection.cursor()
            self._insert_manifest.run(cursor, [{"digest": d, "json": j} for d, j in manifests.items()])
            self._upsert.run(cursor, [_values(row) for row in rows.values()])
            connection.commit()
            self._unchecked += len(rows)
            self._known_manifests.update(manifests)
        except Exception as cause:  # whatever the driver raises must reach those who wait
            log.exception("the store could not write %d tasks", len(rows))
            connection.rollback()
            return callbacks, cause
        ended = time.monotonic()
        if ended - began > _QUICK_S:
            self._wary_until = ended + _WARY_S
        return callbacks, None

    async def get(self, request_id: bytes) -> tuple[Row, ModelManifest] | None:
        """Return a task's row and its model's manifest, or None."""
        return await asyncio.to_thread(self._get, request_id)

    def _get(self, request_id: bytes) -> tuple[Row, ModelManifest] | None:
        query = (
            sa.select(_tasks, _manifests.c.json)
            .join(_manifests, _manifests.c.digest == _tasks.c.model)
            .where(_tasks.c.request_id == request_id)
        )
        try:
            with self._engine.connect() as connection:
                found = connection.execute(query).mappings().first()
            if found is None:
                return None
            values = dict(found)
            manifest = manifest_from_json(values.pop("json"))
            values["state"] = State(values["state"])
            values["progress"] = _decode(values["progress"])
            return Row(**values), manifest
        except (sa.exc.SQLAlchemyError, msgspec.DecodeError) as cause:
            raise StoreError(f"task 0x{request_id.hex()} cannot be read: {cause}") from cause


class _Statement:
    """A statement compiled once and run by the driver: SQLAlchemy's way takes 0.2 ms longer at concurrency 1."""

    def __init__(self, statement: sa.ClauseElement, dialect: sa.Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect)
        self._sql, self._names = str(compiled), compiled.positiontup

    def run(self, cursor: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            names = self._names  # None where the driver takes parameters by name
            cursor.executemany(self._sql, rows if names is None else [[row[name] for name in names] for row in rows])


def _sqlite_pragmas(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit is on the disk, not only in the operating system
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA wal_autocheckpoint=0")
    cursor.close()


def _values(row: Row) -> dict[str, Any]:
    values = dict(vars(row))
    values["state"] = str(row.state)
    values["progress"] = _encode(row.progress)
    return values


def _call_all(callbacks: list[Callable[[BaseException | None], None]], error: BaseException | None) -> None:
    for callback in callbacks:
        callback(error)
