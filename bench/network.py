"""A network of real processes on free loopback ports, for benchmarks and end-to-end tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Network", "Process", "network"]


@dataclass
class Process:
    """A process and what it has used.

    Attributes:
        name: for the tables.
        pid: of the process; its children are looked up when asked for.
    """

    name: str
    popen: subprocess.Popen[bytes]

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds used so far: of the process, and of its descendants together (``worker``)."""
        ticks = os.sysconf("SC_CLK_TCK")
        used = {self.name: _ticks(self.popen.pid) / ticks}
        if below := descendants(self.popen.pid):
            used["worker"] = sum(map(_ticks, below)) / ticks
        return used

    def rss_bytes(self) -> int:
        """Return the resident memory of the process, without its descendants."""
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return int(fields[11]) + int(fields[12])  # utime, stime (proc(5))


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below ``pid``."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


class Network:
    """A network on free loopback ports; each process is started, ended and started again when asked for.

    Args:
        home: folder of keys, databases and logs.
        models: MODEL_PATH.
        python: interpreter whose plugins are used.
        extra: more environment variables.
    """

    def __init__(
        self, home: Path, models: Path, python: str = sys.executable, extra: Mapping[str, str] | None = None
    ) -> None:
        self.home, self.python = home, python
        self.http_port, websocket, self.grpc_port, self.registry_port, p2p = free_ports(5)
        self.environment = {
            **os.environ,
            "NCN_HOME": str(home),
            "MODEL_PATH": str(models),
            "NCN_GATEWAY_HTTP_PORT": str(self.http_port),
            "NCN_GATEWAY_WEBSOCKET_PORT": str(websocket),
            "NCN_GATEWAY_GRPC_PORT": str(self.grpc_port),
            "GATEWAY_ADDR": f"127.0.0.1:{self.grpc_port}",
            "NCN_REGISTRY_P2P_LISTEN_ADDR": f"127.0.0.1:{p2p}",
            "NCN_REGISTRY_GRPC_LISTEN_ADDR": f"127.0.0.1:{self.registry_port}",
            "NCN_CLIENT_GATEWAY": f"http://127.0.0.1:{self.http_port}",
            "NCN_PAYMENTS_EMBEDDED_URL": f"http://127.0.0.1:{self.http_port}/chain",
            "NCN_GATEWAY_PAYMENT_MODES": "free,voucher,escrow,exact",
            "NCN_LOG_LEVEL": "WARNING",
            **(extra or {}),
        }
        self.processes: list[Process] = []
        self.started_s = 0.0

    @property
    def url(self) -> str:
        """The gateway's HTTP address."""
        return f"http://127.0.0.1:{self.http_port}"

    def start(self, *roles: str, **environment: str) -> Process:
        """Start ``ncn serve ROLES``; its output goes to a log in ``home``."""
        self.home.mkdir(parents=True, exist_ok=True)
        name = "+".join(roles) or "all"
        command = [self.python, "-m", "ncn_framework.cli", "serve", *roles]
        with open(self.home / f"{name}.log", "ab") as log:
            popen = subprocess.Popen(command, env=self.environment | environment, stdout=log, stderr=log)
        process = Process(name, popen)
        self.processes.append(process)
        return process

    def stop(self, process: Process, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Send a signal to ``process``, wait for its end, and return its exit status."""
        process.popen.send_signal(number)
        status = process.popen.wait(timeout_s)
        self.processes.remove(process)
        return status

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Return once the gateway says it is ready; raise if a process ends or the time is over."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for process in self.processes:
                if process.popen.poll() is not None:
                    log = (self.home / f"{process.name}.log").read_text()[-4000:]
                    raise RuntimeError(f"{process.name} ended with status {process.popen.returncode}:\n{log}")
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=1):
                    return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError(f"the network was not ready within {timeout_s} s; its logs are in {self.home}")

    def close(self) -> None:
        """End every process that still runs."""
        for process in self.processes:
            process.popen.terminate()
        for process in self.processes:
            process.popen.wait(30)
        self.processes.clear()


@contextmanager
def network(
    home: Path,
    models: Path,
    roles: tuple[tuple[str, ...], ...] = (("gateway",), ("compute",)),
    extra: Mapping[str, str] | None = None,
) -> Iterator[Network]:
    """Run one process for each tuple of ``roles`` until the context is left; entered when the gateway is ready."""
    running = Network(home, models, extra=extra)
    began = time.perf_counter()
    try:
        for names in roles:
            running.start(*names)
        running.wait_ready()
        running.started_s = time.perf_counter() - began
        yield running
    finally:
        running.close()
