"""Transactions by hand, as no writer would make them."""

from __future__ import annotations

from typing import Any

from ncn_framework.signing import Signer
from ncn_payments.chain import Chain
from ncn_payments.devkeys import CHAIN_ID
from ncn_payments.transactions import Call, Transaction

__all__ = ["GWEI", "balance_hex", "raw", "send"]

GWEI = 10**9


def raw(
    signer: Signer,
    nonce: int,
    call: Call,
    *,
    value: int = 0,
    gas: int = 1_000_000,
    tip: int = GWEI,
    fee: int = 10 * GWEI,
    chain_id: int = CHAIN_ID,
) -> str:
    """Return a signed transaction as hex."""
    signed, _ = Transaction(chain_id, nonce, tip, fee, gas, call.to, value, call.data).signed(signer)
    return "0x" + signed.hex()


async def send(chain: Chain, signer: Signer, nonce: int, call: Call, **options: Any) -> dict[str, Any]:
    """Send a transaction and return its receipt."""
    transaction_hash = await chain.request("eth_sendRawTransaction", [raw(signer, nonce, call, **options)])
    while True:
        receipt = await chain.request("eth_getTransactionReceipt", [transaction_hash])
        if receipt is not None:
            return dict(receipt)


def balance_hex(address: bytes) -> str:
    """Return an address as JSON-RPC takes it."""
    return "0x" + address.hex()
