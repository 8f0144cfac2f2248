"""How an error passes through gRPC: the status of the table, and the stable code as trailing metadata."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from ..errors import CapacityError, NcnError, code_of, error_from_code

__all__ = ["ERROR_KEY", "abort", "error_from_rpc"]

ERROR_KEY = "ncn-error"
"""Trailing metadata key that holds the stable code."""


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: NcnError) -> NoReturn:
    """End the call with the error's status; never returns."""
    row = code_of(error)
    await context.abort(grpc.StatusCode[row.grpc], str(error), ((ERROR_KEY, row.code),))
    raise error  # abort raises already; this is for the type checker


def error_from_rpc(error: grpc.aio.AioRpcError, peer: str) -> NcnError:
    """Return the error that ``peer`` (for the message) ended a call with; without a code, it cannot be reached."""
    details = error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            return error_from_code(value if isinstance(value, str) else value.decode("ascii", "replace"), details)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return CapacityError(f"{peer} cannot be reached: {details or error.code().name}")
    return NcnError(f"{peer}: {error.code().name}: {details}")
