"""One jailed worker as its owner sees it: the jail, the channel, and the jobs that were handed to it.

A worker answers its jobs one after the other, so the first in line is the one that it works on: that one answers
for what the worker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ncn_framework.errors import ModelError, ModelFailed, NcnError, OutputRejected, WorkerDied
from ncn_framework.models import ModelManifest, Parameter, SandboxSpec
from ncn_framework.tensors import Tensor

from . import interpreter, runtimes
from .channel import Channel, ConnectionClosed, Message
from .outputs import OutputCheck
from .sandbox import Exit, JailedProcess
from .worker import protocol
from .worker.cancellations import ID

__all__ = ["Job", "OpenSandbox", "Output", "WorkerProcess", "WorkerSettings"]

logger = logging.getLogger(__name__)

OpenSandbox = Callable[[SandboxSpec, str], AbstractAsyncContextManager[JailedProcess]]
"""What starts a program in a jail: ``sandbox.open_sandbox``, or another plugin's."""

_SOCKET_BUFFER_BYTES = 1 << 20
_FRAME_OVERHEAD_BYTES = 64 << 10
_EXIT_GRACE_S = 1.0


class Output(NamedTuple):
    """A checked piece of an answer: cumulative units, and tensors as ``pack_tensors`` encodes them."""

    units: int
    data: bytes


class Job:
    """One request on its way through a worker.

    Attributes:
        outputs: what arrived and was not taken yet.
        finished: whether nothing more will arrive.
        error: why it failed, once finished.
        abandoned: nobody wants the rest.
        cancel: tells the worker so that has the request of this id in hand, if one has.
    """

    __slots__ = ("_waiter", "abandoned", "cancel", "error", "finished", "frame", "id", "outputs", "size_bytes", "units")

    def __init__(self, id_: int, inputs: Sequence[Tensor], parameters: Mapping[str, Parameter]) -> None:
        arrays = [protocol.Array(t.name, t.dtype, t.shape, memoryview(t.data)) for t in inputs]
        self.id = id_
        self.frame = protocol.frame(protocol.Request(id_, arrays, parameters))
        self.outputs: deque[Output] = deque()
        self.finished = False
        self.error: NcnError | None = None
        self.abandoned = False
        self.cancel: Callable[[int], None] | None = None
        self.units = 0
        self.size_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Wait until there is an output or the end."""
        if not self.outputs and not self.finished:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def add(self, output: Output) -> None:
        self.units = output.units
        self.outputs.append(output)
        self._wake()

    def abandon(self) -> None:
        """Say that nobody wants what has not come yet."""
        self.abandoned = True
        if self.cancel is not None and not self.finished:
            self.cancel(self.id)

    def finish(self, error: NcnError | None = None) -> None:
        self.finished = True
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class WorkerSettings(NamedTuple):
    """What all workers of a pool have in common.

    Attributes:
        manifest: of the model.
        directory: where the model's files are.
        mode: of the sandbox.
        open_sandbox: starts the worker's program.
        max_output_bytes: most bytes that one request may answer.
        start_timeout_s: most time to load libraries, and again to load the model.
    """

    manifest: ModelManifest
    directory: Path
    mode: str
    open_sandbox: OpenSandbox
    max_output_bytes: int
    start_timeout_s: float


class WorkerProcess:
    """A worker, from its start to its end.

    Attributes:
        jobs: what it was handed and has not finished, in order.
        taken: how many jobs it was ever handed.
        gone: its result is the reason once the worker is of no more use.

    Args:
        settings: of the pool.
        on_finished: called after a job is finished.
    """

    def __init__(self, settings: WorkerSettings, on_finished: Callable[[WorkerProcess], None]) -> None:
        self.jobs: deque[Job] = deque()
        self.taken = 0
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[NcnError] = self._loop.create_future()
        self._settings = settings
        self._on_finished = on_finished
        self._check_outputs = OutputCheck(settings.manifest.outputs)
        self._time_limit_s = settings.manifest.time_limit_ms / 1000
        self._head_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stack = AsyncExitStack()
        self._channel: Channel | None = None
        self._tell = -1
        self._jail: JailedProcess | None = None
        self._milestone: asyncio.Future[Message] | None = None

    async def start(self) -> None:
        """Start the program and return when its libraries are loaded and its walls stand.

        Raises:
            ModelError: a library that the model's runtime needs is missing.
            SandboxError: the jail cannot be made.
            WorkerDied: the program ended, or took too long.
        """
        settings = self._settings
        runtime = settings.manifest.runtime
        runtimes.require(runtime)
        ours, theirs = socket.socketpair()
        told, self._tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        inherited = (theirs.fileno(), told)
        program = ("ncn_compute.worker.__main__", *map(str, inherited), settings.mode, runtime)
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
            spec = SandboxSpec(
                argv=interpreter.command(*program),
                readable=(*interpreter.readable(), settings.directory),
                pass_fds=inherited,
                memory_bytes=settings.manifest.memory_bytes,
                label=settings.manifest.name,
            )
            self._jail = await self._stack.enter_async_context(settings.open_sandbox(spec, settings.mode))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(told)
        max_frame = settings.max_output_bytes + _FRAME_OVERHEAD_BYTES
        self._channel = Channel(ours, max_frame, self._on_message, self._end)
        started = await self._reach("load its libraries")
        if not isinstance(started, protocol.Started):
            raise OutputRejected(f"worker of {settings.manifest.name!r} did not say that it started")
        logger.debug("worker of %s started, walls: %s", settings.manifest.name, started.walls)

    async def load(self) -> None:
        """Make a started worker load the model and run it once.

        Raises:
            ModelError: the model cannot be loaded.
            WorkerDied: the worker ended, or took too long.
        """
        manifest = self._settings.manifest
        message = protocol.load_message(self._settings.directory, manifest)
        answer = await self._reach("load the model", protocol.frame(message))
        if isinstance(answer, protocol.Failure):
            raise ModelError(f"model {manifest.name!r}: {_printable(answer.message)}")
        if not isinstance(answer, protocol.Loaded):
            raise OutputRejected(f"worker of {manifest.name!r} did not say that it loaded the model")

    async def _reach(self, what: str, frame: bytearray | None = None) -> Message:
        """Send ``frame`` and return the next message, which is one of the start."""
        name = self._settings.manifest.name
        self._milestone = self._loop.create_future()
        if frame is not None and self._channel is not None:
            self._channel.send(frame)
        timeout_s = self._settings.start_timeout_s
        either: set[asyncio.Future[Any]] = {self._milestone, self.gone}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._milestone.done():
            return self._milestone.result()
        if not self.gone.done():
            raise WorkerDied(f"worker of {name!r} took more than {timeout_s:g} s to {what}")
        error = self.gone.result()
        if isinstance(error, ConnectionClosed):
            ended = await self.close()
            words = f": {ended.stderr[-300:]}" if ended and ended.stderr else ""
            raise WorkerDied(f"worker of {name!r} could not {what}: {ended}{words}") from error
        raise error

    @property
    def jail(self) -> JailedProcess | None:
        """The jailed process, once started."""
        return self._jail

    def take(self, job: Job) -> None:
        """Hand over a job; it runs after those before it."""
        if self._channel is None:
            raise RuntimeError("a worker takes jobs only after its start")
        if not self.jobs:
            self._watch_head()
        self.jobs.append(job)
        self.taken += 1
        job.cancel = self._cancel
        self._channel.send(job.frame)

    def _cancel(self, id_: int) -> None:
        if self._tell >= 0:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it is busy enough, or gone
                os.write(self._tell, ID.pack(id_))

    def retire(self) -> None:
        """End an idle worker that did nothing wrong."""
        self._end(WorkerDied("retired"))

    async def close(self) -> Exit | None:
        """End the process and everything of it; return how it ended, None if it never was. Harmless twice."""
        if self._timer is not None:
            self._timer.cancel()
        if self._channel is not None:
            self._channel.close()
        if self._tell >= 0:
            os.close(self._tell)
            self._tell = -1
        ended = None
        try:
            if self._jail is not None:
                # one that ends by itself gets the time to say how
                if self.gone.done() and isinstance(self.gone.result(), ConnectionClosed):
                    await asyncio.wait({waiting := self._loop.create_task(self._jail.wait())}, timeout=_EXIT_GRACE_S)
                    waiting.cancel()
                self._jail.kill()
                ended = await self._jail.wait()
        finally:
            await self._stack.aclose()
        return ended

    # --- called by the channel ---

    def _on_message(self, message: Message) -> None:
        if isinstance(message, protocol.Piece):
            job = self._head(message.id)
            self._check(job, message)
            if not job.abandoned:
                job.add(Output(message.units, message.data))
            if message.last:
                self._finish(job, None)
        elif isinstance(message, protocol.Done):
            self._finish(self._head(message.id), None)
        elif isinstance(message, protocol.Failure) and message.id:
            self._finish(self._head(message.id), ModelFailed(_printable(message.message)))
        elif self._milestone is not None and not self._milestone.done():
            self._milestone.set_result(message)
        else:
            raise OutputRejected(f"the worker sent {type(message).__name__} out of turn")

    def _head(self, id_: int) -> Job:
        if not self.jobs or self.jobs[0].id != id_:
            raise OutputRejected(f"the worker answered request {id_}, which it is not working on")
        return self.jobs[0]

    def _check(self, job: Job, piece: protocol.Piece) -> None:
        settings = self._settings
        if piece.units < job.units:
            raise OutputRejected(f"cumulative units fell from {job.units} to {piece.units}")
        job.size_bytes += len(piece.data)
        if job.size_bytes > settings.max_output_bytes:
            raise OutputRejected(f"outputs of more than {settings.max_output_bytes} bytes")
        self._check_outputs(piece.data)

    def _finish(self, job: Job, error: NcnError | None) -> None:
        self.jobs.popleft()
        if self.jobs:
            self._watch_head()
        job.finish(error)
        self._on_finished(self)

    def _end(self, reason: NcnError) -> None:
        if not self.gone.done():
            self.gone.set_result(reason)

    # --- the time limit ---

    def _watch_head(self) -> None:
        """Note when the first job's turn came. One timer serves many jobs: it looks, and sleeps for what is left."""
        self._head_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._time_limit_s, self._look_at_head)

    def _look_at_head(self) -> None:
        self._timer = None
        if not self.jobs or self.gone.done():
            return
        left_s = self._head_since + self._time_limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look_at_head)
            return
        manifest = self._settings.manifest
        if self._channel is not None:
            self._channel.close()
        self._end(
            WorkerDied(f"model {manifest.name!r} passed its time limit of {manifest.time_limit_ms} ms and was ended")
        )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[: protocol.MAX_MESSAGE])
