"""The key that the commands sign with: a setting, a wallet, or the development network's client."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ncn_framework.errors import ConfigError, WalletError
from ncn_framework.signing import Signer, address_hex

__all__ = ["development_key", "open_wallet"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_BYTES = 64 * 1024


def open_wallet(home: Path, name: str, password: Callable[[], str]) -> Signer:
    """Return the signer of a wallet: a keystore of version 3 (Web3 Secret Storage) in ``home/wallets``.

    Args:
        home: the folder of keys, databases and models.
        name: of the wallet.
        password: asks for its password; called once the wallet was found.

    Raises:
        WalletError: there is no such wallet, it is damaged, or the password is wrong.
    """
    if not _NAME.fullmatch(name):
        raise WalletError(f"{name!r} is no name of a wallet: 1 to 64 letters, digits, dots, dashes, underscores")
    path = home / "wallets" / f"{name}.json"
    keystore = _read(path, name)
    secret = password()
    limit = sys.getrecursionlimit()
    try:
        from eth_keyfile.keyfile import decode_keyfile_json
    finally:
        sys.setrecursionlimit(limit)  # py_ecc raises it so far that nested JSON could end the process
    try:
        signer = Signer(decode_keyfile_json(keystore, secret.encode()))
    except (ValueError, TypeError, KeyError, NotImplementedError, ConfigError) as cause:
        if "MAC mismatch" in str(cause):
            raise WalletError(f"wallet {name!r}: the password is wrong") from None
        raise WalletError(f"wallet {path} is damaged, or of a kind that is not read here") from cause
    stated = str(keystore.get("address", "")).lower().removeprefix("0x")
    if stated not in ("", signer.address.hex()):
        raise WalletError(f"wallet {path} says it is 0x{stated[:64]}, but its key is of {address_hex(signer.address)}")
    return signer


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as cause:
        raise WalletError(
            f"there is no wallet {name!r} ({path}); `ncn wallet list` shows them, `ncn wallet create` makes one"
        ) from cause
    except OSError as cause:
        raise WalletError(f"wallet {path} cannot be read: {cause.strerror}") from cause
    try:
        keystore = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (ValueError, RecursionError) as cause:
        raise WalletError(f"wallet {path} is damaged: it is not JSON") from cause
    if not isinstance(keystore, dict) or keystore.get("version") != 3:
        raise WalletError(f"{path} is no keystore of version 3")
    return keystore


def development_key(home: Path) -> Signer | None:
    """Return the signer of the client that ``ncn serve`` made and gave money to on its development chain, if any.

    Raises:
        ConfigError: its file is no key, or cannot be read.
    """
    path = home / "keys" / "client.key"
    try:
        return Signer.from_hex(path.read_text(errors="replace"), f"key file {path}")
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise ConfigError(f"key file {path} cannot be read: {cause.strerror}") from cause
