"""Transactions that wait for a block of the embedded chain."""

from __future__ import annotations

from typing import Any

__all__ = ["Pool", "PoolError"]

_MOST = 4_096
_BUMP_PERCENT = 10
"""By how much a replacement must pay more, as geth's ``txpool.pricebump`` has it."""


class PoolError(ValueError):
    """A transaction is not taken; the words are geth's, which other programs look for."""


class Pool:
    """Transactions by sender and nonce; those after a gap wait until it is closed."""

    def __init__(self) -> None:
        self._by_sender: dict[bytes, dict[int, Any]] = {}
        self._by_hash: dict[bytes, Any] = {}

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, transaction_hash: bytes) -> Any:
        """Return a waiting transaction, or None."""
        return self._by_hash.get(transaction_hash)

    def add(self, transaction: Any, *, nonce: int, balance: int, base_fee: int) -> None:
        """Take a transaction whose signature and chain id were checked.

        Args:
            transaction: decoded.
            nonce: next nonce of its sender.
            balance: of its sender, in wei.
            base_fee: of the next block, in wei a unit of gas.

        Raises:
            PoolError: it can never be mined as it is, or the pool is full.
        """
        if transaction.hash in self._by_hash:
            raise PoolError("already known")
        if transaction.nonce < nonce:
            raise PoolError(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        if transaction.max_fee_per_gas < transaction.max_priority_fee_per_gas:
            raise PoolError("max priority fee per gas higher than max fee per gas")
        if transaction.max_fee_per_gas < base_fee:
            raise PoolError(
                f"max fee per gas less than block base fee: maxFeePerGas: {transaction.max_fee_per_gas}, "
                f"baseFee: {base_fee}"
            )
        cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
        if cost > balance:
            raise PoolError(f"insufficient funds for gas * price + value: have {balance} want {cost}")
        old = self._by_sender.get(transaction.sender, {}).get(transaction.nonce)
        if old is not None:
            for name in ("max_fee_per_gas", "max_priority_fee_per_gas"):
                if getattr(transaction, name) * 100 < getattr(old, name) * (100 + _BUMP_PERCENT):
                    raise PoolError("replacement transaction underpriced")
            del self._by_hash[old.hash]
        elif len(self) >= _MOST:
            raise PoolError("txpool is full")
        self._by_sender.setdefault(transaction.sender, {})[transaction.nonce] = transaction
        self._by_hash[transaction.hash] = transaction

    def remove(self, transaction_hash: bytes) -> None:
        """Forget a transaction that was mined or refused."""
        transaction = self._by_hash.pop(transaction_hash, None)
        if transaction is not None:
            waiting = self._by_sender[transaction.sender]
            del waiting[transaction.nonce]
            if not waiting:
                del self._by_sender[transaction.sender]

    def senders(self) -> list[bytes]:
        """Return who waits."""
        return list(self._by_sender)

    def ready(self, sender: bytes, nonce: int) -> list[Any]:
        """Return the transactions of ``sender`` from ``nonce`` on, up to the first gap."""
        waiting, found = self._by_sender.get(sender, {}), []
        while nonce in waiting:
            found.append(waiting[nonce])
            nonce += 1
        return found
