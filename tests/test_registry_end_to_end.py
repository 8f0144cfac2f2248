"""Registries as real processes: who is at one is known at the other, found by it, and gone when it dies."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.network import Network, Process, free_ports
from ncn_client import Client

pytestmark = pytest.mark.e2e

HEARTBEAT = {"NCN_REGISTRY_HEARTBEAT_INTERVAL_MS": "500"}


@dataclass
class Registries:
    """Two registries that know each other, each in a process and a home of its own.

    Attributes:
        running: whose gateway and compute node are started when a test asks for them.
        targets: HOST:PORT of their gRPC.
    """

    running: Network
    targets: list[str]
    processes: list[Process]

    def start(self, role: str, at: int, **environment: str) -> Process:
        """Start a role that uses the registry ``at``."""
        return self.running.start(role, REGISTRY_GRPC_ADDR=self.targets[at], **HEARTBEAT, **environment)

    def ask(self, *arguments: str, at: int) -> Any:
        """Return what a command answers about the registry ``at``."""
        command = [self.running.python, "-m", "ncn_framework.cli", *arguments, "--at", self.targets[at], "--json"]
        done = subprocess.run(
            command, env=self.running.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    def known(self) -> list[dict[str, Any]]:
        """Return the nodes that the gateway's registry told it of."""
        try:
            found = httpx.get(f"{self.running.url}/api/v1/nodes", timeout=5)
        except httpx.TransportError:
            return []
        return found.json() if found.status_code == 200 else []


def until(condition: Callable[[], Any], running: Network, within_s: float = 60) -> Any:
    """Wait for a state of other processes."""
    end = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > end:
            logs = {path.name: path.read_text()[-2000:] for path in running.home.glob("*.log")}
            pytest.fail(f"it did not come to pass within {within_s} s; the logs say {logs}")
        time.sleep(0.02)
    return found


def _said(log: Path, pattern: re.Pattern[str]) -> re.Match[str] | None:
    return pattern.search(log.read_text())


@pytest.fixture
def registries(models: Path, tmp_path: Path) -> Iterator[Registries]:
    """Return two registries, of which the second was told of the first."""
    running = Network(tmp_path / "home", models)
    processes, targets, bootstrap = list[Process](), list[str](), ""
    try:
        for name in ("one", "two"):
            p2p, grpc = free_ports(2)
            process = running.start(
                "registry",
                NCN_HOME=str(tmp_path / name),
                NCN_REGISTRY_P2P_LISTEN_ADDR=f"127.0.0.1:{p2p}",
                NCN_REGISTRY_GRPC_LISTEN_ADDR=f"127.0.0.1:{grpc}",
                NCN_REGISTRY_BOOTSTRAP=bootstrap,
                **HEARTBEAT,
            )
            processes.append(process)
            targets.append(f"127.0.0.1:{grpc}")
            log, said = running.home / "registry.log", re.compile(rf"p2p (/ip4/127.0.0.1/tcp/{p2p}/p2p/\w+)")
            bootstrap = until(partial(_said, log, said), running)[1]
        made = Registries(running, targets, processes)
        until(lambda: len(made.ask("registry", "peers", at=0)) == 1, running)
        yield made
    finally:
        running.close()


def test_a_node_at_one_registry_is_found_by_the_gateway_of_another(registries: Registries) -> None:
    """Nobody told the node where the gateway is; it answers a request that is paid for, and is gone when it dies."""
    running = registries.running
    registries.start("gateway", at=0)
    compute = registries.start("compute", at=1, GATEWAY_ADDR="", NCN_COMPUTE_FIND_GATEWAYS="1")
    (node,) = until(registries.known, running)
    assert "mlp" in {model["name"] for model in node["models"]}
    assert [row["node"] for row in registries.ask("node", "list", at=0)] == [node["node"]]
    assert registries.ask("node", "show", node["node"], at=1)["alive"] is True
    kinds = [row["kind"] for row in registries.ask("registry", "records", at=1) if row["kind"] != "validator"]
    assert sorted(kinds) == ["gateway", "node", "registry", "registry"]
    running.wait_ready()
    with Client(running.url) as client:
        answer = client.infer("mlp", {"x": [0.5] * 256})
    assert "0x" + answer.receipt.receipt.node.hex() == node["node"].lower()
    running.stop(compute, signal.SIGKILL)
    until(lambda: not registries.known(), running)
    assert registries.ask("node", "show", node["node"], at=0)["alive"] is False
    registries.start("compute", at=1, GATEWAY_ADDR="", NCN_COMPUTE_FIND_GATEWAYS="1")
    until(registries.known, running)


def test_a_registry_that_dies_is_missed_by_nobody(registries: Registries) -> None:
    """Killed and started again, it has its records; nodes and gateways come back to it by themselves."""
    running = registries.running
    registries.start("gateway", at=0)
    registries.start("compute", at=1)
    (node,) = until(registries.known, running)
    running.wait_ready()
    running.stop(registries.processes[0], signal.SIGKILL)
    with Client(running.url) as client:
        assert client.infer("mlp", {"x": [0.5] * 256}).outputs
        assert registries.ask("node", "list", at=1)
        assert "cannot be reached" in registries.ask("node", "list", at=0)
        running.start(
            "registry",
            NCN_HOME=str(running.home.parent / "one"),
            NCN_REGISTRY_P2P_LISTEN_ADDR=f"127.0.0.1:{free_ports(1)[0]}",
            NCN_REGISTRY_GRPC_LISTEN_ADDR=registries.targets[0],
            **HEARTBEAT,
        )
        found = until(lambda: registries.ask("node", "show", node["node"], at=0), running)
        until(lambda: isinstance(registries.ask("registry", "records", "--kind", "gateway", at=0), list), running)
        until(lambda: len(registries.ask("registry", "records", "--kind", "gateway", at=0)) == 1, running)
        assert client.infer("mlp", {"x": [0.5] * 256}).outputs
    assert found


def test_every_process_stops_when_told(registries: Registries) -> None:
    gateway, compute = registries.start("gateway", at=0), registries.start("compute", at=1)
    until(registries.known, registries.running)
    for process in (compute, gateway, *registries.processes):
        assert registries.running.stop(process) == 0
