"""pytest fixtures for plugin authors; imported by every pytest that finds ncn-framework, hence lazy throughout.

- ``ncn_sources(settings)``: settings from nowhere but the test, with a home of its own.
- ``make_node(role, *plugins, settings=..., clock=...)``: a ``Node`` with plugins from memory, not started.
- ``signer``: a key, the same in every run.
- ``manual_clock``: milliseconds that pass when the test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ncn_framework.node import Node
    from ncn_framework.signing import Signer
    from ncn_framework.sources import Sources
    from ncn_framework.testing.fakes import ManualClock

__all__ = ["make_node", "manual_clock", "ncn_sources", "signer"]


@pytest.fixture
def ncn_sources(tmp_path: Path) -> Callable[..., Sources]:
    """Return a function from settings (``{"compute.capacity": 2, "log_level": "DEBUG"}``) to ``Sources``.

    Neither this process's environment nor its folder is looked at; ``home`` is a folder of the test.
    """

    def make(settings: Mapping[str, Any] | None = None) -> Sources:
        from ncn_framework.testing.fakes import sources_of

        return sources_of(settings, tmp_path / "home")

    return make


@pytest.fixture
def make_node(ncn_sources: Callable[..., Sources]) -> Callable[..., Node]:
    """Return a function that makes a ``Node`` of a role with plugins from memory.

    Called as ``make_node(role, *plugins, settings=None, clock=None)``: a plugin is a class, a module or an object
    with ``roles``, or a ``LoadedPlugin``; they are called in the order given. The node is not started; its
    ``lifecycle`` works at once.
    """

    def make(
        role: str,
        *plugins: Any,
        settings: Mapping[str, Any] | None = None,
        clock: Callable[[], int] | None = None,
    ) -> Node:
        from ncn_framework.config import Config
        from ncn_framework.node import Node
        from ncn_framework.testing.fakes import as_plugins

        node = Node(role, Config(ncn_sources(settings)), as_plugins(*plugins))
        if clock is not None:
            node.lifecycle.clock = clock
        return node

    return make


@pytest.fixture
def signer() -> Signer:
    """Return a signer whose key is the same in every run."""
    from ncn_framework.testing.fakes import fake_signer

    return fake_signer()


@pytest.fixture
def manual_clock() -> ManualClock:
    """Return a clock that stands still until ``advance(ms)``."""
    from ncn_framework.testing.fakes import ManualClock

    return ManualClock()
