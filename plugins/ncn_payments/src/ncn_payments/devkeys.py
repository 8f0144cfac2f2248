"""The well-known keys of development networks.

They come from the mnemonic that Hardhat, Foundry and Ganache's successors use, along BIP-44's path for Ethereum, so
every tool shows the same accounts. Anybody knows them: they are refused on any chain id but 31337.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import cache

from coincurve import PrivateKey

from ncn_framework.errors import ConfigError
from ncn_framework.signing import Signer

__all__ = ["ACCOUNTS", "CHAIN_ID", "ETHER_WEI", "MNEMONIC", "accounts", "development_signer", "require_development"]

CHAIN_ID = 31337
MNEMONIC = "test test test test test test test test test test test junk"
ACCOUNTS = (
    "deployer",
    "validator1",
    "validator2",
    "validator3",
    "validator4",
    "validator5",
    "treasury",
    "gateway",
    "node",
    "client",
)
"""Names of the accounts, in the order of their index."""

ETHER_WEI = 10_000 * 10**18
"""Ether that each of them has in the first block."""

_HARD = 1 << 31
_PATH = (44 | _HARD, 60 | _HARD, 0 | _HARD, 0)


def require_development(chain_id: int) -> None:
    """Refuse a chain on which these keys must not be used.

    Raises:
        ConfigError: the chain id is not 31337.
    """
    if chain_id != CHAIN_ID:
        raise ConfigError(
            f"chain id {chain_id} is no development network: its keys are known to anybody, so it exists on "
            f"{CHAIN_ID} alone; set RPC_URL and your own keys, or NCN_CHAIN_ID={CHAIN_ID}"
        )


def development_signer(name: str, chain_id: int) -> Signer:
    """Return the signer of an account of ``ACCOUNTS``.

    Raises:
        ConfigError: the chain id is not 31337.
    """
    require_development(chain_id)
    return _signers()[ACCOUNTS.index(name)]


def accounts() -> dict[str, bytes]:
    """Return the addresses, by name."""
    return {name: signer.address for name, signer in zip(ACCOUNTS, _signers(), strict=True)}


@cache
def _signers() -> tuple[Signer, ...]:
    seed = hashlib.pbkdf2_hmac("sha512", MNEMONIC.encode(), b"mnemonic", 2048)  # BIP-39
    node = hmac.digest(b"Bitcoin seed", seed, "sha512")
    for index in _PATH:
        node = _child(node, index)
    return tuple(Signer(_child(node, index)[:32]) for index in range(len(ACCOUNTS)))


def _child(node: bytes, index: int) -> bytes:
    """Return key and chain code of a child (BIP-32, CKDpriv)."""
    key, code = PrivateKey(node[:32]), node[32:]
    own = b"\0" + node[:32] if index & _HARD else key.public_key.format()
    digest = hmac.digest(code, own + index.to_bytes(4, "big"), "sha512")
    return key.add(digest[:32]).secret + digest[32:]
