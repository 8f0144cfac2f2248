"""What ``/openapi.json`` says: the description of the HTTP API, made from the types that it speaks in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http.client import responses
from typing import Any, NamedTuple

import msgspec

from ncn_framework.errors import TABLE
from ncn_framework.wire import x402
from ncn_framework.wire.json import AnswerJson, ErrorJson, ModelJson, StatusJson, SubmitJson
from ncn_framework.wire.json_payments import ConfirmationJson

from . import __version__
from .problems import PROBLEM

__all__ = [
    "EVENTS",
    "JSON",
    "MAX_KEY_BYTES",
    "ONE",
    "PAYMENT",
    "PROOF",
    "TASKS",
    "HealthJson",
    "ModelsJson",
    "NetworkJson",
    "describe",
]

JSON, EVENTS = "application/json", "text/event-stream"
_SCHEMA = "application/schema+json"
_REF = "#/components/schemas/{name}"
TASKS, ONE = "/api/v1/inference", "/api/v1/inference/{id}"
PROOF, PAYMENT = ONE + "/receipt", ONE + "/payment"
MAX_KEY_BYTES = 255


class ModelsJson(msgspec.Struct):
    """The models that can be asked for now."""

    models: list[ModelJson]


class NetworkJson(msgspec.Struct):
    """What signatures are bound to, who answers here, and the payment modes it accepts, its default first."""

    chain_id: int
    contract: str
    gateway: str
    software: str
    payment_modes: list[str]


class HealthJson(msgspec.Struct):
    """``ok``: the process answers. ``ready``: it can serve requests."""

    status: str


class _Operation(NamedTuple):
    method: str
    path: str
    summary: str
    answers: Mapping[int, Sequence[Any]]  # status to structs, one of which it is, and to other media types
    problems: Sequence[int] = ()
    parameters: Sequence[tuple[str, str, Mapping[str, Any]]] = ()  # name, where, schema
    body: Any = None
    told: Sequence[tuple[int, str]] = ()  # status, and the header that its answer may have


_LOOKUP = (400, 404, 503)
_TEXT = {"type": "string"}
_ID = ("id", "path", {"type": "string", "pattern": "^(0x)?[0-9a-fA-F]{64}$"})
_ENCODING = ("encoding", "query", {"enum": ["json", "base64"], "default": "json"})
_AFTER = ("Last-Event-ID", "header", {"type": "string", "pattern": "^[0-9]{1,9}$"})
_WAIT = (("async", "query", {"enum": ["1", "true"]}), ("Prefer", "header", _TEXT))
_KEY = ("Idempotency-Key", "header", {"type": "string", "minLength": 1, "maxLength": MAX_KEY_BYTES})
_PAID = (x402.SIGNATURE, "header", {**_TEXT, "maxLength": x402.MAX_HEADER_BYTES})
_TOLD = ((200, x402.RESPONSE), (402, x402.REQUIRED))
_CONFIRM_PROBLEMS = (*_LOOKUP, 402, 409, 413, 415, 422)
_SUBMIT_PROBLEMS = sorted({row.http for row in TABLE.values()} | {415})
_ANSWERS = {200: (AnswerJson, EVENTS), 202: (StatusJson,)}
_STANDS = {200: (AnswerJson, StatusJson, EVENTS)}
_OPERATIONS = (
    _Operation(
        "post", TASKS, "Run or start a request.", _ANSWERS, _SUBMIT_PROBLEMS, (*_WAIT, _KEY, _PAID), SubmitJson, _TOLD
    ),
    _Operation(
        "get", ONE, "A task's answer, or where it stands.", _STANDS, _LOOKUP, (_ID, _ENCODING, _AFTER), None, _TOLD[:1]
    ),
    _Operation("delete", ONE, "Cancel a task.", {202: (StatusJson,)}, (*_LOOKUP, 409), (_ID,)),
    _Operation("get", PROOF, "A settled task's proof file.", {200: (JSON,)}, (*_LOOKUP, 409, 502), (_ID,)),
    _Operation(
        "post",
        PAYMENT,
        "Say that what a task awaits has been paid into escrow.",
        {202: (StatusJson,)},
        _CONFIRM_PROBLEMS,
        (_ID,),
        ConfirmationJson,
    ),
    _Operation("get", "/api/v1/models", "The models that nodes serve now.", {200: (ModelsJson,)}),
    _Operation("get", "/api/v1/network", "The network that this gateway belongs to.", {200: (NetworkJson,)}),
    _Operation("get", "/health", "Whether the process answers.", {200: (HealthJson,)}),
    _Operation("get", "/ready", "Whether requests can be served.", {200: (HealthJson,)}, (503,)),
    _Operation("get", "/openapi.json", "This document.", {200: (JSON,)}),
    _Operation("get", "/ws/schema.json", "JSON schema of the messages at /ws.", {200: (_SCHEMA,)}),
)


def describe() -> dict[str, Any]:
    """Return the OpenAPI document."""
    structs = {kind for o in _OPERATIONS for kinds in o.answers.values() for kind in kinds if isinstance(kind, type)}
    structs |= {o.body for o in _OPERATIONS if o.body is not None}
    _, schemas = msgspec.json.schema_components([*structs, ErrorJson], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe_operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "NCN gateway", "version": __version__},
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _describe_operation(operation: _Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": [
            {"name": name, "in": where, "required": where == "path", "schema": schema}
            for name, where, schema in operation.parameters
        ],
        "responses": {
            **{str(status): _response(status, kinds) for status, kinds in operation.answers.items()},
            **{str(status): _response(status, (ErrorJson,), PROBLEM) for status in (*operation.problems, 405, 500)},
        },
    }
    for status, header in operation.told:
        described["responses"][str(status)]["headers"] = {header: {"schema": _TEXT}}
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": _reference(operation.body)}}}
    return described


def _response(status: int, kinds: Sequence[Any], media_type: str = JSON) -> dict[str, Any]:
    structs = [_reference(kind) for kind in kinds if isinstance(kind, type)]
    content: dict[str, Any] = {kind: {} for kind in kinds if isinstance(kind, str)}
    if structs:
        content[media_type] = {"schema": structs[0] if len(structs) == 1 else {"anyOf": structs}}
    return {"description": responses[status], "content": content}


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
