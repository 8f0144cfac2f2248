"""The commands ``ncn chain``. What is slow to import is imported inside them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .running import run

if TYPE_CHECKING:
    from ncn_framework.config import Config
    from ncn_framework.signing import Signer

    from ..deployment import Addresses, Parameters
    from ..inspection import Inspection

__all__ = ["chain"]

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group()
def chain() -> None:
    """Deploy the network's contracts, and look at them."""


@chain.command("deploy")
@click.option("--wallet", metavar="NAME", help="Wallet that pays; default: PRIVATE_KEY, or the development key.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="First line: the wallet's password. Or: NCN_WALLET_PASSWORD.",
)
@click.option("--yes", is_flag=True, help="Don't ask before anything is paid.")
@_as_json
def chain_deploy(wallet: str | None, password_file: Path | None, yes: bool, as_json: bool) -> None:
    """Deploy what is missing of the contracts, and write their addresses to home/deployments.

    The chain is that of RPC_URL, or the development network's. Addresses follow from code and parameters, so that a
    second run, or one after a crash, only does what is missing. The parameters are variables: PROPOSERS (who owns
    the contracts, through the timelock), GUARDIAN, TOKEN_HOLDER, TOKEN_SUPPLY, MIN_STAKE, MIN_BOND, THRESHOLD and
    times in seconds: TIMELOCK_DELAY, EPOCH_LENGTH, SNAPSHOT_LIFETIME, DISPUTE_WINDOW, UNBONDING_PERIOD,
    WITHDRAWAL_DELAY, WITHDRAWAL_WINDOW, MAX_REQUEST_TIME.
    """
    from ncn_framework.config import Config
    from ncn_framework.signing import address_hex

    from ..deployment import Parameters
    from ..devkeys import CHAIN_ID

    config = Config()
    signer = _payer(config, wallet, password_file)
    variables = {**config.sources.dotenv, **config.sources.environment}
    parameters = Parameters.from_environment(variables, signer.address, config.core.chain_id)
    if config.core.chain_id != CHAIN_ID and not yes:
        click.echo(f"chain id     {config.core.chain_id}", err=True)
        for field in dataclasses.fields(parameters):
            click.echo(f"{field.name:<20} {_shown(getattr(parameters, field.name))}", err=True)
        click.confirm(f"Deploy with the key of {address_hex(signer.address)}?", abort=True, err=True)
    addresses = run(_deploy(config, signer, parameters))
    if as_json:
        click.echo(json.dumps(addresses.as_json()))
        return
    for name, value in addresses.as_json().items():
        click.echo(f"{name:<9} {value}")


def _shown(value: object) -> str:
    from ncn_framework.signing import address_hex

    if isinstance(value, tuple):
        return ",".join(_shown(one) for one in value)
    return address_hex(value) if isinstance(value, bytes) else str(value)


def _payer(config: Config, wallet: str | None, password_file: Path | None) -> Signer:
    from ncn_framework.errors import ConfigError
    from ncn_framework.signing import Signer

    from ..devkeys import CHAIN_ID, development_signer
    from ..passwords import unlock

    if wallet is not None:
        return unlock(config, wallet, password_file=password_file)
    key = config.sources.environment.get("PRIVATE_KEY") or config.sources.dotenv.get("PRIVATE_KEY")
    if key:
        return Signer.from_hex(key, "PRIVATE_KEY")
    if config.core.chain_id == CHAIN_ID:
        return development_signer("deployer", CHAIN_ID)
    raise ConfigError("no key to deploy with: give --wallet NAME, or set PRIVATE_KEY")


async def _deploy(config: Config, signer: Signer, parameters: Parameters) -> Addresses:
    import asyncio

    from ..config import PaymentsSettings
    from ..deployment import Addresses, deploy
    from ..writer import TransactionWriter
    from .opening import opened_chain

    settings, chain_id = config.load(PaymentsSettings), config.core.chain_id
    path = settings.addresses_path(config.home, chain_id)

    def known() -> Addresses | None:
        return Addresses.load(path, chain_id) if path.exists() else None

    before = await asyncio.to_thread(known)
    async with (
        opened_chain(config) as opened,
        TransactionWriter.of(settings, opened, signer, config.home) as writer,
    ):
        addresses = await deploy(opened, writer, parameters, before)
        if addresses != before:
            await asyncio.to_thread(addresses.save, path)
        return addresses


@chain.command("status")
@_as_json
def chain_status(as_json: bool) -> None:
    """Show what is deployed where and how it stands; exit status 1 where something is missing or wrong."""
    from ncn_framework.config import Config

    found = run(_inspect(Config()))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        _print(found)
    sys.exit(1 if found.problems else 0)


async def _inspect(config: Config) -> Inspection:
    from ..inspection import inspect
    from .opening import opened

    async with opened(config, deployed=False) as contracts:
        return await inspect(contracts)


def _print(found: Inspection) -> None:
    from ..amounts import shown_amount

    click.echo(f"chain {found.chain_id}, block {found.block}")
    for name, row in found.contracts.items():
        state = "as built" if row["matches"] else "OTHER CODE" if row["bytes"] else "MISSING"
        click.echo(f"  {name:<20} {row['address']}  {row['bytes']:>6} bytes  {state}")
    for name, value in found.parameters.items():
        amount = f"{shown_amount(value)} NCN" if name in ("minStake", "minBond", "totalSupply") else ""
        click.echo(f"  {name:<20} {amount or (str(value) if name == 'threshold' else f'{value} s')}")
    if found.epoch:
        quorum = f", {found.epoch['quorum']} make a quorum" if "quorum" in found.epoch else ""
        click.echo(f"epoch {found.epoch['number']}, {len(found.epoch['validators'])} validators{quorum}")
    for row in found.epoch.get("validators", ()):
        stake = f"{shown_amount(row['stake'])} NCN"
        click.echo(f"  {row['address']}  {row['state']:<8} {stake:>14}  reputation {row['reputation']}")
    if found.funds:
        click.echo(
            f"treasury {shown_amount(found.funds['treasury'])} NCN, "
            f"validator pool {shown_amount(found.funds['validator_pool'])} NCN, "
            f"held {shown_amount(found.funds['held'])} NCN"
            f"{', PAUSED' if found.funds['paused'] else ''}"
        )
    for problem in found.problems:
        click.echo(f"PROBLEM: {problem}", err=True)
