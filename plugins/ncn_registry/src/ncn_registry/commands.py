"""The commands ``ncn registry`` and ``ncn node``, which ask a running registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .asking import Asked
    from .forms import NodeForm, ReputationForm

__all__ = ["node", "node_line", "registry", "when"]

_at = click.option(
    "--at", "address", metavar="HOST:PORT", help="The registry to ask; default: REGISTRY_GRPC_ADDR, or this machine's."
)
_KINDS = ["node", "gateway", "registry", "validator", "endorsed-subnet", "membership"]
_json = click.option("--json", "as_json", is_flag=True, help="One JSON value.")


def _ask(address: str | None) -> Asked:
    from ncn_framework.config import Config

    from .asking import Asked

    return Asked.of(Config(), address)


def _show(as_json: bool, forms: Any, lines: Sequence[str], empty: str) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(forms).decode())
        return
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo(empty, err=True)


@click.group()
def registry() -> None:
    """Look into a registry: its peers, the records it has."""


@registry.command("peers")
@_at
@_json
def registry_peers(address: str | None, as_json: bool) -> None:
    """List the registries that this one is connected to: peer id, address, gRPC, validators, where they listen.

    Anybody can run peers, but only who has a stake speaks for a validator: that somebody does shows that this registry
    is in the network.
    """
    peers = _ask(address).peers()
    lines = [
        f"{p.peer_id}  {p.registry or 'unknown':<42}  {p.grpc_addr or '-':<21}  {len(p.validators)} validators  "
        f"{' '.join(p.multiaddrs)}"
        for p in peers
    ]
    _show(as_json, peers, lines, "it is connected to no other registry")
    if not as_json and peers and not any(p.validators for p in peers):
        click.echo("none of them is known to speak for a validator: this registry may be cut off", err=True)


@registry.command("validators")
@_at
@_json
def registry_validators(address: str | None, as_json: bool) -> None:
    """List the validators of the current epoch: address, state, stake, where the registry listens that speaks for them.

    A validator is active when it is known who speaks for it, silent when not, and jailed when it may not be given work.
    """
    validators = _ask(address).validators()
    lines = [
        f"{v.validator}  {v.state:<6}  {int(v.stake_wei):,} wei  {' '.join(v.multiaddrs) or '-'}" for v in validators
    ]
    _show(as_json, validators, lines, "the current epoch has no validators")


@registry.command("disputes")
@_json
def registry_disputes(as_json: bool) -> None:
    """List the nodes that this machine's registry has accused of wrong results: when, who, how it stands, why.

    A dispute is open until a quorum and the chain have spoken; reported: the node was slashed; unbonded: it has nothing
    at stake, and gets no more work from here; refused: no quorum found the result wrong.
    """
    from ncn_framework.config import Config
    from ncn_framework.signing import address_hex

    from .disputes import kept_disputes
    from .forms import DisputeForm

    disputes = [
        DisputeForm(one.found_ms, address_hex(one.node), "0x" + one.receipt.hex(), one.state, one.reason, one.detail)
        for one in kept_disputes(Config().home / "disputes.db")
    ]
    lines = [f"{when(d.found_ms)}  {d.node}  {d.state:<8}  {d.reason}  {d.detail}".rstrip() for d in disputes]
    _show(as_json, disputes, lines, "it has accused nobody")


@registry.command("contradictions")
@_json
def registry_contradictions(as_json: bool) -> None:
    """List the validators that this machine's registry has found to contradict themselves: when, who, how it stands,
    in what.

    Each signed two batches of one gateway with one number, or two decisions on one escrow. Open until the chain
    answers; reported: the validator was slashed; refused: it never had a stake.
    """
    from ncn_framework.config import Config

    from .contradiction_store import kept_contradictions
    from .forms import contradiction_form

    found = [contradiction_form(one) for one in kept_contradictions(Config().home / "contradictions.db")]
    lines = [
        f"{when(c.found_ms)}  {c.validator}  {c.state:<8}  {c.about}: {c.first}; {c.second}  {c.detail}".rstrip()
        for c in found
    ]
    _show(as_json, found, lines, "no validator has contradicted itself")


@registry.command("reputation")
@click.argument("account", metavar="[ADDRESS]", required=False)
@_at
@_json
def registry_reputation(account: str | None, address: str | None, as_json: bool) -> None:
    """Show how validators and compute nodes have conducted themselves; one of them, or all.

    Points on chain, and those since: of a validator, +1 for each statement signed, -2 for each refused against a
    quorum, -5 for each not answered in time; of a node, +1 for each receipt settled. A slashing costs 20.
    """
    from ncn_framework.signing import address_from_hex

    try:
        asked = address_from_hex(account) if account else b""
    except ValueError as cause:
        raise click.BadParameter(str(cause), param_hint="ADDRESS") from cause
    found = _ask(address).reputations(asked)
    _show(as_json, found, [_reputation_line(one) for one in found], "nobody has done anything yet")


def _reputation_line(r: ReputationForm) -> str:
    since = f"{r.receipts} receipts" if r.role == "node" else f"{r.done} done, {r.failed} failed, {r.timeouts} late"
    return f"{r.account}  {r.role:<9}  {r.points:>7} points  {r.on_chain} on chain, since: {since}"


@registry.command("records")
@click.option("--kind", type=click.Choice(_KINDS), help="Only records of this kind.")
@_at
@_json
def registry_records(kind: str | None, address: str | None, as_json: bool) -> None:
    """List the records of all who are alive: kind, owner, sequence, expiry, size."""
    records = _ask(address).records(kind)
    lines = [f"{r.kind:<15}  {r.owner}  {r.sequence}  {when(r.expires_ms)}  {r.size_bytes:,} bytes" for r in records]
    _show(as_json, records, lines, "it knows of nobody who is alive")


@click.group()
def node() -> None:
    """Find compute nodes."""


@node.command("list")
@click.option("--model", metavar="DIGEST", help="Only nodes that serve this model, 64 hex digits.")
@_at
@_json
def node_list(model: str | None, address: str | None, as_json: bool) -> None:
    """List the compute nodes that are alive: address, load, sandbox, models."""
    try:
        digest = bytes.fromhex((model or "").removeprefix("0x"))
        if len(digest) not in (0, 32):
            raise ValueError
    except ValueError as cause:
        raise click.BadParameter(f"{model!r} is not a digest of 64 hex digits", param_hint="--model") from cause
    nodes = _ask(address).nodes(digest)
    _show(as_json, nodes, [node_line(one) for one in nodes], "no compute node is alive")


def node_line(n: NodeForm) -> str:
    """Return a compute node as one line."""
    return f"{n.node}  {n.in_flight}/{n.capacity}  {n.sandbox:<10}  {', '.join(m.name for m in n.models)}"


@node.command("show")
@click.argument("node_address", metavar="ADDRESS")
@_at
@_json
def node_show(node_address: str, address: str | None, as_json: bool) -> None:
    """Show one compute node, from the DHT where the registry does not know it."""
    from ncn_framework.signing import address_from_hex

    try:
        owner = address_from_hex(node_address)
    except ValueError as cause:
        raise click.BadParameter(str(cause), param_hint="ADDRESS") from cause
    found = _ask(address).node(owner)
    _show(as_json, found, _described(found), "")


def _described(found: NodeForm) -> list[str]:
    lines = [
        f"node       {found.node}",
        f"alive      {'yes, heard at ' + when(found.last_heard_ms) if found.alive else 'no'}",
        f"load       {found.in_flight} of {found.capacity}",
        f"sandbox    {found.sandbox}",
        f"software   {found.software}",
        f"record     {found.sequence}, counts until {when(found.expires_ms)}",
    ]
    for m in found.models:
        price = f"{m.base_fee_wei} wei a request, {m.unit_fee_wei} a unit"
        lines.append(f"model      {m.digest}  {m.name} {m.version} ({m.runtime})  {price}")
    return lines


def when(ms: int) -> str:
    """Return a time as people here write it."""
    from datetime import datetime

    return datetime.fromtimestamp(ms / 1000).astimezone().isoformat(" ", "seconds")
