"""What is said to a gateway and what is believed of its replies; no network here.

A gateway is not trusted: request ids and hashes are computed here, and an answer is checked down to the node's
signature before it is handed on.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import msgspec

from ncn_framework.digests import request_digest
from ncn_framework.errors import (
    ConfigError,
    InvalidTensor,
    MalformedRequest,
    OutputRejected,
    UnknownModel,
    VerificationError,
)
from ncn_framework.models import ANONYMOUS, FREE, Domain, InferenceRequest, Parameter, Settlement
from ncn_framework.proof import Proof, verify
from ncn_framework.signing import Signer, address_from_hex, address_hex
from ncn_framework.wire.json import (
    AnswerJson,
    StatusJson,
    SubmitJson,
    encode,
    hash_bytes,
    tensor_json,
)

from .answers import Answer
from .catalogue import Catalogue, CatalogueJson, Model
from .exchange import Call, Exchange, content_of, decoded
from .inputs import Inputs, tensors_of

__all__ = ["LIMIT_UNITS", "Options", "Prepared", "Session", "Task"]

LIMIT_UNITS = 1_000_000
"""Most units to pay for, where the caller names none."""

_GRACE_S = 5.0
"""How much longer than the deadline to wait, so that the gateway's own error arrives."""

_MAX_TIMEOUT_S = 366 * 86_400

_TASKS = "/api/v1/inference"


class Options(TypedDict, total=False):
    """What may be said of a request beside its model and inputs.

    Attributes:
        parameters: name to scalar.
        limit_units: most units to pay for; 1,000,000 where not said.
        timeout_s: the deadline, from now; the client's where not said.
        deadline_ms: the deadline in milliseconds since the epoch, instead of ``timeout_s``.
        nonce: 32 bytes, instead of random ones; with the same nonce everything else must be the same too.
        payment: mode of payment; ``free`` where not said.
    """

    parameters: Mapping[str, Parameter]
    limit_units: int
    timeout_s: float
    deadline_ms: int
    nonce: bytes
    payment: str


@dataclass(frozen=True)
class Prepared:
    """A complete request: hashed, signed where the client has a key, not yet sent.

    Sent twice it is executed once, and the second time gives the first answer.
    """

    model: Model
    request: InferenceRequest
    domain: Domain

    @property
    def id(self) -> str:
        """The request's id, 0x-hex."""
        return "0x" + self.request.request_id.hex()


@dataclass(frozen=True)
class Task:
    """A request that the gateway accepted, and where it stood then."""

    prepared: Prepared
    status: StatusJson

    @property
    def id(self) -> str:
        """The request's id, 0x-hex."""
        return self.prepared.id


Named = Task | Prepared | bytes | str
"""What names a request: itself, or its id as 32 bytes or 0x-hex."""


class _NetworkJson(msgspec.Struct):
    chain_id: int
    contract: str


class _Settled(msgspec.Struct):
    """Tells an ``AnswerJson`` from a ``StatusJson``."""

    receipt: msgspec.Raw = msgspec.Raw()


class Session:
    """Makes the exchanges of one client with one gateway.

    Args:
        gateway: URL, http or https.
        signer: signs requests; None asks anonymously.
        domain: that signatures are bound to; None takes what the gateway says at first.
        node: address of the only node whose answers are taken; None takes any node's.
        timeout_s: deadline of requests that name none.
    """

    def __init__(
        self, gateway: str, signer: Signer | None, domain: Domain | None, node: bytes | None, timeout_s: float
    ) -> None:
        if not gateway.startswith(("http://", "https://")):
            raise ConfigError(f"gateway {gateway!r} is not a URL; write http://host:port or https://host")
        self.gateway = gateway.rstrip("/")
        self.signer, self.node, self.timeout_s = signer, node, timeout_s
        self._domain = domain
        self._catalogue: Catalogue | None = None

    # --- the network ---

    def domain(self) -> Exchange[Domain]:
        """Return the pinned domain, or the one that the gateway named first."""
        if self._domain is None:
            call = Call("GET", "/api/v1/network")
            form = decoded(call, (yield call), _NetworkJson)
            if not 0 < form.chain_id < 2**64:
                raise VerificationError("chain_id", f"is {form.chain_id}, outside 1 to 2^64-1")
            try:
                self._domain = Domain(form.chain_id, address_from_hex(form.contract))
            except ValueError as cause:
                raise VerificationError("contract", str(cause)) from cause
        return self._domain

    def models(self) -> Exchange[tuple[Model, ...]]:
        """Return what is served now."""
        return (yield from self._look()).models

    def _look(self) -> Exchange[Catalogue]:
        call = Call("GET", "/api/v1/models")
        self._catalogue = Catalogue(decoded(call, (yield call), CatalogueJson))
        return self._catalogue

    def model(self, wanted: str | bytes) -> Exchange[Model]:
        """Return a model by name or digest; asks the gateway where it is not known yet."""
        if self._catalogue is not None:
            with suppress(UnknownModel):
                return self._catalogue.find(wanted)
        return (yield from self._look()).find(wanted)

    def health(self) -> Exchange[dict[str, Any]]:
        """Return what the gateway says of its health."""
        call = Call("GET", "/health")
        return decoded(call, (yield call), dict[str, Any])

    # --- requests ---

    def prepare(self, model: str | bytes, inputs: Inputs, options: Options) -> Exchange[Prepared]:
        """Return the complete request."""
        found = yield from self.model(model)
        domain = yield from self.domain()
        nonce = options.get("nonce")
        if nonce is not None and len(nonce) != 32:
            raise MalformedRequest(f"the nonce has {len(nonce)} bytes; it must have 32")
        deadline_ms = options.get("deadline_ms")
        if deadline_ms is None:
            deadline_ms = _now_ms() + _milliseconds(options.get("timeout_s", self.timeout_s))
        request = InferenceRequest(
            model=found.digest,
            inputs=tensors_of(inputs, found.manifest.inputs),
            nonce=nonce or secrets.token_bytes(32),
            limit_units=_number("limit_units", options.get("limit_units", LIMIT_UNITS), least=1),
            deadline_ms=_number("deadline_ms", deadline_ms, least=1),
            parameters={name: _parameter(name, value) for name, value in options.get("parameters", {}).items()},
            client=self.signer.address if self.signer else ANONYMOUS,
            payment=options.get("payment", FREE),
        )
        if self.signer:
            request = replace(request, signature=self.signer.sign(request_digest(domain, request)).value)
        return Prepared(found, request, domain)

    def send(self, prepared: Prepared) -> Exchange[Answer]:
        """Send a request and return its answer, verified."""
        left_s = max(0.0, (prepared.request.deadline_ms - _now_ms()) / 1000)
        call = Call("POST", _TASKS, _body(prepared), left_s + _GRACE_S)
        try:
            form = decoded(call, (yield call), AnswerJson)
        except UnknownModel:
            self._catalogue = None  # it was served when it was looked up
            raise
        return self._answer(prepared, form)

    def submit(self, prepared: Prepared) -> Exchange[Task]:
        """Send a request without waiting for its answer."""
        call = Call("POST", f"{_TASKS}?async=1", _body(prepared))
        status = decoded(call, (yield call), StatusJson)
        _same("id", status.id, prepared.id)
        return Task(prepared, status)

    def infer(self, model: str | bytes, inputs: Inputs, options: Options) -> Exchange[Answer]:
        """Prepare and send."""
        return (yield from self.send((yield from self.prepare(model, inputs, options))))

    def embed(self, texts: str | Sequence[str], model: str | bytes, options: Options) -> Exchange[Answer]:
        """Send texts to a model with one input of texts; the answer has one vector for each."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        specs = (yield from self.model(model)).manifest.inputs
        names = [spec.name for spec in specs if spec.dtype == "BYTES"]
        if len(names) != 1:
            raise InvalidTensor(f"model {model!r} has {len(names)} inputs of text, not one; use infer")
        answer = yield from self.infer(model, {names[0]: texts}, options)
        if (have := len(answer.vectors)) != len(texts):
            raise OutputRejected(f"model {model!r} gave {have} vectors for {len(texts)} texts")
        return answer

    # --- tasks ---

    def get(self, named: Named) -> Exchange[Answer | StatusJson]:
        """Return the verified answer of a settled task, else where it stands.

        By its id alone, the task's inputs and parameters are what the gateway says they were.
        """
        call = Call("GET", f"{_TASKS}/{_id(named)}?encoding=base64")
        reply = yield call
        if not bytes(decoded(call, reply, _Settled).receipt):
            status = decoded(call, reply, StatusJson)
            _same("id", status.id, _id(named))
            return status
        form = decoded(call, reply, AnswerJson)
        prepared = _prepared(named)
        if prepared is not None:
            return self._answer(prepared, form)
        return Answer((yield from self.proof(named)), _settlement(form))

    def cancel(self, named: Named) -> Exchange[StatusJson]:
        """Ask the gateway to cancel a task; return where it stands."""
        call = Call("DELETE", f"{_TASKS}/{_id(named)}")
        status = decoded(call, (yield call), StatusJson)
        _same("id", status.id, _id(named))
        return status

    def proof(self, named: Named) -> Exchange[Proof]:
        """Return the proof of a settled task, verified."""
        domain = yield from self.domain()
        call = Call("GET", f"{_TASKS}/{_id(named)}/receipt")
        proof = verify(content_of(call, (yield call)), node=self.node)
        _same("receipt.request_id", "0x" + proof.request.request_id.hex(), _id(named))
        if proof.domain != domain:
            raise VerificationError("domain", f"is {_shown(proof.domain)}, not this network's, {_shown(domain)}")
        prepared = _prepared(named)
        if prepared is not None:
            _same("receipt.request_hash", proof.request.request_hash.hex(), prepared.request.request_hash.hex())
        return proof

    def _answer(self, prepared: Prepared, form: AnswerJson) -> Answer:
        """Return the answer in ``form`` once it is proved to answer this very request."""
        _same("id", form.id, prepared.id)
        proof = Proof.from_answer(prepared.domain, prepared.model.manifest, prepared.request, form)
        proof.check(node=self.node)
        return Answer(proof, _settlement(form))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _milliseconds(timeout_s: float) -> int:
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise MalformedRequest(f"timeout_s is {timeout_s}; it must lie between 0 and {_MAX_TIMEOUT_S}")
    return int(timeout_s * 1000)


def _number(name: str, value: int, least: int) -> int:
    if not least <= value < 2**63:
        raise MalformedRequest(f"{name} is {value}; it must lie between {least} and 2^63-1")
    return value


def _parameter(name: str, value: Parameter) -> Parameter:
    if isinstance(value, float) and not math.isfinite(value):
        raise MalformedRequest(f"parameter {name!r} is {value}, which JSON cannot hold; leave it out")
    return value if isinstance(value, bool | float | str) else _number(f"parameter {name!r}", value, least=-(2**63))


def _body(prepared: Prepared) -> bytes:
    request = prepared.request
    anonymous = request.client == ANONYMOUS
    return encode(
        SubmitJson(
            model="0x" + request.model.hex(),
            inputs=[tensor_json(tensor, "base64") for tensor in request.inputs],
            parameters=dict(request.parameters),
            client=None if anonymous else address_hex(request.client),
            nonce="0x" + request.nonce.hex(),
            limit_units=request.limit_units,
            deadline_ms=request.deadline_ms,
            payment=request.payment,
            signature=None if anonymous else "0x" + request.signature.hex(),
            encoding="base64",
        )
    )


def _prepared(named: Named) -> Prepared | None:
    return named.prepared if isinstance(named, Task) else named if isinstance(named, Prepared) else None


def _id(named: Named) -> str:
    if isinstance(named, Task | Prepared):
        return named.id
    return "0x" + (named if isinstance(named, bytes) else hash_bytes(named, "the request's id")).hex()


def _same(where: str, have: str, want: str) -> None:
    if have != want:
        raise VerificationError(where, f"the gateway answers for {have[:80]!r}, not for {want}")


def _settlement(form: AnswerJson) -> Settlement:
    charged = form.settlement.charged_wei
    if not (charged.isascii() and charged.isdecimal() and len(charged) < 30):
        raise VerificationError("settlement.charged_wei", "is not a number of wei")
    return Settlement(form.settlement.mode, int(charged), form.settlement.reference)


def _shown(domain: Domain) -> str:
    return f"chain {domain.chain_id} with contract {address_hex(domain.contract)}"
