"""One request on its way through this gateway: progress that is durable before it is heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from ncn_framework.errors import NcnError, PaymentRequired, error_from_code
from ncn_framework.lifecycle import Outcome
from ncn_framework.models import Chunk, Event, InferenceRequest, ModelManifest, Route, SignedReceipt
from ncn_framework.payments import PaymentDue
from ncn_framework.statements import Evidence
from ncn_framework.states import TERMINAL, State

from .links import Execution
from .store import Progress, Row, Store

__all__ = ["Task", "Update"]

Update = Event | Chunk
"""What a task's followers hear."""


class Task:
    """One request.

    Attributes:
        request: as admitted.
        manifest: of its model.
        updates: every move and chunk so far.
        node: address of the node it was routed to.
        error: why it failed.
        outcome: what came out, once it settled.
        resting: whether the end is durable.
        due: what its client has to pay now, while it is AWAITING_PAYMENT.
        execution: what its node sends, until it rests.
    """

    def __init__(self, request: InferenceRequest, manifest: ModelManifest, store: Store) -> None:
        self.request, self.manifest = request, manifest
        self.updates: list[Update] = []
        self.state = State.RECEIVED
        self.created_ms = self.updated_ms = 0
        self.node: bytes | None = None
        self.error: NcnError | None = None
        self.outcome: Outcome | None = None
        self.resting = False
        self.due: PaymentDue | None = None
        self.walking: asyncio.Task[None] | None = None
        self.execution: Execution | None = None
        self._store = store
        self._detail = ""
        self._durable = 0  # moves on disk
        self._stored = False  # something is on disk, or on its way there
        self._moves = 0
        self._followers = 0
        self._followers_waiting: list[asyncio.Future[None]] = []
        self._end_waiting: list[asyncio.Future[None]] = []

    # --- what the walk says ---

    def observe(self, update: Update) -> None:
        """Take a move or a chunk from the life cycle."""
        self.updates.append(update)
        if isinstance(update, Event):
            self.state, self.updated_ms, self._detail = update.state, update.at_ms, update.detail
            self.node, self.due = update.node or self.node, update.payment
            self._moves += 1
            if self._followers and update.state not in TERMINAL:
                self._flush()
        else:
            _wake(self._followers_waiting)

    def _row(self) -> Row:
        request, settled = self.request, self.outcome
        return Row(
            request_id=request.request_id,
            request_hash=request.request_hash,
            state=self.state,
            model=request.model,
            node=self.node,
            created_ms=self.created_ms,
            updated_ms=self.updated_ms,
            detail=self._detail,
            progress=Progress(
                request,
                tuple(u for u in self.updates if isinstance(u, Event)),
                tuple(u for u in self.updates if isinstance(u, Chunk)),
                settled.receipt if settled else None,
                settled.settlement if settled else None,
            ),
        )

    def _flush(self) -> asyncio.Future[None]:
        moves, self._stored = self._moves, True
        stored = self._store.put(self._row(), self.manifest)

        def done(future: asyncio.Future[None]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._durable = max(self._durable, moves)
                _wake(self._followers_waiting)

        stored.add_done_callback(done)
        return stored

    @property
    def leaves_no_trace(self) -> bool:
        """Whether it was refused for want of payment before anything was done or told: it may come again, paid."""
        done = any(isinstance(update, Event) and update.state is State.EXECUTING for update in self.updates)
        return isinstance(self.error, PaymentRequired) and not done and not self._stored

    async def rest(self, *, alone: bool) -> None:
        """Store how the walk ended, then let everybody hear of it; ``alone``: no other task is in flight."""
        if not self.leaves_no_trace:
            try:
                await self._store.put(self._row(), self.manifest, alone=alone)
                self._durable = self._moves
            except NcnError as error:
                self.error, self.outcome = error, None
        self.resting, self.execution = True, None
        _wake(self._end_waiting)
        _wake(self._followers_waiting)

    # --- what others ask ---

    async def wait(self) -> Outcome:
        """Return the outcome once the end is durable.

        Raises:
            NcnError: why the task failed.
        """
        while not self.resting:
            await _next(self._end_waiting)
        if self.outcome is None:
            raise self.error or NcnError(f"task 0x{self.request.request_id.hex()} ended without an outcome")
        return self.outcome

    def evidence(self) -> Evidence | None:
        """Return the request with its whole answer, once its node has signed a receipt; without what paid for it."""
        if self.outcome is not None:
            receipt: SignedReceipt | None = self.outcome.receipt
        else:
            receipt = None if self.execution is None else self.execution.receipt
        if receipt is None:
            return None
        chunks = tuple(update for update in self.updates if isinstance(update, Chunk))
        return Evidence(replace(self.request, authorization=None), chunks, receipt, self.manifest)

    async def settled_or_received(self) -> None:
        """Return once RECEIVED is durable."""
        while not self._durable and not self.resting:
            await asyncio.shield(self._flush())

    async def told(self) -> Outcome | None:
        """Return once what is to be told of it now is durable; the outcome where it settled, None otherwise."""
        await self.settled_or_received()
        if self.due is not None:
            await self.awaits_payment()
        if self.state in TERMINAL:
            with suppress(NcnError):
                return await self.wait()
        return None

    async def awaits_payment(self) -> bool:
        """Return True once the task waits for its client to pay, durably; False once it rests without that."""
        found: Any = self.follow()
        async with aclosing(found):
            async for _, update in found:
                if isinstance(update, Event) and update.payment is not None and self.due is update.payment:
                    return True
        return False

    async def follow(self, after: int = 0) -> AsyncGenerator[tuple[int, Update], None]:
        """Yield each update behind the first ``after`` with its index from 1; moves when they are durable.

        Ends when the task rests.
        """
        self._followers += 1
        try:
            index, moves = after, sum(isinstance(u, Event) for u in self.updates[:after])
            if self._durable < self._moves and not self.resting:
                self._flush()
            while True:
                while index < len(self.updates):
                    update = self.updates[index]
                    if isinstance(update, Event):
                        if moves >= self._durable:
                            if self.resting:
                                return  # its end could not be stored
                            break
                        moves += 1
                    index += 1
                    yield index, update
                else:
                    if self.resting:
                        return
                await _next(self._followers_waiting)
        finally:
            self._followers -= 1

    def cancel(self) -> None:
        """Stop the walk; what was reserved is released. Does nothing once it has ended."""
        # later in this turn of the loop: a walk cancelled before its first step would never store its end
        asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.walking is not None and self.state not in TERMINAL and self.error is None:
            self.walking.cancel()

    @classmethod
    def restored(cls, row: Row, manifest: ModelManifest, store: Store) -> Task:
        """Return a task as the store has it."""
        saved = row.progress
        task = cls(saved.request, manifest, store)
        for event in saved.events:
            task.updates.append(event)
            if event.state is State.EXECUTING:
                task.updates.extend(saved.chunks)
        if not saved.events or saved.events[-1].state is not row.state:  # cut off by a stop of the gateway
            task.updates.append(Event(row.request_id, row.state, row.updated_ms, row.detail))
        task.state, task.node, task._detail = row.state, row.node, row.detail
        task.created_ms, task.updated_ms = row.created_ms, row.updated_ms
        if saved.receipt and saved.settlement:
            route = Route(saved.receipt.receipt.node, manifest)
            task.outcome = Outcome(route, saved.chunks, saved.receipt, saved.settlement)
        else:
            code, _, message = row.detail.partition(": ")
            task.error = error_from_code(code, message)
        task.resting = True
        task._durable = task._moves = len(task.updates)
        return task


def _next(waiting: list[asyncio.Future[None]]) -> asyncio.Future[None]:
    """Return a future of the caller's own, so that who is cancelled harms nobody else."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting.append(future)
    return future


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()
