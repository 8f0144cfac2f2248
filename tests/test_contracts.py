"""The contracts: built, tested, their gas and the artifacts in the wheel compared with what is in git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CONTRACTS = Path(__file__).parent.parent / "contracts"


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_contracts() -> None:
    if shutil.which("npm") is None or not (CONTRACTS / "node_modules").exists():
        assert os.environ.get("TESTS_SKIP") != "forbid", "npm, or contracts/node_modules, is missing"
        pytest.skip("there is no npm, or nothing in contracts/node_modules; tests/prepare.py says why")
    done = subprocess.run(
        ["npm", "run", "check"], cwd=CONTRACTS, capture_output=True, text=True, check=False, timeout=1_100
    )
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
