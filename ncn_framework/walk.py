"""Where one request stands: its moves, and the time limit of the stage that it is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import DeadlineExpired, StageTimeout
from .models import Chunk, Event, InferenceRequest
from .payments import Escrow, PaymentDue
from .states import State, check_move

if TYPE_CHECKING:
    from .lifecycle import Lifecycle

__all__ = ["Observer", "Walk"]

Observer = Callable[[Event | Chunk], None]
"""Hears each move and each chunk in order, before anybody else; if it raises, the request fails."""


class Walk:
    """Where one request stands; entered, it bounds each stage by the stage's limit and the request's deadline.

    One timer serves all stages: it looks, and sleeps for what is left. Most stages end long before theirs would ring.
    """

    def __init__(self, lifecycle: Lifecycle, request: InferenceRequest, observe: Observer) -> None:
        self.lifecycle, self.request, self.observe = lifecycle, request, observe
        self.state: State | None = None
        self.escrow: Escrow | None = None
        self.detail = ""
        self._loop = asyncio.get_running_loop()
        self._stage = ""
        self._limit_ms = self._left_ms = 0
        self._scope = asyncio.timeout(None)
        self._until = self._rings_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def move(self, state: State, detail: str = "", node: bytes = b"", payment: PaymentDue | None = None) -> None:
        if self.state is not None:
            check_move(self.state, state)
        event = Event(self.request.request_id, state, self.lifecycle.clock(), detail, node, payment)
        self.observe(event)
        self.state = state
        self.lifecycle.plugins.event(event)

    def end(self, state: State, detail: str) -> None:
        if self.state is not State.SETTLED:
            self.detail = detail
            self.move(state, detail)

    def stage(self, name: str, limit_ms: int) -> None:
        """Begin a stage: from now on its limit holds."""
        self._left_ms = self.request.deadline_ms - self.lifecycle.clock()
        if self._left_ms <= 0:
            raise DeadlineExpired(f"the deadline passed before stage {name}")
        self._stage, self._limit_ms = name, limit_ms
        self._until = self._loop.time() + min(limit_ms, self._left_ms) / 1000
        if self._scope.when() is not None:  # the stage before ended in the moment in which it was too late
            self._scope.reschedule(None)
        if self._timer is None or self._until < self._rings_at:
            self._ring_at(self._until)

    def _ring_at(self, time: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = time
        self._timer = self._loop.call_at(time, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._until > self._rings_at:
            self._ring_at(self._until)
        else:
            self._scope.reschedule(self._until)

    async def __aenter__(self) -> Walk:
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError as cause:
            if self._left_ms <= self._limit_ms:
                raise DeadlineExpired(f"the deadline passed in stage {self._stage}") from cause
            raise StageTimeout(f"stage {self._stage} took longer than its limit of {self._limit_ms} ms") from cause
