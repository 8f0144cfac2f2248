"""``ncn wallet`` as it is typed; no key and no password in anything that is printed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ncn_framework.errors import ChainError, ConfigError, NcnError, WalletError
from ncn_framework.signing import Signer, address_hex
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.commands import opening
from ncn_payments.commands.wallet import wallet
from ncn_payments.config import PaymentsSettings
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.wallet import Wallets

KEY = bytes(range(1, 33))
ADDRESS = address_hex(Signer(KEY).address)
PASSWORD = "correct horse"
printed: list[str] = []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import eth_keyfile.keyfile as module

    monkeypatch.setattr(module, "get_default_work_factor_for_kdf", lambda kdf: 2)
    monkeypatch.setattr(opening, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(opening, "_ONE_TRY_MS", 10)
    monkeypatch.setenv("NCN_PAYMENTS_EMBEDDED_URL", "http://127.0.0.1:1/chain")
    monkeypatch.chdir(tmp_path)
    printed.clear()
    yield
    text = "".join(printed)
    for secret in (KEY.hex(), KEY.hex().upper(), PASSWORD):
        assert secret not in text


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def network(home: Path) -> None:
    """Leave a development network behind, with no process that runs it."""

    async def prepare() -> None:
        async with EmbeddedChain(home / "chain") as chain:
            await DevelopmentNetwork(chain, PaymentsSettings(), home).prepare()

    asyncio.run(prepare())


def run(*arguments: str, stdin: str = "", command: click.Command = wallet) -> Result:
    result = CliRunner().invoke(command, arguments, input=stdin)
    printed.extend((result.output, str(result.exception)))
    return result


def fine(*arguments: str, stdin: str = "") -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def failed(*arguments: str, stdin: str = "", error: type[NcnError] = WalletError) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 1
    assert isinstance(result.exception, error), result.exception
    return str(result.exception)


def typed(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


# --- create and import ---


def test_create(home: Path) -> None:
    result = fine("create", "alice", stdin=typed(PASSWORD, PASSWORD))
    assert "Password of the new wallet 'alice'" in result.stderr
    assert "without it the key is lost" in result.stderr
    made = Wallets(home).find("alice")
    assert result.stdout == f"alice  {address_hex(made.address)}  {made.path}\n"
    assert Wallets(home).unlock("alice", PASSWORD).address == made.address
    assert "exists already" in failed("create", "alice")  # before a password is asked for


def test_create_asks_again_when_the_two_differ(home: Path) -> None:
    fine("create", "alice", stdin=typed(PASSWORD, "something else", PASSWORD, PASSWORD))
    Wallets(home).unlock("alice", PASSWORD)


def test_create_without_anybody_to_ask() -> None:
    assert "NCN_WALLET_PASSWORD or --password-file" in failed("create", "alice")


def test_password_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_WALLET_PASSWORD", PASSWORD)
    row = json.loads(fine("create", "alice", "--json").stdout)
    assert row == {"name": "alice", "address": row["address"], "path": str(home / "wallets" / "alice.json")}
    Wallets(home).unlock("alice", PASSWORD)


def test_password_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_WALLET_PASSWORD", "of the environment")  # the flag is stronger
    file = tmp_path / "password"
    for content in (f"{PASSWORD}\nsecond line\n", f"{PASSWORD}\r\n", PASSWORD):
        file.write_text(content)
        fine("create", f"w{len(content)}", "--password-file", str(file))
        Wallets(home).unlock(f"w{len(content)}", PASSWORD)
    file.write_bytes(b"\xff\xfe")
    assert "cannot be read" in failed("create", "x", "--password-file", str(file))


@pytest.mark.parametrize("text", [KEY.hex(), "0x" + KEY.hex().upper(), f"  {KEY.hex()}  "])
def test_import_a_key(home: Path, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fine("import", "typed", stdin=typed(text, PASSWORD, PASSWORD))
    monkeypatch.setenv("NCN_WALLET_PASSWORD", PASSWORD)
    fine("import", "stdin", "--key-file", "-", stdin=typed(text))
    (tmp_path / "key").write_text(text + "\n")
    fine("import", "file", "--key-file", str(tmp_path / "key"))
    for name in ("typed", "stdin", "file"):
        assert address_hex(Wallets(home).unlock(name, PASSWORD).address) == ADDRESS


@pytest.mark.parametrize("text", ["", "12", "zz" * 32, KEY.hex() + "00", "00" * 32])
def test_import_no_key(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_WALLET_PASSWORD", PASSWORD)
    message = failed("import", "a", "--key-file", "-", stdin=typed(text), error=NcnError)
    assert "private key" in message
    assert not text or text not in message


def test_import_a_keystore(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Wallets(tmp_path / "other").create("theirs", "their password", KEY)
    fine("import", "mine", "--keystore", str(other.path), stdin=typed("their password", PASSWORD, PASSWORD))
    assert address_hex(Wallets(home).unlock("mine", PASSWORD).address) == ADDRESS
    (tmp_path / "theirs").write_text("their password\n")
    monkeypatch.setenv("NCN_WALLET_PASSWORD", PASSWORD)
    keystore = ("--keystore", str(other.path), "--keystore-password-file", str(tmp_path / "theirs"))
    fine("import", "again", *keystore)
    Wallets(home).unlock("again", PASSWORD)
    assert "password is wrong" in failed("import", "x", "--keystore", str(other.path), stdin=typed("wrong one"))
    assert run("import", "x", "--key-file", "-", *keystore).exit_code == 2


# --- list, show, fund ---


def test_list(home: Path) -> None:
    assert fine("list").stdout == ""
    assert json.loads(fine("list", "--json").stdout) == []
    made = [Wallets(home).create(name, PASSWORD) for name in ("bob", "alice")]
    lines = fine("list").stdout.splitlines()
    assert [line.split() for line in lines] == [[one.name, address_hex(one.address)] for one in reversed(made)]
    assert json.loads(fine("list", "--json").stdout)[1] == {"name": "bob", "address": address_hex(made[0].address)}


def test_show_without_a_chain(home: Path) -> None:
    Wallets(home).create("alice", PASSWORD, KEY)
    result = fine("show", "alice")
    assert ADDRESS in result.stdout
    assert "its balances are not known" in result.stderr
    assert json.loads(fine("show", "alice", "--json").stdout) == {
        "name": "alice",
        "address": ADDRESS,
        "path": str(home / "wallets" / "alice.json"),
    }
    assert "no wallet 'bob'" in failed("show", "bob")


@pytest.mark.usefixtures("network")
def test_fund_and_show(home: Path) -> None:
    Wallets(home).create("alice", PASSWORD, KEY)
    fine("fund", "alice", "--ether", "1.5", "--ncn", "2.25")
    rows = json.loads(fine("show", "alice", "--json").stdout)
    assert (rows["ether_wei"], rows["token_wei"]) == ("1500000000000000000", "2250000000000000000")
    assert fine("fund", ADDRESS).stdout == f"{ADDRESS} got 10 ETH and 10000 NCN\n"
    lines = fine("show", "alice").stdout.splitlines()
    assert lines[-2:] == ["ether    11.5 ETH", "token    10002.25 NCN"]


def test_fund_without_a_network(home: Path) -> None:
    message = failed("fund", ADDRESS, error=ChainError)
    assert "ncn serve" in message


def test_fund_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_CHAIN_ID", "1")
    assert "chain id 1 is no development network" in failed("fund", ADDRESS, error=ConfigError)


@pytest.mark.parametrize("arguments", [("0x12",), (ADDRESS, "--ether", "-1"), (ADDRESS, "--ncn", "1e5")])
def test_fund_bad_arguments(arguments: tuple[str, ...]) -> None:
    assert run("fund", *arguments).exit_code == 2
