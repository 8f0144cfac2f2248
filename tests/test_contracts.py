"""The contracts: built, tested, their gas and the artifacts in the wheel compared with what is in git.

Compiling and testing them takes minutes, so it is begun with the session (conftest.py) and looked at here, at its end.
"""

from __future__ import annotations

import os

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_contracts(contracts_check: tuple[int, str] | None) -> None:
    if contracts_check is None:
        assert os.environ.get("TESTS_SKIP") != "forbid", "npm, or contracts/node_modules, is missing"
        pytest.skip("there is no npm, or nothing in contracts/node_modules; tests/prepare.py says why")
    status, said = contracts_check
    assert status == 0, said[-20_000:]
