"""Foundry's anvil as a child of this process, its state in a file."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ncn_framework.errors import ChainError

from ..devkeys import CHAIN_ID, ETHER_WEI, MNEMONIC
from ..errors import ChainUnreachable
from .interface import Chain
from .rpc import RpcChain

__all__ = ["AnvilChain", "find_anvil"]

log = logging.getLogger(__name__)

_START_S, _STOP_S = 20.0, 20.0
_SAVE_EVERY_S = 5

_TRAMPOLINE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Asks the kernel to end anvil when this process is gone, however it went (PR_SET_PDEATHSIG, prctl(2)); becomes it."""


def find_anvil() -> Path:
    """Return anvil's own executable: that of the PATH, or of npm below ``contracts/``.

    What npm puts on the PATH is a script of Node.js around it, which would not wait for anvil to save its state; the
    executable lies in the package of the platform, beside the script's.

    Raises:
        ChainError: there is none.
    """
    found = shutil.which("anvil")
    places = [Path(found).resolve()] if found else []
    places += [folder / "contracts/node_modules/.bin/anvil" for folder in (Path.cwd(), *Path.cwd().parents)]
    for place in places:
        for candidate in _executables(place.resolve()):
            if os.access(candidate, os.X_OK):
                return candidate
    raise ChainError(
        "anvil is neither on the PATH nor in contracts/node_modules; run `npm ci` in contracts/, "
        "or set NCN_PAYMENTS_CHAIN=embedded"
    )


def _executables(place: Path) -> Iterator[Path]:
    if place.suffix == ".mjs":
        yield from sorted(place.parent.parent.glob("anvil-*/bin/anvil"))
    elif place.is_file():
        yield place


class AnvilChain(Chain):
    """A development chain with id 31337, started on entering and ended, its state saved, on leaving.

    Args:
        folder: of the state file; made where it is missing.
        port: on loopback; 0 lets the system choose.
        timeout_s: for one answer.
        patience_s: for one request in all.

    Raises:
        ChainError: (on entering) there is no anvil, its port is taken, or it does not start.
    """

    chain_id = CHAIN_ID
    poll_s = 0.05

    def __init__(self, folder: Path, port: int = 0, *, timeout_s: float = 10.0, patience_s: float = 30.0) -> None:
        self._folder = folder.absolute()
        self._port = port
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._process: asyncio.subprocess.Process | None = None
        self._rpc: RpcChain | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        program = find_anvil()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = self._folder / "anvil.json"
        if state.exists():
            _require_state(state)
        self._port = _free_port(self._port)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), str(program)),
            *("--host", "127.0.0.1", "--port", str(self._port), "--chain-id", str(CHAIN_ID), "--quiet"),
            *("--mnemonic", MNEMONIC, "--balance", str(ETHER_WEI // 10**18), "--hardfork", "prague"),
            *("--state", str(state), "--state-interval", str(_SAVE_EVERY_S), "--preserve-historical-states"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then ends anvil in its turn
        )
        try:
            self._rpc = await RpcChain(
                (self.url,), CHAIN_ID, timeout_s=self._timeout_s, patience_s=self._patience_s
            ).__aenter__()
            async with asyncio.timeout(_START_S):
                await self._until_ready(self._process)
        except BaseException as error:
            await asyncio.shield(self._stop())
            if isinstance(error, TimeoutError):
                raise ChainError(f"anvil ({program}) did not answer within {_START_S:g} s of its start") from error
            raise
        return self

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        while True:
            if process.returncode is not None:
                said = (await process.stderr.read()).decode(errors="replace") if process.stderr else ""
                raise ChainError(f"anvil ended with status {process.returncode}: {said.strip()[-500:]}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await self.request("eth_chainId")
            return

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self._stop())

    async def _stop(self) -> None:
        rpc, process = self._rpc, self._process
        self._rpc = self._process = None
        if rpc is not None:
            await rpc.__aexit__(None, None, None)
        if process is None:
            return
        if process.returncode is None:
            process.terminate()  # it saves its state, then ends
        try:
            async with asyncio.timeout(_STOP_S):
                await process.communicate()
        except TimeoutError:
            log.warning("anvil did not end within %g s of SIGTERM and is killed; its last seconds may be lost", _STOP_S)
            process.kill()
            await process.communicate()

    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        if self._rpc is None:
            raise ChainUnreachable("anvil is not running; enter the chain with `async with` first")
        return await self._rpc.request(method, params)


def _require_state(path: Path) -> None:
    """Refuse a damaged file, with a remedy: anvil would not."""
    try:
        with path.open("rb") as file:
            json.load(file)
    except (ValueError, OSError, RecursionError) as cause:
        raise ChainError(f"anvil's state {path} is damaged; move it away to begin anew") from cause


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as cause:
            raise ChainError(
                f"port {port} for anvil is taken; set NCN_PAYMENTS_ANVIL_PORT, or stop who has it"
            ) from cause
        return int(probe.getsockname()[1])
