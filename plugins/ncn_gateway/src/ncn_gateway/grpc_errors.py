"""How an error leaves through gRPC: the status of the table, and the stable code as trailing metadata."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from ncn_framework.errors import NcnError, code_of

__all__ = ["ERROR_KEY", "abort"]

ERROR_KEY = "ncn-error"
"""Trailing metadata key that holds the stable code."""


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: NcnError) -> NoReturn:
    """End the call with the error's status; never returns."""
    row = code_of(error)
    await context.abort(grpc.StatusCode[row.grpc], str(error), ((ERROR_KEY, row.code),))
    raise error  # abort raises already; this is for the type checker
