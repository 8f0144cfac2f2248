"""Other servers beside ours: started from a Python of their own, asked the same, in the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .network import free_ports

__all__ = ["PEERS", "peers"]

PEERS = {"litserve": Path(__file__).with_name("litserve_server.py")}
"""Name, which is the package to install, to the program that serves the model of W1."""

_CONFIGURATIONS = ("default", "best")


@contextmanager
def peers(name: str | None, python: str = sys.executable) -> Iterator[dict[str, int]]:
    """Run each configuration of a peer until the context is left.

    Args:
        name: of ``PEERS``; None: no peer.
        python: of the environment in which the peer is installed.

    Yields:
        Row's name to port.
    """
    with ExitStack() as stack:
        found = {}
        if name is not None:
            _require(name, python)
            for configuration in _CONFIGURATIONS:
                found[f"{name} {configuration}"] = stack.enter_context(_served(name, python, configuration))
        yield found


def _require(package: str, python: str) -> None:
    command = [python, "-c", f"import torch, {package}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{python} cannot import {package}: {done.stderr.strip().splitlines()[-1]}; install it there, or in a "
            f"new environment that --peer-python names: {python} -m pip install {package} torch"
        )


@contextmanager
def _served(name: str, python: str, configuration: str) -> Iterator[int]:
    (port,) = free_ports(1)
    command = [python, str(PEERS[name]), str(port), configuration]
    # in a process group of its own: it starts processes that outlive it
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait(port, process, f"{name} {configuration}")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], what: str, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{what} ended with status {process.returncode}; run its program by hand to see why")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{what} was not ready within {timeout_s:g} s")
