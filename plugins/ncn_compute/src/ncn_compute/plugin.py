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
    from .service import Compute


class Plugin:
    """Announces the node, executes safetensors models in a jail, signs what they gave."""

    roles = ("compute",)

    def __init__(self, node: Node) -> None:
        self.node = node

    @cached_property
    def compute(self) -> Compute:
        from .service import Compute

        return Compute(self.node)

    @hookimpl
    def ncn_register(self, record: Record) -> None:
        self.compute.register(record)

    @hookimpl
    def ncn_reserve(self, request: InferenceRequest) -> AbstractAsyncContextManager[Lease]:
        return self.compute.reserve(request)

    @hookimpl(trylast=True)
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None] | None:
        return self.compute.execute(request, leases)

    @hookimpl
    def ncn_sign(self, receipt: SignedReceipt) -> Signature | None:
        return self.compute.sign(receipt)

    @hookimpl(trylast=True)
    def ncn_settle(self, request: InferenceRequest) -> Awaitable[Settlement] | None:
        return self.compute.settle(request)

    @hookimpl
    def ncn_serve(self) -> AbstractAsyncContextManager[Any]:
        return self.compute.serve()

    @hookimpl
    def ncn_runtimes(self) -> Iterable[str]:
        from .service import RUNTIME

        return (RUNTIME,)

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
