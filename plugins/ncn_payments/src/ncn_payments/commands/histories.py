"""What a wallet did, from the chain; what a role has charged, from its ledger."""

from __future__ import annotations

import json
from typing import Any

import click

from ncn_framework.config import Config
from ncn_framework.signing import address_hex

from ..abi import Event
from ..activity import Activity
from ..batches import channel_of
from ..ledger_lock import ledger_path
from ..ledger_reader import BatchRow, BatchState, Entry, LedgerReader
from .display import at, ncn, say
from .opening import opened

__all__ = ["show_events", "show_ledger"]

_AMOUNTS = ("amount", "fee")
_SAID = {
    "Deposited": "deposited into a channel",
    "WithdrawalRequested": "withdrawal begun",
    "WithdrawalCancelled": "withdrawal taken back",
    "WithdrawalFinalized": "withdrawn from a channel",
    "RequestInitiated": "paid into escrow",
    "RequestCompleted": "escrow paid out",
    "RequestRefunded": "escrow given back",
    "AccountDeposited": "deposited into the account",
    "AccountCredited": "credited to the account",
    "AccountWithdrawn": "withdrawn from the account",
}


# --- of a wallet ---


async def show_events(config: Config, address: bytes, limit: int, as_json: bool) -> None:
    """Print the newest events of an address."""
    async with opened(config) as contracts:
        activity = Activity(contracts, address)
        events = (await activity.events())[:limit]
        times = await activity.times_s(event.block for event in events)
    if as_json:
        click.echo(json.dumps([_event_json(event, times[event.block]) for event in events]))
        return
    for event in events:
        amount = _amount(event)
        shown = "" if amount is None else ncn(amount)
        click.echo(
            f"{at(times[event.block])}  {_SAID[event.name]:<26} {shown:>24}  {_about(event)}"
            f"  0x{event.transaction_hash.hex()}"
        )
    if not events:
        say(f"wallet {address_hex(address)} has done nothing with this contract")


def _amount(event: Event) -> int | None:
    return next((int(event.arguments[name]) for name in _AMOUNTS if name in event.arguments), None)


def _about(event: Event) -> str:
    """Return whom or what an event is about: the gateway, or else the channel or the escrow, shortened."""
    if "gateway" in event.arguments:
        return f"gateway {address_hex(event.arguments['gateway'])}"
    for name, what in (("channelId", "channel"), ("id", "escrow")):
        if name in event.arguments:
            return f"{what} 0x{event.arguments[name].hex()[:16]}..."
    return ""


def _event_json(event: Event, at_s: int) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return address_hex(value) if len(value) == 20 else "0x" + value.hex()
        return value if isinstance(value, bool) else str(value)

    place = {"at_s": at_s, "block": event.block, "transaction": "0x" + event.transaction_hash.hex()}
    return {"event": event.name, **place, **{name: plain(value) for name, value in event.arguments.items()}}


# --- of a role ---


def show_ledger(config: Config, role: str, limit: int, as_json: bool) -> None:
    """Print the newest charges and batches of a role's ledger.

    Raises:
        StoreError: there is no ledger.
    """
    with LedgerReader(ledger_path(config.home, role)) as ledger:
        charges, batches = ledger.history(limit), ledger.newest_batches(limit)
    if as_json:
        forms = [_charge_json(entry, batch) for entry, batch in charges]
        click.echo(json.dumps({"charges": forms, "batches": [_batch_json(*batch) for batch in batches]}))
        return
    for entry, batch in charges:
        receipt = entry.charge.receipt.receipt
        client, node = address_hex(entry.charge.voucher.client), address_hex(receipt.node)
        state = _state(batch)
        click.echo(
            f"{at(entry.at_ms // 1000)}  0x{receipt.request_id.hex()[:16]}...  {ncn(receipt.fee_wei):>24}"
            f"  client {client}  node {node}  {state}"
        )
    for row, count, fees in batches:
        on_chain = f"{row.gas:,} gas  {row.tx}" if row.state == BatchState.SETTLED and row.tx else row.detail
        click.echo(
            f"{at(row.at_ms // 1000)}  batch {row.nonce} of {address_hex(row.gateway)}  {row.state}"
            f"  {count} receipts  {ncn(fees)}  {on_chain}"
        )
    if not charges:
        say("nothing has been charged yet")


def _state(batch: BatchRow | None) -> str:
    if batch is None:
        return "unsettled"
    return f"refused: {batch.detail}" if batch.state == BatchState.REFUSED else f"batch {batch.nonce} {batch.state}"


def _charge_json(entry: Entry, batch: BatchRow | None) -> dict[str, Any]:
    charge, receipt = entry.charge, entry.charge.receipt.receipt
    refused = batch is not None and batch.state == BatchState.REFUSED
    return {
        "at_ms": entry.at_ms,
        "request_id": "0x" + receipt.request_id.hex(),
        "channel": "0x" + channel_of(charge).hex(),
        "client": address_hex(charge.voucher.client),
        "gateway": address_hex(charge.voucher.gateway),
        "node": address_hex(receipt.node),
        "units": receipt.units,
        "fee_wei": str(receipt.fee_wei),
        "batch": None if batch is None or refused else {"nonce": batch.nonce, "state": str(batch.state)},
        "refused": batch.detail if batch is not None and refused else None,
    }


def _batch_json(row: BatchRow, count: int, fees_wei: int) -> dict[str, Any]:
    return {
        "at_ms": row.at_ms,
        "gateway": address_hex(row.gateway),
        "nonce": row.nonce,
        "state": str(row.state),
        "receipts": count,
        "total_wei": str(fees_wei),
        "gas": row.gas,
        "transaction": row.tx,
        "detail": row.detail,
    }
