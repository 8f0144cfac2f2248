"""What the tests share: bundled models made once, and programs run in the real jail."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ncn_compute import bundled, interpreter
from ncn_compute.jail import Exit
from ncn_compute.sandbox import open_sandbox
from ncn_framework.models import SandboxSpec

Answer = tuple[list[Any], Exit]
RunInJail = Callable[..., Awaitable[Answer]]

PRELUDE = f"""
import ctypes, json, os, signal, socket, sys
sys.path += {[str(path.parent) for path in interpreter.readable() if path.name.startswith("ncn_")]!r}
out = socket.socket(fileno=int(sys.argv[1]))

def tell(value):
    out.sendall(json.dumps(value).encode() + b"\\n")

def outcome(call, *arguments):
    try:
        return repr(call(*arguments))
    except OSError as error:
        return error.strerror
    except Exception as error:
        return type(error).__name__
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the bundled models."""
    root = tmp_path_factory.mktemp("models")
    for name in bundled.NAMES:
        bundled.materialise(name, root)
    return root


@pytest.fixture
def run_in_jail() -> RunInJail:
    """Return a function that runs Python code in the jail; it returns what the code told, and how it ended."""

    async def run(
        code: str,
        *,
        mode: str = "strict",
        readable: tuple[Path, ...] = (),
        memory_bytes: int = 256 << 20,
        pids: int = 32,
        once: Callable[[Any], None] | None = None,
    ) -> Answer:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            spec = SandboxSpec(
                argv=(sys.executable, "-I", "-B", "-c", PRELUDE + code, str(theirs.fileno())),
                readable=(*interpreter.readable(), *readable),
                pass_fds=(theirs.fileno(),),
                memory_bytes=memory_bytes,
                pids=pids,
                label="test",
            )
            try:
                context = open_sandbox(spec, mode)
                process = await context.__aenter__()
            finally:
                theirs.close()
            try:
                async with asyncio.timeout(30):
                    if once is not None:
                        once(process)
                    text = b""
                    while part := await asyncio.get_running_loop().sock_recv(ours, 65536):
                        text += part
                        if once is not None and b"\n" in text:
                            process.kill()
                    ended = await process.wait()
            finally:
                await context.__aexit__(None, None, None)
        return [json.loads(line) for line in text.splitlines()], ended

    return run


def groups_of_this_process() -> list[Path]:
    """Return the control groups that this process made and that are still there."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    roots = [Path(line.split()[4]) for line in lines if "cgroup" in line]
    return [path for root in roots for path in root.rglob(f"ncn-{os.getpid()}-*")]


@pytest.fixture
def nothing_left() -> Any:
    """Check afterwards that no control group and no open descriptor is left that was not there before."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert groups_of_this_process() == []
    assert len(os.listdir("/proc/self/fd")) <= before
