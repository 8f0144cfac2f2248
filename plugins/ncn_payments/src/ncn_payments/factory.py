"""The deterministic deployment proxy: who creates contracts at addresses that follow from their code (EIP-1014).

It is at the same address on most public chains, and on anvil's (github.com/Arachnid/deterministic-deployment-proxy).
"""

from __future__ import annotations

from ncn_framework.digests import keccak

from .transactions import Call

__all__ = ["FACTORY", "FACTORY_CODE", "created_at", "creation_through"]

FACTORY = bytes.fromhex("4e59b44847b379578588920ca78fbf26c0b4956c")
FACTORY_CODE = bytes.fromhex(
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe0"
    "3601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
)
_SALT = b"NCN 1".ljust(32, b"\0")
"""``SALT`` of ``contracts/script/Deploy.s.sol``."""


def created_at(creation: Call) -> bytes:
    """Return the address of the contract that the factory makes of a creation."""
    return keccak(b"\xff" + FACTORY + _SALT + keccak(creation.data))[12:]


def creation_through(creation: Call) -> Call:
    """Return the call that makes the factory create a contract."""
    return Call(FACTORY, _SALT + creation.data, creation.what)
