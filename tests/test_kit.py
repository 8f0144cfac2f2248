"""The plugin author's kit: its fixtures, what its checks accept, and what they refuse with which contract."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from ncn_framework import Node, Settings, Signer, hookimpl
from ncn_framework.errors import ChainBroken, NcnError, NoCandidate, OutputRejected, PluginError
from ncn_framework.models import Candidates, Chunk, Considered, InferenceRequest, Leases, Route
from ncn_framework.sources import Sources
from ncn_framework.tensors import pack_tensors
from ncn_framework.testing.conformance import check_plugin, check_router, check_runtime
from ncn_framework.testing.fakes import (
    FakeRuntime,
    ManualClock,
    RecordingPlugin,
    as_plugins,
    fake_candidates,
    fake_manifest,
    fake_request,
    fake_signer,
    fake_tensor,
)

ROOT = Path(__file__).parent.parent
EXTERNAL = ROOT / "tests" / "external"


# --- the tutorial ---


def test_the_tutorial_shows_just_the_files_of_the_two_packages() -> None:
    text = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    shown = re.findall(r"^```(?:toml|python)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    files = [
        EXTERNAL / package / path
        for package in ("ncn_echo", "ncn_sticky")
        for path in ("pyproject.toml", f"src/{package}.py", f"tests/test_{package}.py")
    ]
    assert shown == [file.read_text() for file in files]


@pytest.mark.parametrize("package", ["ncn_echo", "ncn_sticky"])
def test_the_packages_of_the_tutorial_pass_their_own_tests(package: str) -> None:
    folder = EXTERNAL / package
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


# --- fixtures ---


def test_the_pytest_plugin_costs_nothing_in_other_projects(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_nothing_is_imported():\n"
        "    ours = {m for m in sys.modules if m.startswith('ncn_')}\n"
        "    assert ours == {'ncn_framework', 'ncn_framework.testing', 'ncn_framework.testing.plugin'}\n"
        "    assert 'pydantic' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_node_from_memory_works_at_once(make_node: Callable[..., Node], manual_clock: ManualClock) -> None:
    recorder = RecordingPlugin()
    node = make_node("compute", recorder, FakeRuntime(), settings={"log_level": "DEBUG"}, clock=manual_clock)
    assert node.config.core.log_level == "DEBUG"
    request = fake_request(deadline_ms=manual_clock() + 60_000)
    outcome = await node.lifecycle.run(request, lambda update: None, candidates=fake_candidates())
    assert outcome.receipt.receipt.finished_ms == manual_clock()
    assert recorder.transcript[-1] == "recorder: leave"


def test_settings_come_from_the_test_alone(
    ncn_sources: Callable[..., Sources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCN_LOG_LEVEL", "ERROR")
    sources = ncn_sources({"gateway.http_port": 0, "log_level": "DEBUG"})
    assert sources.environment == sources.toml == sources.dotenv == {}
    assert sources.flags["", "home"] == str(tmp_path / "home")
    assert sources.flags["gateway", "http_port"] == 0


def test_fakes_are_the_same_in_every_run(signer: Signer, manual_clock: ManualClock) -> None:
    assert signer.address == fake_signer().address != fake_signer("other").address
    assert fake_manifest() == fake_manifest()
    assert fake_request(deadline_ms=1) == fake_request(deadline_ms=1)
    before = manual_clock()
    manual_clock.advance(5)
    assert manual_clock() == before + 5


def test_plugins_from_memory_have_names_of_their_own() -> None:
    names = [plugin.name for plugin in as_plugins(RecordingPlugin(), RecordingPlugin(), FakeRuntime())]
    assert names == ["recorder", "recorder#2", "FakeRuntime"]


# --- check_plugin ---


def test_a_plugin_that_loads_is_returned() -> None:
    assert check_plugin(FakeRuntime(), "compute").runtimes() == {"fake"}


class Idle:
    roles = ("gateway",)

    def __init__(self, node: Any) -> None: ...


class Tableless(Idle):
    @hookimpl
    def ncn_settings(self) -> type[Settings]:
        return type("NoTable", (Settings,), {"table": ""})


class NamelessCommand(Idle):
    @hookimpl
    def ncn_commands(self) -> Iterable[click.Command]:
        return (click.Command(None),)


class Boastful(Idle):
    @hookimpl
    def ncn_runtimes(self) -> Iterable[str]:
        return ("magic",)


@pytest.mark.parametrize(
    ("plugin", "role", "contract"),
    [
        (Idle, "gateway", "implements at least one hook"),
        (FakeRuntime, "kitchen", "works in the roles it names"),
        (Tableless, "gateway", "settings name their table; NoTable.table is missing"),
        (NamelessCommand, "gateway", "a command has a name"),
        (Boastful, "gateway", r"names runtimes \(magic\) implements ncn_execute"),
    ],
)
def test_a_plugin_that_would_do_nothing_is_refused(plugin: type, role: str, contract: str) -> None:
    with pytest.raises(AssertionError, match=f"contract broken: .*{contract}"):
        check_plugin(plugin, role)


def test_what_the_kernel_refuses_is_the_kernels_error() -> None:
    with pytest.raises(PluginError, match="does not say where it works"):
        check_plugin(object(), "gateway")


# --- check_runtime ---


class Runtime(FakeRuntime):
    """A good runtime, made with its node; tests break it."""

    def __init__(self, node: Any = None) -> None:
        super().__init__()


def good_chunk(**changes: Any) -> Chunk:
    data = pack_tensors([fake_tensor(spec) for spec in fake_manifest().outputs])
    return replace(Chunk(1, 1, data), **changes)


def yielding(*items: Any) -> type:
    class Yields(Runtime):
        async def _execute(self, manifest: Any) -> AsyncGenerator[Any, None]:
            for item in items:
                yield item

    return Yields


class AcceptsAll(Runtime):
    @hookimpl
    def ncn_execute(self) -> AsyncGenerator[Chunk, None]:  # type: ignore[override]
        return self._execute(fake_manifest())


class AcceptsNone(Runtime):
    @hookimpl
    def ncn_execute(self, request: InferenceRequest) -> None:  # type: ignore[override]
        return None


class NamesAnother(Runtime):
    @hookimpl
    def ncn_runtimes(self) -> Iterable[str]:
        return ("other",)


class ReturnsAList(Runtime):
    @hookimpl
    def ncn_execute(self, leases: Leases) -> Any:  # type: ignore[override]
        return [good_chunk()] if leases.route.manifest.runtime == "fake" else None


class SwallowsItsEnd(Runtime):
    async def _execute(self, manifest: Any) -> AsyncGenerator[Chunk, None]:
        yield good_chunk()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


async def test_a_good_runtime_passes_as_a_class_and_as_an_object() -> None:
    for runtime in (Runtime, FakeRuntime(chunks=3)):
        outcome = await check_runtime(runtime, fake_manifest(), fake_request())
        assert [chunk.sequence for chunk in outcome.chunks] == list(range(1, len(outcome.chunks) + 1))


@pytest.mark.parametrize(
    ("runtime", "error", "problem"),
    [
        (AcceptsAll, AssertionError, "returns None for models whose manifest.runtime is not its own"),
        (SwallowsItsEnd, AssertionError, "a runtime lets CancelledError pass"),
        (AcceptsNone, NcnError, "no plugin executes runtime 'fake'"),
        (NamesAnother, AssertionError, r"ncn_runtimes names the runtimes .*'fake' is not among \['other'\]"),
        (ReturnsAList, AssertionError, "None or an asynchronous generator, not list"),
        (yielding("text"), AssertionError, "yields Chunk and leaves receipts to the kernel; this is str"),
        (yielding(good_chunk(link=bytes(32))), AssertionError, "leaves Chunk.link empty"),
        (yielding(good_chunk(sequence=0)), ChainBroken, "chunk 0"),
        (yielding(good_chunk(data=b"")), OutputRejected, "not well encoded"),
        (yielding(), OutputRejected, "gave no output"),
    ],
)
async def test_a_runtime_that_breaks_its_contract_is_refused(runtime: type, error: type, problem: str) -> None:
    with pytest.raises(error, match=problem):
        await check_runtime(runtime, fake_manifest(), fake_request())


# --- check_router ---


def router(choose: Callable[[Candidates], Route]) -> Any:
    async def chosen(candidates: Candidates) -> Route:
        return choose(candidates)

    class Router(Idle):
        @hookimpl
        def ncn_route(self, candidates: Candidates) -> Awaitable[Route]:
            return chosen(candidates)

    return Router


def careful(candidates: Candidates) -> Route:
    able = [c for c in candidates if c.capacity]
    if not able:
        raise NoCandidate("none")
    return Route(able[0].node, able[0].manifest, (Considered(able[0].node, "first"),))


def unexplained(candidates: Candidates) -> Route:
    return replace(careful(candidates), considered=())


def reckless(candidates: Candidates) -> Route:
    return Route(candidates[0].node, candidates[0].manifest, (Considered(candidates[0].node, "first"),))


def half_careful(candidates: Candidates) -> Route:
    careful(candidates)
    return reckless(candidates)


def invented(candidates: Candidates) -> Route:
    return Route(bytes(20), candidates[0].manifest)


def another_model(candidates: Candidates) -> Route:
    return replace(careful(candidates), manifest=fake_manifest(name="another"))


def slicing(candidates: Any) -> Route:
    return careful(candidates[:1])


async def test_a_good_router_passes() -> None:
    await check_router(router(careful))


@pytest.mark.parametrize(
    ("choose", "problem"),
    [
        (unexplained, "a reason code for the chosen node"),
        (reckless, "where every node is shutting down, ncn_route raises NoCandidate"),
        (half_careful, "a node with capacity 0 is shutting down and is not chosen"),
        (invented, "the route could not be used"),
        (another_model, "Route.manifest is the manifest of the chosen candidate"),
        (slicing, "slices are not promised"),
    ],
)
async def test_a_router_that_breaks_its_contract_is_refused(choose: Any, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        await check_router(router(choose))
