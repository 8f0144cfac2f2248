"""The JSON forms of what a gateway tells about payments; amounts in wei, as decimal numbers in strings."""

from __future__ import annotations

import msgspec

from ncn_framework.signing import address_hex
from ncn_framework.wire.json_payments import VoucherJson

from .batches import Shares, shares, total_of
from .ledger_reader import BatchRow, BatchState
from .settlement import Settled

__all__ = ["BatchJson", "ChannelJson", "PaidJson", "PaymentsJson", "batch_json", "settled_json"]


class PaymentsJson(msgspec.Struct):
    """What a client needs to pay: chain, contracts, the gateway's address, and where the chain is asked."""

    chain_id: int
    token: str
    token_name: str
    contract: str
    registry: str
    gateway: str
    rpc: str | None


class ChannelJson(msgspec.Struct):
    """A channel as the gateway has it."""

    channel: str
    deposited_wei: str
    spent_wei: str
    charged_wei: str
    held_wei: str
    unlock_at_s: int
    voucher: VoucherJson | None


class PaidJson(msgspec.Struct):
    """What each payee gets of a batch: the compute nodes, by address; its gateway; the validators; the treasury."""

    compute: dict[str, str]
    gateway: str
    validators: str
    treasury: str


class BatchJson(msgspec.Struct):
    """A batch; ``gas`` and ``transaction`` are known once it is on chain."""

    gateway: str
    nonce: int
    state: str
    receipts: int
    total_wei: str
    gas: int
    transaction: str
    detail: str
    paid: PaidJson


def batch_json(row: BatchRow, receipts: int, total_wei: int) -> BatchJson:
    """Return the JSON form of a batch in the ledger, with its receipts: how many, and their fees in all."""
    paid = shares(total_wei, row.credits) if row.credits else None
    return _batch(row.gateway, row.nonce, row.state, receipts, total_wei, paid, row.gas, row.tx, row.detail)


def settled_json(settled: Settled) -> BatchJson:
    """Return the JSON form of a batch that was put on chain just now."""
    statement, batch = settled.statement, settled.statement.batch
    total_wei = total_of(statement)
    paid = shares(total_wei, statement.credits)
    return _batch(batch.gateway, batch.nonce, BatchState.SETTLED, batch.count, total_wei, paid, settled.gas, settled.tx)


def _batch(
    gateway: bytes,
    nonce: int,
    state: BatchState,
    receipts: int,
    total_wei: int,
    paid: Shares | None,
    gas: int,
    tx: str,
    detail: str = "",
) -> BatchJson:
    return BatchJson(
        gateway=address_hex(gateway),
        nonce=nonce,
        state=str(state),
        receipts=receipts,
        total_wei=str(total_wei),
        gas=gas,
        transaction=tx,
        detail=detail,
        paid=PaidJson(
            {address_hex(node): str(wei) for node, wei in paid.compute_wei.items()} if paid else {},
            str(paid.gateway_wei if paid else 0),
            str(paid.validators_wei if paid else 0),
            str(paid.treasury_wei if paid else 0),
        ),
    )
