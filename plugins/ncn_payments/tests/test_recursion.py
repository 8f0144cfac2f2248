"""No import of this package leaves a recursion limit behind at which C code overruns the stack."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
{code}
assert {loaded!r} in sys.modules
print(sys.getrecursionlimit())
"""


@pytest.mark.parametrize(
    ("code", "loaded", "most"),
    [
        ("import ncn_payments.chain.evm, ncn_payments.chain.node", "eth", 12_288),
        ("import ncn_payments.chain.provider", "py_ecc", 1_000),
        ("import ncn_payments.chain.provider, ncn_payments.chain.node", "py_ecc", 12_288),
        (
            "import pathlib, tempfile; from ncn_payments.wallet import Wallets\n"
            "Wallets(pathlib.Path(tempfile.mkdtemp())).create('a', 'long enough')",
            "py_ecc",
            1_000,
        ),
    ],
)
def test_limit_after_import(code: str, loaded: str, most: int) -> None:
    program = PROGRAM.format(code=code, loaded=loaded)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= most


def test_deep_json_does_not_end_the_process() -> None:
    program = (
        "import msgspec, sys, ncn_payments.chain.node\n"
        "for text in (b'[' * 200_000, b'{\"a\":' * 200_000):\n"
        "    try: msgspec.json.decode(text)\n"
        "    except RecursionError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\nrefused\n"


@pytest.mark.parametrize("module", ["config", "wallet", "commands.wallet", "commands.chain", "devkeys", "plugin"])
def test_nothing_heavy_is_imported_early(module: str) -> None:
    program = (
        f"import sys, ncn_payments.{module}\n"
        "print([name for name in ('web3', 'eth', 'py_ecc', 'eth_abi', 'eth_account', 'eth_utils', 'httpx', 'rlp')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
