"""Settling everything that was charged: by the gateway that runs, or by this command where none does."""

from __future__ import annotations

import asyncio

import click

from ncn_framework.config import Config
from ncn_framework.errors import CapacityError
from ncn_framework.wire.json import encode

from ..alone import settler_alone
from ..forms import BatchJson, settled_json
from ..gateway_client import GatewayClient
from ..ledger_lock import ledger_path, writing_process
from ..ledger_reader import Owed
from ..operator_token import OperatorToken
from .channels import gateway_url
from .display import ncn, say
from .opening import opened

__all__ = ["show_settled"]


async def show_settled(config: Config, role: str, gateway: str | None, as_json: bool) -> None:
    """Settle what a role has charged, and print its batches.

    Args:
        config: of this process.
        role: ``gateway`` or ``compute``.
        gateway: URL of the gateway to ask; by default that of the client's setting, where the ledger is in use.
        as_json: print one JSON list.
    """
    left: list[Owed] = []
    process = await asyncio.to_thread(writing_process, ledger_path(config.home, role)) if role == "gateway" else None
    if gateway is not None or process is not None:
        done = await _asked(config, gateway or gateway_url(config), process)
    else:
        async with opened(config) as contracts, settler_alone(role, config, contracts) as settler:
            say(f"settling the ledger of role {role}: the validators check and sign it, then it goes on chain ...")
            done = [settled_json(settled) for settled in await settler.settle(everything=True)]
            left = settler.ledger.unsettled()
    if as_json:
        click.echo(encode(done))
        return
    for batch in done:
        _show(batch)
    if left:
        why = "in doubt until the gateway has run again" if role == "gateway" else "settled by the gateway"
        say(
            f"{len(left)} charges, {ncn(sum(owed.fee_wei for owed in left))}, stay open here: {why}, "
            "or more than their channels have left"
        )
    elif not done:
        click.echo("nothing to settle: all that was charged is on chain")


async def _asked(config: Config, url: str, process: str | None) -> list[BatchJson]:
    token = await asyncio.to_thread(OperatorToken.load, config.home)
    say(f"the gateway at {url} settles ...")
    try:
        async with GatewayClient(url) as client:
            return await client.settle(token)
    except CapacityError as cause:
        if process is None:
            raise
        raise CapacityError(f"{cause}. Process {process} writes this home's ledger: give its URL, --gateway") from cause


def _show(batch: BatchJson) -> None:
    paid, total = batch.paid, int(batch.total_wei)
    click.echo(f"batch {batch.nonce} of gateway {batch.gateway}: {batch.receipts} receipts, {ncn(total)}")
    for node, wei in sorted(paid.compute.items()):
        click.echo(f"  compute node  {node}  {ncn(int(wei))}")
    click.echo(f"  gateway       {batch.gateway}  {ncn(int(paid.gateway))}")
    click.echo(f"  validators    {ncn(int(paid.validators))}")
    click.echo(f"  treasury      {ncn(int(paid.treasury))}")
    each = batch.gas / batch.receipts if batch.receipts else 0
    click.echo(f"  {batch.gas:,} gas, {each:,.1f} a request; transaction {batch.transaction}")
