"""Wallets: keys in files, encrypted with a password (Web3 Secret Storage, version 3, which most wallets read)."""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncn_framework.errors import WalletError
from ncn_framework.signing import Signer, address_from_hex, address_hex

from .recursion import recursion_limit_kept

__all__ = ["Wallet", "Wallets", "key_of_file"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_BYTES = 64 * 1024
_SHORTEST_PASSWORD = 8
_MOST_SCRYPT_BYTES = 1 << 30
_MOST_ROUNDS = 10_000_000


@dataclass(frozen=True)
class Wallet:
    """A wallet as it lies there, locked.

    Attributes:
        name: of the file, without its end.
        address: of its key, by its own account: the file may lie until it is unlocked.
        path: of the file.
    """

    name: str
    address: bytes
    path: Path


class Wallets:
    """The wallets of a home folder: ``home/wallets/<name>.json``, readable by their owner alone.

    Args:
        home: the folder of keys, databases and models.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "wallets"

    def path(self, name: str) -> Path:
        """Return where a wallet is or would be.

        Raises:
            WalletError: ``name`` is no name for a file.
        """
        if not _NAME.fullmatch(name):
            raise WalletError(f"{name!r} is no name for a wallet: 1 to 64 letters, digits, dots, dashes, underscores")
        return self._folder / f"{name}.json"

    def create(self, name: str, password: str, key: bytes | None = None) -> Wallet:
        """Write a new wallet.

        Args:
            name: of the wallet.
            password: at least 8 characters.
            key: private key, 32 bytes; by default a new random one.

        Raises:
            WalletError: there is one with this name, the password is too short, or the file cannot be written.
            ConfigError: ``key`` is no private key.
        """
        path = self.path(name)
        if path.exists():
            raise WalletError(f"wallet {name!r} exists already ({path}); choose another name")
        if len(password) < _SHORTEST_PASSWORD:
            raise WalletError(f"the password of a wallet has at least {_SHORTEST_PASSWORD} characters")
        if key is None:
            key = secrets.token_bytes(32)
        signer = Signer(key)
        with recursion_limit_kept():
            from eth_keyfile.keyfile import create_keyfile_json
        keystore = create_keyfile_json(key, password.encode(), kdf="scrypt")
        text = json.dumps({**keystore, "address": signer.address.hex()}, indent=2) + "\n"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _written(path, text):
                raise WalletError(f"wallet {name!r} exists already ({path}); choose another name")
        except OSError as cause:
            raise WalletError(f"wallet {path} cannot be written: {cause.strerror}") from cause
        return Wallet(name, signer.address, path)

    def list(self) -> list[Wallet]:
        """Return all wallets, by name.

        Raises:
            WalletError: one of them is damaged.
        """
        return [self.find(path.stem) for path in sorted(self._folder.glob("*.json")) if _NAME.fullmatch(path.stem)]

    def find(self, name: str) -> Wallet:
        """Return a wallet, locked.

        Raises:
            WalletError: there is none with this name, or it is damaged.
        """
        path = self.path(name)
        return Wallet(name, _address(_read(path, name), path), path)

    def unlock(self, name: str, password: str) -> Signer:
        """Return the signer of a wallet's key.

        Raises:
            WalletError: there is none with this name, it is damaged, or the password is wrong.
        """
        return Signer(key_of_file(self.path(name), password, name))


def key_of_file(path: Path, password: str, name: str = "") -> bytes:
    """Return the key in a keystore file, such as another program's; 32 bytes.

    Args:
        path: of the file.
        password: of it.
        name: of the wallet, for messages; by default the path.

    Raises:
        WalletError: there is none, it is damaged, or the password is wrong.
    """
    name = name or str(path)
    keystore = _read(path, name)
    stated = _address(keystore, path) if keystore.get("address") else None  # not every program writes it
    _require_bounded(keystore, path)
    with recursion_limit_kept():
        from eth_keyfile.keyfile import decode_keyfile_json
    try:
        key = decode_keyfile_json(keystore, password.encode())
    except (ValueError, TypeError, KeyError, NotImplementedError) as cause:
        if "MAC mismatch" in str(cause):
            raise WalletError(f"wallet {name!r}: the password is wrong") from None
        raise WalletError(f"wallet {path} is damaged, or of a kind that is not read here") from cause
    signer = Signer(key)
    if stated not in (None, signer.address):
        raise WalletError(
            f"wallet {path} says it is {keystore['address']}, but its key is that of {address_hex(signer.address)}"
        )
    return key


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise WalletError(f"{path} has more than {_MOST_BYTES} bytes; is it a wallet?")
        keystore = json.loads(path.read_text())
    except FileNotFoundError as cause:
        raise WalletError(
            f"there is no wallet {name!r}; `ncn wallet list` shows them, `ncn wallet create` makes one"
        ) from cause
    except OSError as cause:
        raise WalletError(f"wallet {path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:
        raise WalletError(f"wallet {path} is damaged: it is not JSON") from cause
    if not isinstance(keystore, dict) or keystore.get("version") != 3:
        raise WalletError(f"{path} is no keystore of version 3")
    return keystore


def _address(keystore: dict[str, Any], path: Path) -> bytes:
    try:
        return address_from_hex(str(keystore["address"]).lower())
    except (KeyError, ValueError) as cause:
        raise WalletError(f"wallet {path} is damaged: it has no address") from cause


def _require_bounded(keystore: dict[str, Any], path: Path) -> None:
    """Refuse a file, from whomever it is, that would take unreasonable memory or time to open."""
    crypto = keystore.get("crypto") or keystore.get("Crypto")
    params = crypto.get("kdfparams") if isinstance(crypto, dict) else None
    if not isinstance(params, dict):
        raise WalletError(f"wallet {path} is damaged: it has no key derivation")
    sizes = [params.get(name, 1) for name in ("n", "r", "p", "c", "dklen")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise WalletError(f"wallet {path} is damaged: its key derivation is not of numbers")
    n, r, p, rounds, length = sizes
    if 128 * n * r > _MOST_SCRYPT_BYTES or p > 16 or rounds > _MOST_ROUNDS or length > 64:
        raise WalletError(f"wallet {path} asks for more memory or time than a key derivation should")


def _written(path: Path, text: str) -> bool:
    """Write a file for its owner alone, whole or not at all; return False where there is one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
