"""The embedded chain: py-evm in this process, on a thread of its own, kept on disk, shared by the process's roles."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ncn_framework.errors import ChainError, NcnError

from ..devkeys import CHAIN_ID, ETHER_WEI, accounts
from ..errors import ChainUnreachable
from ..factory import FACTORY, FACTORY_CODE
from .interface import Chain

if TYPE_CHECKING:
    from .node import Node

__all__ = ["EmbeddedChain", "NearbyChain"]

log = logging.getLogger(__name__)

_MOST_IN_BLOCK = 100
_STACK_BYTES = 64 << 20
"""Stack of the thread: 1,024 nested calls of contracts are some 10,000 frames of Python."""


class EmbeddedChain(Chain):
    """A development chain with id 31337. In one process, all that are entered with one folder are one chain.

    Args:
        folder: where the chain is kept; made where it is missing.
        clock: seconds since the epoch, for tests; that of whoever enters first counts.

    Raises:
        ChainError: (on entering) another process has the folder open, or what is in it is damaged.
    """

    chain_id = CHAIN_ID
    poll_s = 0.02

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder.absolute()
        self._clock = clock
        self._engine: _Engine | None = None

    async def __aenter__(self) -> Self:
        self._engine = await asyncio.to_thread(_Engine.acquire, self._folder, self._clock)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.shield(asyncio.to_thread(_Engine.release, engine))

    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        if self._engine is None:
            raise ChainUnreachable("the embedded chain is closed; enter it with `async with` first")
        return await asyncio.wrap_future(self._engine.submit(method, params))


class NearbyChain(Chain):
    """The embedded chain of this process where one is open for the folder, otherwise that of a gateway on this machine.

    Args:
        folder: of the embedded chain.
        remote: the chain that the gateway serves.
    """

    def __init__(self, folder: Path, remote: Chain) -> None:
        self._folder = folder.absolute()
        self._remote = remote
        self.chain_id = remote.chain_id
        self.poll_s = 0.1

    async def __aenter__(self) -> Self:
        await self._remote.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._remote.__aexit__(kind, error, trace)

    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        engine = _Engine.open_in(self._folder)
        if engine is not None:
            return await asyncio.wrap_future(engine.submit(method, params))
        return await self._remote.request(method, params)


class _Engine:
    """The thread, the node it runs, and how many use it."""

    _lock = threading.Lock()
    _open: dict[Path, _Engine] = {}  # noqa: RUF012 - one for the process

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._users = 0
        self._sends = 0  # queued, not yet in the pool
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = _lock_folder(folder)
        previous = threading.stack_size(_STACK_BYTES)
        try:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="ncn-chain")
            self._node = self._executor.submit(self._start, clock).result()
        except BaseException:
            os.close(self._file)
            raise
        finally:
            threading.stack_size(previous)

    def _start(self, clock: Callable[[], float]) -> Node:
        from .evm import Evm
        from .node import Node

        balances = dict.fromkeys(accounts().values(), ETHER_WEI)
        self._evm = Evm(self._folder / "embedded.db", CHAIN_ID, balances, {FACTORY: FACTORY_CODE}, clock)
        return Node(self._evm)

    @classmethod
    def acquire(cls, folder: Path, clock: Callable[[], float]) -> _Engine:
        with cls._lock:
            engine = cls._open.get(folder)
            if engine is None:
                engine = cls._open[folder] = cls(folder, clock)
            engine._users += 1
            return engine

    @classmethod
    def open_in(cls, folder: Path) -> _Engine | None:
        return cls._open.get(folder)

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            del self._open[self._folder]
            self._executor.submit(self._evm.close)
            self._executor.shutdown(wait=True)
            os.close(self._file)

    def submit(self, method: str, params: Sequence[Any]) -> Future[Any]:
        """Queue a request. Transactions that come one after the other share a block, and who asks then sees it."""
        try:
            if method != "eth_sendRawTransaction":
                return self._executor.submit(self._ask, method, params)
            with self._lock:
                self._sends += 1
            answer = self._executor.submit(self._send, method, params)
            self._executor.submit(self._after_send)
            return answer
        except RuntimeError as cause:  # "cannot schedule new futures after shutdown"
            raise ChainUnreachable("the embedded chain is closed") from cause

    def _send(self, method: str, params: Sequence[Any]) -> Any:
        with self._lock:
            self._sends -= 1
        return self._node.request(method, params)

    def _after_send(self) -> None:
        if self._sends and self._node.waiting < _MOST_IN_BLOCK:
            return  # the next one is queued already
        try:
            self._node.flush()
        except NcnError:
            log.exception("a block could not be kept; its transactions wait for the next")

    def _ask(self, method: str, params: Sequence[Any]) -> Any:
        self._node.flush()
        return self._node.request(method, params)


def _lock_folder(folder: Path) -> int:
    """Return an open file that keeps other processes out until it is closed.

    Raises:
        ChainError: another process has it.
    """
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        holder = os.read(file, 32).decode(errors="replace").strip()
        os.close(file)
        raise ChainError(
            f"process {holder} has the embedded chain in {folder} open; stop it, or set another NCN_HOME"
        ) from cause
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file
