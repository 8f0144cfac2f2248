"""Fixtures of the tests that cross packages: model folders and networks of real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.network import Network, network
from ncn_compute.bundled import materialise
from ncn_compute.manifest import build, save
from ncn_framework.tensors import TensorSpec


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
