"""The commands ``ncn registry`` and ``ncn node``, which ask a running registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .asking import Asked
    from .forms import NodeForm

__all__ = ["node", "registry"]

_at = click.option(
    "--at", "address", metavar="HOST:PORT", help="The registry to ask; default: REGISTRY_GRPC_ADDR, or this machine's."
)
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
    """List the registries that this one is connected to: peer id, address, gRPC, where they listen."""
    peers = _ask(address).peers()
    lines = [
        f"{p.peer_id}  {p.registry or 'unknown':<42}  {p.grpc_addr or '-':<21}  {' '.join(p.multiaddrs)}" for p in peers
    ]
    _show(as_json, peers, lines, "it is connected to no other registry")


@registry.command("records")
@click.option("--kind", type=click.Choice(["node", "gateway", "registry"]), help="Only records of this kind.")
@_at
@_json
def registry_records(kind: str | None, address: str | None, as_json: bool) -> None:
    """List the records of all who are alive: kind, owner, sequence, expiry, size."""
    records = _ask(address).records(kind)
    lines = [f"{r.kind:<8}  {r.owner}  {r.sequence}  {_when(r.expires_ms)}  {r.size_bytes:,} bytes" for r in records]
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
    lines = [
        f"{n.node}  {n.in_flight}/{n.capacity}  {n.sandbox:<10}  {', '.join(m.name for m in n.models)}" for n in nodes
    ]
    _show(as_json, nodes, lines, "no compute node is alive")


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
        f"alive      {'yes, heard at ' + _when(found.last_heard_ms) if found.alive else 'no'}",
        f"load       {found.in_flight} of {found.capacity}",
        f"sandbox    {found.sandbox}",
        f"software   {found.software}",
        f"record     {found.sequence}, counts until {_when(found.expires_ms)}",
    ]
    for m in found.models:
        price = f"{m.base_fee_wei} wei a request, {m.unit_fee_wei} a unit"
        lines.append(f"model      {m.digest}  {m.name} {m.version} ({m.runtime})  {price}")
    return lines


def _when(ms: int) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(ms / 1000).astimezone().isoformat(" ", "seconds")
