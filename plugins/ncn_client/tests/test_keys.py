"""Keys of the commands: wallets, and the development network's client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ncn_client.keys import development_key, open_wallet
from ncn_framework.errors import ConfigError, WalletError

from .fakes import CLIENT, OTHER
from .wallets import make_wallet

KEY = b"\x33" * 32


def never() -> str:
    raise AssertionError("the password was asked for")


def test_a_wallet_opens(tmp_path: Path) -> None:
    make_wallet(tmp_path, "alice", KEY, "secret")
    assert open_wallet(tmp_path, "alice", lambda: "secret").address == CLIENT.address
    with pytest.raises(WalletError, match="'alice': the password is wrong") as caught:
        open_wallet(tmp_path, "alice", lambda: "Secret")
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["", "0x" + CLIENT.address.hex().upper(), CLIENT.address.hex()])
def test_addresses_that_fit(tmp_path: Path, address: str) -> None:
    make_wallet(tmp_path, "alice", KEY, "secret", address=address)
    assert open_wallet(tmp_path, "alice", lambda: "secret").address == CLIENT.address


def test_a_wallet_that_says_it_is_another(tmp_path: Path) -> None:
    make_wallet(tmp_path, "alice", KEY, "secret", address=OTHER.address.hex())
    with pytest.raises(WalletError, match="its key is of"):
        open_wallet(tmp_path, "alice", lambda: "secret")


@pytest.mark.parametrize("name", ["", "../alice", "a/b", ".hidden", "x" * 65])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(WalletError, match="no name"):
        open_wallet(tmp_path, name, never)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "`ncn wallet create`"),
        (b"not json", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b"[]", "version 3"),
        (b'{"version": 4}', "version 3"),
        (b" " * 70_000 + b"{}", "version 3"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, what: str) -> None:
    if content is not None:
        (tmp_path / "wallets").mkdir()
        (tmp_path / "wallets" / "alice.json").write_bytes(content)
    with pytest.raises(WalletError, match=what):
        open_wallet(tmp_path, "alice", never)


@pytest.mark.parametrize("crypto", [{}, {"kdf": "none"}, {"kdf": "scrypt", "kdfparams": {}}, 7])
def test_a_damaged_wallet(tmp_path: Path, crypto: Any) -> None:
    make_wallet(tmp_path, "alice", KEY, "secret", crypto=crypto)
    with pytest.raises(WalletError, match="damaged"):
        open_wallet(tmp_path, "alice", lambda: "secret")


def test_a_wallet_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "wallets" / "alice.json").mkdir(parents=True)
    with pytest.raises(WalletError, match="cannot be read"):
        open_wallet(tmp_path, "alice", never)


def test_the_recursion_limit_stays(tmp_path: Path) -> None:
    make_wallet(tmp_path, "alice", KEY, "secret")
    code = (
        "import sys, pathlib; from ncn_client.keys import open_wallet; before = sys.getrecursionlimit(); "
        f"open_wallet(pathlib.Path({str(tmp_path)!r}), 'alice', lambda: 'secret'); "
        "assert 'py_ecc' in sys.modules; assert sys.getrecursionlimit() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_development_client(tmp_path: Path) -> None:
    assert development_key(tmp_path) is None
    (tmp_path / "keys").mkdir()
    path = tmp_path / "keys" / "client.key"
    path.write_text(KEY.hex() + "\n")
    found = development_key(tmp_path)
    assert found is not None
    assert found.address == CLIENT.address
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"client\.key is not a private key"):
        development_key(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        development_key(tmp_path)
