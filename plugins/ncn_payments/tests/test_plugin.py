"""The plugin's answers to the hooks: where it works, and that nothing is opened before it is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from ncn_framework.models import Event
from ncn_framework.node import Node
from ncn_framework.states import State
from ncn_payments.config import PaymentsSettings
from ncn_payments.plugin import Plugin

from .payments import make_request, priced

MakeNode = Callable[..., Node]


def test_it_works_where_fees_are_paid_and_earned_and_where_records_are_judged() -> None:
    assert Plugin.roles == ("registry", "gateway", "compute")


def test_every_hook_of_it_is_one_of_the_kernels(make_node: MakeNode) -> None:
    """A misspelt hook would be refused when the node is made."""
    node = make_node("gateway", Plugin)
    assert PaymentsSettings in node.plugins.settings()
    assert [command.name for command in node.plugins.commands()] == ["wallet", "payments", "stake", "chain"]
    for hook in ("ncn_check", "ncn_reserve", "ncn_settle", "ncn_confirm_payment", "ncn_endorse", "ncn_event"):
        assert node.plugins.call_order(hook)


def test_without_its_service_it_declines(make_node: MakeNode) -> None:
    """A command makes the node and its plugins, and starts nothing."""
    plugin = Plugin(make_node("gateway", Plugin))
    request = make_request(1)
    assert plugin.ncn_check(request, priced()) is None
    plugin.ncn_event(Event(request.request_id, State.FAILED, 1))
    assert plugin.payments.desk is None
    assert plugin.payments.books is None


def test_importing_it_imports_no_chain() -> None:
    program = (
        "import sys; import ncn_payments.plugin; "
        "print([name for name in ('eth', 'eth_abi', 'sqlite3', 'starlette', 'ncn_payments.service') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
