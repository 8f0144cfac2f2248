"""A bound on the size of gRPC requests, where the server's own has to be that of its largest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import grpc

from ncn_framework.errors import RequestTooLarge
from ncn_framework.wire.grpc_errors import abort

__all__ = ["SizeLimit"]

_Context = grpc.aio.ServicerContext[Any, Any]


class SizeLimit(grpc.aio.ServerInterceptor):
    """Refuses larger requests of every method that is not exempt.

    Args:
        most_bytes: of a request.
        exempt: names of the methods for which the server's own bound is right.
    """

    def __init__(self, most_bytes: int, exempt: Collection[str]) -> None:
        self._most_bytes, self._exempt = most_bytes, frozenset(exempt)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler, behind the bound."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.rpartition("/")[2] in self._exempt:
            return handler
        if handler.unary_unary:
            return handler._replace(unary_unary=self._bounded(handler.unary_unary))
        if handler.unary_stream:
            return handler._replace(unary_stream=self._bounded_stream(handler.unary_stream))
        return handler

    def _bounded(self, method: Callable[[Any, _Context], Awaitable[Any]]) -> Any:
        async def bounded(request: Any, context: _Context) -> Any:
            await self._check(request, context)
            return await method(request, context)

        return bounded

    def _bounded_stream(self, method: Callable[[Any, _Context], AsyncIterator[Any]]) -> Any:
        async def bounded(request: Any, context: _Context) -> AsyncIterator[Any]:
            await self._check(request, context)
            async for message in method(request, context):
                yield message

        return bounded

    async def _check(self, request: Any, context: _Context) -> None:
        if (size := request.ByteSize()) > self._most_bytes:
            await abort(context, RequestTooLarge(f"the request has {size} bytes; at most {self._most_bytes}"))
