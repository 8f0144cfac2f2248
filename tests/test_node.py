"""A role and its services: entered in order, left in reverse, ended by the first that cannot go on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ncn_framework import Node, hookimpl
from ncn_framework.errors import ConfigError, NcnError, StoreError
from ncn_framework.manager import ROLES
from ncn_framework.node import serve, until_signal

MakeNode = Callable[..., Node]


class Service:
    """A plugin with one service."""

    roles = ROLES

    def __init__(
        self, name: str, transcript: list[str], refuses: NcnError | None = None, fails: NcnError | None = None
    ) -> None:
        self.name, self.transcript = name, transcript
        self.refuses, self.fails = refuses, fails

    @hookimpl
    def ncn_serve(self, node: Node) -> AbstractAsyncContextManager[None]:
        return self.service(node)

    @asynccontextmanager
    async def service(self, node: Node) -> AsyncIterator[None]:
        if self.refuses is not None:
            raise self.refuses
        self.transcript.append(f"{node.role}: enter {self.name}")
        if self.fails is not None:
            node.fail(self.fails)
            node.fail(ConfigError("only the first failure counts"))
        try:
            yield
        finally:
            self.transcript.append(f"{node.role}: leave {self.name}")


def stopped() -> asyncio.Event:
    stop = asyncio.Event()
    stop.set()
    return stop


async def test_services_are_entered_in_order_and_left_in_reverse(make_node: MakeNode) -> None:
    transcript: list[str] = []

    async def started(node: Node) -> None:
        transcript.append("started")

    node = make_node("gateway", Service("a", transcript), Service("b", transcript))
    await node.run(stopped(), started)
    enter = ["gateway: enter a", "gateway: enter b"]
    assert transcript == [*enter, "started", "gateway: leave b", "gateway: leave a"]


async def test_a_service_that_cannot_start_ends_the_node(make_node: MakeNode) -> None:
    transcript: list[str] = []
    taken = ConfigError("the port is taken")
    node = make_node("gateway", Service("a", transcript), Service("b", transcript, refuses=taken))
    with pytest.raises(ConfigError) as ended:
        await node.run(asyncio.Event())
    assert ended.value is taken
    assert transcript == ["gateway: enter a", "gateway: leave a"]


async def test_a_service_that_cannot_go_on_ends_the_node(make_node: MakeNode) -> None:
    transcript: list[str] = []
    full = StoreError("the disk is full")
    node = make_node("gateway", Service("a", transcript), Service("b", transcript, fails=full))
    with pytest.raises(StoreError) as ended:
        await node.run(asyncio.Event())
    assert ended.value is full
    assert transcript[-2:] == ["gateway: leave b", "gateway: leave a"]


async def test_a_failure_after_the_end_is_nobodys(make_node: MakeNode) -> None:
    node = make_node("gateway")
    node.fail(StoreError("before it runs"))
    await node.run(stopped())


async def test_one_role_that_fails_stops_the_others(make_node: MakeNode) -> None:
    transcript: list[str] = []
    full = StoreError("the disk is full")
    healthy = make_node("gateway", Service("a", transcript))
    failing = make_node("compute", Service("b", transcript, fails=full))
    stop = asyncio.Event()
    with pytest.raises(ExceptionGroup) as ended:
        await serve([healthy, failing], stop)
    assert ended.value.exceptions == (full,)
    assert stop.is_set()
    assert sorted(transcript) == sorted(
        ["gateway: enter a", "compute: enter b", "compute: leave b", "gateway: leave a"]
    )


async def test_two_roles_run_until_they_are_stopped(make_node: MakeNode) -> None:
    transcript: list[str] = []
    nodes = [make_node(role, Service("a", transcript)) for role in ("gateway", "compute")]
    stop, seen = asyncio.Event(), set[str]()

    async def started(node: Node) -> None:
        seen.add(node.role)
        if len(seen) == 2:
            stop.set()

    await serve(nodes, stop, started)
    assert len(transcript) == 4


def test_a_node_has_settings_and_a_home(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node("gateway", settings={"drain_timeout_ms": 1500, "chain_id": 7, "route_timeout_ms": 3})
    assert node.home == tmp_path / "home"
    assert node.drain_timeout_s == 1.5
    assert node.domain.chain_id == 7
    assert node.lifecycle.domain == node.domain
    assert node.lifecycle.limits.route_ms == 3


async def test_a_signal_sets_the_event_and_hands_the_next_one_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = until_signal()
    os.kill(os.getpid(), signal.SIGTERM)
    await stop.wait()
    assert signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


TRIVIAL = """
import pathlib
from contextlib import asynccontextmanager

from ncn_framework import hookimpl

roles = ("gateway",)


@hookimpl
@asynccontextmanager
async def ncn_serve(node):
    node.endpoints["trivial"] = "here"
    yield
    print("drained", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_process_which_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "trivial.py").write_text(TRIVIAL)
    code = (
        "import trivial\nfrom ncn_framework import serving\nfrom ncn_framework.manager import loaded_plugin\n"
        "from ncn_framework.sources import Sources\n"
        "serving.run([], Sources(), [loaded_plugin('trivial', trivial)])"
    )
    environment: dict[str, Any] = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "gateway: trivial here\n"
        assert "ready: gateway; Ctrl-C stops" in process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "drained\n"
    assert f"{number.name}: shutting down" in err
