"""A role of the network in this process: settings, a plugin manager of its own, and services."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from .config import Config, Settings
from .lifecycle import Lifecycle
from .manager import LoadedPlugin, build_manager
from .models import Domain
from .signing import Signer, load_or_create_signer
from .validation import Validation

__all__ = ["Node", "serve", "until_signal"]

log = logging.getLogger(__name__)
S = TypeVar("S", bound=Settings)


class Node:
    """One role. Plugins that are classes are made with their node.

    Attributes:
        role: ``registry``, ``gateway`` or ``compute``.
        config: all settings.
        domain: that signatures are bound to.
        lifecycle: the walk through this node's plugins.
        validation: what is asked of validators.
        validators: keys of the validators that this process speaks for; set by the service that knows the chain.
        endpoints: what services say of where they listen, for people: name to address.
    """

    def __init__(self, role: str, config: Config, plugins: Sequence[LoadedPlugin]) -> None:
        self.role = role
        self.config = config
        self.domain: Domain = config.core.domain
        self.endpoints: dict[str, str] = {}
        self.plugins = build_manager(plugins, self, role)
        self.lifecycle = Lifecycle(self.plugins, self.domain, config.core.stage_limits)
        self.validation = Validation(self.plugins)
        self.validators: tuple[Signer, ...] = ()
        self._failure: asyncio.Future[None] | None = None

    @cached_property
    def signer(self) -> Signer:
        """The role's key, which is its identity: from the private_key of the role's own table, or else from a key
        file under home, which is made where it is missing.

        Raises:
            ConfigError: it is not a key.
        """
        for table in self.plugins.settings():
            if table.table == self.role and "private_key" in table.model_fields:
                secret = vars(self.config.load(table))["private_key"].get_secret_value()
                if secret:
                    return Signer.from_hex(secret, f"setting {self.role}.private_key")
        return load_or_create_signer(self.home / "keys" / f"{self.role}.key")

    def bind(self, domain: Domain) -> None:
        """Bind all signatures of this node to ``domain``; for the service that knows the chain, before others start."""
        self.domain = self.lifecycle.domain = domain

    def settings(self, settings: type[S]) -> S:
        """Return a table of the configuration."""
        return self.config.load(settings)

    @property
    def home(self) -> Path:
        """The folder of keys, databases and models."""
        return self.config.home

    @property
    def drain_timeout_s(self) -> float:
        """How long a service may take for running work after the order to stop."""
        return self.config.core.drain_timeout_ms / 1000

    def fail(self, error: BaseException) -> None:
        """End the node from a background task of a service that cannot go on."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    async def run(self, stop: asyncio.Event, started: Callable[[Node], Awaitable[None]] | None = None) -> None:
        """Enter all services, wait for ``stop``, and leave them in reverse order.

        Args:
            stop: set to drain.
            started: awaited once every service runs.

        Raises:
            NcnError: a service could not start, or failed later.
        """
        self._failure = asyncio.get_running_loop().create_future()
        stopped = asyncio.create_task(stop.wait())
        try:
            async with AsyncExitStack() as stack:
                for service in self.plugins.services(self):
                    await stack.enter_async_context(service)
                if started is not None:
                    await started(self)
                await asyncio.wait((stopped, self._failure), return_when=asyncio.FIRST_COMPLETED)
                log.info("%s: draining", self.role)
        finally:
            stopped.cancel()
        if self._failure.done():
            self._failure.result()
        log.info("%s: stopped", self.role)


async def serve(
    nodes: Iterable[Node], stop: asyncio.Event, started: Callable[[Node], Awaitable[None]] | None = None
) -> None:
    """Run several roles in one process until ``stop`` is set; one that fails stops the others."""
    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(_run(node, stop, started), name=f"role {node.role}")


async def _run(node: Node, stop: asyncio.Event, started: Callable[[Node], Awaitable[None]] | None) -> None:
    try:
        await node.run(stop, started)
    finally:
        stop.set()


def until_signal() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on(number: signal.Signals) -> None:
        log.info("%s: shutting down; again to end at once", number.name)
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on, number)
    return stop
