"""A subnet in real processes: paid for, signed by validators, joined by a node that fetches its model and serves it."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.network import Network, free_ports
from ncn_client import Client
from ncn_framework.errors import NcnError

pytestmark = pytest.mark.e2e

HEARTBEAT = {"NCN_REGISTRY_HEARTBEAT_INTERVAL_MS": "500"}


class Folder(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def source(models: Path) -> Iterator[str]:
    """Serve the folder of models over HTTP."""
    handler = partial(Folder, directory=str(models))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/mlp/"
        server.shutdown()
        thread.join()


def until(condition: Callable[[], Any], running: Network, within_s: float = 60) -> Any:
    """Wait for a state of other processes."""
    end = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > end:
            logs = {path.name: path.read_text()[-2000:] for path in running.home.glob("*.log")}
            pytest.fail(f"it did not come to pass within {within_s} s; the logs say {logs}")
        time.sleep(0.05)
    return found


def said(running: Network, *arguments: str, status: int = 0, env: Mapping[str, str] | None = None) -> str:
    """Return what a command prints."""
    done = subprocess.run(
        [running.python, "-m", "ncn_framework.cli", *arguments],
        env={**running.environment, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return done.stdout if status == 0 else done.stderr


def shown(running: Network, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
    return json.loads(said(running, *arguments, "--json", env=env))


@pytest.fixture
def running(models: Path, tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path / "home", models)
    try:
        yield made
    finally:
        made.close()


def test_a_subnet_from_its_fee_to_an_answer(running: Network, source: str, models: Path, tmp_path: Path) -> None:
    targets, bootstrap = [], ""
    for name in ("one", "two"):
        p2p, grpc = free_ports(2)
        targets.append(f"127.0.0.1:{grpc}")
        running.start(
            "registry",
            NCN_HOME=str(tmp_path / name),
            NCN_REGISTRY_P2P_LISTEN_ADDR=f"127.0.0.1:{p2p}",
            NCN_REGISTRY_GRPC_LISTEN_ADDR=targets[-1],
            NCN_REGISTRY_BOOTSTRAP=bootstrap,
            **HEARTBEAT,
        )
        log, pattern = running.home / "registry.log", re.compile(rf"p2p (/ip4/127.0.0.1/tcp/{p2p}/p2p/\w+)")
        bootstrap = until(partial(_in_log, log, pattern), running)[1]
    running.start("gateway", REGISTRY_GRPC_ADDR=targets[0], **HEARTBEAT)
    until(lambda: shown(running, "registry", "records", "--kind", "gateway", "--at", targets[1]), running)

    made = shown(running, "subnet", "create", "first", "--yes", "--at", targets[0])
    assert made["signers"] >= 3
    assert made["fee_transaction"]
    assert "already" in said(running, "subnet", "create", "second", "--yes", "--at", targets[0], status=1)
    listed = shown(running, "subnet", "add-model", str(models / "mlp"), "--source", source, "--at", targets[0])
    assert [model["name"] for model in listed["models"]] == ["mlp"]
    (found,) = until(lambda: shown(running, "subnet", "list", "--at", targets[1]), running)
    assert found["id"] == made["id"]
    until(lambda: shown(running, "subnet", "list", "--at", targets[1])[0]["version"] == listed["version"], running)

    node = {"NCN_HOME": str(tmp_path / "node"), "MODEL_PATH": ""}
    joined = {"GATEWAY_ADDR": "", "NCN_COMPUTE_SUBNETS": "first", **node}
    running.start("compute", REGISTRY_GRPC_ADDR=targets[1], **joined, **HEARTBEAT)
    members = partial(shown, running, "subnet", "members", "first", "--at", targets[0])
    until(lambda: [row["models"][0]["name"] for row in members() if row["models"]] == ["mlp"], running)
    with Client(running.url) as client:
        answer = until(lambda: _answer(client), running)
    assert "0x" + answer.receipt.receipt.node.hex() == members()[0]["node"].lower()
    (folder,) = (tmp_path / "node" / "models").glob("mlp-*")
    assert "there already" in said(running, "models", "sync", "first", "--at", targets[1], env=node)
    assert (folder / "manifest.json").is_file()
    refused = said(running, "subnet", "leave", "first", "--at", targets[0], status=2, env=joined)
    assert "compute.subnets" in refused
    said(running, "subnet", "delete", "--yes", "--at", targets[0])
    until(lambda: shown(running, "subnet", "list", "--at", targets[1]) == [], running)


def _in_log(log: Path, pattern: re.Pattern[str]) -> re.Match[str] | None:
    return pattern.search(log.read_text())


def _answer(client: Client) -> Any:
    try:
        return client.infer("mlp", {"x": [0.5] * 256})
    except NcnError:
        return None


def test_models_are_synced_by_a_command(running: Network, source: str, models: Path, tmp_path: Path) -> None:
    """The whole network in one process; the node's operator fetches what the subnet lists."""
    running.start(NCN_REGISTRY_GRPC_LISTEN_ADDR=f"127.0.0.1:{running.registry_port}")
    running.wait_ready()
    at = ("--at", f"127.0.0.1:{running.registry_port}")
    said(running, "subnet", "create", "small", "--yes", *at)
    said(running, "subnet", "add-model", str(models / "mlp"), "--source", source, *at)
    node = {"NCN_HOME": str(tmp_path / "node"), "MODEL_PATH": ""}
    assert "has joined subnet small" in said(running, "subnet", "join", "small", *at, env=node)
    (row,) = shown(running, "models", "sync", "small", *at, env=node)
    assert row["fetched"] is True
    assert "mlp" in said(running, "models", "list", env=node)
    said(running, "models", "verify", env=node)
    said(running, "subnet", "add-model", str(models / "mlp"), "--source", "http://127.0.0.1:1/none", *at)
    for path in (tmp_path / "node" / "models").glob("mlp-*/model.safetensors"):
        path.write_bytes(b"damaged")
    assert "not fetched" in said(running, "models", "sync", "small", *at, status=1, env=node)
