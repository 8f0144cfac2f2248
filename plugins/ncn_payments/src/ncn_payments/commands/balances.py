"""What a wallet has: on chain, and in the gateway's words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import click

from ncn_framework.config import Config
from ncn_framework.errors import ConfigError, MalformedRequest, NcnError, VerificationError
from ncn_framework.models import Domain
from ncn_framework.signing import address_hex
from ncn_framework.wire.json_payments import voucher_from_json, wei_from_json

from ..activity import Activity, ChannelState
from ..amounts import shown_amount
from ..gateway_client import GatewayClient
from .channels import gateway_url
from .display import at, away, ncn, say
from .opening import opened

__all__ = ["show_balance"]


@dataclass(frozen=True)
class _Word:
    """What the gateway says of a channel, in wei: what it charged, what it holds, what its best voucher allows."""

    charged_wei: int
    held_wei: int
    voucher_wei: int


async def show_balance(config: Config, address: bytes, gateway: str | None, as_json: bool) -> None:
    """Print what an address has.

    Args:
        config: of this process.
        address: of the wallet.
        gateway: URL that was named; by default that of the client's setting, which may be silent.
        as_json: print one JSON object.
    """
    async with opened(config) as contracts:
        activity = Activity(contracts, address)
        ether = await contracts.chain.balance(address)
        token = int(await contracts.token.read("balanceOf", address))
        free, request_nonce = await contracts.payment.read("accounts", address)
        states = [await activity.state(key) for key in await activity.channels()]
        domain = Domain(contracts.addresses.chain_id, contracts.addresses.payment)
        words = await _words(gateway or gateway_url(config), domain, states, insist=gateway is not None)
    if as_json:
        head = {"address": address_hex(address), "ether_wei": str(ether), "token_wei": str(token)}
        account = {"free_wei": str(free), "requests": request_nonce}
        channels = [_json(state, words.get(state.key.id)) for state in states]
        click.echo(json.dumps({**head, "account": account, "channels": channels}))
        return
    click.echo(f"wallet     {address_hex(address)}")
    click.echo(f"ether      {shown_amount(ether)} ETH")
    click.echo(f"token      {ncn(token)}")
    click.echo(f"account    {ncn(free)} for escrows; {request_nonce} so far")
    for state in states:
        _show(state, words.get(state.key.id))
    if not states:
        say("no channels yet; `ncn payments deposit` makes one")


async def _words(url: str, domain: Domain, states: list[ChannelState], *, insist: bool) -> dict[bytes, _Word]:
    """Return what the gateway at ``url`` says of the channels that are with it, by channel."""
    found = {}
    try:
        async with GatewayClient(url) as client:
            address = await client.address(domain)
            for key in (state.key for state in states if state.key.gateway == address):
                form = await client.channel(key.client, key.signer)
                voucher = 0 if form.voucher is None else voucher_from_json(form.voucher).cumulative_wei
                charged, held = wei_from_json(form.charged_wei, "charged"), wei_from_json(form.held_wei, "held")
                found[key.id] = _Word(charged, held, voucher)
    except MalformedRequest as cause:
        raise VerificationError(url, str(cause)) from cause
    except NcnError as error:
        if insist or isinstance(error, ConfigError):
            raise
        say(f"what the gateway has charged is left out: {error}")
    return found


def _show(state: ChannelState, word: _Word | None) -> None:
    key = state.key
    session = "" if key.signer == key.client else f", session key {address_hex(key.signer)}"
    click.echo(f"channel    0x{key.id.hex()}")
    click.echo(f"  with     {address_hex(key.gateway)}{session}")
    click.echo(f"  chain    {ncn(state.deposited_wei)} deposited, {ncn(state.spent_wei)} spent")
    if word is not None:
        free = state.deposited_wei - word.charged_wei - word.held_wei
        click.echo(f"  gateway  {ncn(word.charged_wei)} charged in all, {ncn(word.held_wei)} held; {ncn(free)} free")
    if state.unlock_at_s:
        when = f"from {away(state.unlock_at_s)} on, until {at(state.lapse_at_s)}"
        click.echo(f"  leaving  {ncn(state.left_wei)} may be withdrawn {when}")


def _json(state: ChannelState, word: _Word | None) -> dict[str, Any]:
    key = state.key
    return {
        "channel": "0x" + key.id.hex(),
        "gateway": address_hex(key.gateway),
        "signer": address_hex(key.signer),
        "deposited_wei": str(state.deposited_wei),
        "spent_wei": str(state.spent_wei),
        "unlock_at_s": state.unlock_at_s,
        "lapse_at_s": state.lapse_at_s,
        "gateway_says": None if word is None else {name: str(value) for name, value in vars(word).items()},
    }
