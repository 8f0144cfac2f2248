"""Whose key, or only whose address, a command acts for: a wallet's, or the client's of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ncn_framework.config import Config
    from ncn_framework.signing import Signer

__all__ = ["client_setting", "payer_address", "payer_signer", "wallet_option", "wallet_options"]

F = TypeVar("F", bound=Callable[..., Any])

wallet_option = click.option(
    "--wallet",
    metavar="NAME",
    help="Wallet to act for; default: the client's key, its wallet, or home/keys/client.key.",
)


def wallet_options(command: F) -> F:
    """Add the options of a command that signs: ``wallet`` and ``password_file``."""
    password = click.option(
        "--password-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="First line: the wallet's password. Or: NCN_WALLET_PASSWORD.",
    )
    return wallet_option(password(command))


def payer_signer(config: Config, wallet: str | None, password_file: Path | None) -> Signer:
    """Return the signer to pay with: of the wallet that is named, or else of the client's settings.

    Raises:
        WalletError: there is no such wallet, its password is wrong, or there is no key at all.
        ConfigError: the client's key is a session key, which owns nothing.
    """
    from ncn_framework.errors import ConfigError
    from ncn_framework.signing import address_hex

    from ..passwords import unlock

    if wallet is not None:
        return unlock(config, wallet, password_file=password_file)
    key, name = _client(config)
    signer = unlock(config, name, password_file=password_file) if key is None else key
    payer = _stated_payer(config)
    if payer not in (None, signer.address):
        raise ConfigError(
            f"setting client.payer is {address_hex(payer or b'')}, but the client's key is a session key, "
            f"{address_hex(signer.address)}; name the payer's wallet with --wallet NAME"
        )
    return signer


def payer_address(config: Config, wallet: str | None) -> bytes:
    """Return the address of whoever pays; no wallet is unlocked for it.

    Raises:
        WalletError: there is no such wallet, or there is no key at all.
    """
    from ..wallet import Wallets

    if wallet is not None:
        return Wallets(config.home).find(wallet).address
    payer = _stated_payer(config)
    if payer is not None:
        return payer
    key, name = _client(config)
    return Wallets(config.home).find(name).address if key is None else key.address


def _client(config: Config) -> tuple[Signer | None, str]:
    """Return the client's key, or the name of its wallet, in the order of ``ncn infer``."""
    from ncn_framework.errors import ConfigError, WalletError
    from ncn_framework.signing import Signer

    key, wallet = client_setting(config, "private_key"), client_setting(config, "wallet")
    if key:
        return Signer.from_hex(key, "setting client.private_key"), ""
    if wallet:
        return None, wallet
    path = config.home / "keys" / "client.key"  # a development network's gateway makes it
    try:
        return Signer.from_hex(path.read_text(errors="replace"), f"key file {path}"), ""
    except FileNotFoundError as cause:
        raise WalletError(
            "no key to pay with: make a wallet (ncn wallet create NAME) and name it with --wallet NAME"
        ) from cause
    except OSError as cause:
        raise ConfigError(f"key file {path} cannot be read: {cause.strerror}") from cause


def _stated_payer(config: Config) -> bytes | None:
    from ncn_framework.errors import ConfigError
    from ncn_framework.signing import address_from_hex

    text = client_setting(config, "payer")
    try:
        return address_from_hex(text) if text else None
    except ValueError as cause:
        raise ConfigError(f"setting client.payer: {cause}") from cause


def client_setting(config: Config, field: str) -> str:
    """Return a setting of the client's table, which another plugin owns; empty where it is not set."""
    from ncn_framework.sources import variable_of

    found = config.sources.find("client", field, (variable_of("client", field),))
    return "" if found is None else str(found[0])
