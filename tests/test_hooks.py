"""docs/hooks.md, the specifications and the built-in implementations say the same; each hook is really called."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import ncn_framework.errors
import ncn_framework.models
import ncn_framework.payments
import ncn_framework.statements
from ncn_framework import Node, Settings, Signer, hookimpl, hookspecs
from ncn_framework.committees import Epoch
from ncn_framework.manager import HOOK_KINDS, ROLES, LoadedPlugin, build_manager, find_plugins, loaded_plugin
from ncn_framework.models import Event, InferenceRequest, ModelManifest, SandboxSpec, Signature
from ncn_framework.payments import FeeDue, PaymentConfirmation, PaymentDue, Quorum
from ncn_framework.statements import Contradiction, Evidence, FailureStatement, Reputation, Statement
from ncn_framework.states import State
from ncn_framework.tensors import pack_tensors
from ncn_framework.testing.fakes import (
    FakeRuntime,
    RecordingPlugin,
    fake_candidates,
    fake_manifest,
    fake_record,
    fake_request,
    fake_route,
)
from ncn_framework.testing.funds import fake_due, fake_quorum

DOCUMENT = Path(__file__).parent.parent / "docs" / "hooks.md"
HOOKS = list(HOOK_KINDS)
BUILT_IN = ("ncn_gateway", "ncn_compute", "ncn_client", "ncn_payments", "ncn_registry")


@dataclass(frozen=True)
class Section:
    """What the document says of one hook."""

    signature: str
    kind: str
    text: str
    example: str


def sections() -> dict[str, Section]:
    found = {}
    for part in re.split(r"^### ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        body = body.split("\n## ")[0]
        signature, example = re.findall(r"^```python\n(.*?)\n```$", body, flags=re.MULTILINE | re.DOTALL)
        kind = re.search(r"^Kind: (\w+)\. ", body, flags=re.MULTILINE)
        found[name] = Section(signature, kind[1] if kind else "", body, example)
    return found


def specifications() -> dict[str, ast.FunctionDef]:
    tree = ast.parse(inspect.getsource(hookspecs))
    return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("ncn_")}


def built_in() -> list[LoadedPlugin]:
    return [plugin for plugin in find_plugins() if plugin.source.__module__.partition(".")[0] in BUILT_IN]


def test_every_hook_has_a_section_in_the_order_of_the_specifications() -> None:
    assert list(sections()) == HOOKS == list(specifications())


@pytest.mark.parametrize("hook", HOOKS)
def test_a_section_has_the_exact_signature_and_kind(hook: str) -> None:
    spec = specifications()[hook]
    assert spec.returns is not None
    section = sections()[hook]
    assert section.signature == f"def {hook}({ast.unparse(spec.args)}) -> {ast.unparse(spec.returns)}"
    assert section.kind == HOOK_KINDS[hook]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_section_says_when_it_is_called_and_names_its_arguments(hook: str) -> None:
    section = sections()[hook]
    assert "- Called: " in section.text
    described = section.text.replace(section.signature, "").replace(section.example, "")
    for argument in specifications()[hook].args.args:
        if argument.arg != "node":  # every plugin knows its node
            assert f"`{argument.arg}" in described, argument.arg


@pytest.mark.parametrize("hook", HOOKS)
def test_an_example_is_short_and_loads(hook: str) -> None:
    example = sections()[hook].example
    assert 3 <= len([line for line in example.splitlines() if line.strip()]) <= 10
    names = vars(ncn_framework.models) | vars(ncn_framework.payments) | vars(ncn_framework.errors)
    names |= vars(ncn_framework.statements)
    namespace = {**names, "hookimpl": hookimpl, "asyncio": asyncio, "click": click, "pack_tensors": pack_tensors}
    namespace["asynccontextmanager"] = asynccontextmanager
    exec(  # noqa: S102 - our own document
        "class Example:\n    roles = ('gateway',)\n\n    def __init__(self, node):\n        self.node = node\n\n"
        + textwrap.indent(example, "    "),
        namespace,
    )
    plugin = loaded_plugin("example", namespace["Example"])
    assert build_manager([plugin]).hooks_of(plugin) == [hook]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_specification_keeps_to_what_pluggy_handles(hook: str) -> None:
    arguments = specifications()[hook].args
    assert len(arguments.args) <= 4
    assert [*arguments.defaults, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg] == [None, None]
    assert ast.get_docstring(specifications()[hook])
    assert HOOK_KINDS[hook] in ("decision", "around", "every", "notify")


@pytest.mark.parametrize("hook", HOOKS)
def test_a_built_in_plugin_implements_every_hook(hook: str) -> None:
    plugins = built_in()
    found = build_manager(plugins)
    assert any(hook in found.hooks_of(plugin) for plugin in plugins), f"no built-in plugin uses {hook}"


def test_the_built_in_implementations_have_the_types_of_the_specifications() -> None:
    checked = 0
    for plugin in built_in():
        for hook in HOOKS:
            function = getattr(plugin.source, hook, None)
            if function is None:
                continue
            wanted = getattr(hookspecs, hook).__annotations__
            for name, annotation in function.__annotations__.items():
                if name != "return":
                    assert annotation == wanted[name], f"{plugin.name}: {name} of {hook}"
            checked += 1
    assert checked >= len(HOOKS) - 1


# --- each hook is really called ---


class _Table(Settings):
    table = "witness"


class Witness(RecordingPlugin):
    """Implements every hook and notes each call."""

    def __init__(self) -> None:
        super().__init__("witness")

    @hookimpl
    def ncn_check(self, request: InferenceRequest, manifest: ModelManifest) -> None:
        self.note("ncn_check")

    @hookimpl
    def ncn_confirm_payment(self, confirmation: PaymentConfirmation) -> Awaitable[None]:
        self.note("ncn_confirm_payment")
        return asyncio.sleep(0)

    @hookimpl
    def ncn_pay(self, due: PaymentDue | FeeDue, signer: Signer) -> Awaitable[bytes]:
        self.note("ncn_pay")
        return self.pay()

    async def pay(self) -> bytes:
        return bytes(32)

    @hookimpl
    def ncn_recall(self, request_id: bytes) -> Awaitable[State]:
        self.note("ncn_recall")
        return self.recall()

    async def recall(self) -> State:
        return State.SETTLED

    @hookimpl
    def ncn_endorse(self, statement: Statement) -> Awaitable[Quorum]:
        self.note("ncn_endorse")
        return self.endorse()

    async def endorse(self) -> Quorum:
        return fake_quorum()

    @hookimpl
    def ncn_vouch(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> Awaitable[tuple[Signature, ...]]:
        self.note("ncn_vouch")
        return self.vouch()

    async def vouch(self) -> tuple[Signature, ...]:
        return (Signature(bytes(20), bytes(65)),)

    @hookimpl
    def ncn_inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        self.note("ncn_inspect")

    @hookimpl
    def ncn_disclose(self, request_id: bytes) -> Awaitable[None]:
        self.note("ncn_disclose")
        return asyncio.sleep(0)

    @hookimpl
    def ncn_epoch(self, number: int) -> Awaitable[Epoch]:
        self.note("ncn_epoch")
        return self.epoch(number)

    async def epoch(self, number: int) -> Epoch:
        return Epoch(number, (), 1, 0, bytes(32), bytes(20))

    @hookimpl
    def ncn_report(self, statement: Statement | Contradiction, quorum: Quorum | None) -> Awaitable[str]:
        self.note("ncn_report")
        return self.report()

    async def report(self) -> str:
        return "0x01"

    @hookimpl
    def ncn_reputation(self, account: bytes, period: int) -> Awaitable[Reputation]:
        self.note("ncn_reputation")
        return self.reputation()

    async def reputation(self) -> Reputation:
        return Reputation(-20, booked=True)

    @hookimpl
    def ncn_standing(self, account: bytes, out: bool, reason: str) -> None:
        self.note("ncn_standing")

    @hookimpl
    def ncn_serve(self, node: Node) -> AbstractAsyncContextManager[None]:
        self.note("ncn_serve")
        return self.service()

    @asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        yield

    @hookimpl
    def ncn_settings(self) -> type[Settings]:
        self.note("ncn_settings")
        return _Table

    @hookimpl
    def ncn_commands(self) -> list[click.Command]:
        self.note("ncn_commands")
        return [click.Command("witness")]

    @hookimpl
    def ncn_http_routes(self, node: Node) -> list[str]:
        self.note("ncn_http_routes")
        return ["/witness"]

    @hookimpl
    def ncn_event(self, event: Event) -> None:
        self.note("ncn_event")

    @hookimpl
    def ncn_runtimes(self) -> list[str]:
        self.note("ncn_runtimes")
        return ["witness"]

    @hookimpl
    def ncn_open_sandbox(self, spec: SandboxSpec, mode: str) -> AbstractAsyncContextManager[None]:
        self.note("ncn_open_sandbox")
        return self.service()


async def _walk(node: Node) -> None:
    await node.lifecycle.run(fake_request(), lambda update: None, candidates=fake_candidates())


async def _check(node: Node) -> None:
    await node.lifecycle.admit(fake_request(), fake_manifest())


async def _confirm_payment(node: Node) -> None:
    await node.lifecycle.confirm_payment(PaymentConfirmation(bytes(32), bytes(32)))


async def _pay(node: Node) -> None:
    due = fake_due(fake_request(), fake_route())
    assert await node.plugins.pay(due, Signer(b"\1" * 32)) == bytes(32)


async def _recall(node: Node) -> None:
    assert await node.lifecycle.recall(bytes(32)) is State.SETTLED


def _failure() -> FailureStatement:
    return FailureStatement(fake_due(fake_request(), fake_route()).terms, bytes(32), "lost")


async def _endorse(node: Node) -> None:
    assert await node.validation.endorse(_failure()) == fake_quorum()


async def _vouch(node: Node) -> None:
    assert await node.validation.vouch(_failure(), {}) == (Signature(bytes(20), bytes(65)),)


async def _inspect(node: Node) -> None:
    await node.validation.inspect(_failure(), {})


async def _disclose(node: Node) -> None:
    assert await node.validation.disclose(bytes(32)) is None


async def _epoch(node: Node) -> None:
    assert (await node.validation.epoch(7)).number == 7


async def _report(node: Node) -> None:
    assert await node.validation.report(_failure(), fake_quorum()) == "0x01"
    contradiction = Contradiction(bytes(20), _failure(), _failure(), bytes(65), bytes(65))
    assert await node.validation.report(contradiction, None) == "0x01"


async def _reputation(node: Node) -> None:
    assert await node.validation.reputation(bytes(20), 3) == Reputation(-20, booked=True)


async def _standing(node: Node) -> None:
    node.plugins.standing(bytes(20), True, "slashed")


async def _serve(node: Node) -> None:
    stop = asyncio.Event()
    stop.set()
    await node.run(stop)


async def _register(node: Node) -> None:
    await node.lifecycle.register(fake_record())


async def _settings(node: Node) -> None:
    assert node.plugins.settings() == [_Table]


async def _commands(node: Node) -> None:
    assert [command.name for command in node.plugins.commands()] == ["witness"]


async def _http_routes(node: Node) -> None:
    assert node.plugins.http_routes(node) == ["/witness"]


async def _runtimes(node: Node) -> None:
    assert node.plugins.runtimes() == {"witness", "fake"}


async def _open_sandbox(node: Node) -> None:
    async with node.plugins.open_sandbox(SandboxSpec(("true",), ()), "strict"):
        pass


TRIGGERS: dict[str, Callable[[Node], Awaitable[None]]] = {
    "ncn_register": _register,
    "ncn_check": _check,
    "ncn_confirm_payment": _confirm_payment,
    "ncn_pay": _pay,
    "ncn_recall": _recall,
    "ncn_endorse": _endorse,
    "ncn_vouch": _vouch,
    "ncn_inspect": _inspect,
    "ncn_disclose": _disclose,
    "ncn_epoch": _epoch,
    "ncn_report": _report,
    "ncn_reputation": _reputation,
    "ncn_standing": _standing,
    "ncn_serve": _serve,
    "ncn_settings": _settings,
    "ncn_commands": _commands,
    "ncn_http_routes": _http_routes,
    "ncn_runtimes": _runtimes,
    "ncn_open_sandbox": _open_sandbox,
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("role", ROLES)
async def test_an_implementation_is_called(hook: str, role: str, make_node: Callable[..., Node]) -> None:
    witness = Witness()
    node = make_node(role, witness, FakeRuntime())
    assert not [line for line in witness.transcript if hook in line]
    await TRIGGERS.get(hook, _walk)(node)
    assert [line for line in witness.transcript if hook in line]
