"""Fixtures of the tests that cross packages: model folders and networks of real processes."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.network import Network, network
from ncn_compute.bundled import materialise
from ncn_compute.manifest import build, save
from ncn_framework.tensors import TensorSpec

CONTRACTS = Path(__file__).parent.parent / "contracts"
CHECK = pytest.StashKey["subprocess.Popen[bytes]"]()
"""The check of the contracts that goes on beside the tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the contracts' test last."""
    items.sort(key=lambda item: item.name == "test_contracts")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where one process runs the tests: begin the check of the contracts."""
    if not hasattr(session.config, "workerinput") and not session.config.option.collectonly:
        _begin_check(session.config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Where several do: begin it once, in the process that they answer to."""
    if CHECK not in node.config.stash:
        _begin_check(node.config, ids)


def _begin_check(config: pytest.Config, ids: Sequence[str]) -> None:
    """Begin the check, where its test is among those to run and its tools are there."""
    wanted = any(name.endswith("::test_contracts") for name in ids)
    there = shutil.which("npm") is not None and (CONTRACTS / "node_modules").exists()
    if wanted and there:
        said = _said(config.rootpath, os.getpid())
        said.parent.mkdir(exist_ok=True)
        script = f"npm run check > {shlex.quote(str(said))} 2>&1; echo $? > {shlex.quote(str(said) + '.status')}"
        command = ["nice", "-n", "10", "sh", "-c", script]
        config.stash[CHECK] = subprocess.Popen(command, cwd=CONTRACTS, start_new_session=True)


def _said(root: Path, process: int) -> Path:
    """Return where the check that ``process`` began says what it finds."""
    return root / ".ncn" / f"contracts-check-{process}.log"


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a check that nobody waited for, and remove what it said."""
    check = config.stash.get(CHECK, None)
    if check is None:
        return
    if check.poll() is None:
        os.killpg(check.pid, signal.SIGTERM)
        check.wait()
    said = _said(config.rootpath, os.getpid())
    for path in (said, said.with_name(said.name + ".status")):
        path.unlink(missing_ok=True)


@pytest.fixture
def contracts_check(request: pytest.FixtureRequest) -> tuple[int, str] | None:
    """Exit status and output of the check of the contracts, once it has ended; None where its tools are not here."""
    several = hasattr(request.config, "workerinput")
    said = _said(request.config.rootpath, os.getppid() if several else os.getpid())
    status = said.with_name(said.name + ".status")
    until = time.monotonic() + 1_100
    while said.exists() and not (status.exists() and status.read_text().strip()):
        assert time.monotonic() < until, "the check of the contracts does not end"
        time.sleep(0.5)
    return (int(status.read_text()), said.read_text(errors="replace")) if said.exists() else None


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with the two bundled models and one of kind ``echo``."""
    root = tmp_path_factory.mktemp("models")
    os.chmod(root, 0o755)
    for name in ("minilm", "mlp"):
        materialise(name, root)
    echo = root / "echo"
    echo.mkdir()
    (echo / "README").write_text("Says each word of its input again.\n")
    text, word = TensorSpec("text", "BYTES", (-1,)), TensorSpec("word", "BYTES", (1,))
    save(echo, build(echo, name="echo", runtime="echo", inputs=[text], outputs=[word]))
    return root


@pytest.fixture(scope="session")
def two_processes(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Return a running gateway and compute node, one process each; for tests that leave both alive."""
    with network(tmp_path_factory.mktemp("home"), models) as running:
        yield running
