"""The command ``ncn subnet``. What is slow to import is imported inside the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ncn_framework.config import Config
    from ncn_framework.wire.convert_subnets import EndorsedSubnet

    from .asking_subnets import AskedSubnets
    from .operating import Operator

__all__ = ["subnet"]

_at = click.option(
    "--at", "address", metavar="HOST:PORT", help="The registry to ask; default: REGISTRY_GRPC_ADDR, or this machine's."
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON value.")
_yes = click.option("--yes", is_flag=True, help="Don't ask before anything is paid or withdrawn.")
_days = click.option("--days", type=click.IntRange(1, 365), default=365, show_default=True, help="How long it counts.")
_gateways = click.option(
    "--gateway", "gateways", multiple=True, metavar="ADDRESS", help="A gateway of it; default: the operator's own."
)
_description = click.option("--description", metavar="TEXT", help="One line for people.")


@click.group()
def subnet() -> None:
    """Run a subnet, or join one: a group of models that a gateway's operator runs.

    A subnet belongs to a gateway's key, which signs here: GATEWAY_PRIVATE_KEY, or the key file under home. Compute
    nodes join with theirs. A name or the owner's address says which subnet is meant.
    """


def _say(text: str) -> None:
    click.echo(text, err=True)


def _ask(address: str | None) -> tuple[Config, AskedSubnets]:
    from ncn_framework.config import Config

    from .asking_subnets import AskedSubnets

    config = Config()
    return config, AskedSubnets.of(config, address)


def _operator(address: str | None) -> Operator:
    from .operating import Operator

    config, asked = _ask(address)
    return Operator(config, asked, _say)


def _encode(value: Any) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


def _show(one: EndorsedSubnet, members: int, as_json: bool) -> None:
    from .commands import when
    from .subnet_forms import described, subnet_form

    form = subnet_form(one, members)
    click.echo(_encode(form) if as_json else "\n".join(described(form, when(form.expires_ms))))


def _addresses(texts: tuple[str, ...]) -> tuple[bytes, ...]:
    from ncn_framework.signing import address_from_hex

    try:
        return tuple(dict.fromkeys(map(address_from_hex, texts)))
    except ValueError as cause:
        raise click.BadParameter(str(cause), param_hint="--gateway") from cause


# --- an operator's ---


@subnet.command("create")
@click.argument("name")
@_description
@_gateways
@_days
@_yes
@_at
@_json
def subnet_create(
    name: str,
    description: str | None,
    gateways: tuple[str, ...],
    days: int,
    yes: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Create subnet NAME: pay its fee to the treasury, have a quorum of validators sign it, publish it.

    Repeated after a failure, it goes on where it was: the fee is paid once.
    """
    import asyncio
    from decimal import Decimal

    from ncn_framework.signing import address_hex
    from ncn_framework.wire.convert_subnets import Subnet, subnet_record

    from .operating import subnet_fee_wei

    operator = _operator(address)
    owner = operator.signer.address
    made = Subnet(owner, name, (), _addresses(gateways) or (owner,), description or "")
    subnet_record(made, 1, 1)  # what is malformed is refused before anything is paid
    operator.check_free(name)
    fee = subnet_fee_wei(operator.config, operator.plugins)
    _say(f"subnet {name} of {address_hex(owner)}: its fee is {Decimal(fee) / 10**18:f} NCN, to the network's treasury")
    if not yes:
        click.confirm("Pay it with this key?", abort=True, err=True)
    transaction = asyncio.run(operator.pay(fee)) if fee else b""
    if transaction:
        _say(f"paid in transaction 0x{transaction.hex()}")
    _show(operator.create(made, days, transaction), 0, as_json)


@subnet.command("update")
@_description
@_gateways
@_days
@_at
@_json
def subnet_update(
    description: str | None, gateways: tuple[str, ...], days: int, address: str | None, as_json: bool
) -> None:
    """Publish the next version of this key's subnet, with what is named changed; without anything, only renew it."""
    from dataclasses import replace

    operator = _operator(address)
    current = operator.current()
    made = replace(
        current.subnet,
        description=current.subnet.description if description is None else description,
        gateways=_addresses(gateways) or current.subnet.gateways,
    )
    _show(operator.update(current, made, days), _members(operator), as_json)


@subnet.command("add-model")
@click.argument("model")
@click.option(
    "--source", "sources", multiple=True, metavar="URL", help="A folder with manifest.json and the model's files."
)
@_days
@_at
@_json
def subnet_add_model(model: str, sources: tuple[str, ...], days: int, address: str | None, as_json: bool) -> None:
    """List MODEL, a model's folder or the digest of one that a node serves; again: with other sources."""
    from .operating import listed_model

    operator = _operator(address)
    current = operator.current()
    added = listed_model(operator.asked, model, sources)
    if any(one.digest == added.digest for one in current.subnet.models):
        from dataclasses import replace

        models = tuple(added if one.digest == added.digest else one for one in current.subnet.models)
        made = operator.update(current, replace(current.subnet, models=models), days)
    else:
        made = operator.change_model(current, added, days, added=True)
    _show(made, _members(operator), as_json)


@subnet.command("remove-model")
@click.argument("model")
@_days
@_at
@_json
def subnet_remove_model(model: str, days: int, address: str | None, as_json: bool) -> None:
    """List MODEL no more: a digest, or a name that just one listed model has."""
    from ncn_framework.errors import UnknownModel

    operator = _operator(address)
    current = operator.current()
    wanted = model.removeprefix("0x").lower()
    found = [one for one in current.subnet.models if model == one.name or wanted == one.digest.hex()]
    if len(found) != 1:
        names = ", ".join(one.name for one in current.subnet.models) or "none"
        raise UnknownModel(f"{len(found)} listed models are {model!r}; listed: {names}; give a digest")
    _show(operator.change_model(current, found[0], days, added=False), _members(operator), as_json)


@subnet.command("delete")
@_yes
@_at
def subnet_delete(yes: bool, address: str | None) -> None:
    """Withdraw this key's subnet. Its fee is not paid back, and need not be paid again."""
    operator = _operator(address)
    current = operator.current()
    if not yes:
        click.confirm(f"Withdraw subnet {current.subnet.name}?", abort=True, err=True)
    operator.delete(current)
    _say(f"subnet {current.subnet.name} is withdrawn")


def _members(operator: Operator) -> int:
    from ncn_framework.signing import address_hex

    return operator.asked.subnet(address_hex(operator.signer.address))[1]


# --- everybody's ---


@subnet.command("list")
@_at
@_json
def subnet_list(address: str | None, as_json: bool) -> None:
    """List the subnets: id, name, models, members."""
    from .subnet_forms import subnet_form

    forms = [subnet_form(one, members) for one, members in _ask(address)[1].subnets()]
    if as_json:
        click.echo(_encode(forms))
        return
    for form in forms:
        click.echo(f"{form.id}  {form.name:<24} {len(form.models):>3} models  {form.members:>5} members")
    if not forms:
        _say("there is no subnet yet; `ncn subnet create NAME` makes one")


@subnet.command("show")
@click.argument("name")
@_at
@_json
def subnet_show(name: str, address: str | None, as_json: bool) -> None:
    """Show one subnet with its models, by name or address."""
    _show(*_ask(address)[1].subnet(name), as_json)


@subnet.command("members")
@click.argument("name")
@_at
@_json
def subnet_members(name: str, address: str | None, as_json: bool) -> None:
    """List the compute nodes that are alive and have joined a subnet: address, load, sandbox, models."""
    from .commands import node_line

    nodes = _ask(address)[1].members(name)
    if as_json:
        click.echo(_encode(nodes))
        return
    for one in nodes:
        click.echo(node_line(one))
    if not nodes:
        _say(f"no compute node of subnet {name} is alive")


# --- a node's ---


@subnet.command("join")
@click.argument("name")
@_days
@_at
def subnet_join(name: str, days: int, address: str | None) -> None:
    """Join a subnet with this compute node's key; `ncn models sync NAME` then fetches its models."""
    _move(name, days, address, joined=True)


@subnet.command("leave")
@click.argument("name")
@_days
@_at
def subnet_leave(name: str, days: int, address: str | None) -> None:
    """Leave a subnet. Its models stay on this node's disk."""
    _move(name, days, address, joined=False)


def _move(name: str, days: int, address: str | None, *, joined: bool) -> None:
    from .operating import Member

    click.echo(Member(*_ask(address)).move(name, days, joined=joined))
