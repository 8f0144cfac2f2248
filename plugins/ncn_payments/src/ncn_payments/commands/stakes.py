"""Stakes and bonds, as the commands make them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ncn_framework.config import Config
from ncn_framework.errors import CapacityError, ConfigError, PaymentRequired, TransactionReverted
from ncn_framework.signing import Signer, address_hex
from ncn_framework.wire.json import encode

from ..config import PaymentsSettings
from ..devkeys import accounts
from ..devnet import DevelopmentNetwork
from ..service import validator_signers
from ..stakes import Minimums, Stakes, Standing
from ..wallet import Wallets
from ..writer import Receipt, TransactionWriter
from .display import away, ncn, say
from .opening import opened
from .sending import once, told

__all__ = ["Owner", "add_stake", "claim_rewards", "leave", "put_at_stake", "show_stakes", "take_out"]

_KINDS = {"registerValidator": "a validator", "bond": "a compute node"}


@dataclass(frozen=True)
class Owner:
    """Whose stake is meant, as far as it was said: of a wallet, or of a role's key on this machine."""

    wallet: str | None = None
    password_file: Path | None = None
    role: str | None = None


# --- whose ---


def _role_signer(config: Config, role: str) -> Signer:
    """Return the key of a role on this machine.

    Raises:
        ConfigError: it is not known which, or there is none.
    """
    if role == "validator":
        signers = validator_signers(config.load(PaymentsSettings), config.core.chain_id)
        if len(signers) == 1:
            return signers[0]
        raise ConfigError(
            f"setting payments.validator_keys has {len(signers)} keys here, not one: name the validator's wallet with "
            "--wallet NAME (ncn wallet import), or set NCN_PAYMENTS_VALIDATOR_KEYS to its key"
        )
    from ncn_framework.manager import find_plugins
    from ncn_framework.node import Node

    plugins = find_plugins(config.sources.names("plugins"), config.sources.names("disabled_plugins"))
    return Node(role, config, plugins).signer


def _signer(config: Config, owner: Owner) -> Signer | None:
    """Return the signer that is named; None where none is."""
    from ..passwords import unlock

    if owner.wallet is not None:
        return unlock(config, owner.wallet, password_file=owner.password_file)
    return None if owner.role is None else _role_signer(config, owner.role)


def _machines(config: Config) -> list[Signer]:
    """Return the keys on this machine that may have something at stake: validators', and the compute node's."""
    signers = list(validator_signers(config.load(PaymentsSettings), config.core.chain_id))
    known = set(accounts().values())  # a development network's validators are everybody's: only when they are named
    signers = [signer for signer in signers if signer.address not in known]
    if (config.home / "keys" / "compute.key").exists():
        signers.append(_role_signer(config, "compute"))
    return signers


async def _only(config: Config, stakes: Stakes) -> Signer:
    """Return the one key of this machine that has something at stake.

    Raises:
        PaymentRequired: none has.
        click.UsageError: several have; the message lists them.
    """
    found = [one for one in _machines(config) if (await stakes.standing(one.address)).state != "none"]
    if len(found) == 1:
        return found[0]
    if not found:
        raise PaymentRequired(
            "no key of this machine has anything at stake: begin with `ncn stake bond` or `ncn stake validator`, or "
            "name the account with --wallet NAME or --role ROLE"
        )
    listed = "\n".join(f"  {address_hex(one.address)}" for one in found)
    raise click.UsageError(
        f"{len(found)} keys of this machine have a stake; name one with --wallet or --role:\n{listed}"
    )


@asynccontextmanager
async def _acting(config: Config, owner: Owner) -> AsyncIterator[Stakes]:
    """Yield the stakes, with transactions of the owner's."""
    signer = _signer(config, owner)
    async with opened(config) as contracts:
        signer = signer or await _only(config, Stakes(contracts))
        settings = config.load(PaymentsSettings)
        async with TransactionWriter.of(settings, contracts.chain, signer, config.home) as writer:
            yield Stakes(contracts, writer, settings.confirmations)


async def _once(stakes: Stakes, what: str, send: Callable[[str], Awaitable[Receipt]]) -> Receipt:
    return await once(stakes.sender, stakes.contracts.addresses.registry, what, send)


# --- putting at stake ---


async def put_at_stake(config: Config, owner: Owner, function: str, amount_wei: int) -> None:
    """Make an account a validator or a bonded compute node, and show how it stands then.

    Args:
        config: of this process.
        owner: whose account.
        function: ``registerValidator`` or ``bond``.
        amount_wei: what it puts at stake.

    Raises:
        PaymentRequired: that is too little, the account does not have it, or it has a stake already.
    """
    async with _acting(config, owner) as stakes:
        own, minimums = stakes.sender.address, await stakes.minimums()
        least = minimums.bond_wei if function == "bond" else minimums.stake_wei
        if amount_wei < least:
            raise PaymentRequired(
                f"{_KINDS[function]} has to put at least {ncn(least)} at stake, not {ncn(amount_wei)}"
            )
        standing = await stakes.standing(own)

        async def send(name: str) -> Receipt:
            if standing.state not in ("none", "exited"):
                raise PaymentRequired(
                    f"{address_hex(own)} has {ncn(standing.stake_wei)} at stake already ({_described(standing)}): "
                    "`ncn stake add` adds to that; to become something else, it has to leave first (`ncn stake exit`)"
                )
            await _endow(config, stakes, amount_wei)
            work = stakes.bond if function == "bond" else stakes.register
            return await work(amount_wei, name)

        receipt = await _once(stakes, f"{function}:{amount_wei}", send)
        told(receipt, f"put {ncn(amount_wei)} at stake")
        await _show(stakes, own, minimums)
        if function == "registerValidator":
            say("it is a member from the next epoch on; set NCN_PAYMENTS_VALIDATOR_KEYS where its process runs")


async def add_stake(config: Config, owner: Owner, amount_wei: int) -> None:
    """Add to a stake; that frees an account which is jailed, where it is enough."""
    async with _acting(config, owner) as stakes:
        own = stakes.sender.address

        async def send(name: str) -> Receipt:
            standing = await stakes.standing(own)
            if standing.state not in ("active", "bonded", "jailed"):
                raise PaymentRequired(
                    f"{address_hex(own)} is {_described(standing)}: there is nothing to add to; begin with "
                    "`ncn stake bond` or `ncn stake validator`"
                )
            await _endow(config, stakes, amount_wei)
            return await stakes.add(amount_wei, name)

        receipt = await _once(stakes, f"addStake:{amount_wei}", send)
        told(receipt, f"added {ncn(amount_wei)}")
        await _show(stakes, own, await stakes.minimums())


async def _endow(config: Config, stakes: Stakes, amount_wei: int) -> None:
    """On a development network, give the account what it lacks, as its nodes get their money there."""
    settings, contracts, own = config.load(PaymentsSettings), stakes.contracts, stakes.sender.address
    if settings.chain_kind == "rpc":
        return
    say(f"development network: its deployer gives {address_hex(own)} what it may lack")
    await DevelopmentNetwork(contracts.chain, settings, config.home).endow(contracts, own, amount_wei)


# --- taking out ---


async def leave(config: Config, owner: Owner) -> None:
    """Begin to take a stake out, and show from when on it may be finished."""
    async with _acting(config, owner) as stakes:
        own = stakes.sender.address

        async def send(name: str) -> Receipt:
            standing = await stakes.standing(own)
            if standing.state == "exiting":
                raise CapacityError(_locked(own, standing))
            if standing.state in ("none", "exited"):
                raise PaymentRequired(f"{address_hex(own)} has nothing at stake; `ncn stake show` says so too")
            return await stakes.exit(name)

        receipt = await _once(stakes, "requestExit", send)
        standing = await stakes.standing(own)
        told(receipt, f"the exit of {ncn(standing.stake_wei)} has begun")
        click.echo(f"type `ncn stake finish` from {away(standing.exit_at_s)} on; until then it can still be slashed")


async def take_out(config: Config, owner: Owner) -> None:
    """Finish taking a stake out.

    Raises:
        CapacityError: its time has not come.
        PaymentRequired: the account is not leaving.
    """
    async with _acting(config, owner) as stakes:
        own = stakes.sender.address
        standing = await stakes.standing(own)

        async def send(name: str) -> Receipt:
            if standing.state != "exiting":
                raise PaymentRequired(f"{address_hex(own)} is {_described(standing)}: begin with `ncn stake exit`")
            return await stakes.finalize(name)

        try:
            receipt = await _once(stakes, "finalizeExit", send)
        except TransactionReverted as error:
            if error.reason == "ValidatorRegistry__StillUnbonding":
                raise CapacityError(_locked(own, standing)) from error
            raise
        (event,) = stakes.contracts.registry.events(receipt.logs, "ExitFinalized")
        told(receipt, f"took {ncn(event.arguments['stake'])} out")


def _locked(own: bytes, standing: Standing) -> str:
    return (
        f"{address_hex(own)} is leaving: its {ncn(standing.stake_wei)} may be taken out from "
        f"{away(standing.exit_at_s)} on (`ncn stake finish`)"
    )


async def claim_rewards(config: Config, owner: Owner) -> None:
    """Take a validator's rewards."""
    async with _acting(config, owner) as stakes:
        own = stakes.sender.address

        async def send(name: str) -> Receipt:
            if not (await stakes.standing(own)).rewards_wei:
                raise PaymentRequired(
                    f"{address_hex(own)} has no rewards to take; validators get them with each payout"
                )
            return await stakes.claim(name)

        receipt = await _once(stakes, "claimRewards", send)
        (event,) = stakes.contracts.registry.events(receipt.logs, "RewardsClaimed")
        told(receipt, f"took {ncn(event.arguments['amount'])} of rewards")


# --- showing ---


async def show_stakes(config: Config, address: bytes | None, owner: Owner, as_json: bool) -> None:
    """Print how an account stands; where none is named, every key of this machine that may have a stake."""
    if address is None and owner.wallet is not None:
        address = Wallets(config.home).find(owner.wallet).address  # it need not be unlocked
    if address is None and owner.role is not None:
        address = _role_signer(config, owner.role).address
    async with opened(config) as contracts:
        stakes = Stakes(contracts)
        own = [address] if address is not None else [signer.address for signer in _machines(config)]
        rows = [(one, await stakes.standing(one)) for one in own]
        if as_json:
            click.echo(encode([_json(one, standing) for one, standing in rows]))
            return
        minimums = await stakes.minimums()
        for one, _ in rows:
            await _show(stakes, one, minimums)
        if not rows:
            click.echo(
                f"no key of this machine to stake with; a compute node bonds at least {ncn(minimums.bond_wei)}, a "
                f"validator stakes at least {ncn(minimums.stake_wei)}"
            )


async def _show(stakes: Stakes, account: bytes, minimums: Minimums) -> None:
    standing = await stakes.standing(account)
    least = minimums.bond_wei if standing.is_bond else minimums.stake_wei
    click.echo(f"account     {address_hex(account)}")
    click.echo(f"state       {_described(standing)}")
    click.echo(f"stake       {ncn(standing.stake_wei)}")
    if standing.state == "jailed":
        lacks = max(1, least - standing.stake_wei)
        click.echo(f"to be free  add {ncn(lacks)} or more (ncn stake add)")
    if standing.state == "exiting":
        click.echo(f"taken out   from {away(standing.exit_at_s)} on (ncn stake finish)")
    click.echo(f"reputation  {standing.reputation}")
    click.echo(f"rewards     {ncn(standing.rewards_wei)}")


def _described(standing: Standing) -> str:
    kind = "a compute node's bond" if standing.is_bond else "a validator's stake"
    match standing.state:
        case "none" | "exited":
            return f"{standing.state}: nothing at stake"
        case "bonded":
            return "bonded: a compute node"
        case "active":
            return "active: a validator"
        case state:
            return f"{state}: {kind}"


def _json(account: bytes, standing: Standing) -> dict[str, Any]:
    return {
        "address": address_hex(account),
        "state": standing.state,
        "is_bond": standing.is_bond,
        "stake_wei": str(standing.stake_wei),
        "exit_at_s": standing.exit_at_s,
        "reputation": standing.reputation,
        "rewards_wei": str(standing.rewards_wei),
    }
