"""EIP-712 as eth_account does it, and Solidity's ABI as eth_abi does it: what our digests are compared with."""

from __future__ import annotations

from typing import Any

from eth_abi.abi import encode
from eth_account.messages import _hash_eip191_message, encode_typed_data

from ncn_framework import digests
from ncn_framework.models import Domain

__all__ = ["abi", "address", "typed"]


def typed(domain: Domain, primary: str, message: dict[str, Any], name: str = digests.CONTRACT_NAME) -> bytes:
    """Return the digest of ``message``, of a type in ``digests.TYPES``, for the contract of this name."""

    def members(of: str) -> list[dict[str, str]]:
        inside = digests.TYPES[of].partition("(")[2].rstrip(")")
        return [dict(zip(("type", "name"), part.split(" "), strict=True)) for part in inside.split(",")]

    full = {
        "types": {each: members(each) for each in ("EIP712Domain", primary)},
        "primaryType": primary,
        "domain": {
            "name": name,
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": address(domain.contract),
        },
        "message": message,
    }
    return bytes(_hash_eip191_message(encode_typed_data(full_message=full)))


def abi(types: list[str], *values: Any) -> bytes:
    """Return Keccak-256 of ``abi.encode(values)``; addresses may be bytes."""
    return digests.keccak(encode(types, values))


def address(value: bytes) -> str:
    """Return an address as eth_account takes it."""
    return "0x" + value.hex()
