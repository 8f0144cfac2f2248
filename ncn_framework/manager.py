"""Find, block, order and check plugins. A plugin that could misbehave silently is refused when it is loaded."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .errors import NcnError, NoHandlerError, PluginError

if TYPE_CHECKING:
    import click

    from .config import Settings
    from .models import Event, SandboxSpec
    from .node import Node
    from .payments import FeeDue, PaymentDue
    from .signing import Signer

__all__ = ["ENTRY_POINT_GROUP", "HOOK_KINDS", "ROLES", "LoadedPlugin", "PluginSet", "build_manager", "find_plugins"]

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "ncn"
ROLES = ("registry", "gateway", "compute")

HOOK_KINDS: dict[str, str] = {
    name: spec.ncn_kind for name, spec in vars(hookspecs).items() if name.startswith("ncn_") and callable(spec)
}
"""Hook name to kind, in the order of ``hookspecs``."""

_MAY_BE_ASYNC = frozenset(
    name
    for name, kind in HOOK_KINDS.items()
    if kind == "every" and "Awaitable" in str(getattr(hookspecs, name).__annotations__["return"])
)


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin as it was found: a module, or a class that is made for each node.

    Attributes:
        name: of its entry point.
        version: of its distribution.
        roles: in which processes it works; the commands and settings of every plugin are always there.
        source: the module or class.
    """

    name: str
    version: str
    roles: tuple[str, ...]
    source: Any


class PluginSet:
    """The plugins of one node, in order, inside a pluggy manager of its own; and the supporting hooks, typed.

    The six hooks of a request's life are called by ``lifecycle`` alone.
    """

    def __init__(self, pm: pluggy.PluginManager, plugins: Sequence[LoadedPlugin]) -> None:
        self.hook = pm.hook
        self.instances: dict[str, Any] = dict(pm.list_name_plugin())
        self.plugins = tuple(plugins)
        self._listeners = [
            (impl.plugin_name, impl.function, impl.argnames) for impl in reversed(pm.hook.ncn_event.get_hookimpls())
        ]

    def call_order(self, hook: str) -> list[str]:
        """Return the names of the plugins that implement ``hook``, first called first."""
        return [impl.plugin_name for impl in reversed(getattr(self.hook, hook).get_hookimpls())]

    def hooks_of(self, plugin: LoadedPlugin) -> list[str]:
        """Return the names of the hooks that ``plugin`` implements."""
        return [hook for hook in HOOK_KINDS if plugin.name in self.call_order(hook)]

    def event(self, event: Event) -> None:
        """Tell every listener; a failing one is logged and harms nobody."""
        for plugin, function, names in self._listeners:
            try:
                function(*(event,) if names else ())
            except Exception:
                log.exception("plugin %s failed in ncn_event", plugin)

    def standing(self, account: bytes, out: bool, reason: str) -> None:
        """Tell every plugin that somebody may no longer be given work, or may again; as ``event``."""
        for impl in reversed(self.hook.ncn_standing.get_hookimpls()):
            known = {"account": account, "out": out, "reason": reason}
            try:
                impl.function(*(known[name] for name in impl.argnames))
            except Exception:
                log.exception("plugin %s failed in ncn_standing", impl.plugin_name)

    def settings(self) -> list[type[Settings]]:
        """Return the settings classes of all plugins."""
        return list(self.hook.ncn_settings())

    def commands(self) -> list[click.Command]:
        """Return the commands of all plugins."""
        return [command for commands in self.hook.ncn_commands() for command in commands]

    def services(self, node: Node) -> list[AbstractAsyncContextManager[Any]]:
        """Return the services of all plugins, in the order in which to enter them."""
        return list(self.hook.ncn_serve(node=node))

    def http_routes(self, node: Node) -> list[Any]:
        """Return the Starlette routes of all plugins."""
        return [route for routes in self.hook.ncn_http_routes(node=node) for route in routes]

    def runtimes(self) -> set[str]:
        """Return the runtimes that some plugin executes."""
        return {name for names in self.hook.ncn_runtimes() for name in names}

    async def pay(self, due: PaymentDue | FeeDue, signer: Signer) -> bytes:
        """Pay what is due with ``signer``'s key; return the transaction's hash.

        Raises:
            NoHandlerError: no plugin pays on this chain.
            PaymentRequired, ChainError: it could not be paid.
        """
        found = self.hook.ncn_pay(due=due, signer=signer)
        if found is None:
            raise NoHandlerError(
                f"no plugin answered ncn_pay for chain {due.chain_id}; try: pip install ncn-payments, or check RPC_URL"
            )
        transaction: bytes = await found
        return transaction

    def open_sandbox(self, spec: SandboxSpec, mode: str) -> AbstractAsyncContextManager[Any]:
        """Return a jail for ``spec``; enter it to start the program.

        Raises:
            SandboxError: it cannot be made that strict.
            NoHandlerError: no plugin makes jails of this mode.
        """
        jail: AbstractAsyncContextManager[Any] | None = self.hook.ncn_open_sandbox(spec=spec, mode=mode)
        if jail is None:
            raise NoHandlerError(f"no plugin answered ncn_open_sandbox for mode {mode!r}; install one that makes jails")
        return jail


def find_plugins(
    order: Iterable[str] = (), disabled: Iterable[str] = (), found: Iterable[EntryPoint] | None = None
) -> list[LoadedPlugin]:
    """Return the installed plugins: those named in ``order`` first, the rest by name.

    Args:
        order: names of entry points.
        disabled: names that are not even imported.
        found: entry points; by default those installed in group ``ncn``.

    Raises:
        PluginError: a name is unknown or taken twice, or a plugin cannot be imported or does not say its roles.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP) if found is None else found:
        other = points.setdefault(point.name, point)
        if (other.value, _dist(other)) != (point.value, _dist(point)):
            raise PluginError(
                f"plugin name {point.name!r} is taken twice: by {_dist(other)} ({other.value}) and "
                f"{_dist(point)} ({point.value}); uninstall one, or rename its entry point"
            )
    blocked = set(disabled)
    wanted = [name for name in dict.fromkeys(order) if name not in blocked]
    if unknown := [name for name in (*wanted, *blocked) if name not in points]:
        known = ", ".join(sorted(points)) or "none"
        raise PluginError(f"plugin {unknown[0]!r} is named in the settings but not installed; installed: {known}")
    names = wanted + sorted(points.keys() - set(wanted) - blocked)
    return [_load(points[name]) for name in names]


def _dist(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _load(point: EntryPoint) -> LoadedPlugin:
    try:
        source = point.load()
    except Exception as cause:
        raise PluginError(
            f"plugin {point.name!r} of {_dist(point)} cannot be imported from {point.value!r}: "
            f"{type(cause).__name__}: {cause}; reinstall it, or name it in disabled_plugins"
        ) from cause
    return loaded_plugin(point.name, source, point.dist.version if point.dist else "")


def loaded_plugin(name: str, source: Any, version: str = "") -> LoadedPlugin:
    """Return ``source`` (module or class) as a plugin, after checking that it says its roles."""
    roles = getattr(source, "roles", None)
    if not isinstance(roles, tuple | list) or set(roles) - set(ROLES):
        raise PluginError(
            f"plugin {name!r} does not say where it works: give its module or class an attribute "
            f"roles, a tuple of some of {', '.join(ROLES)} (empty: the command line alone); it has {roles!r}"
        )
    return LoadedPlugin(name, version, tuple(roles), source)


def build_manager(plugins: Sequence[LoadedPlugin], node: Any = None, role: str | None = None) -> PluginSet:
    """Return a fresh manager with ``plugins`` in call order; there is no global one.

    Args:
        plugins: in the order in which they shall be called.
        node: what classes are made with.
        role: only plugins of this role; None: all, for the command line.

    Raises:
        PluginError: a hook is unknown or misspelt, an argument does not exist, a decision is ``async def``, or
            a name is used twice.
    """
    pm = pluggy.PluginManager(hookspecs.PROJECT)
    pm.add_hookspecs(hookspecs)
    chosen = [p for p in plugins if role is None or role in p.roles]
    for plugin in reversed(chosen):  # pluggy calls the last registered first
        instance = _made(plugin, node)
        for name in dir(instance):
            if name.startswith("ncn_") or _is_marked(instance, name):
                _check_implementation(plugin.name, name, getattr(instance, name))
        try:
            pm.register(instance, plugin.name)
        except ValueError as cause:
            raise PluginError(
                f"plugin name {plugin.name!r} is registered twice; rename one of the entry points"
            ) from cause
        except pluggy.PluginValidationError as cause:
            detail = " ".join(str(cause).split("\n")[2:]) or str(cause)
            raise PluginError(
                f"plugin {plugin.name!r}: {detail.strip()}; docs/hooks.md has the exact signatures"
            ) from cause
    return PluginSet(pm, chosen)


def _made(plugin: LoadedPlugin, node: Any) -> Any:
    """Return the plugin's module or object, or its class made with ``node``."""
    make: Any = plugin.source
    if not inspect.isclass(plugin.source):
        return make
    try:
        return make(node)
    except NcnError:
        raise
    except Exception as cause:
        raise PluginError(
            f"plugin {plugin.name!r} cannot be made: {type(cause).__name__}: {cause}; its class takes the node as "
            "its only argument, which is None on the command line"
        ) from cause


def _is_marked(instance: Any, name: str) -> bool:
    """Return whether an attribute is a function with @hookimpl; without running properties."""
    found = inspect.getattr_static(instance, name, None)
    function = getattr(found, "__func__", found) if isinstance(found, staticmethod | classmethod) else found
    return inspect.isfunction(function) and hasattr(function, f"{hookspecs.PROJECT}_impl")


def _check_implementation(plugin: str, hook: str, function: Callable[..., Any]) -> None:
    """Refuse what pluggy would accept and then get wrong."""
    if not callable(function):
        return
    if hook not in HOOK_KINDS:
        known = ", ".join(HOOK_KINDS)
        raise PluginError(f"plugin {plugin!r} implements {hook!r}, which is no hook; the hooks: {known}")
    if not hasattr(function, f"{hookspecs.PROJECT}_impl"):
        raise PluginError(f"plugin {plugin!r}: {hook} lacks the @hookimpl decorator, so that it would never be called")
    options = getattr(function, f"{hookspecs.PROJECT}_impl")
    if refused := [name for name in ("wrapper", "hookwrapper", "optionalhook", "specname") if options[name]]:
        raise PluginError(
            f"plugin {plugin!r}: {hook} is marked with {refused[0]}, which would not see what is awaited later; "
            "use @hookimpl, @hookimpl(tryfirst=True) or @hookimpl(trylast=True)"
        )
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if is_async and hook not in _MAY_BE_ASYNC:
        raise PluginError(
            f"plugin {plugin!r}: {hook} is async, but a hook of kind {HOOK_KINDS[hook]} cannot be (nobody would "
            "await it, or it could never decline); write a plain def that returns what docs/hooks.md says"
        )
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise PluginError(
                f"plugin {plugin!r}: parameter {parameter.name!r} of {hook} has a default value or is not a plain "
                "one; take just the arguments that docs/hooks.md names"
            )
