"""A plugin that could misbehave silently is refused when it is loaded, with its name and a remedy."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path
from typing import Any

import pytest

from ncn_framework import Node, hookimpl
from ncn_framework.errors import ConfigError, NoHandlerError, PluginError
from ncn_framework.manager import ROLES, PluginSet, build_manager, find_plugins, loaded_plugin
from ncn_framework.models import Event, Record, SandboxSpec
from ncn_framework.states import State
from ncn_framework.testing.fakes import as_plugins

Installed = Callable[..., list[EntryPoint]]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Return a function that installs a distribution with one module and entry points into it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(dist: str, source: str, **points: str) -> list[EntryPoint]:
        module = dist.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in (points or {dist: module}).items())
        (folder / "entry_points.txt").write_text(f"[ncn]\n{lines}")
        monkeypatch.delitem(sys.modules, module, raising=False)
        return list(PathDistribution(folder).entry_points)

    return install


GOOD = "roles = ('gateway',)\n"


def refusal(*plugins: Any) -> str:
    with pytest.raises(PluginError) as refused:
        build_manager(as_plugins(*plugins))
    return str(refused.value)


# --- finding ---


def test_the_order_is_that_of_the_settings_then_by_name(installed: Installed) -> None:
    points = [*installed("b-plugin", GOOD), *installed("c-plugin", GOOD), *installed("a-plugin", GOOD)]
    found = find_plugins(["c-plugin", "b-plugin", "c-plugin"], found=points)
    assert [p.name for p in found] == ["c-plugin", "b-plugin", "a-plugin"]
    assert {p.version for p in found} == {"1.0"}


def test_a_disabled_plugin_is_not_even_imported(installed: Installed) -> None:
    points = [*installed("good-one", GOOD), *installed("bad-one", "raise RuntimeError")]
    assert [p.name for p in find_plugins([], ["bad-one"], points)] == ["good-one"]
    assert [p.name for p in find_plugins(["bad-one"], ["bad-one"], points)] == ["good-one"]


@pytest.mark.parametrize("settings", [{"order": ["ghost"]}, {"disabled": ["ghost"]}])
def test_an_unknown_name_in_the_settings_is_refused(installed: Installed, settings: dict[str, list[str]]) -> None:
    with pytest.raises(PluginError, match=r"'ghost' is named in the settings but not installed; installed: real"):
        find_plugins(**settings, found=installed("real", GOOD))


def test_one_name_from_two_distributions_is_refused(installed: Installed) -> None:
    points = [*installed("one-dist", GOOD, twin="one_dist"), *installed("two-dist", GOOD, twin="two_dist")]
    with pytest.raises(PluginError, match=r"'twin' is taken twice: by one-dist 1.0 .*two-dist 1.0 .*; uninstall one"):
        find_plugins(found=points)


def test_the_same_entry_point_seen_twice_is_one_plugin(installed: Installed) -> None:
    points = installed("seen-twice", GOOD)
    assert len(find_plugins(found=[*points, *points])) == 1


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_an_import_error_names_plugin_cause_and_remedy(installed: Installed, source: str, cause: str) -> None:
    with pytest.raises(PluginError, match=r"'broken-one' of broken-one 1.0 cannot be imported") as refused:
        find_plugins(found=installed("broken-one", source))
    assert cause in str(refused.value)
    assert "disabled_plugins" in str(refused.value)
    assert refused.value.__cause__ is not None


@pytest.mark.parametrize("roles", ["", "roles = None", "roles = 'gateway'", "roles = ('gateway', 'kitchen')"])
def test_a_plugin_must_say_its_roles(installed: Installed, roles: str) -> None:
    with pytest.raises(PluginError, match=r"'homeless' does not say where it works: .* registry, gateway, compute"):
        find_plugins(found=installed("homeless", roles))


# --- loading ---


class Base:
    roles = ROLES

    def __init__(self, node: Any = None) -> None:
        self.node = node


class Misspelt(Base):
    @hookimpl
    def ncn_rute(self) -> None: ...


class MisspeltPrefix(Base):
    @hookimpl
    def nnc_route(self) -> None: ...


class Unmarked(Base):
    def ncn_route(self, candidates: Any) -> None: ...


class WrongArgument(Base):
    @hookimpl
    def ncn_route(self, candidate: Any) -> None: ...


class AsyncDecision(Base):
    @hookimpl
    async def ncn_route(self, candidates: Any) -> None: ...


class AsyncExecute(Base):
    @hookimpl
    async def ncn_execute(self, request: Any) -> AsyncGenerator[None, None]:
        yield


class AsyncAround(Base):
    @hookimpl
    async def ncn_reserve(self, request: Any) -> None: ...


class AsyncEvent(Base):
    @hookimpl
    async def ncn_event(self, event: Any) -> None: ...


class AsyncRuntimes(Base):
    @hookimpl
    async def ncn_runtimes(self) -> None: ...


class DefaultValue(Base):
    @hookimpl
    def ncn_route(self, request: Any, candidates: Any = ()) -> None: ...


class KeywordOnly(Base):
    @hookimpl
    def ncn_route(self, *, candidates: Any) -> None: ...


class Starred(Base):
    @hookimpl
    def ncn_route(self, *arguments: Any) -> None: ...


class Wrapper(Base):
    @hookimpl(wrapper=True)
    def ncn_route(self) -> Any:
        return (yield)


class OtherName(Base):
    @hookimpl(specname="ncn_route")
    async def choose(self) -> None: ...


class Optional(Base):
    @hookimpl(optionalhook=True)
    def ncn_route(self) -> None: ...


class Constructor(Base):
    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("plugin", "problem", "remedy"),
    [
        (Misspelt, "'ncn_rute', which is no hook", "ncn_route"),
        (MisspeltPrefix, "'nnc_route', which is no hook", "ncn_route"),
        (Unmarked, "ncn_route lacks the @hookimpl decorator", "@hookimpl"),
        (WrongArgument, "{'candidate'} are declared in the hookimpl", "docs/hooks.md"),
        (AsyncDecision, "ncn_route is async, but a hook of kind decision cannot be", "plain def"),
        (AsyncExecute, "ncn_execute is async, but a hook of kind decision cannot be", "plain def"),
        (AsyncAround, "ncn_reserve is async, but a hook of kind around cannot be", "plain def"),
        (AsyncEvent, "ncn_event is async, but a hook of kind notify cannot be", "plain def"),
        (AsyncRuntimes, "ncn_runtimes is async, but a hook of kind every cannot be", "plain def"),
        (DefaultValue, "parameter 'candidates' of ncn_route has a default value", "docs/hooks.md"),
        (KeywordOnly, "parameter 'candidates' of ncn_route", "docs/hooks.md"),
        (Starred, "parameter 'arguments' of ncn_route", "docs/hooks.md"),
        (Wrapper, "ncn_route is marked with wrapper", "tryfirst"),
        (OtherName, "'choose', which is no hook", "ncn_route"),
        (Optional, "ncn_route is marked with optionalhook", "tryfirst"),
        (Constructor, "cannot be made: TypeError", "takes the node as its only argument"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_would_fail_silently_is_refused(plugin: type, problem: str, remedy: str) -> None:
    message = refusal(plugin)
    assert message.startswith(f"plugin {plugin.__name__!r}")
    assert problem in message
    assert remedy in message


def test_registering_a_name_twice_is_refused() -> None:
    plugin = loaded_plugin("twin", Base)
    with pytest.raises(PluginError, match="plugin name 'twin' is registered twice; rename"):
        build_manager([plugin, plugin])


def test_an_error_of_the_tree_in_a_constructor_stays_what_it_is() -> None:
    class Unconfigured(Base):
        def __init__(self, node: Any) -> None:
            raise ConfigError("setting x is missing")

    with pytest.raises(ConfigError, match="setting x is missing"):
        build_manager(as_plugins(Unconfigured))


def test_async_where_the_kernel_awaits_and_context_managers_are_accepted() -> None:
    class Fine(Base):
        @hookimpl
        async def ncn_register(self, record: Record) -> None: ...

        @hookimpl
        @asynccontextmanager
        async def ncn_reserve(self, request: Any) -> AsyncIterator[None]:
            yield

        @staticmethod
        @hookimpl
        def ncn_runtimes() -> Iterable[str]:
            return ("static",)

    found = build_manager(as_plugins(Fine))
    assert found.hooks_of(found.plugins[0]) == ["ncn_register", "ncn_reserve", "ncn_runtimes"]
    assert found.runtimes() == {"static"}


def test_properties_are_not_run_when_a_plugin_is_loaded() -> None:
    class Lazy(Base):
        @property
        def service(self) -> None:
            raise RuntimeError("too early")

        @hookimpl
        def ncn_runtimes(self) -> Iterable[str]:
            return ()

    assert build_manager(as_plugins(Lazy)).runtimes() == set()


def test_each_node_has_instances_of_its_own(make_node: Callable[..., Node]) -> None:
    made: list[Any] = []

    class Counted(Base):
        def __init__(self, node: Any) -> None:
            super().__init__(node)
            made.append(node)

    first, second = make_node("gateway", Counted), make_node("compute", Counted)
    assert made == [first, second]


# --- order and roles ---


def named(name: str, **options: Any) -> Any:
    class Named:
        roles = ("gateway",)

        @hookimpl(**options)  # type: ignore[untyped-decorator]
        def ncn_runtimes(self) -> Iterable[str]:
            return (name,)

    return loaded_plugin(name, Named())


def order(*plugins: Any) -> list[str]:
    found = build_manager(plugins)
    assert [name for names in found.hook.ncn_runtimes() for name in names] == found.call_order("ncn_runtimes")
    return found.call_order("ncn_runtimes")


def test_call_order_is_the_order_of_the_configuration() -> None:
    assert order(named("b"), named("a"), named("c")) == ["b", "a", "c"]


def test_trylast_goes_behind_and_tryfirst_before_the_others() -> None:
    assert order(named("last", trylast=True), named("a"), named("first", tryfirst=True), named("b")) == [
        "first",
        "a",
        "b",
        "last",
    ]


def test_among_several_trylast_the_later_one_is_asked_first() -> None:
    assert order(named("a", trylast=True), named("b", trylast=True)) == ["b", "a"]


def test_a_node_has_only_the_plugins_of_its_role() -> None:
    def plugin(name: str, *roles: str) -> Any:
        return loaded_plugin(name, type(name, (Base,), {"roles": roles}))

    plugins = [plugin("g", "gateway"), plugin("c", "compute"), plugin("both", "gateway", "compute")]
    assert [p.name for p in build_manager(plugins, role="gateway").plugins] == ["g", "both"]
    assert [p.name for p in build_manager(plugins, role="compute").plugins] == ["c", "both"]
    assert [p.name for p in build_manager(plugins, role="registry").plugins] == []
    assert [p.name for p in build_manager(plugins).plugins] == ["g", "c", "both"]


def test_a_plugin_without_roles_is_for_the_command_line_alone() -> None:
    plugin = loaded_plugin("commands", type("Commands", (Base,), {"roles": ()}))
    assert [p.name for p in build_manager([plugin]).plugins] == ["commands"]
    assert not any(build_manager([plugin], role=role).plugins for role in ROLES)


def test_there_is_no_global_manager() -> None:
    first, second = build_manager([named("a")]), build_manager([])
    assert first.runtimes() == {"a"}
    assert second.runtimes() == set()


# --- typed calls ---


def test_a_failing_listener_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    class Broken(Base):
        @hookimpl
        def ncn_event(self) -> None:
            raise RuntimeError("deaf")

    class Hears(Base):
        @hookimpl
        def ncn_event(self, event: Event) -> None:
            heard.append(event)

    event = Event(bytes(32), State.RECEIVED, 1)
    build_manager(as_plugins(Broken, Hears)).event(event)
    assert heard == [event]
    assert "plugin Broken failed in ncn_event" in caplog.text


def test_without_a_jail_maker_there_is_no_jail() -> None:
    plugins: PluginSet = build_manager([])
    with pytest.raises(NoHandlerError, match="ncn_open_sandbox for mode 'strict'; install"):
        plugins.open_sandbox(SandboxSpec(("true",), ()), "strict")
