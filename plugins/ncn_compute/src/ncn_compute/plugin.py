"""The compute node's answers to the hooks: translate and delegate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ncn_framework import hookimpl

if TYPE_CHECKING:
    import click

    from ncn_framework.models import (
        Chunk,
        InferenceRequest,
        Lease,
        Leases,
        Record,
        SandboxSpec,
        Settlement,
        Signature,
        SignedReceipt,
    )
    from ncn_framework.node import Node

    from .config import ComputeSettings
    from .repeater import Repeater
    from .service import Compute


class Plugin:
    """Announces the node, executes models in a jail, signs what they gave; in a registry, executes again
    what validators want to check, and nothing else."""

    roles = ("compute", "registry")

    def __init__(self, node: Node) -> None:
        self.node = node

    @cached_property
    def compute(self) -> Compute | None:
        """The compute node; None in a registry."""
        if self.node.role != "compute":
            return None
        from .service import Compute

        return Compute(self.node)

    @cached_property
    def executor(self) -> Compute | Repeater:
        """What executes requests here."""
        if self.compute is not None:
            return self.compute
        from .repeater import Repeater

        return Repeater(self.node)

    @hookimpl
    def ncn_register(self, record: Record) -> None:
        if self.compute is not None:
            self.compute.register(record)

    @hookimpl
    def ncn_reserve(self, request: InferenceRequest) -> AbstractAsyncContextManager[Lease] | None:
        return None if self.compute is None else self.compute.reserve(request)

    @hookimpl(trylast=True)
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None] | None:
        return self.executor.execute(request, leases)

    @hookimpl
    def ncn_sign(self, receipt: SignedReceipt) -> Signature | None:
        return None if self.compute is None else self.compute.sign(receipt)

    @hookimpl(trylast=True)
    def ncn_settle(self, request: InferenceRequest) -> Awaitable[Settlement] | None:
        return None if self.compute is None else self.compute.settle(request)

    @hookimpl
    def ncn_serve(self) -> AbstractAsyncContextManager[Any]:
        return self.executor.serve()

    @hookimpl
    def ncn_runtimes(self) -> Iterable[str]:
        from .runtimes import available

        return available()

    @hookimpl(trylast=True)
    def ncn_open_sandbox(self, spec: SandboxSpec, mode: str) -> AbstractAsyncContextManager[Any]:
        from .sandbox import open_sandbox

        return open_sandbox(spec, mode)

    @hookimpl
    def ncn_settings(self) -> type[ComputeSettings]:
        from .config import ComputeSettings

        return ComputeSettings

    @hookimpl
    def ncn_commands(self) -> Iterable[click.Command]:
        from .commands import models, sandbox

        return (models, sandbox)
