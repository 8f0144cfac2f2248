"""The probe: tries from inside the jail what the jail must refuse, and reports over the inherited socket.

It writes one JSON line with what it saw, waits for a line, then takes memory without end and reports if it can.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from ncn_compute import landlock, seccomp

__all__ = ["main"]

_TOO_MANY_THREADS = 64
_BOMB_BYTES = 512 << 20


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return True
    return False


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _count_threads() -> int:
    """Start threads until the system refuses; return how many there were, this one included."""
    threading.stack_size(256 << 10)  # else the memory limit ends the count before the limit on threads does
    release = threading.Event()
    threads: list[threading.Thread] = []
    try:
        while len(threads) < _TOO_MANY_THREADS:
            thread = threading.Thread(target=release.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        pass
    finally:
        release.set()
        for thread in threads:
            thread.join()
    return len(threads) + 1


def _look() -> dict[str, object]:
    return {
        "user": _refused(lambda: os.setuid(0)) and os.getuid() != 0,
        "user_detail": f"uid {os.getuid()} inside",
        "mount": not os.path.exists("/etc/passwd") and _refused(lambda: os.mkdir("/probe")),
        "mount_detail": f"{sorted(os.listdir('/'))} at the root",
        "net": _refused(socket.socket),
        "net_detail": "no socket can be made",
        "pid": os.getpid() < 10,
        "pid_detail": f"process {os.getpid()} inside",
        "ipc": True,
        "ipc_detail": "compared from outside",
        "threads": _count_threads(),
    }


def main(arguments: Sequence[str]) -> None:
    """Run the probe.

    Args:
        arguments: the number of the socket's descriptor.
    """
    control = socket.socket(fileno=int(arguments[0]))
    seen = _look()
    version = landlock.restrict()
    seen["landlock"] = version > 0 and _refused(lambda: open("/tmp/probe", "w"))  # noqa: SIM115
    seen["forked_before"] = not _refused(_fork)
    seccomp.install(seccomp.program(seccomp.Stage.WORKER))
    seen["seccomp"] = _refused(_fork) and _refused(socket.socket) and _refused(lambda: os.execv("/", ["/"]))
    seen["seccomp_detail"] = "fork, socket and exec are refused" if seen["seccomp"] else "a call was not refused"
    control.sendall(json.dumps(seen).encode() + b"\n")
    control.recv(16)
    try:
        bomb = mmap.mmap(-1, _BOMB_BYTES)
        for offset in range(0, _BOMB_BYTES, mmap.PAGESIZE):
            bomb[offset] = 1
        outcome = "taken"
    except (MemoryError, OSError):
        outcome = "refused"
    control.sendall(json.dumps({"memory": outcome}).encode() + b"\n")
    sys.exit(0)
