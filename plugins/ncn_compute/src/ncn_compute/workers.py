"""Workers: a pool of jailed processes that execute one model.

Requests wait in one line; each worker has a few of them at hand, so that it never waits for the next. When a worker
ends, the request that it was working on fails and the others go back to the front of the line.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ncn_framework.errors import Draining, NcnError, NoCapacity, WorkerDied
from ncn_framework.models import ModelManifest, Parameter
from ncn_framework.tensors import Tensor, check_tensors

from .channel import ConnectionClosed
from .sandbox import Exit
from .sandbox import open_sandbox as open_default_sandbox
from .worker_process import Job, OpenSandbox, Output, WorkerProcess, WorkerSettings

__all__ = ["Output", "WorkerPool"]

logger = logging.getLogger(__name__)

_AT_HAND = 8
"""Most requests that are in a worker's hands at once, the one that it works on included."""

_FAILURES_BEFORE_PAUSE = 3
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_pause = asyncio.sleep


class WorkerPool:
    """Workers of one model. Use as an async context manager: inside it, all of them have loaded the model.

    Args:
        manifest: of the model; its limits on memory and time hold for each worker.
        directory: the model's verified files.
        mode: of the sandbox: ``strict``, ``permissive`` or ``disabled``.
        size: number of workers.
        open_sandbox: what starts a program in a jail.
        max_output_bytes: most bytes that one request may answer.
        max_waiting: most requests that wait in line.
        spares: 1 keeps a worker ready whose libraries are loaded, for the next replacement; 0 starts one when needed.
        recycle_after: requests after which a worker is replaced; 0 is never.
        start_timeout_s: most time for a worker to load its libraries, and again to load the model.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        directory: Path,
        *,
        mode: str,
        size: int = 1,
        open_sandbox: OpenSandbox = open_default_sandbox,
        max_output_bytes: int = 64 << 20,
        max_waiting: int = 4096,
        spares: int = 0,
        recycle_after: int = 0,
        start_timeout_s: float = 120.0,
    ) -> None:
        self._manifest = manifest
        directory = directory.absolute()
        self._settings = WorkerSettings(manifest, directory, mode, open_sandbox, max_output_bytes, start_timeout_s)
        self._size = size
        self._max_waiting = max_waiting
        self._spares = spares
        self._recycle_after = recycle_after
        self._ids = itertools.count(1)
        self._line: deque[Job] = deque()
        self._workers: list[WorkerProcess] = []
        self._troubles: dict[int, NcnError] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._spare: asyncio.Task[WorkerProcess] | None = None
        self._busy = 0
        self._closed = True

    @property
    def size(self) -> int:
        """Number of workers that the pool keeps."""
        return self._size

    @property
    def busy(self) -> int:
        """Number of requests that were taken and have not ended."""
        return self._busy

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids on the host of the jails that are ready to work."""
        return tuple(worker.jail.pid for worker in self._workers if worker.jail is not None)

    async def __aenter__(self) -> Self:
        """Start all workers.

        Raises:
            SandboxError: the jail cannot be made.
            ModelError: the model cannot be loaded.
            WorkerDied: a worker ended while it started.
        """
        loop = asyncio.get_running_loop()
        self._closed = False
        ready = [loop.create_future() for _ in range(self._size)]
        self._tasks = [loop.create_task(self._keep(slot, first)) for slot, first in enumerate(ready)]
        try:
            await asyncio.gather(*ready)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all workers; requests that have not ended fail with ``Draining``. Harmless twice."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._spare is not None:
            spare, self._spare = self._spare, None
            spare.cancel()
            for result in await asyncio.gather(spare, return_exceptions=True):
                if isinstance(result, WorkerProcess):
                    await result.close()
        self._fail_line(self._draining())

    async def execute(
        self, inputs: Sequence[Tensor], parameters: Mapping[str, Parameter]
    ) -> AsyncGenerator[Output, None]:
        """Execute the model once, and yield its outputs as they come; each is checked against the manifest.

        Args:
            inputs: one tensor for each input of the manifest.
            parameters: name to scalar.

        Raises:
            InvalidTensor: the inputs are not what the manifest says.
            ModelFailed: the model's code raised.
            WorkerDied: the worker ended meanwhile, or no worker can be started.
            OutputRejected: the worker's answer is not what the manifest promises.
            NoCapacity: too many requests wait.
            Draining: the pool is closed.
        """
        check_tensors(inputs, self._manifest.inputs)
        if self._closed:
            raise self._draining()
        if len(self._troubles) == self._size:
            raise self._cannot_start()
        if len(self._line) >= self._max_waiting:
            raise NoCapacity(f"{len(self._line)} requests wait for model {self._manifest.name!r} already")
        job = Job(next(self._ids), inputs, parameters)
        self._busy += 1
        try:
            self._submit(job)
            while True:
                await job.wait()
                while job.outputs:
                    yield job.outputs.popleft()
                if job.finished and not job.outputs:
                    break
            if job.error is not None:
                raise job.error
        finally:
            self._busy -= 1
            job.abandon()

    def _submit(self, job: Job) -> None:
        if not self._line:
            idlest = min(self._workers, key=lambda worker: len(worker.jobs), default=None)
            if idlest is not None and self._has_room(idlest):
                idlest.take(job)
                return
        self._line.append(job)

    def _has_room(self, worker: WorkerProcess) -> bool:
        if self._recycle_after and worker.taken >= self._recycle_after:
            return False
        return len(worker.jobs) < _AT_HAND and not worker.gone.done()

    def _fill(self, worker: WorkerProcess) -> None:
        """Hand waiting requests to a worker that has room; called whenever it finished one."""
        while self._line and self._has_room(worker):
            job = self._line.popleft()
            if not job.abandoned:
                worker.take(job)
        if self._recycle_after and not worker.jobs and worker.taken >= self._recycle_after:
            worker.retire()

    # --- keeping workers alive ---

    async def _keep(self, slot: int, ready: asyncio.Future[None]) -> None:
        """Keep one worker alive, replacing it whenever it ends, until cancelled."""
        failures = 0
        while True:
            if failures >= _FAILURES_BEFORE_PAUSE:
                await _pause(min(_PAUSE_S * 2 ** (failures - _FAILURES_BEFORE_PAUSE), _LONGEST_PAUSE_S))
                self._troubles.pop(slot, None)  # requests wait for the new attempt
            try:
                worker = await self._loaded_worker()
            except (NcnError, OSError) as error:
                failures += 1
                self._note_trouble(slot, error, failures, ready)
                continue
            failures = 0
            self._troubles.pop(slot, None)
            self._workers.append(worker)
            try:
                if not ready.done():
                    ready.set_result(None)
                self._fill(worker)
                await asyncio.wait({worker.gone})  # which, unlike awaiting it, leaves it alone when this is cancelled
                if not worker.taken:
                    failures += 1
            finally:
                self._workers.remove(worker)
                jobs = worker.jobs
                worker.jobs = deque()
                ended = None
                try:
                    ended = await worker.close()
                finally:
                    self._bury(jobs, worker.gone.result() if worker.gone.done() else self._draining(), ended)

    async def _loaded_worker(self) -> WorkerProcess:
        worker = await self._started_worker()
        try:
            await worker.load()
        except BaseException:
            await worker.close()
            raise
        if self._spares and self._spare is None and not self._closed:
            self._spare = asyncio.get_running_loop().create_task(self._new_worker())
        return worker

    async def _started_worker(self) -> WorkerProcess:
        """Return the spare where it is of use, else a new worker."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            try:
                worker = await spare
                if not worker.gone.done():
                    return worker
                await worker.close()
            except (NcnError, OSError):
                logger.debug("the spare worker of %s could not start", self._manifest.name, exc_info=True)
        return await self._new_worker()

    async def _new_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self._settings, self._fill)
        try:
            await worker.start()
        except BaseException:
            await worker.close()
            raise
        return worker

    def _note_trouble(self, slot: int, error: Exception, failures: int, ready: asyncio.Future[None]) -> None:
        logger.warning("a worker of %s could not start (%d in a row): %s", self._manifest.name, failures, error)
        if not ready.done():
            ready.set_exception(error)
        if failures >= _FAILURES_BEFORE_PAUSE:
            self._troubles[slot] = error if isinstance(error, NcnError) else WorkerDied(str(error))
            if len(self._troubles) == self._size:
                self._fail_line(self._cannot_start())

    def _draining(self) -> Draining:
        return Draining(f"the workers of model {self._manifest.name!r} have been ended")

    def _cannot_start(self) -> WorkerDied:
        why = next(iter(self._troubles.values()))
        return WorkerDied(f"no worker of model {self._manifest.name!r} can be started at the moment: {why}")

    def _fail_line(self, error: NcnError) -> None:
        while self._line:
            self._line.popleft().finish(error)

    def _bury(self, jobs: deque[Job], reason: NcnError, ended: Exit | None) -> None:
        """Fail the request that a worker ended with, and put those behind it back in line."""
        name = self._manifest.name
        if jobs and not self._closed:
            if isinstance(reason, ConnectionClosed):
                reason = WorkerDied(f"the worker of model {name!r} died while it executed this request: {ended}")
            logger.warning("a worker of %s is replaced: %s", name, reason)
            jobs.popleft().finish(reason)
        if self._closed:
            for job in jobs:
                job.finish(self._draining())
            return
        self._line.extendleft(job for job in reversed(jobs) if not job.abandoned)
        for worker in self._workers:
            self._fill(worker)
