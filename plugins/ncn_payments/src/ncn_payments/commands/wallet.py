"""The commands ``ncn wallet``. What is slow to import is imported inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .running import run

if TYPE_CHECKING:
    from ncn_framework.config import Config

__all__ = ["wallet"]

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_password = click.option(
    "--password-file", type=_file, metavar="FILE", help="First line: the wallet's password. Or: NCN_WALLET_PASSWORD."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


def _amount(ctx: click.Context, param: click.Parameter, value: str) -> int:
    from ..amounts import parse_amount

    try:
        return parse_amount(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _config() -> Config:
    from ncn_framework.config import Config

    return Config()


@click.group()
def wallet() -> None:
    """Keep keys in files, encrypted with a password (home/wallets)."""


@wallet.command("create")
@click.argument("name")
@_password
@_as_json
def wallet_create(name: str, password_file: Path | None, as_json: bool) -> None:
    """Make wallet NAME with a new random key."""
    _create(name, password_file, None, as_json)


@wallet.command("import")
@click.argument("name")
@click.option(
    "--key-file", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE", help="64 hex digits; -: stdin."
)
@click.option("--keystore", type=_file, metavar="FILE", help="A keystore of version 3 of another program.")
@click.option("--keystore-password-file", type=_file, metavar="FILE", help="First line: the password of that keystore.")
@_password
@_as_json
def wallet_import(
    name: str,
    key_file: str | None,
    keystore: Path | None,
    keystore_password_file: Path | None,
    password_file: Path | None,
    as_json: bool,
) -> None:
    """Make wallet NAME with a key that there is: typed (and not shown), from a file, or from another keystore."""
    if key_file is not None and keystore is not None:
        raise click.UsageError("give --key-file or --keystore, not both")
    if keystore is not None:
        from ..wallet import key_of_file

        what = f"keystore {keystore}"
        if keystore_password_file is None:
            secret = str(click.prompt(f"Password of {what}", hide_input=True, err=True))
        else:
            from ..passwords import ask_password

            secret = ask_password(_config(), what, file=keystore_password_file)
        key = key_of_file(keystore, secret)
    elif key_file is not None:
        with click.open_file(key_file) as file:
            key = _key(file.read(1024))
    else:
        key = _key(str(click.prompt("Private key", hide_input=True, err=True)))
    _create(name, password_file, key, as_json)


def _key(text: str) -> bytes:
    """Return the key that 64 hex digits are; it is never part of an error."""
    from ncn_framework.errors import WalletError

    digits = text.strip().removeprefix("0x")
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise WalletError("that is no private key: give 64 hex digits, with or without 0x")
    return key


def _create(name: str, password_file: Path | None, key: bytes | None, as_json: bool) -> None:
    from ncn_framework.errors import WalletError
    from ncn_framework.signing import address_hex

    from ..passwords import ask_password
    from ..wallet import Wallets

    config = _config()
    wallets = Wallets(config.home)
    if wallets.path(name).exists():  # before anybody chooses a password
        raise WalletError(f"wallet {name!r} exists already ({wallets.path(name)}); choose another name")
    password = ask_password(config, f"the new wallet {name!r}", file=password_file, new=True)
    made = wallets.create(name, password, key)
    if as_json:
        click.echo(json.dumps({"name": name, "address": address_hex(made.address), "path": str(made.path)}))
    else:
        click.echo(f"{made.name}  {address_hex(made.address)}  {made.path}")
        click.echo("Keep the password: without it the key is lost, and so is what it owns.", err=True)


@wallet.command("list")
@_as_json
def wallet_list(as_json: bool) -> None:
    """List the wallets: name and address."""
    from ncn_framework.signing import address_hex

    from ..wallet import Wallets

    found = Wallets(_config().home).list()
    if as_json:
        click.echo(json.dumps([{"name": one.name, "address": address_hex(one.address)} for one in found]))
        return
    for one in found:
        click.echo(f"{one.name:<24} {address_hex(one.address)}")
    if not found:
        click.echo("no wallets yet; `ncn wallet create NAME` makes one", err=True)


@wallet.command("show")
@click.argument("name")
@_as_json
def wallet_show(name: str, as_json: bool) -> None:
    """Show wallet NAME: its address and, where the chain answers, what it owns."""
    from ncn_framework.errors import ChainError, ConfigError
    from ncn_framework.signing import address_hex

    from ..amounts import shown_amount
    from ..wallet import Wallets

    config = _config()
    one = Wallets(config.home).find(name)
    rows: dict[str, Any] = {"name": one.name, "address": address_hex(one.address), "path": str(one.path)}
    try:
        ether, token = run(_balances(config, one.address))
    except (ChainError, ConfigError) as error:
        click.echo(f"its balances are not known: {error}", err=True)
    else:
        rows |= {"ether_wei": str(ether), "token_wei": str(token)}
    if as_json:
        click.echo(json.dumps(rows))
        return
    for key in ("name", "address", "path"):
        click.echo(f"{key:<8} {rows[key]}")
    if "ether_wei" in rows:
        click.echo(f"ether    {shown_amount(int(rows['ether_wei']))} ETH")
        click.echo(f"token    {shown_amount(int(rows['token_wei']))} NCN")


async def _balances(config: Config, address: bytes) -> tuple[int, int]:
    from .opening import opened

    async with opened(config) as contracts:
        return await contracts.chain.balance(address), int(await contracts.token.read("balanceOf", address))


@wallet.command("fund")
@click.argument("who", metavar="NAME|ADDRESS")
@click.option("--ether", "ether_wei", callback=_amount, default="10", show_default=True, help="Ether to give.")
@click.option("--ncn", "token_wei", callback=_amount, default="10000", show_default=True, help="NCN to give.")
def wallet_fund(who: str, ether_wei: int, token_wei: int) -> None:
    """Give a wallet or an address ether and NCN on the development network (chain id 31337)."""
    from ncn_framework.signing import address_hex

    from ..amounts import shown_amount
    from ..devkeys import require_development

    config = _config()
    require_development(config.core.chain_id)
    address = _address(config, who)
    run(_fund(config, address, ether_wei, token_wei))
    click.echo(f"{address_hex(address)} got {shown_amount(ether_wei)} ETH and {shown_amount(token_wei)} NCN")


def _address(config: Config, who: str) -> bytes:
    from ncn_framework.signing import address_from_hex

    from ..wallet import Wallets

    if not who.startswith("0x"):
        return Wallets(config.home).find(who).address
    try:
        return address_from_hex(who)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME|ADDRESS") from error


async def _fund(config: Config, address: bytes, ether_wei: int, token_wei: int) -> None:
    from ..config import PaymentsSettings
    from ..devnet import DevelopmentNetwork
    from .opening import opened

    async with opened(config) as contracts:
        network = DevelopmentNetwork(contracts.chain, config.load(PaymentsSettings), config.home)
        await network.fund(contracts, address, ether_wei=ether_wei, amount_wei=token_wei)
