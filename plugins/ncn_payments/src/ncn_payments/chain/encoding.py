"""What py-evm holds as JSON-RPC writes it (execution-apis): quantities and data as hex strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rlp  # type: ignore[import-untyped]

from .pyevm import BloomFilter, extract_chain_id, generate_contract_address, is_eip_155_signed_transaction

__all__ = ["LogFilter", "block", "chain_id_of", "data_of", "hex_of", "quantity_of", "receipt", "transaction"]


def hex_of(data: bytes) -> str:
    """Return bytes as data."""
    return "0x" + data.hex()


def data_of(text: Any, length: int | None = None) -> bytes:
    """Return the bytes of data.

    Raises:
        ValueError: not 0x and hex digits, or not ``length`` bytes.
    """
    if not isinstance(text, str) or not text.startswith("0x"):
        raise ValueError(f"{str(text)[:80]!r} is not hex data with 0x")
    data = bytes.fromhex(text[2:])
    if length is not None and len(data) != length:
        raise ValueError(f"{text[:80]!r} has {len(data)} bytes, not {length}")
    return data


def quantity_of(text: Any) -> int:
    """Return a quantity; at most 256 bits.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(text, str) or not text.startswith("0x") or len(text) > 66:
        raise ValueError(f"{str(text)[:80]!r} is not a hex quantity with 0x")
    return int(text[2:], 16)


def chain_id_of(transaction: Any) -> int | None:
    """Return the chain id a transaction was signed for; None for one of before EIP-155, which any chain would take."""
    if transaction.type_id is not None:
        return int(transaction.chain_id)
    return extract_chain_id(transaction.v) if is_eip_155_signed_transaction(transaction) else None


def transaction(transaction: Any, header: Any, index: int) -> dict[str, Any]:
    """Return a transaction; ``header`` is None while it waits."""
    kind = transaction.type_id or 0
    body: dict[str, Any] = {
        "hash": hex_of(transaction.hash),
        "type": hex(kind),
        "nonce": hex(transaction.nonce),
        "from": hex_of(transaction.sender),
        "to": hex_of(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
        "input": hex_of(transaction.data),
        "gas": hex(transaction.gas),
        "gasPrice": hex(_price(transaction, header)),
        "blockHash": hex_of(header.hash) if header else None,
        "blockNumber": hex(header.block_number) if header else None,
        "transactionIndex": hex(index) if header else None,
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "v": hex(transaction.y_parity if kind else transaction.v),
    }
    if kind:
        body["chainId"] = hex(transaction.chain_id)
        body["yParity"] = hex(transaction.y_parity)
        body["accessList"] = [
            {"address": hex_of(address), "storageKeys": [hex_of(key.to_bytes(32, "big")) for key in keys]}
            for address, keys in transaction.access_list
        ]
    if kind >= 2:
        body["maxFeePerGas"] = hex(transaction.max_fee_per_gas)
        body["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_per_gas)
    return body


def _price(transaction: Any, header: Any) -> int:
    """Return what a unit of gas costs (EIP-1559); of a waiting transaction, what it may cost."""
    if header is None:
        return int(transaction.max_fee_per_gas)
    tip = min(transaction.max_priority_fee_per_gas, transaction.max_fee_per_gas - header.base_fee_per_gas)
    return int(header.base_fee_per_gas + tip)


def receipt(header: Any, index: int, transaction: Any, receipts: Sequence[Any]) -> dict[str, Any]:
    """Return the receipt of the transaction at ``index`` of a block."""
    own = receipts[index]
    before = receipts[index - 1].gas_used if index else 0
    created = not transaction.to
    return {
        "transactionHash": hex_of(transaction.hash),
        "transactionIndex": hex(index),
        "blockHash": hex_of(header.hash),
        "blockNumber": hex(header.block_number),
        "from": hex_of(transaction.sender),
        "to": None if created else hex_of(transaction.to),
        "contractAddress": hex_of(generate_contract_address(transaction.sender, transaction.nonce))
        if created
        else None,
        "cumulativeGasUsed": hex(own.gas_used),
        "gasUsed": hex(own.gas_used - before),
        "effectiveGasPrice": hex(_price(transaction, header)),
        "status": "0x1" if own.state_root == b"\x01" else "0x0",  # EIP-658 put it there
        "type": hex(transaction.type_id or 0),
        "logsBloom": hex_of(own.bloom.to_bytes(256, "big")),
        "logs": _logs_of(header, index, transaction, receipts),
    }


def _logs_of(header: Any, index: int, transaction: Any, receipts: Sequence[Any]) -> list[dict[str, Any]]:
    first = sum(len(earlier.logs) for earlier in receipts[:index])
    return [
        {
            "address": hex_of(log.address),
            "topics": [hex_of(topic.to_bytes(32, "big")) for topic in log.topics],
            "data": hex_of(log.data),
            "blockHash": hex_of(header.hash),
            "blockNumber": hex(header.block_number),
            "blockTimestamp": hex(header.timestamp),
            "transactionHash": hex_of(transaction.hash),
            "transactionIndex": hex(index),
            "logIndex": hex(first + position),
            "removed": False,
        }
        for position, log in enumerate(receipts[index].logs)
    ]


def block(block: Any, full: bool) -> dict[str, Any]:
    """Return a block with its transactions, or with their hashes only."""
    header = block.header
    body = {
        "number": hex(header.block_number),
        "hash": hex_of(header.hash),
        "parentHash": hex_of(header.parent_hash),
        "sha3Uncles": hex_of(header.uncles_hash),
        "miner": hex_of(header.coinbase),
        "stateRoot": hex_of(header.state_root),
        "transactionsRoot": hex_of(header.transaction_root),
        "receiptsRoot": hex_of(header.receipt_root),
        "logsBloom": hex_of(header.bloom.to_bytes(256, "big")),
        "difficulty": hex(header.difficulty),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "extraData": hex_of(header.extra_data),
        "mixHash": hex_of(header.mix_hash),
        "nonce": hex_of(header.nonce),
        "size": hex(len(rlp.encode(block))),
        "uncles": [],
        "withdrawals": [],
        "transactions": [
            transaction(one, header, index) if full else hex_of(one.hash)
            for index, one in enumerate(block.transactions)
        ],
    }
    for name, key in (("base_fee_per_gas", "baseFeePerGas"), ("blob_gas_used", "blobGasUsed")):
        body[key] = hex(getattr(header, name))
    body["excessBlobGas"] = hex(header.excess_blob_gas)
    for name, key in (
        ("withdrawals_root", "withdrawalsRoot"),
        ("parent_beacon_block_root", "parentBeaconBlockRoot"),
        ("requests_hash", "requestsHash"),
    ):
        body[key] = hex_of(getattr(header, name))
    return body


class LogFilter:
    """The filter of eth_getLogs: addresses, and topics by position, each one value, several, or any (null)."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        address = wanted.get("address")
        addresses = [] if address is None else [address] if isinstance(address, str) else list(address)
        self._addresses = {data_of(one, 20) for one in addresses}
        self._topics: list[set[bytes]] = []
        for topic in wanted.get("topics") or ():
            choices = [] if topic is None else [topic] if isinstance(topic, str) else list(topic)
            self._topics.append({data_of(one, 32) for one in choices})

    def may_be_in(self, bloom: int) -> bool:
        """Return False where a block's bloom rules out that it has such a log."""
        seen = BloomFilter(bloom)
        return all(
            not choices or any(choice in seen for choice in choices) for choices in (self._addresses, *self._topics)
        )

    def logs(self, header: Any, transactions: Sequence[Any], receipts: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the logs of a block that fit."""
        return [
            encoded
            for index, one in enumerate(receipts)
            for log, encoded in zip(one.logs, _logs_of(header, index, transactions[index], receipts), strict=True)
            if self._fits(log)
        ]

    def _fits(self, log: Any) -> bool:
        if self._addresses and log.address not in self._addresses:
            return False
        if len(log.topics) < len(self._topics):
            return False
        return all(
            not choices or topic.to_bytes(32, "big") in choices
            for choices, topic in zip(self._topics, log.topics, strict=False)
        )
