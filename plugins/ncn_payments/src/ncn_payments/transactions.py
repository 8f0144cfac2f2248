"""A transaction's fields and its signed form (EIP-1559, type 2)."""

from __future__ import annotations

from dataclasses import dataclass

from ncn_framework.digests import keccak
from ncn_framework.signing import Signer

__all__ = ["Call", "Transaction"]


@dataclass(frozen=True)
class Call:
    """What a transaction shall do.

    Attributes:
        to: address; None creates a contract, ``data`` is then its code and the constructor's arguments.
        data: selector and arguments.
        what: for people and logs: contract and function.
    """

    to: bytes | None
    data: bytes = b""
    what: str = "a transaction"


@dataclass(frozen=True)
class Transaction:
    """A transaction of type 2, unsigned. Fees in wei a unit of gas, ``value`` in wei."""

    chain_id: int
    nonce: int
    priority_fee_wei: int
    max_fee_wei: int
    gas: int
    to: bytes | None
    value: int
    data: bytes

    def signed(self, signer: Signer) -> tuple[bytes, bytes]:
        """Return the raw transaction and its hash (EIP-2718: the type, then the RLP of the fields)."""
        import rlp  # type: ignore[import-untyped]

        fields: list[object] = [
            self.chain_id,
            self.nonce,
            self.priority_fee_wei,
            self.max_fee_wei,
            self.gas,
            self.to or b"",
            self.value,
            self.data,
            [],
        ]
        signature = signer.sign(keccak(b"\x02" + rlp.encode(fields))).value
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        raw = b"\x02" + rlp.encode([*fields, signature[64] - 27, r, s])
        return raw, keccak(raw)
