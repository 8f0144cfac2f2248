"""Subnets as JSON and as lines for people."""

from __future__ import annotations

import msgspec

from ncn_framework.signing import address_hex
from ncn_framework.wire.convert_subnets import EndorsedSubnet

__all__ = ["ListedModelForm", "SubnetForm", "described", "subnet_form"]


class ListedModelForm(msgspec.Struct):
    """A model that a subnet lists."""

    digest: str
    name: str
    runtime: str
    size_bytes: int
    sources: list[str]


class SubnetForm(msgspec.Struct):
    """A subnet; ``id`` is its owner's address, ``price_tree`` in basis points, times in milliseconds."""

    id: str
    name: str
    description: str
    version: int
    expires_ms: int
    members: int
    models: list[ListedModelForm]
    gateways: list[str]
    price_tree: dict[str, int]
    epoch: int
    signers: int
    fee_transaction: str


def subnet_form(one: EndorsedSubnet, members: int) -> SubnetForm:
    """Return a subnet as JSON has it."""
    subnet = one.subnet
    return SubnetForm(
        id=address_hex(subnet.owner),
        name=subnet.name,
        description=subnet.description,
        version=one.record.sequence,
        expires_ms=one.record.expires_ms,
        members=members,
        models=[
            ListedModelForm(f"0x{m.digest.hex()}", m.name, m.runtime, m.size_bytes, list(m.sources))
            for m in subnet.models
        ],
        gateways=[address_hex(gateway) for gateway in subnet.gateways],
        price_tree=dict(zip(("compute", "gateway", "validators", "treasury"), subnet.price_tree, strict=True)),
        epoch=one.quorum.epoch,
        signers=len(one.quorum.signatures),
        fee_transaction=f"0x{one.fee_transaction.hex()}" if one.fee_transaction else "",
    )


def described(form: SubnetForm, until: str) -> list[str]:
    """Return a subnet as lines; ``until`` is its expiry for people."""
    shares = ", ".join(f"{name} {bps / 100:g}%" for name, bps in form.price_tree.items())
    lines = [
        f"subnet     {form.id}",
        f"name       {form.name}",
        f"about      {form.description or '-'}",
        f"version    {form.version}, counts until {until}",
        f"signed     by {form.signers} validators of epoch {form.epoch}",
        f"shares     {shares}",
        f"members    {form.members} alive",
        *(f"gateway    {gateway}" for gateway in form.gateways),
    ]
    for model in form.models:
        lines.append(f"model      {model.digest}  {model.name} ({model.runtime}, {model.size_bytes:,} bytes)")
        lines += [f"  source   {source}" for source in model.sources]
    return lines
