"""Fixtures of the tests that cross packages: model folders and networks of real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from bench.network import Network, network
from ncn_compute.bundled import materialise
from ncn_compute.manifest import build, save
from ncn_framework.tensors import TensorSpec

CONTRACTS = Path(__file__).parent.parent / "contracts"
CHECK = pytest.StashKey[tuple[subprocess.Popen[bytes], IO[bytes]]]()
"""The check of the contracts that goes on beside the other tests, and what it says."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the contracts' test last."""
    items.sort(key=lambda item: item.name == "test_contracts")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin the check of the contracts, where its test is among those to run and its tools are there."""
    wanted = any(item.name == "test_contracts" for item in session.items)
    there = shutil.which("npm") is not None and (CONTRACTS / "node_modules").exists()
    if wanted and there and not session.config.option.collectonly:
        command = ["nice", "-n", "10", "npm", "run", "check"]
        said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the check has ended
        check = subprocess.Popen(command, cwd=CONTRACTS, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        session.stash[CHECK] = check, said


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End a check that nobody waited for."""
    check, _ = session.stash.get(CHECK, (None, None))
    if check is not None and check.poll() is None:
        os.killpg(check.pid, signal.SIGTERM)
        check.wait()


@pytest.fixture
def contracts_check(request: pytest.FixtureRequest) -> tuple[int, str] | None:
    """Exit status and output of the check of the contracts, once it has ended; None where its tools are not here."""
    check, said = request.session.stash.get(CHECK, (None, None))
    if check is None or said is None:
        return None
    status = check.wait(1_100)
    said.seek(0)
    return status, said.read().decode(errors="replace")


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
