"""What became of a transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ncn_framework.errors import ChainError

from .chain import Chain
from .chain.interface import quantity
from .contracts import revert_of
from .errors import RpcError
from .journal import Entry

__all__ = ["Receipt", "kept", "receipt_of", "revert_data"]


@dataclass(frozen=True)
class Receipt:
    """A transaction that is final and did not revert.

    Attributes:
        key: the caller's name for it.
        hash: of the transaction.
        block: number of its block.
        gas_used: units of gas.
        fee_wei: what it cost, ether.
        contract: address of the contract that it created.
        logs: as JSON-RPC has them; see ``Contract.events``.
    """

    key: str
    hash: bytes
    block: int
    gas_used: int
    fee_wei: int
    contract: bytes | None
    logs: tuple[Mapping[str, Any], ...]


_KEPT = ("transactionHash", "blockNumber", "gasUsed", "effectiveGasPrice", "contractAddress", "status", "logs")


def kept(receipt: Mapping[str, Any]) -> str:
    """Return what the journal keeps of JSON-RPC's receipt."""
    return json.dumps({name: receipt.get(name) for name in _KEPT})


def receipt_of(entry: Entry) -> Receipt:
    """Return the receipt of a settled transaction.

    Raises:
        TransactionReverted: it reverted.
        ChainError: the chain never took it.
    """
    if entry.receipt is None:
        raise ChainError(f"the chain refused {entry.call.what} ({entry.key}); nothing of it was executed")
    receipt = json.loads(entry.receipt)
    if quantity(receipt.get("status") or "0x1") == 0:
        raise revert_of(entry.revert or b"", entry.call.what)
    contract = receipt.get("contractAddress")
    used, price = quantity(receipt["gasUsed"]), quantity(receipt.get("effectiveGasPrice") or "0x0")
    return Receipt(
        key=entry.key,
        hash=bytes.fromhex(receipt["transactionHash"][2:]),
        block=quantity(receipt["blockNumber"]),
        gas_used=used,
        fee_wei=used * price,
        contract=bytes.fromhex(contract[2:]) if contract and entry.call.to is None else None,
        logs=tuple(receipt.get("logs") or ()),
    )


async def revert_data(chain: Chain, sender: bytes, entry: Entry, receipt: Mapping[str, Any]) -> bytes:
    """Return what a contract said when it reverted, by executing the call again on the block before.

    Args:
        chain: to ask.
        sender: who sent it.
        entry: the transaction.
        receipt: as JSON-RPC has it.
    """
    message = {"from": "0x" + sender.hex(), "data": "0x" + entry.call.data.hex(), "value": hex(entry.value_wei)}
    message["gas"] = hex(entry.gas)
    if entry.call.to is not None:
        message["to"] = "0x" + entry.call.to.hex()
    try:
        await chain.request("eth_call", [message, hex(quantity(receipt["blockNumber"]) - 1)])
    except RpcError as error:
        return error.revert_data or b""
    return b""
