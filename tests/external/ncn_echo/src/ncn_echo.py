"""A runtime for models of kind ``echo``: each word of the input comes back as a chunk, one unit a word."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING

from ncn_framework import hookimpl
from ncn_framework.models import Chunk, InferenceRequest, Leases
from ncn_framework.tensors import bytes_tensor, pack_tensors, split_bytes

if TYPE_CHECKING:
    from ncn_framework import Node

RUNTIME = "echo"


class Echo:
    roles = ("compute",)

    def __init__(self, node: Node | None) -> None:
        self.node = node

    @hookimpl
    def ncn_runtimes(self) -> Iterable[str]:
        return (RUNTIME,)

    @hookimpl
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None] | None:
        return echo(request) if leases.route.manifest.runtime == RUNTIME else None


async def echo(request: InferenceRequest) -> AsyncGenerator[Chunk, None]:
    words = b" ".join(split_bytes(request.inputs[0])).split() or [b""]
    for number, word in enumerate(words, 1):
        yield Chunk(number, number, pack_tensors([bytes_tensor("word", [word])]))
