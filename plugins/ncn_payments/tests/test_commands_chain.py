"""``ncn chain`` as it is typed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ncn_framework.errors import ChainError, ConfigError
from ncn_framework.signing import Signer, address_hex
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.commands import opening
from ncn_payments.commands.chain import chain
from ncn_payments.config import PaymentsSettings
from ncn_payments.deployment import Addresses, Parameters, addresses_of
from ncn_payments.devkeys import accounts, development_signer
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.wallet import Wallets

CLIENT_KEY = "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(opening, "_ONE_TRY_MS", 10)
    monkeypatch.setenv("NCN_PAYMENTS_EMBEDDED_URL", "http://127.0.0.1:1/chain")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def start(home: Path, *, deployed: bool) -> None:
    async def go() -> None:
        async with EmbeddedChain(home / "chain") as opened:
            if deployed:
                await DevelopmentNetwork(opened, PaymentsSettings(), home).prepare()

    asyncio.run(go())


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(chain, arguments, input=stdin)


def fine(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_deploy_for_development(home: Path) -> None:
    start(home, deployed=False)
    lines = dict(line.split() for line in fine("deploy").splitlines())
    expected = DevelopmentNetwork.addresses()
    assert lines["payment"] == address_hex(expected.payment)
    assert Addresses.load(home / "deployments" / "31337.json", 31337).payment == expected.payment
    again = json.loads(fine("deploy", "--json"))
    assert again == Addresses.load(home / "deployments" / "31337.json", 31337).as_json()


@pytest.mark.parametrize("source", ["environment", ".env", "wallet"])
def test_deploy_with_an_own_key(home: Path, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start(home, deployed=False)
    monkeypatch.setenv("THRESHOLD", "2")
    arguments = ["deploy", "--json"]
    if source == "environment":
        monkeypatch.setenv("PRIVATE_KEY", CLIENT_KEY)
    elif source == ".env":
        (tmp_path / ".env").write_text(f"PRIVATE_KEY={CLIENT_KEY}\n")
    else:
        import eth_keyfile.keyfile as module

        monkeypatch.setattr(module, "get_default_work_factor_for_kdf", lambda kdf: 2)
        monkeypatch.setenv("NCN_WALLET_PASSWORD", "correct horse")
        Wallets(home).create("owner", "correct horse", bytes.fromhex(CLIENT_KEY[2:]))
        arguments += ["--wallet", "owner"]
    owner = development_signer("client", 31337).address
    assert Signer.from_hex(CLIENT_KEY).address == owner
    parameters = Parameters.from_environment({"THRESHOLD": "2"}, owner, 31337)
    row = json.loads(fine(*arguments))
    assert row["payment"] == address_hex(addresses_of(parameters, 31337).payment)


def test_deploy_elsewhere_takes_a_key_and_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_CHAIN_ID", "5")
    monkeypatch.setenv("RPC_URL", "http://127.0.0.1:1/SECRET")
    result = run("deploy")
    assert isinstance(result.exception, ConfigError)
    assert "--wallet NAME, or set PRIVATE_KEY" in str(result.exception)
    monkeypatch.setenv("PRIVATE_KEY", CLIENT_KEY)
    result = run("deploy")
    assert isinstance(result.exception, ConfigError)
    assert "PROPOSERS" in str(result.exception)
    monkeypatch.setenv("PROPOSERS", address_hex(accounts()["treasury"]))
    result = run("deploy", stdin="n\n")  # whoever is asked says no
    assert result.exit_code == 1
    assert "Deploy with the key of" in result.stderr
    assert "SECRET" not in result.output
    assert CLIENT_KEY[2:] not in result.output
    monkeypatch.setenv("NCN_PAYMENTS_RPC_PATIENCE_MS", "10")
    result = run("deploy", "--yes")
    assert isinstance(result.exception, ChainError)
    assert "SECRET" not in str(result.exception)


def test_status(home: Path) -> None:
    start(home, deployed=True)
    result = run("status")
    assert result.exit_code == 0
    assert result.stdout.count("as built") == 5
    assert "epoch 1, 5 validators, 3 make a quorum" in result.stdout
    assert result.stdout.count("20000 NCN  reputation 0") == 5
    assert "treasury 0 NCN, validator pool 0 NCN, held 0 NCN" in result.stdout
    assert result.stderr == ""
    found = json.loads(fine("status", "--json"))
    assert found["problems"] == []
    assert found["contracts"]["NCNToken"]["matches"]
    assert found["parameters"]["minStake"] == 10_000 * 10**18


def test_status_where_something_is_missing(home: Path) -> None:
    start(home, deployed=False)
    result = run("status")
    assert result.exit_code == 1
    assert result.stdout.count("MISSING") == 5
    assert result.stderr.count("PROBLEM: ") == 5
    result = run("status", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["problems"]) == 5


def test_status_without_a_chain() -> None:
    result = run("status")
    assert isinstance(result.exception, ChainError)
    assert "ncn serve" in str(result.exception)


def test_help_says_what_can_be_set() -> None:
    from ncn_payments.deployment import _VARIABLES

    text = fine("deploy", "--help")
    for variable in _VARIABLES.values():
        assert variable in text
