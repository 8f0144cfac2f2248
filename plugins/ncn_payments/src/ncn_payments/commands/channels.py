"""Deposits and withdrawals, as the commands make them: on chain alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click

from ncn_framework.config import Config
from ncn_framework.errors import CapacityError, PaymentRequired, TransactionReverted
from ncn_framework.models import Domain
from ncn_framework.signing import Signer, address_hex

from ..activity import Activity, ChannelKey, ChannelState
from ..config import PaymentsSettings
from ..gateway_client import GatewayClient
from ..onchain import OnChain
from ..writer import Receipt, TransactionWriter
from .display import away, ncn, say
from .opening import opened
from .payer import client_setting
from .sending import once, told

__all__ = [
    "Choice",
    "deposit_into_account",
    "deposit_into_channel",
    "gateway_url",
    "keep_channel",
    "withdraw_channel",
    "withdraw_from_account",
]

_GATEWAY = "http://127.0.0.1:8080"
"""Where ``ncn serve`` listens."""


@dataclass(frozen=True)
class Choice:
    """Which of a wallet's channels is meant, as far as it was said: the gateway's address or URL, the signer."""

    gateway: bytes | str | None
    signer: bytes | None


def gateway_url(config: Config) -> str:
    """Return the URL of the gateway that the client asks."""
    return client_setting(config, "gateway") or _GATEWAY


@asynccontextmanager
async def _acting(config: Config, signer: Signer) -> AsyncIterator[OnChain]:
    """Yield the contracts, with transactions of ``signer``'s."""
    async with opened(config) as contracts:
        settings, addresses = config.load(PaymentsSettings), contracts.addresses
        async with TransactionWriter.of(settings, contracts.chain, signer, config.home) as writer:
            yield await OnChain(contracts, Domain(addresses.chain_id, addresses.payment), writer).open()


async def _once(chain: OnChain, what: str, send: Callable[[str], Awaitable[Receipt]]) -> Receipt:
    """Tell the payment contract what is named ``what``."""
    return await once(chain.writer, chain.addresses.payment, what, send)


# --- deposits ---


async def deposit_into_channel(
    config: Config, payer: Signer, gateway: bytes | str | None, signer: bytes | None, amount_wei: int
) -> None:
    """Pay into a channel, and show how it is then."""
    async with _acting(config, payer) as chain:
        address = await _gateway_address(gateway or gateway_url(config), chain.domain)
        key = ChannelKey(payer.address, signer or payer.address, address)

        async def send(name: str) -> Receipt:
            return await chain.fund(key.client, key.signer, key.gateway, amount_wei, name)

        receipt = await _once(chain, f"deposit:{key.id.hex()}:{amount_wei}", send)
        told(receipt, f"deposited {ncn(amount_wei)}")
        state = await Activity(chain.contracts, payer.address).state(key)
        _show_channel(state)
        if state.unlock_at_s:
            say("this channel is being withdrawn: the gateway takes no voucher of it before `withdraw --cancel`")


async def deposit_into_account(config: Config, payer: Signer, amount_wei: int) -> None:
    """Pay into the account for escrows, and show what is in it then."""
    async with _acting(config, payer) as chain:

        async def send(name: str) -> Receipt:
            return await chain.fund_account(amount_wei, name)

        receipt = await _once(chain, f"deposit-account:{amount_wei}", send)
        told(receipt, f"deposited {ncn(amount_wei)}")
        await _show_account(chain, payer)


async def _gateway_address(gateway: bytes | str, domain: Domain) -> bytes:
    if isinstance(gateway, bytes):
        return gateway
    async with GatewayClient(gateway) as client:
        return await client.address(domain)


def _show_channel(state: ChannelState) -> None:
    key = state.key
    click.echo(f"channel    0x{key.id.hex()}")
    click.echo(f"gateway    {address_hex(key.gateway)}")
    click.echo(f"signer     {address_hex(key.signer)}")
    click.echo(f"deposited  {ncn(state.deposited_wei)}")
    click.echo(f"spent      {ncn(state.spent_wei)}")


async def _show_account(chain: OnChain, payer: Signer) -> None:
    account = await chain.account(payer.address)
    click.echo(f"account    {ncn(account.free_wei)} for escrows")


# --- withdrawals ---


async def withdraw_from_account(config: Config, payer: Signer, amount_wei: int) -> None:
    """Take tokens out of the account for escrows."""
    async with _acting(config, payer) as chain:

        async def send(name: str) -> Receipt:
            free = (await chain.account(payer.address)).free_wei
            if free < amount_wei:
                raise PaymentRequired(f"the account for escrows has {ncn(free)}, not {ncn(amount_wei)}")
            return await chain.withdraw_account(amount_wei, name)

        receipt = await _once(chain, f"withdraw-account:{amount_wei}", send)
        told(receipt, f"withdrew {ncn(amount_wei)}")
        await _show_account(chain, payer)


async def withdraw_channel(config: Config, payer: Signer, choice: Choice) -> None:
    """Begin a withdrawal; or finish one that has begun.

    Raises:
        CapacityError: its delay is not over.
    """
    async with _acting(config, payer) as chain:
        activity = Activity(chain.contracts, payer.address)
        state = await _chosen(chain, activity, choice, exiting=False)
        if state.unlock_at_s:
            await _finish(chain, activity, state)
        else:
            await _begin(chain, activity, state)


async def _begin(chain: OnChain, activity: Activity, state: ChannelState) -> None:
    key = state.key

    async def send(name: str) -> Receipt:
        return await chain.leave(key.signer, key.gateway, name)

    receipt = await _once(chain, f"leave:{key.id.hex()}", send)
    told(receipt, f"the withdrawal of {ncn(state.left_wei)} has begun")
    state = await activity.state(key)
    _show_channel(state)
    click.echo(f"type the same again from {away(state.unlock_at_s)} on, and before {away(state.lapse_at_s)}")


async def _finish(chain: OnChain, activity: Activity, state: ChannelState) -> None:
    key = state.key
    locked = CapacityError(
        f"the withdrawal of channel 0x{key.id.hex()}, {ncn(state.left_wei)}, may be finished from "
        f"{away(state.unlock_at_s)} on: type the same again then"
    )

    if await activity.now_s() < state.unlock_at_s:
        raise locked

    async def send(name: str) -> Receipt:
        return await chain.withdraw(key.client, key.signer, key.gateway, name)

    try:
        receipt = await _once(chain, f"withdraw:{key.id.hex()}", send)
    except TransactionReverted as error:
        if error.reason == "InferencePayment__StillLocked":  # by the chain's clock, which lags a little
            raise locked from error
        raise
    (event,) = chain.contracts.payment.events(receipt.logs, "WithdrawalFinalized")
    told(receipt, f"withdrew {ncn(event.arguments['amount'])}")
    _show_channel(await activity.state(key))


async def keep_channel(config: Config, payer: Signer, choice: Choice) -> None:
    """Take back a withdrawal that has begun."""
    async with _acting(config, payer) as chain:
        activity = Activity(chain.contracts, payer.address)
        state = await _chosen(chain, activity, choice, exiting=True)
        key = state.key

        async def send(name: str) -> Receipt:
            return await chain.stay(key.signer, key.gateway, name)

        receipt = await _once(chain, f"stay:{key.id.hex()}", send)
        told(receipt, "the channel is kept")
        _show_channel(await activity.state(key))


async def _chosen(chain: OnChain, activity: Activity, choice: Choice, *, exiting: bool) -> ChannelState:
    """Return the wallet's channel that ``choice`` leaves.

    Args:
        chain: the contracts.
        activity: of the wallet.
        choice: what was said of it.
        exiting: only channels that are being withdrawn count; else all that have something left.

    Raises:
        PaymentRequired: there is none.
        click.UsageError: there are several; the message lists them.
    """
    own = chain.writer.address
    gateway = None if choice.gateway is None else await _gateway_address(choice.gateway, chain.domain)
    if gateway is not None and choice.signer is not None:
        keys = [ChannelKey(own, choice.signer, gateway)]
    else:
        keys = [key for key in await activity.channels() if gateway in (None, key.gateway)]
        keys = [key for key in keys if choice.signer in (None, key.signer)]
    states = [await activity.state(key) for key in keys]
    found = [state for state in states if (state.unlock_at_s if exiting else state.left_wei)]
    if len(found) == 1:
        return found[0]
    what = "that is being withdrawn" if exiting else "with anything left in it"
    if not found:
        raise PaymentRequired(
            f"wallet {address_hex(own)} has no channel {what}"
            + (", of those that you named" if gateway or choice.signer else "")
            + "; `ncn payments balance` lists them"
        )
    raise click.UsageError(
        f"wallet {address_hex(own)} has {len(found)} channels {what}; name one:\n"
        + "\n".join(
            f"  --gateway {address_hex(state.key.gateway)} --signer {address_hex(state.key.signer)}"
            f"   {ncn(state.left_wei)} left"
            for state in found
        )
    )
