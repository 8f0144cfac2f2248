"""Keystore files: readable by others, by their owner alone, refused when damaged."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_keyfile.keyfile import create_keyfile_json

from ncn_framework.errors import ConfigError, NcnError, WalletError
from ncn_framework.signing import Signer, address_hex
from ncn_payments import wallet
from ncn_payments.wallet import Wallets, key_of_file

KEY = bytes(range(1, 33))
PASSWORD = "correct horse"


@pytest.fixture
def wallets(tmp_path: Path) -> Wallets:
    return Wallets(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make key derivation cheap: what is tested is not its strength."""
    import eth_keyfile.keyfile as module

    monkeypatch.setattr(module, "get_default_work_factor_for_kdf", lambda kdf: 2)


def keystore(path: Path, **changes: Any) -> Path:
    made = json.loads(json.dumps(create_keyfile_json(KEY, PASSWORD.encode(), kdf="pbkdf2", iterations=2)))
    for dotted, value in changes.items():
        place = made
        *parents, name = dotted.split("__")
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[name]
        else:
            place[name] = value
    path.write_text(json.dumps(made))
    return path


def test_other_programs_can_read_it(wallets: Wallets) -> None:
    made = wallets.create("alice", PASSWORD, KEY)
    assert made.address == Signer(KEY).address
    content = json.loads(made.path.read_text())
    assert bytes(Account.decrypt(content, PASSWORD)) == KEY
    assert content["crypto"]["kdf"] == "scrypt"
    assert content["crypto"]["kdfparams"]["n"] == 262_144
    assert KEY.hex() not in made.path.read_text()
    assert wallets.unlock("alice", PASSWORD).address == made.address


@pytest.mark.usefixtures("quick")
def test_for_its_owner_alone(wallets: Wallets, tmp_path: Path) -> None:
    made = wallets.create("alice", PASSWORD)
    assert made.path == tmp_path / "wallets" / "alice.json"
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert made.path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in made.path.parent.iterdir()] == ["alice.json"]


@pytest.mark.usefixtures("quick")
def test_new_keys_are_random(wallets: Wallets) -> None:
    addresses = {wallets.create(f"w{number}", PASSWORD).address for number in range(5)}
    assert len(addresses) == 5


@pytest.mark.usefixtures("quick")
def test_list_and_find(wallets: Wallets) -> None:
    assert wallets.list() == []
    made = [wallets.create(name, PASSWORD) for name in ("bob", "alice")]
    assert wallets.list() == [made[1], made[0]]
    assert wallets.find("bob") == made[0]
    with pytest.raises(WalletError, match=r"no wallet 'carol'.*ncn wallet list"):
        wallets.find("carol")


@pytest.mark.usefixtures("quick")
def test_never_over_another(wallets: Wallets, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wallets.create("alice", PASSWORD)
    with pytest.raises(WalletError, match="exists already"):
        wallets.create("alice", PASSWORD, KEY)
    monkeypatch.setattr(Path, "exists", lambda self: False)  # another process was first
    with pytest.raises(WalletError, match="exists already"):
        wallets.create("alice", PASSWORD, KEY)
    assert wallets.unlock("alice", PASSWORD).address == made.address


@pytest.mark.usefixtures("quick")
def test_wrong_password(wallets: Wallets) -> None:
    wallets.create("alice", PASSWORD)
    for wrong in ("", "correct horsf", PASSWORD + "\n"):
        with pytest.raises(WalletError, match="'alice': the password is wrong") as caught:
            wallets.unlock("alice", wrong)
        assert wrong == "" or wrong not in str(caught.value)


def test_short_password(wallets: Wallets) -> None:
    with pytest.raises(WalletError, match="at least 8"):
        wallets.create("alice", "1234567")
    assert wallets.list() == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b", "-a", "a" * 65, "ä"])
def test_names_are_files_in_the_folder(wallets: Wallets, name: str) -> None:
    for use in (wallets.path, wallets.find, lambda name: wallets.create(name, PASSWORD)):
        with pytest.raises(WalletError, match="no name for a wallet"):
            use(name)


def test_bad_keys(wallets: Wallets) -> None:
    for bad in (b"", KEY[:31], bytes(32), b"\xff" * 32):
        with pytest.raises(ConfigError) as caught:
            wallets.create("alice", PASSWORD, bad)
        assert not bad or bad.hex() not in str(caught.value)
    assert wallets.list() == []


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "wallets").write_text("a file")
    with pytest.raises(WalletError, match="cannot be written"):
        Wallets(tmp_path).create("alice", PASSWORD)


# --- files of others ---


def test_pbkdf2_and_no_address(tmp_path: Path) -> None:
    assert key_of_file(keystore(tmp_path / "a.json"), PASSWORD) == KEY
    assert key_of_file(keystore(tmp_path / "b.json", address=None), PASSWORD) == KEY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 4}, "no keystore of version 3"),
        ({"crypto": None}, "no key derivation"),
        ({"crypto": 5}, "no key derivation"),
        ({"crypto__kdfparams": None}, "no key derivation"),
        ({"crypto__kdfparams__c": "many"}, "not of numbers"),
        ({"crypto__kdfparams__c": -1}, "not of numbers"),
        ({"crypto__kdfparams__c": 10**12}, "more memory or time"),
        ({"crypto__kdfparams__n": 2**40, "crypto__kdfparams__r": 8}, "more memory or time"),
        ({"crypto__kdfparams__p": 10**6}, "more memory or time"),
        ({"crypto__kdf": "argon2"}, "damaged, or of a kind"),
        ({"crypto__ciphertext": "zz"}, "damaged, or of a kind"),
        ({"crypto__cipherparams": None}, "damaged, or of a kind"),
        ({"address": "12"}, "no address"),
        ({"address": "00" * 20}, "says it is 0000"),
    ],
)
def test_damaged_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WalletError, match=message):
        key_of_file(keystore(tmp_path / "a.json", **changes), PASSWORD)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 60_000, b" " * 100_000])
def test_no_keystores(wallets: Wallets, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wallets").mkdir()
    (tmp_path / "wallets" / "a.json").write_bytes(content)
    for use in (wallets.find, lambda name: wallets.unlock(name, PASSWORD), lambda name: wallets.list()):
        with pytest.raises(WalletError, match=r"a\.json"):
            use("a")


def test_keys_do_not_show(tmp_path: Path) -> None:
    key = secrets.token_bytes(32)
    signer = Signer(key)
    assert repr(signer) == f"Signer({address_hex(signer.address)})"
    assert key.hex() not in repr(wallet.Wallet("a", signer.address, tmp_path))
    assert issubclass(WalletError, NcnError)
