"""The command ``ncn models sync``. What is slow to import is imported inside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ncn_framework.wire.convert_subnets import ListedModel

    from .syncing import Progress, Synced

__all__ = ["models_sync"]


@click.command("sync")
@click.argument("names", nargs=-1, metavar="[SUBNET]...")
@click.option(
    "--at", "address", metavar="HOST:PORT", help="The registry to ask; default: REGISTRY_GRPC_ADDR, or this machine's."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def models_sync(names: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Fetch the models of SUBNETs, names or addresses, that this node lacks; by default those of its setting.

    Each file is checked against the manifest, and the manifest against the subnet. What breaks off is gone on with the
    next time. Models that are there and whole are left alone; damaged ones are replaced. Exit status 1 where a model
    could not be fetched.
    """
    from ncn_framework.config import Config
    from ncn_framework.errors import ConfigError

    from .asking import ask_subnet, registry_of
    from .config import ComputeSettings
    from .syncing import sync

    config = Config()
    settings = config.load(ComputeSettings)
    wanted = names or settings.subnets
    if not wanted:
        raise ConfigError("which subnet? Name one, or set NCN_COMPUTE_SUBNETS; `ncn subnet list` shows them")
    root = (settings.model_path or config.home / "models").expanduser().absolute()
    target = registry_of(config, address)
    listed = {m.digest: m for name in wanted for m in ask_subnet(config, target, name).models}
    results = []
    bars = _Bars()
    for result in sync(list(listed.values()), root, most_bytes=settings.max_models_bytes, progress=bars.of):
        bars.close()
        results.append(result)
        if not as_json:
            _tell(result)
    if as_json:
        import json

        click.echo(json.dumps([_row(result) for result in results]))
    elif not results:
        click.echo("these subnets list no model", err=True)
    sys.exit(1 if any(result.problem for result in results) else 0)


class _Bars:
    """A bar for the model that is being fetched, where standard error is a terminal."""

    def __init__(self) -> None:
        self._bar: click.progressbar[int] | None = None  # type: ignore[valid-type]
        self._done = 0

    def of(self, model: ListedModel) -> Progress:
        """Return what moves the bar of a model, which appears with its first byte."""

        def progress(done: int, total: int) -> None:
            if self._bar is None:
                self._bar, self._done = click.progressbar(length=total, label=model.name, file=sys.stderr), 0
            self._bar.update(done - self._done)
            self._done = done

        return progress

    def close(self) -> None:
        """End the bar that is shown, if one is."""
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None


def _tell(result: Synced) -> None:
    name = result.model.name
    if result.problem:
        click.echo(f"{name}: not fetched: {result.problem}", err=True)
    else:
        click.echo(f"{name}: {'fetched' if result.fetched else 'there already'}: {result.directory}")


def _row(result: Synced) -> dict[str, str | bool | None]:
    directory: Path | None = result.directory
    return {
        "digest": "0x" + result.model.digest.hex(),
        "name": result.model.name,
        "directory": None if directory is None else str(directory),
        "fetched": result.fetched,
        "problem": result.problem,
    }
