"""OpenAI's API in front of the same tasks: whoever has its client changes the address and is served by the network.

``/v1/models``, ``/v1/embeddings``, ``/v1/chat/completions``. A request is a task like any other; its id is told in the
header ``ncn-request-id``, under which status and proof are found at ``/api/v1/inference/{id}``.

Which models can be asked follows from their manifests alone. Embeddings: one input BYTES [-1], first output FP32
[-1, n]. Chat: one input ``messages`` BYTES [1], a JSON array of {role, content}; outputs ``text`` BYTES [1], ``tokens``
INT64 [2] (of the prompt, and of the answer so far) and ``finish`` BYTES [1] ("", and in the last chunk "stop" or
"length"); parameters temperature, top_p, seed, max_tokens, and stop as a JSON array in a string.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from ncn_framework.errors import MalformedRequest, NcnError, OutputRejected, PaymentRequired, RequestError, UnknownModel
from ncn_framework.models import FREE, Chunk, ModelManifest
from ncn_framework.payments import TransferAuthorization
from ncn_framework.tensors import Tensor, split_bytes, unpack_tensors
from ncn_framework.wire import x402
from ncn_framework.wire.json import SubmitJson, decode, encode
from ncn_framework.wire.json import error_json as _error_json
from ncn_framework.wire.json_tensors import TensorJson

from .bodies import read_json
from .openai_forms import (
    Chat,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChunkChoice,
    EmbeddingObject,
    Embeddings,
    EmbeddingsList,
    ErrorBody,
    ErrorEnvelope,
    ModelObject,
    ModelsList,
    Usage,
)
from .openapi import EVENTS, JSON
from .tasks import Task, Tasks

__all__ = ["REQUEST_ID", "openai_routes"]

REQUEST_ID = "ncn-request-id"
"""Header of every answer that a task stands behind."""

_MOST_TEXTS = 2_048
_MOST_MESSAGES = 1_024
_OWNER = "ncn"
_TYPES = {402: "insufficient_quota", 401: "authentication_error", 429: "rate_limit_error"}

Endpoint = Callable[[Request], Awaitable[Response]]
Form = TypeVar("Form", Embeddings, Chat)


def openai_routes(tasks: Tasks, chain_id: int, max_body_bytes: int, free: bool) -> list[BaseRoute]:
    """Return the routes under ``/v1``.

    Args:
        tasks: of the gateway.
        chain_id: that transfers are checked for.
        max_body_bytes: largest body.
        free: requests that nobody pays for are served.
    """
    api = _Api(tasks, chain_id, max_body_bytes, free)
    return [
        Route("/v1/models", _told(api.models)),
        Route("/v1/models/{model:path}", _told(api.model)),
        Route("/v1/embeddings", _told(api.embeddings), methods=["POST"]),
        Route("/v1/chat/completions", _told(api.chat), methods=["POST"]),
        Route("/v1/{rest:path}", _told(_nothing), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]


async def _nothing(request: Request) -> Response:
    raise HTTPException(404, f"{request.method} {request.url.path} is not served here; see docs/openai.md")


def _told(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint whose errors are told in OpenAI's envelope."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (NcnError, HTTPException) as error:
            return _failed(request, error)

    return answer


def _envelope(error: NcnError | HTTPException) -> tuple[int, ErrorEnvelope, bool]:
    if isinstance(error, HTTPException):
        return error.status_code, ErrorEnvelope(ErrorBody(error.detail, "invalid_request_error", "not-found")), False
    row = _error_json(error)
    kind = _TYPES.get(row.status, "invalid_request_error" if row.status < 500 else "server_error")
    code = "model_not_found" if isinstance(error, UnknownModel) else row.code
    param = "model" if isinstance(error, UnknownModel) else None
    return row.status, ErrorEnvelope(ErrorBody(row.detail, kind, code, param)), row.retryable


def _failed(request: Request, error: NcnError | HTTPException) -> Response:
    status, form, retryable = _envelope(error)
    headers = {"retry-after": "1"} if status == 503 and retryable else {}
    if isinstance(error, PaymentRequired) and error.offers:
        headers[x402.REQUIRED] = x402.required_header(error, str(request.url))
    return Response(encode(form), status, headers, media_type=JSON)


class _Api:
    def __init__(self, tasks: Tasks, chain_id: int, max_body_bytes: int, free: bool) -> None:
        self.tasks, self.chain_id, self.max_body_bytes, self.free = tasks, chain_id, max_body_bytes, free

    # --- models ---

    async def models(self, _: Request) -> Response:
        names = dict.fromkeys(manifest.name for manifest, _ in self.tasks.models())
        return _json(ModelsList([_model(name) for name in names]))

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if all(manifest.name != name for manifest, _ in self.tasks.models()):
            raise UnknownModel(f"no connected node serves model {name[:128]!r}")
        return _json(_model(name))

    # --- embeddings ---

    async def embeddings(self, request: Request) -> Response:
        form = await self._form(request, Embeddings)
        texts = [form.input] if isinstance(form.input, str) else form.input
        if not 0 < len(texts) <= _MOST_TEXTS:
            raise MalformedRequest(f"input has {len(texts)} texts; it must have 1 to {_MOST_TEXTS}")
        manifest = self._manifest(form.model)
        takes = len(manifest.inputs) == 1 and (manifest.inputs[0].dtype, manifest.inputs[0].shape) == ("BYTES", (-1,))
        first = manifest.outputs[0] if manifest.outputs else None
        if not takes or first is None or first.dtype != "FP32" or len(first.shape) != 2:
            raise RequestError(f"model {manifest.name!r} makes no embeddings of texts")
        width = first.shape[1]
        if form.dimensions not in (None, width):
            raise RequestError(f"dimensions is {form.dimensions}; the vectors of {manifest.name!r} have {width}")
        tensor = TensorJson(name=manifest.inputs[0].name, shape=[len(texts)], data=list(texts))
        task = await self._submit(request, SubmitJson(model=form.model, inputs=[tensor]))
        outcome = await task.wait()
        rows = [row for chunk in outcome.chunks for row in _rows(_named(chunk, first.name))]
        if len(rows) != len(texts):
            raise OutputRejected(f"the node gave {len(rows)} vectors for {len(texts)} texts")
        vectors = [
            EmbeddingObject(i, _base64(row) if form.encoding_format == "base64" else list(_floats(row)))
            for i, row in enumerate(rows)
        ]
        units = outcome.receipt.receipt.units
        return self._answer(EmbeddingsList(vectors, manifest.name, Usage(units, units)), task)

    # --- chat ---

    async def chat(self, request: Request) -> Response:
        form = await self._form(request, Chat)
        if not 0 < len(form.messages) <= _MOST_MESSAGES:
            raise MalformedRequest(f"messages has {len(form.messages)} entries; it must have 1 to {_MOST_MESSAGES}")
        for name in ("logprobs", "tools", "frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(form, name):
                raise RequestError(f"{name} is not supported; leave it out")
        if form.n not in (None, 1):
            raise RequestError(f"n is {form.n}; one answer is given")
        manifest = self._manifest(form.model)
        if [(s.name, s.dtype) for s in manifest.inputs] != [("messages", "BYTES")] or {"text", "tokens", "finish"} - {
            s.name for s in manifest.outputs
        }:
            raise RequestError(f"model {manifest.name!r} holds no conversations")
        said = json.dumps([{"role": message.role, "content": message.text} for message in form.messages])
        tensor = TensorJson(name="messages", shape=[1], data=[said])
        submitted = SubmitJson(model=form.model, inputs=[tensor], parameters=_sampling(form))
        task = await self._submit(request, submitted)
        if form.stream:
            usage = form.stream_options is not None and form.stream_options.include_usage
            headers = {"cache-control": "no-store", REQUEST_ID: _id(task)}
            return StreamingResponse(_pieces(task, usage), media_type=EVENTS, headers=headers)
        outcome = await task.wait()
        texts, (prompt, completion), finish = [], (0, 0), ""
        for chunk in outcome.chunks:
            text, (prompt, completion), finish = _said(chunk)
            texts.append(text)
        message = {"role": "assistant", "content": b"".join(texts).decode(errors="replace")}
        usage_ = Usage(prompt, prompt + completion, completion)
        choice = ChatChoice(message, finish or "stop")
        answer = ChatCompletion(_chat_id(task), task.created_ms // 1000, manifest.name, [choice], usage_)
        return self._answer(answer, task)

    # --- what both need ---

    async def _form(self, request: Request, kind: type[Form]) -> Form:
        form: Form = decode(await read_json(request, self.max_body_bytes), kind)
        return form

    def _manifest(self, model: str) -> ModelManifest:
        name = bytes.fromhex(model[2:]) if model.startswith("0x") and len(model) == 66 else model
        return self.tasks.directory.find(name).manifest

    async def _submit(self, request: Request, form: SubmitJson) -> Task:
        """Start a request: paid by the transfer in its header, or else free where that is accepted."""
        signed = request.headers.get(x402.SIGNATURE)
        transfer = None if signed is None else x402.transfer_from_header(signed.encode(), self.chain_id)
        if transfer is None and self.free:
            form.payment = FREE
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= 255:
            raise MalformedRequest(f"Idempotency-Key has {len(key)} characters; it must have 1 to 255")
        return await self.tasks.submit(self.tasks.admit(form, idempotency_key=key, transfer=transfer))

    def _answer(self, form: msgspec.Struct, task: Task) -> Response:
        headers, paid = {REQUEST_ID: _id(task)}, task.request.authorization
        if isinstance(paid, TransferAuthorization) and task.outcome is not None:
            headers[x402.RESPONSE] = x402.response_header(task.outcome.settlement, paid.payer, self.chain_id)
        return Response(encode(form), headers=headers, media_type=JSON)


def _sampling(form: Chat) -> dict[str, bool | int | float | str]:
    """Return the parameters that a conversation names."""
    limit = form.max_completion_tokens if form.max_completion_tokens is not None else form.max_tokens
    seed = form.seed
    if seed is None and form.temperature:
        seed = secrets.randbits(31)  # a model's own default would give every conversation the same dice
    given = {"temperature": form.temperature, "top_p": form.top_p, "seed": seed, "max_tokens": limit}
    parameters: dict[str, bool | int | float | str] = {name: v for name, v in given.items() if v is not None}
    if form.stop:
        parameters["stop"] = json.dumps([form.stop] if isinstance(form.stop, str) else form.stop)
    return parameters


async def _pieces(task: Task, usage: bool) -> AsyncIterator[bytes]:
    """Yield the events of a stream: each chunk as it comes, the counts where they were asked for, and the end.

    An error behind the first piece is an event of its own, as nothing else is left to tell it.
    """
    name, created, model = _chat_id(task), task.created_ms // 1000, task.manifest.name

    def event(choices: Sequence[ChunkChoice], counts: Usage | None = None) -> bytes:
        return b"data: " + encode(ChatChunk(name, created, model, list(choices), counts)) + b"\n\n"

    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two pieces
    prompt = completion = 0
    finish = "stop"
    try:
        yield event([ChunkChoice(ChatDelta("assistant", ""))])
        async for _, update in task.follow():
            if not isinstance(update, Chunk):
                continue
            text, (prompt, completion), said = _said(update)
            finish = said or finish
            if piece := decoder.decode(text):
                yield event([ChunkChoice(ChatDelta(content=piece))])
        await task.wait()
        yield event([ChunkChoice(ChatDelta(), finish)])
        if usage:
            yield event([], Usage(prompt, prompt + completion, completion))
    except NcnError as error:
        yield b"data: " + encode(_envelope(error)[1]) + b"\n\n"
    except (GeneratorExit, asyncio.CancelledError):
        task.cancel()  # nobody reads it any more, so that nobody shall pay for the rest
        raise
    yield b"data: [DONE]\n\n"


def _said(chunk: Chunk) -> tuple[bytes, tuple[int, int], str]:
    """Return a chunk's text, its counts of tokens, and how the answer ended, if it did."""
    (text,) = split_bytes(_named(chunk, "text"))
    prompt, completion = struct.unpack("<2q", _named(chunk, "tokens").data)
    (finish,) = split_bytes(_named(chunk, "finish"))
    return text, (prompt, completion), finish.decode("ascii", "replace")


def _named(chunk: Chunk, name: str) -> Tensor:
    found = next((tensor for tensor in unpack_tensors(chunk.data) if tensor.name == name), None)
    if found is None:
        raise OutputRejected(f"a chunk of the answer has no tensor {name!r}")
    return found


def _rows(tensor: Tensor) -> list[bytes]:
    count, width = tensor.shape
    return [tensor.data[i * width * 4 : (i + 1) * width * 4] for i in range(count)]


def _floats(row: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(row) // 4}f", row)


def _base64(row: bytes) -> str:
    return base64.b64encode(row).decode()


def _model(name: str) -> ModelObject:
    return ModelObject(name, 0, _OWNER)  # a network does not know when a model came


def _id(task: Task) -> str:
    return "0x" + task.request.request_id.hex()


def _chat_id(task: Task) -> str:
    return "chatcmpl-" + task.request.request_id.hex()[:32]


def _json(form: msgspec.Struct) -> Response:
    return Response(encode(form), media_type=JSON)
