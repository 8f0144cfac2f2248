"""The gateway's HTTP API: decode, ask the tasks, encode."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ncn_framework.errors import CapacityError, MalformedRequest, TaskEnded
from ncn_framework.lifecycle import Outcome
from ncn_framework.manifests import manifest_json
from ncn_framework.models import ModelManifest
from ncn_framework.payments import ESCROW, PaymentConfirmation, TransferAuthorization
from ncn_framework.proof import Proof
from ncn_framework.signing import address_hex
from ncn_framework.states import TERMINAL
from ncn_framework.wire import x402
from ncn_framework.wire.json import (
    Encoding,
    ModelJson,
    StatusJson,
    SubmitJson,
    answer_json,
    decode,
    encode,
    error_json,
    hash_bytes,
)
from ncn_framework.wire.json_payments import ConfirmationJson, payment_json

from .bodies import read_json
from .info import GatewayInfo
from .messages import server_sent
from .openapi import (
    EVENTS,
    JSON,
    MAX_KEY_BYTES,
    ONE,
    PAYMENT,
    PROOF,
    TASKS,
    HealthJson,
    ModelsJson,
    NetworkJson,
    describe,
)
from .problems import TASK, Problems
from .tasks import Task, Tasks
from .websocket import websocket_routes

__all__ = ["Application", "build_app"]

Headers = dict[bytes, bytes]

_SIGNATURE = x402.SIGNATURE.lower().encode()


def build_app(
    tasks: Tasks,
    info: GatewayInfo,
    *,
    max_body_bytes: int,
    routes: Sequence[BaseRoute] = (),
    closing: asyncio.Event | None = None,
    max_followed: int = 64,
) -> Application:
    """Return the application of the HTTP and the WebSocket port.

    Args:
        tasks: of the gateway.
        info: about it.
        max_body_bytes: largest body of a request, and largest WebSocket message.
        routes: more of them, such as plugins bring; the gateway's own come first.
        closing: set when the server is about to stop, so that WebSocket connections end at once.
        max_followed: most tasks that one WebSocket connection follows at once.
    """
    api = _Api(tasks, info, max_body_bytes)
    own: list[BaseRoute] = [
        Route(TASKS, _Submit(api), methods=["POST"]),
        Route(ONE, api.task, methods=["GET", "DELETE"]),
        Route(PROOF, api.receipt),
        Route(PAYMENT, api.payment, methods=["POST"]),
        Route("/api/v1/models", api.models),
        Route("/api/v1/network", api.network),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/openapi.json", api.openapi),
        *websocket_routes(
            tasks, max_message_bytes=max_body_bytes, max_followed=max_followed, closing=closing or asyncio.Event()
        ),
    ]
    app = Application(routes=[*own, *routes])
    app.router.redirect_slashes = False
    return app


class Application(Starlette):
    """The application of the HTTP port."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return the router inside one handler of errors: Starlette's two cost 30 us a request more."""
        return Problems(self.router)


class _Submit:
    """The route of ``_Api.submit``, without the request and response objects around it that the hot path never uses."""

    def __init__(self, api: _Api) -> None:
        self.api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.api.submit(Request(scope, receive))
        if isinstance(response, Response):
            await response(scope, receive, send)
            return
        headers = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(response))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": response})


class _Api:
    def __init__(self, tasks: Tasks, info: GatewayInfo, max_body_bytes: int) -> None:
        self.tasks, self.info, self.max_body_bytes = tasks, info, max_body_bytes
        self._openapi = encode(describe())

    # --- tasks ---

    async def submit(self, request: Request) -> Response | bytes:
        """Return a response, or the JSON of the answer, which is what nearly everybody waits for."""
        headers: Headers = dict(request.scope["headers"])
        form = decode(await read_json(request, self.max_body_bytes), SubmitJson)
        signed = headers.get(_SIGNATURE)
        transfer = None if signed is None else x402.transfer_from_header(signed, self.info.domain.chain_id)
        admitted = self.tasks.admit(form, idempotency_key=_idempotency_key(headers), transfer=transfer)
        task = await self.tasks.submit(admitted)
        request.scope[TASK] = task.request.request_id
        if _wants_events(headers):
            return _event_stream(task, 0, form.encoding)
        if _wants_no_wait(request, headers):
            await task.told()
            return _accepted(task)
        if task.request.payment == ESCROW and await task.awaits_payment():
            return _accepted(task)
        body = _answer(task, await task.wait(), form.encoding)
        return body if transfer is None else self._answered(task, body)

    async def task(self, request: Request) -> Response:
        task = await self._task(request)
        if request.method == "DELETE":
            if task.state in TERMINAL:
                raise TaskEnded(f"{_name(task)} rests in {task.state}; there is nothing to cancel")
            task.cancel()
            return _json(_status(task), 202)
        encoding = _encoding(request)
        headers: Headers = dict(request.scope["headers"])
        if _wants_events(headers):
            return _event_stream(task, _last_event(headers), encoding)
        outcome = await task.told()
        return _json(_status(task)) if outcome is None else self._answered(task, _answer(task, outcome, encoding))

    def _answered(self, task: Task, body: bytes) -> Response:
        """Return the response for an answer; it tells of the transfer where one paid for it."""
        headers, paid = {}, task.request.authorization
        if isinstance(paid, TransferAuthorization) and task.outcome is not None:
            settled = x402.response_header(task.outcome.settlement, paid.payer, self.info.domain.chain_id)
            headers[x402.RESPONSE] = settled
        return Response(body, headers=headers, media_type=JSON)

    async def payment(self, request: Request) -> Response:
        """Take a client's word that it has paid into escrow."""
        name = hash_bytes(request.path_params["id"], "id")
        form = decode(await read_json(request, self.max_body_bytes), ConfirmationJson)
        transaction = hash_bytes(form.transaction_hash, "transaction_hash")
        request.scope[TASK] = name
        task = await self.tasks.confirm_payment(PaymentConfirmation(name, transaction))
        await task.told()
        return _accepted(task)

    async def receipt(self, request: Request) -> Response:
        task = await self._task(request)
        outcome = await task.told()
        if outcome is None:
            raise TaskEnded(f"{_name(task)} is {task.state}; only a settled one has a receipt")
        proof = Proof(self.info.domain, task.manifest, task.request, outcome.chunks, outcome.receipt)
        return Response(proof.to_json(), media_type=JSON)

    async def _task(self, request: Request) -> Task:
        task = await self.tasks.get(hash_bytes(request.path_params["id"], "id"))
        request.scope[TASK] = task.request.request_id
        return task

    # --- the gateway ---

    async def models(self, _: Request) -> Response:
        return _json(ModelsJson([_model(manifest, nodes) for manifest, nodes in self.tasks.models()]))

    async def network(self, _: Request) -> Response:
        domain = self.info.domain
        contract, gateway = address_hex(domain.contract), address_hex(self.info.address)
        modes = list(self.info.payment_modes)
        return _json(NetworkJson(domain.chain_id, contract, gateway, self.info.software, modes))

    async def health(self, _: Request) -> Response:
        return _json(HealthJson("ok"))

    async def ready(self, _: Request) -> Response:
        reason = self.info.ready()
        if reason is not None:
            raise CapacityError(reason)
        return _json(HealthJson("ready"))

    async def openapi(self, _: Request) -> Response:
        return Response(self._openapi, media_type=JSON)


# --- what a request asks for ---


def _idempotency_key(headers: Headers) -> str | None:
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise MalformedRequest(f"Idempotency-Key has {len(key)} bytes; it must have 1 to {MAX_KEY_BYTES}")
    return key.decode("latin-1")


def _wants_events(headers: Headers) -> bool:
    return EVENTS.encode() in headers.get(b"accept", b"")


def _wants_no_wait(request: Request, headers: Headers) -> bool:
    if b"prefer" in headers and b"respond-async" in re.split(rb"[,; ]+", headers[b"prefer"].lower()):
        return True
    return bool(request.scope["query_string"]) and request.query_params.get("async") in ("1", "true")


def _encoding(request: Request) -> Encoding:
    value = request.query_params.get("encoding", "json")
    if value not in ("json", "base64"):
        raise MalformedRequest(f"encoding is {value[:32]!r}; it must be json or base64")
    return cast(Encoding, value)


def _last_event(headers: Headers) -> int:
    value = headers.get(b"last-event-id", b"0")
    if not value.isdigit() or len(value) > 9:
        raise MalformedRequest("Last-Event-ID is not the id of an event of this stream")
    return int(value)


# --- what it gets ---


def _json(form: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(form), status, headers, media_type=JSON)


def _accepted(task: Task) -> Response:
    return _json(_status(task), 202, {"location": f"{TASKS}/0x{task.request.request_id.hex()}"})


def _name(task: Task) -> str:
    return f"task 0x{task.request.request_id.hex()}"


def _model(manifest: ModelManifest, nodes: int) -> ModelJson:
    return ModelJson("0x" + manifest.digest.hex(), manifest.name, nodes, msgspec.json.decode(manifest_json(manifest)))


def _status(task: Task) -> StatusJson:
    request = task.request
    return StatusJson(
        id="0x" + request.request_id.hex(),
        state=str(task.state),
        model="0x" + request.model.hex(),
        created_ms=task.created_ms,
        updated_ms=task.updated_ms,
        node=None if task.node is None else address_hex(task.node),
        error=None if task.error is None else error_json(task.error, request.request_id),
        payment=None if task.due is None else payment_json(task.due),
    )


def _answer(task: Task, outcome: Outcome, encoding: Encoding) -> bytes:
    return encode(answer_json(task.request, outcome.chunks, outcome.receipt, outcome.settlement, encoding))


def _event_stream(task: Task, after: int, encoding: Encoding) -> Response:
    return StreamingResponse(
        server_sent(task, after, encoding), media_type=EVENTS, headers={"cache-control": "no-store"}
    )
