"""Models that a validator executes again: opened for the first request that wants one, closed when nobody does."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ncn_framework.errors import Draining, ModelError, NoCapacity
from ncn_framework.models import Chunk, InferenceRequest, Leases, ModelManifest

from . import runtimes, sandbox
from .config import ComputeSettings
from .manifest import find_models, verify
from .workers import WorkerPool

if TYPE_CHECKING:
    from ncn_framework.node import Node

__all__ = ["Repeater"]

log = logging.getLogger(__name__)


class _Opened:
    """A model that is open, or about to be: its pool, who uses it, and the timer that closes it."""

    def __init__(self, pool: asyncio.Task[WorkerPool]) -> None:
        self.pool = pool
        self.users = 0
        self.timer: asyncio.TimerHandle | None = None


class Repeater:
    """What the compute plugin is in a registry's process: no node, but the means to execute a node's request again.

    As long as nobody asks, it costs nothing: no worker runs, no file is read.

    Args:
        node: whose settings it uses.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings(ComputeSettings)
        self._opened: OrderedDict[bytes, _Opened] = OrderedDict()  # longest unused first
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def root(self) -> Path:
        """Where the models are."""
        return (self.settings.model_path or self.node.home / "models").expanduser().absolute()

    def execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None] | None:
        """Run a request in its model's jail; decline models of another runtime."""
        manifest = leases.route.manifest
        return self._execute(request, manifest) if manifest.runtime in runtimes.available() else None

    async def _execute(self, request: InferenceRequest, manifest: ModelManifest) -> AsyncGenerator[Chunk, None]:
        opened = self._use(manifest)
        try:
            pool = await asyncio.shield(opened.pool)  # who gives up must not take it from those who wait with him
            sequence = 0
            async with aclosing(pool.execute(request.inputs, request.parameters)) as outputs:
                async for units, data in outputs:
                    sequence += 1
                    yield Chunk(sequence, units, data)
        finally:
            self._leave(manifest.digest, opened)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Stand by until the context is left; then end every worker."""
        try:
            yield
        finally:
            self._stopped = True
            for digest in list(self._opened):
                self._close(digest)
            await asyncio.gather(*self._closing)

    # --- pools ---

    def _use(self, manifest: ModelManifest) -> _Opened:
        """Return the opened model, counted as used once more.

        Raises:
            NoCapacity: too many models are in use.
            Draining: this process is shutting down.
        """
        if self._stopped:
            raise Draining("this validator is shutting down")
        digest = manifest.digest
        opened = self._opened.pop(digest, None)
        if opened is None:
            if len(self._opened) >= self.settings.repeat_models:
                idle = next((found for found, one in self._opened.items() if not one.users), None)
                if idle is None:
                    raise NoCapacity(
                        f"{len(self._opened)} models are being executed again already, as many as "
                        "compute.repeat_models allows; try again"
                    )
                self._close(idle)
            opened = _Opened(asyncio.create_task(self._open(manifest)))
        self._opened[digest] = opened
        opened.users += 1
        if opened.timer is not None:
            opened.timer.cancel()
            opened.timer = None
        return opened

    def _leave(self, digest: bytes, opened: _Opened) -> None:
        opened.users -= 1
        if opened.users or self._opened.get(digest) is not opened:
            return
        if opened.pool.done() and (opened.pool.cancelled() or opened.pool.exception() is not None):
            del self._opened[digest]  # the next request tries again
            return
        idle_s = self.settings.repeat_idle_ms / 1000
        opened.timer = asyncio.get_running_loop().call_later(idle_s, self._close, digest)

    async def _open(self, manifest: ModelManifest) -> WorkerPool:
        digest, root = manifest.digest, self.root
        await sandbox.require(self.settings.sandbox_mode)
        directory = await asyncio.to_thread(_find, root, digest)
        pool = WorkerPool(
            manifest,
            directory,
            mode=self.settings.sandbox_mode,
            size=self.settings.workers,
            open_sandbox=self.node.plugins.open_sandbox,
            max_output_bytes=self.node.lifecycle.limits.output_bytes,
        )
        await pool.__aenter__()
        log.info("model %s (0x%s) is opened, to execute requests again", manifest.name, digest.hex())
        return pool

    def _close(self, digest: bytes) -> None:
        opened = self._opened.pop(digest)
        if opened.timer is not None:
            opened.timer.cancel()
        closing = asyncio.create_task(_end(opened.pool))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


async def _end(opening: asyncio.Task[WorkerPool]) -> None:
    """End a pool, or what would become one."""
    opening.cancel()
    await asyncio.wait({opening})
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()


def _find(root: Path, digest: bytes) -> Path:
    """Return the folder of a model whose files are what its manifest says.

    Raises:
        ModelError: it is not there, or damaged.
    """
    found = find_models(root).get(digest)
    if found is None:
        raise ModelError(f"model 0x{digest.hex()} is not in {root}; a validator cannot execute it again without it")
    manifest, directory = found
    verify(directory, manifest)
    return directory
