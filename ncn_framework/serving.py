"""What ``ncn serve`` does: choose roles, make their nodes, run them until a signal."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from . import __version__, logs
from .config import Config
from .errors import ConfigError, NcnError
from .manager import ROLES, LoadedPlugin, build_manager
from .models import FREE
from .node import Node, serve, until_signal
from .payments import ESCROW, EXACT, VOUCHER
from .sources import Sources

__all__ = ["presets", "run"]

log = logging.getLogger(__name__)

_GC_THRESHOLDS = (20_000, 20, 50)
"""Objects before a collection, and collections before one of the next generation. Python's default of 700 walks what
requests in flight hold several times for each of them; hardly anything on their way is a cycle."""


_WHOLE_NETWORK = {
    ("gateway", "payment_modes"): (VOUCHER, ESCROW, EXACT, FREE),
    ("registry", "grpc_addr"): "local",
}
"""What differs from the defaults where one process is the whole network: there, for development, requests may be
free, too, and the registry is the one beside."""


def presets(roles: Sequence[str]) -> Mapping[tuple[str, str], Any]:
    """Return what ``ncn serve ROLES`` takes in place of defaults, for ``Sources``; nothing where a role is named."""
    return {} if roles else _WHOLE_NETWORK


def run(roles: Sequence[str], sources: Sources, plugins: Sequence[LoadedPlugin]) -> None:
    """Run ``roles`` (none: every role that a plugin has) until SIGTERM or SIGINT.

    Raises:
        NcnError: a setting is bad, a plugin is missing, or a role failed.
    """
    config = Config(sources)
    config.check(build_manager(plugins).settings())
    logs.configure(config.core.log_level, config.core.log_format)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is raised and logged here, with a remedy
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # jails are started by exec; gRPC need not follow a fork
    installed = [role for role in ROLES if any(_makes_up(plugin, role) for plugin in plugins)]
    chosen = list(dict.fromkeys(roles)) or installed
    if not chosen:
        raise ConfigError("no plugin is installed; try: pip install ncn-gateway ncn-compute ncn-client")
    if missing := [role for role in chosen if role not in installed]:
        raise ConfigError(f"no plugin serves role {missing[0]!r}; try: pip install ncn-{missing[0]}")
    nodes = [Node(role, config, plugins) for role in chosen]
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(nodes))
    except* NcnError as group:
        raise _first(group) from group


def _makes_up(plugin: LoadedPlugin, role: str) -> bool:
    """Return whether a plugin is a role, and does not only accompany others in it."""
    return role in plugin.roles and (plugin.name == role or len(plugin.roles) == 1)


def _first(group: BaseExceptionGroup[NcnError]) -> NcnError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(nodes: Sequence[Node]) -> None:
    stop = until_signal()
    waiting = {node.role for node in nodes}

    async def started(node: Node) -> None:
        waiting.discard(node.role)
        for name, address in node.endpoints.items():
            click.echo(f"{node.role}: {name} {address}")
        if not waiting:
            gc.collect()
            gc.freeze()  # what was loaded stays: it need not be walked again
            gc.set_threshold(*_GC_THRESHOLDS)
            click.echo(f"ncn {__version__} ready: {', '.join(n.role for n in nodes)}; Ctrl-C stops")

    await serve(nodes, stop, started)
