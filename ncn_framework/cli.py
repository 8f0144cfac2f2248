"""The command ``ncn``. What is slow to import is imported inside the command that needs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .errors import NcnError, code_of
from .manager import HOOK_KINDS, ROLES, LoadedPlugin, PluginSet, build_manager, find_plugins
from .sources import Sources

if TYPE_CHECKING:
    from .config import Settings

__all__ = ["cli", "main"]


def _plugins(sources: Sources | None = None) -> list[LoadedPlugin]:
    sources = sources or Sources()
    return find_plugins(sources.names("plugins"), sources.names("disabled_plugins"))


def _tables(plugins: PluginSet) -> list[type[Settings]]:
    return plugins.settings()


class _Commands(click.Group):
    """The kernel's commands and, found when asked for, those of the plugins."""

    def _added(self, ctx: click.Context) -> dict[str, click.Command]:
        if ctx.obj is None:
            ctx.obj = {command.name: command for command in build_manager(_plugins()).commands()}
        return ctx.obj  # type: ignore[no-any-return]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._added(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._added(ctx).get(cmd_name)


class _Serve(click.Command):
    """``serve`` has a flag for every setting of every plugin; they are looked up when its help or a flag is asked."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if "settings" not in ctx.meta:
            from .config import CoreSettings, flag_of

            tables: list[type[Settings]] = [CoreSettings, *_tables(build_manager(_plugins()))]
            ctx.meta["settings"] = [
                click.Option(
                    [flag_of(table, field), f"{table.table}__{field}"],
                    help=info.description,
                    metavar=_metavar(info.annotation),
                )
                for table in tables
                for field, info in table.model_fields.items()
                if field not in ("plugins", "disabled_plugins")
            ]
        return [*super().get_params(ctx), *ctx.meta["settings"]]


def _metavar(annotation: Any) -> str:
    return {int: "N", float: "X", bool: "true|false"}.get(annotation, "TEXT")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ncn", message="%(prog)s %(version)s")
def cli() -> None:
    """A decentralised AI inference network: run it, extend it, ask it.

    \b
    ncn serve                the whole network in this process, with a real model
    ncn embed "a sentence"   ask it; the answer is signed, and checked here
    ncn verify answer.json   check a saved answer, offline
    ncn plugins              what is installed, and who is asked first
    """


@cli.command(cls=_Serve)
@click.argument("roles", nargs=-1, type=click.Choice(ROLES), metavar="[ROLE]...")
def serve(roles: tuple[str, ...], **flags: Any) -> None:
    """Run ROLEs (gateway, compute, registry); without one, the whole network in this process.

    Each setting below can also be an environment variable (NCN_GATEWAY_HTTP_PORT), a line of .env, or a key
    of ncn.toml ([gateway] http_port); `ncn config show` says which one is in force.
    SIGTERM or Ctrl-C drains: no new work, running work finishes, exit status 0.
    """
    from . import serving

    given = {tuple(name.split("__", 1)): value for name, value in flags.items() if value is not None}
    sources = Sources(flags=given, presets=serving.presets(roles))  # type: ignore[arg-type]
    serving.run(roles, sources, _plugins(sources))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plugins(as_json: bool) -> None:
    """Show the installed plugins, their hooks, and for each hook who is called first."""
    found = build_manager(_plugins())
    rows = [
        {"name": p.name, "version": p.version, "roles": list(p.roles), "hooks": found.hooks_of(p)}
        for p in found.plugins
    ]
    order = {hook: names for hook in HOOK_KINDS if (names := found.call_order(hook))}
    if as_json:
        import json

        click.echo(json.dumps({"plugins": rows, "order": order}, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']} {row['version']}  ({', '.join(row['roles'])})")
        for hook in row["hooks"]:
            click.echo(f"    {hook}")
    click.echo("\nEffective order, first called first:")
    for hook, names in order.items():
        click.echo(f"    {hook} [{HOOK_KINDS[hook]}]: {' > '.join(names)}")


@cli.group()
def config() -> None:
    """Show the settings."""


@config.command("show")
@click.argument("roles", nargs=-1, type=click.Choice(ROLES), metavar="[ROLE]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def config_show(roles: tuple[str, ...], as_json: bool) -> None:
    """Show every setting as it is in force for `ncn serve` with the same ROLEs, and where it came from.

    Secrets are masked.
    """
    from . import serving
    from .config import Config

    sources = Sources(presets=serving.presets(roles))
    settings = Config(sources)
    tables = _tables(build_manager(_plugins(sources)))
    settings.check(tables)
    rows = settings.explain(tables)
    if as_json:
        import json

        click.echo(json.dumps([vars(row) for row in rows], indent=2))
        return
    width = max(len(f"{row.table}.{row.field}") for row in rows)
    for row in rows:
        name = f"{row.table}.{row.field}" if row.table else row.field
        click.echo(f"{name:<{width}}  {row.value:<44}  {row.origin}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; an error of the tree is one line on standard error and the exit status of its table row."""
    try:
        status = cli.main(arguments, standalone_mode=False)  # of ctx.exit(status)
        if isinstance(status, int):
            sys.exit(status)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except NcnError as error:
        click.echo(f"ncn: {code_of(error).code}: {error}", err=True)
        sys.exit(code_of(error).exit)


if __name__ == "__main__":
    main()
