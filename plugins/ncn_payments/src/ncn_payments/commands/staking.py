"""The commands ``ncn stake``. What is slow to import is imported inside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .parameters import address_parameter, amount_parameter
from .payer import wallet_options
from .running import run

if TYPE_CHECKING:
    from ncn_framework.config import Config

__all__ = ["stake"]

F = TypeVar("F", bound=Callable[..., Any])

_amount = click.argument("amount", callback=amount_parameter)


def _owner_options(command: F) -> F:
    """Add the options that say whose stake is meant: ``wallet``, ``password_file`` and ``role``."""
    role = click.option(
        "--role",
        type=click.Choice(("compute", "validator")),
        help="Act for this machine's key of that role, instead of a wallet's.",
    )
    return role(wallet_options(command))


def _one_of(wallet: str | None, role: str | None) -> None:
    if wallet is not None and role is not None:
        raise click.UsageError("--wallet and --role are two accounts: give one of them")


def _config() -> Config:
    from ncn_framework.config import Config

    return Config()


@click.group()
def stake() -> None:
    """Put NCN at stake: as a validator, who signs, or as a compute node, which wants to be trusted.

    What is at stake can be slashed for misconduct: 10% for being down, 30% for a wrong result, 50% for contradicting
    signatures, 100% for collusion. Whoever is slashed below the minimum, and every compute node that is slashed, is
    jailed: without work until it adds stake. What is taken out stays bound for the unbonding period, and can be slashed
    until its end.

    Each command acts for a wallet (--wallet), for this machine's key of a role (--role), or else for the only key of
    this machine that has a stake: those of the setting payments.validator_keys, and the compute node's.

    \b
    ncn stake bond 1000                  the compute node of this machine, 1,000 NCN
    ncn stake validator 10000 --wallet v a validator with the key of wallet v
    ncn stake show                       how they stand
    ncn stake exit                       begin to take it out; `ncn stake finish` when the time has come
    """


@stake.command(short_help="Show what accounts have at stake, and how they stand.")
@click.argument("address", callback=address_parameter, required=False)
@_owner_options
@click.option("--json", "as_json", is_flag=True, help="A JSON list; amounts in wei, as strings.")
def show(
    address: bytes | None, wallet: str | None, password_file: Path | None, role: str | None, as_json: bool
) -> None:
    """Show how ADDRESS stands, or this machine's keys: state, stake, reputation, rewards.

    All of it is read from the chain; no wallet is unlocked for it. States: none, active (a validator), bonded (a
    compute node), jailed, exiting, exited.

    \b
    ncn stake show
    ncn stake show 0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A
    ncn stake show --wallet alice --json
    """
    from .stakes import Owner, show_stakes

    _one_of(wallet, role)
    if address is not None and (wallet is not None or role is not None):
        raise click.UsageError("ADDRESS goes with neither --wallet nor --role")
    run(show_stakes(_config(), address, Owner(wallet, password_file, role), as_json))


@stake.command(short_help="Become a validator.")
@_amount
@_owner_options
def validator(amount: int, wallet: str | None, password_file: Path | None, role: str | None) -> None:
    """Put AMOUNT, in NCN (10000) or in wei ("250 wei"), at stake as a validator: a member from the next epoch on.

    Without an option, the key of the setting payments.validator_keys does, if it is the only one. An account is one
    thing at a time: a compute node needs another key than a validator.

    \b
    ncn stake validator 10000 --wallet alice
    NCN_PAYMENTS_VALIDATOR_KEYS=... ncn stake validator 25000
    """
    from .stakes import Owner, put_at_stake

    _one_of(wallet, role)
    owner = Owner(wallet, password_file, role or (None if wallet else "validator"))
    run(put_at_stake(_config(), owner, "registerValidator", amount))


@stake.command(short_help="Put a compute node's bond at stake.")
@_amount
@_owner_options
def bond(amount: int, wallet: str | None, password_file: Path | None, role: str | None) -> None:
    """Put AMOUNT, in NCN (1000) or in wei ("250 wei"), at stake as a compute node: 30% of it for each wrong result.

    The bond belongs to the key with which the node signs its receipts: without an option that of this machine's
    compute node (home/keys/compute.key, or the setting compute.private_key), which has to have the NCN, and ether for
    the fee. On a development network it gets both. A bonded node is no validator.

    \b
    ncn stake bond 1000
    ncn stake bond 1500 --wallet node7
    """
    from .stakes import Owner, put_at_stake

    _one_of(wallet, role)
    owner = Owner(wallet, password_file, role or (None if wallet else "compute"))
    run(put_at_stake(_config(), owner, "bond", amount))


@stake.command(short_help="Add to a stake; frees who is jailed, where it is enough.")
@_amount
@_owner_options
def add(amount: int, wallet: str | None, password_file: Path | None, role: str | None) -> None:
    """Add AMOUNT to the stake. An account that is jailed and has its minimum again is free with it.

    \b
    ncn stake add 300
    ncn stake add 300 --role compute
    """
    from .stakes import Owner, add_stake

    _one_of(wallet, role)
    run(add_stake(_config(), Owner(wallet, password_file, role), amount))


@stake.command("exit", short_help="Begin to take the whole stake out.")
@_owner_options
def exit_(wallet: str | None, password_file: Path | None, role: str | None) -> None:
    """Begin to take the whole stake out: no work and no seat from now on; the stake stays bound for the unbonding
    period, and can be slashed until its end. There is no way back but to finish and begin anew.

    \b
    ncn stake exit
    ncn stake exit --wallet alice
    """
    from .stakes import Owner, leave

    _one_of(wallet, role)
    run(leave(_config(), Owner(wallet, password_file, role)))


@stake.command(short_help="Take the stake out, after the unbonding period.")
@_owner_options
def finish(wallet: str | None, password_file: Path | None, role: str | None) -> None:
    """Take the stake out after the unbonding period. Exit status 1, and the date, while that lasts.

    \b
    ncn stake finish
    """
    from .stakes import Owner, take_out

    _one_of(wallet, role)
    run(take_out(_config(), Owner(wallet, password_file, role)))


@stake.command(short_help="Take a validator's rewards.")
@_owner_options
def rewards(wallet: str | None, password_file: Path | None, role: str | None) -> None:
    """Take what the validator has earned, to its own account; that does not touch the stake.

    \b
    ncn stake rewards --wallet alice
    """
    from .stakes import Owner, claim_rewards

    _one_of(wallet, role)
    run(claim_rewards(_config(), Owner(wallet, password_file, role)))
