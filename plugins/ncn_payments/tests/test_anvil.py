"""Anvil as a child: started, ended with its state saved, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ncn_framework.errors import ChainError
from ncn_framework.signing import Signer
from ncn_payments.chain import anvil
from ncn_payments.chain.anvil import AnvilChain, find_anvil
from ncn_payments.transactions import Call

from .conftest import make_chain
from .sending import send

SOMEBODY = b"\x07" * 20


@pytest.fixture(autouse=True)
def _needed(tmp_path: Path) -> None:
    make_chain("anvil", tmp_path)  # skips where there is none


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


async def test_ended_with_its_state_saved(tmp_path: Path, deployer: Signer) -> None:
    async with AnvilChain(tmp_path) as chain:
        url = chain.url
        await send(chain, deployer, 0, Call(SOMEBODY), value=1)
        assert listens(url)
    assert not listens(url)
    assert (tmp_path / "anvil.json").stat().st_size > 0
    async with AnvilChain(tmp_path) as chain:
        assert await chain.balance(SOMEBODY) == 1


async def test_port_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ChainError, match=f"port {port} for anvil is taken"):
            async with AnvilChain(tmp_path, port):
                pass


async def test_damaged_state(tmp_path: Path) -> None:
    (tmp_path / "anvil.json").write_text('{"block": ')
    with pytest.raises(ChainError, match="damaged"):
        async with AnvilChain(tmp_path):
            pass


async def test_an_anvil_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "anvil"
    program.write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(anvil, "find_anvil", lambda: program)
    with pytest.raises(ChainError, match="status 3: no such option"):
        async with AnvilChain(tmp_path):
            pass


def test_found_on_the_path_or_below_contracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_anvil()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ChainError, match="npm ci"):
        find_anvil()
    packages = tmp_path / "contracts" / "node_modules"
    own = packages / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
    own.parent.mkdir(parents=True)
    own.symlink_to(real)
    script = packages / "@foundry-rs" / "anvil" / "bin.mjs"
    script.parent.mkdir()
    script.write_text("#!/usr/bin/env node\n")
    (packages / ".bin").mkdir()
    (packages / ".bin" / "anvil").symlink_to(script)
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert find_anvil().resolve() == real.resolve()
    monkeypatch.setenv("PATH", str(real.parent))
    assert find_anvil() == real


PARENT = """
import asyncio, pathlib, signal, sys
from ncn_payments.chain.anvil import AnvilChain

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    async with AnvilChain(pathlib.Path(sys.argv[1])) as chain:
        print(chain.url, chain._process.pid, flush=True)
        await stop.wait()
        print(await chain.block_number(), flush=True)

asyncio.run(main())
"""


async def start_parent(folder: Path) -> tuple[asyncio.subprocess.Process, str, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(folder), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    url, pid = (await process.stdout.readline()).decode().split()
    return process, url, int(pid)


async def test_interrupt_of_the_terminal_reaches_the_parent_alone(tmp_path: Path) -> None:
    process, url, _ = await start_parent(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, _ = await process.communicate()
    assert out.decode() == "0\n"  # anvil still answered
    assert process.returncode == 0
    assert not listens(url)


async def test_killed_parent_takes_it_along(tmp_path: Path) -> None:
    process, url, pid = await start_parent(tmp_path)
    ended = asyncio.create_task(asyncio.to_thread(wait_for_end, pid))
    process.kill()
    await process.wait()
    await asyncio.wait_for(ended, 30)
    assert not listens(url)
    assert (tmp_path / "anvil.json").stat().st_size > 0


def wait_for_end(pid: int) -> None:
    """Return when a process that is no child of this one is gone."""
    subprocess.run(["tail", "--pid", str(pid), "-s", "0.05", "-f", "/dev/null"], check=True)
