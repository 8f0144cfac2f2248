"""Whatever goes wrong in the HTTP API is answered by one envelope: a problem document (RFC 9457).

With 402 comes x402's PAYMENT-REQUIRED as well, where there are offers to tell.
"""

from __future__ import annotations

from http.client import responses

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ncn_framework.errors import NcnError, PaymentRequired
from ncn_framework.wire import x402
from ncn_framework.wire.json import ErrorJson, encode, error_json

__all__ = ["PROBLEM", "TASK", "Problems"]

TASK = "ncn.request_id"
"""Key of the scope under which a handler leaves the task's id for the problem document."""

PROBLEM = "application/problem+json"
_RETRY_AFTER_S = 1


class Problems:
    """Answers the errors of the application inside; those outside the tree are raised on, to be logged.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            if started:
                raise
            await _problem(Request(scope), error)(scope, receive, send)
            if not isinstance(error, NcnError | HTTPException | ClientDisconnect):
                raise


def _problem(request: Request, error: Exception) -> Response:
    """Return the problem document of any error; what is outside the tree says nothing of itself."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
        title = responses.get(error.status_code, "error").lower()
        detail = error.detail
        if detail.lower() == title:  # Starlette's own
            detail = f"{request.method} {request.scope['path']}: {title}; /openapi.json lists what there is"
        code = title.replace(" ", "-")
        form = ErrorJson(f"urn:ncn:error:{code}", title, error.status_code, detail, code, error.status_code == 503)
    else:
        form = error_json(error, request.scope.get(TASK))
        if isinstance(error, PaymentRequired) and error.offers:
            headers[x402.REQUIRED] = x402.required_header(error, str(request.url))
    if form.status == 503 and form.retryable:
        headers.setdefault("retry-after", str(_RETRY_AFTER_S))
    return Response(encode(form), form.status, headers, media_type=PROBLEM)
