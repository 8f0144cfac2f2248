"""The gRPC channel to a registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceStub

__all__ = ["connected"]

_OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Any]:
    """Yield the asynchronous stub of the registry at ``target``, HOST:PORT; it connects when it is first used."""
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        yield cast(Any, P2PRegistryServiceStub(channel))  # its type is the synchronous one
