"""The commands ``ncn payments``. What is slow to import is imported inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .parameters import address_parameter, amount_parameter
from .payer import wallet_option, wallet_options
from .running import run

if TYPE_CHECKING:
    from ncn_framework.config import Config

__all__ = ["payments"]

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON; amounts in wei, as strings.")


def _gateway(ctx: click.Context, param: click.Parameter, value: str | None) -> bytes | str | None:
    """Return an address as bytes, a URL as it is."""
    if value is None or value.startswith(("http://", "https://")):
        return value
    try:
        return address_parameter(ctx, param, value)
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}; give http://HOST:PORT, https://HOST or an address") from error


def _config() -> Config:
    from ncn_framework.config import Config

    return Config()


_signer = click.option(
    "--signer", callback=address_parameter, metavar="ADDRESS", help="The session key that signs the channel's vouchers."
)


@click.group()
def payments() -> None:
    """Pay into channels, take back what is left, see what was charged and settle it.

    A channel is a deposit on chain for one gateway. Each request carries a signed voucher that raises what the gateway
    may take of it; batches on chain take what was charged. What is left stays yours, whatever the gateway does.

    \b
    ncn payments deposit 25              25 NCN for the gateway on this machine
    ncn payments balance                 what is deposited, spent, charged
    ncn payments history                 what the wallet did, from the chain
    ncn payments withdraw                the rest back: now begun, finished after the delay
    ncn payments settle                  (operators) everything charged, on chain, now
    """


@payments.command(short_help="Pay into a channel, or into the account for escrows.")
@click.argument("amount", callback=amount_parameter)
@click.option("--gateway", callback=_gateway, metavar="URL|ADDRESS", help="For whom; default: setting client.gateway.")
@_signer
@click.option("--account", "to_account", is_flag=True, help="Into the account for escrows, which is for any gateway.")
@wallet_options
def deposit(
    amount: int,
    gateway: bytes | str | None,
    signer: bytes | None,
    to_account: bool,
    wallet: str | None,
    password_file: Path | None,
) -> None:
    """Pay AMOUNT, in NCN (12.5) or in wei ("250 wei"), into the wallet's channel with a gateway.

    A gateway named by URL is asked for its address, and must be of the network that the settings say. One named by
    ADDRESS need not even run. Interrupted, and typed again, the command takes up the transaction that it had sent.

    \b
    ncn payments deposit 25
    ncn payments deposit 25 --wallet alice --gateway https://gateway.example
    ncn payments deposit 0.5 --gateway 0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A --signer 0x...
    ncn payments deposit 10 --account
    """
    from .channels import deposit_into_account, deposit_into_channel
    from .payer import payer_signer

    if to_account and (gateway is not None or signer is not None):
        raise click.UsageError("--account is for no gateway: leave --gateway and --signer out")
    config = _config()
    payer = payer_signer(config, wallet, password_file)
    if to_account:
        run(deposit_into_account(config, payer, amount))
    else:
        run(deposit_into_channel(config, payer, gateway, signer, amount))


@payments.command(short_help="Begin to take the rest of a channel back, or finish it.")
@click.option("--gateway", callback=_gateway, metavar="URL|ADDRESS", help="Of the channel, where there are several.")
@_signer
@click.option("--cancel", is_flag=True, help="Keep the channel: take back a withdrawal that has begun.")
@click.option(
    "--account", "amount", callback=amount_parameter, metavar="AMOUNT", help="From the account for escrows; at once."
)
@wallet_options
def withdraw(
    gateway: bytes | str | None,
    signer: bytes | None,
    cancel: bool,
    amount: int | None,
    wallet: str | None,
    password_file: Path | None,
) -> None:
    """Take what is left of a channel back to the wallet: once to begin, and again after the delay to finish.

    The delay leaves the gateway time to put on chain what it has charged; from the beginning on it takes no more
    vouchers of the channel. A withdrawal that is not finished in the window behind the delay lapses.
    All is done on chain, whether the gateway still exists or not. Exit status 1, and the date, while the delay lasts.

    \b
    ncn payments withdraw
    ncn payments withdraw --cancel
    ncn payments withdraw --gateway 0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A --wallet alice
    ncn payments withdraw --account 7.5
    """
    from .channels import Choice, keep_channel, withdraw_channel, withdraw_from_account
    from .payer import payer_signer

    if amount is not None and (gateway is not None or signer is not None or cancel):
        raise click.UsageError("--account goes with neither --gateway, --signer nor --cancel")
    config = _config()
    payer = payer_signer(config, wallet, password_file)
    choice = Choice(gateway, signer)
    if amount is not None:
        run(withdraw_from_account(config, payer, amount))
    elif cancel:
        run(keep_channel(config, payer, choice))
    else:
        run(withdraw_channel(config, payer, choice))


@payments.command(short_help="Show what a wallet has, on chain and with the gateway.")
@click.option("--gateway", callback=_gateway, metavar="URL", help="Gateway to ask; default: setting client.gateway.")
@wallet_option
@_as_json
def balance(gateway: bytes | str | None, wallet: str | None, as_json: bool) -> None:
    """Show the wallet's token and ether, its account for escrows, and each of its channels.

    All of that is read from the chain. What the gateway has charged and not settled yet, and what it holds for
    requests in flight, is its own word; without its answer that is left out.

    \b
    ncn payments balance
    ncn payments balance --wallet alice --json
    """
    from .balances import show_balance
    from .payer import payer_address

    if isinstance(gateway, bytes):
        raise click.UsageError("--gateway needs a URL here: what is on chain is shown for every gateway")
    config = _config()
    run(show_balance(config, payer_address(config, wallet), gateway, as_json))


_role = click.Choice(("gateway", "compute"))


@payments.command(short_help="Show what a wallet did, or what a role has charged.")
@click.option("--role", type=_role, help="Charges and batches of this role's ledger, instead of the wallet's events.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Most rows, newest first."
)
@wallet_option
@_as_json
def history(role: str | None, limit: int, wallet: str | None, as_json: bool) -> None:
    """Show the wallet's deposits, withdrawals and escrows, from the chain; the newest first.

    With --role, what a gateway or a compute node of this machine has charged, and the batches it was settled in: from
    its ledger, which is only read. The node may run meanwhile, or not.

    \b
    ncn payments history --wallet alice
    ncn payments history --role gateway --limit 100
    ncn payments history --role compute --json
    """
    from .histories import show_events, show_ledger
    from .payer import payer_address

    if role is not None and wallet is not None:
        raise click.UsageError("--role shows the ledger of a role, --wallet what a wallet did: give one of the two")
    config = _config()
    if role is not None:
        show_ledger(config, role, limit, as_json)
    else:
        run(show_events(config, payer_address(config, wallet), limit, as_json))


@payments.command(short_help="Put everything that was charged on chain, now.")
@click.option("--role", type=_role, default="gateway", show_default=True, help="Whose ledger.")
@click.option("--gateway", callback=_gateway, metavar="URL", help="Running gateway to ask; default: client.gateway.")
@_as_json
def settle(role: str, gateway: bytes | str | None, as_json: bool) -> None:
    """Settle what a role has charged, whether a batch is due or not, and show who received what.

    A gateway that runs is asked, with the operator's token that it keeps in home/keys. Where none runs, its ledger is
    settled by this command itself. So is a compute node's, with --role compute: a node holds the vouchers behind its
    work and claims its share without any gateway. Stop the node first; its key pays the fee of the transaction.

    \b
    ncn payments settle
    ncn payments settle --gateway http://127.0.0.1:8080 --json
    ncn payments settle --role compute
    """
    from .settling import show_settled

    if isinstance(gateway, bytes):
        raise click.UsageError("--gateway needs a URL here")
    if role != "gateway" and gateway is not None:
        raise click.UsageError("--gateway goes with --role gateway: a node's ledger is settled without one")
    run(show_settled(_config(), role, gateway, as_json))
