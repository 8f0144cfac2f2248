"""One request through plugins from memory, recorded: who was called, which moves were made, what was released."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn

from ..errors import NcnError
from ..hookspecs import hookimpl
from ..lifecycle import Lifecycle, Outcome, StageLimits
from ..manager import ROLES, build_manager
from ..models import Chunk, Event, InferenceRequest, Route
from ..states import TERMINAL
from ..tensors import Tensor, pack_tensors
from .fakes import RecordingPlugin, as_plugins, fake_candidates, fake_request

__all__ = ["RecordedWalk", "asked_first", "executing", "fake_chunk", "hang", "refuse", "reserving"]


class RecordedWalk:
    """A life cycle with a ``RecordingPlugin`` called ``outer`` around whatever the test adds.

    Args:
        *plugins: asked behind the recorder, but for those of ``asked_first``.
        limits: of the stages.
        clock: for deadlines.
    """

    def __init__(
        self, *plugins: Any, limits: StageLimits | None = None, clock: Callable[[], int] | None = None
    ) -> None:
        self.transcript: list[str] = []
        self.recorder = RecordingPlugin("outer", self.transcript)
        self.updates: list[Event | Chunk] = []
        self.life = Lifecycle(build_manager(as_plugins(self.recorder, *plugins)), limits=limits)
        if clock is not None:
            self.life.clock = clock

    def observe(self, update: Event | Chunk) -> None:
        """Record a move or a chunk; the life cycle's observer."""
        self.updates.append(update)

    @property
    def moves(self) -> list[str]:
        """The states that the request moved into."""
        return [str(u.state) for u in self.updates if isinstance(u, Event)]

    @property
    def last(self) -> Event:
        """The last move."""
        return next(u for u in reversed(self.updates) if isinstance(u, Event))

    async def run(self, request: InferenceRequest | None = None, route: Route | None = None) -> Outcome:
        """Run a request; without ``route``, the recorder chooses."""
        request = request or fake_request()
        candidates = None if route else fake_candidates()
        return await self.life.run(request, self.observe, candidates=candidates, route=route)

    async def fails(self, error: type[NcnError], text: str, request: InferenceRequest | None = None) -> NcnError:
        """Run and return the error; it must be just of this class, with ``text`` in it and in the last move.

        Raises:
            AssertionError: another end, or something was not released.
        """
        try:
            await self.run(request)
        except NcnError as caught:
            if type(caught) is not error or text not in str(caught) or text not in self.last.detail:
                raise AssertionError(f"{caught!r}, {self.last}: not {error.__name__} with {text!r}") from caught
            self.check_released()
            return caught
        raise AssertionError(f"the request settled; it should have failed with {error.__name__}")

    def check_released(self) -> None:
        """Raise AssertionError unless the request rests, and all that was entered or opened has been left or closed."""
        for begin, end in ((": enter", ": leave"), (": open", ": close")):
            begun = [line.removesuffix(begin) for line in self.transcript if line.endswith(begin)]
            ended = [line.partition(end)[0] for line in self.transcript if end in line]
            if sorted(begun) != sorted(ended):
                raise AssertionError(f"not everything was released: {self.transcript}")
        if self.last.state not in TERMINAL:
            raise AssertionError(f"the request does not rest; it is {self.last.state}")


def asked_first(**hooks: Callable[..., Any]) -> Any:
    """Return a plugin with these functions as hooks, asked before any other: ``asked_first(ncn_route=lambda: ...)``."""
    marked = {name: staticmethod(hookimpl(function, tryfirst=True)) for name, function in hooks.items()}
    return type("AskedFirst", (), {"roles": ROLES, **marked})()


def reserving(context: Callable[[], AbstractAsyncContextManager[Any]]) -> Any:
    """Return a plugin that reserves by entering ``context()``, after the recorder."""
    return type("Reserving", (), {"roles": ROLES, "ncn_reserve": staticmethod(hookimpl(lambda: context()))})()


def executing(*items: Any) -> Any:
    """Return a plugin that executes by yielding ``items``; an exception is raised, a coroutine function awaited."""

    async def stream() -> AsyncGenerator[Any, None]:
        for item in items:
            if isinstance(item, BaseException):
                raise item
            if callable(item):
                await item()
            else:
                yield item

    return asked_first(ncn_execute=lambda: stream())


def fake_chunk(sequence: int = 1, units: int = 1, **changes: Any) -> Chunk:
    """Return a chunk of ``fake_manifest()``'s output; ``changes`` are its fields."""
    data = pack_tensors([Tensor("y", "FP32", (1,), bytes(4))])
    return Chunk(**{"sequence": sequence, "units": units, "data": data, **changes})


async def refuse(error: BaseException) -> NoReturn:
    """Raise ``error`` when awaited."""
    raise error


async def hang() -> NoReturn:
    """Wait for ever."""
    while True:
        await asyncio.Event().wait()
