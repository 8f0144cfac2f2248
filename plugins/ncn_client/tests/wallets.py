"""Wallets for the tests: keystores that open fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ncn_framework.signing import Signer


def make_wallet(home: Path, name: str, key: bytes, password: str, **changes: Any) -> Path:
    """Write a keystore with little work in its key derivation; ``changes`` replace fields of it."""
    limit = sys.getrecursionlimit()
    try:
        from eth_keyfile.keyfile import create_keyfile_json
    finally:
        sys.setrecursionlimit(limit)
    keystore = create_keyfile_json(key, password.encode(), kdf="pbkdf2", iterations=2)
    path = home / "wallets" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**keystore, "address": Signer(key).address.hex(), **changes}))
    return path
