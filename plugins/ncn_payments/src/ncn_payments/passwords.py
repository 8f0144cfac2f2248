"""Where the password of a wallet comes from, and the signer that it unlocks."""

from __future__ import annotations

from pathlib import Path

import click

from ncn_framework.config import Config
from ncn_framework.errors import WalletError
from ncn_framework.signing import Signer

__all__ = ["ask_password", "unlock"]


def ask_password(config: Config, what: str, *, file: Path | None = None, new: bool = False) -> str:
    """Return a password: the first line of ``file``, or NCN_WALLET_PASSWORD, or what is typed, which is not shown.

    Args:
        config: of this process.
        what: it is for, such as ``wallet 'alice'``.
        file: with the password.
        new: it is being chosen; whoever types it types it twice.

    Raises:
        WalletError: the file cannot be read, or there is nobody to ask.
    """
    from .config import PaymentsSettings

    if file is not None:
        try:
            return file.read_text().split("\n", 1)[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as cause:
            raise WalletError(f"the password file {file} cannot be read") from cause
    password = config.load(PaymentsSettings).wallet_password.get_secret_value()
    if password:
        return password
    try:
        return str(click.prompt(f"Password of {what}", hide_input=True, confirmation_prompt=new, err=True))
    except click.Abort as cause:
        raise WalletError(
            f"the password of {what} was not typed; type it, or set NCN_WALLET_PASSWORD or --password-file"
        ) from cause


def unlock(config: Config, name: str, *, password_file: Path | None = None) -> Signer:
    """Return the signer of a wallet, with its password asked for where it is not given.

    Args:
        config: of this process.
        name: of the wallet.
        password_file: with the password.

    Raises:
        WalletError: there is no such wallet, it is damaged, or the password is wrong or missing.
    """
    from .wallet import Wallets

    wallets = Wallets(config.home)
    wallets.find(name)  # before anybody is asked for its password
    return wallets.unlock(name, ask_password(config, f"wallet {name!r}", file=password_file))
