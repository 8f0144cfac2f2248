"""What is said to a gateway and what is believed of its replies; no network here.

A gateway is not trusted: request ids and hashes are computed here, an answer is checked down to the node's signature
before it is handed on, and no voucher allows more than the client has been served for or may be.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from ncn_framework.digests import request_digest
from ncn_framework.errors import (
    ConfigError,
    InvalidTensor,
    MalformedRequest,
    NcnError,
    OutputRejected,
    PaymentRequired,
    StageTimeout,
    TaskEnded,
    UnknownModel,
    UnknownTask,
    VerificationError,
    error_from_code,
)
from ncn_framework.models import ANONYMOUS, FREE, Domain, InferenceRequest
from ncn_framework.payments import ESCROW, VOUCHER, EscrowTerms, PaymentDue, Voucher
from ncn_framework.proof import Proof, verify
from ncn_framework.signing import address_hex
from ncn_framework.states import TERMINAL, State
from ncn_framework.wire.json import AnswerJson, StatusJson, encode
from ncn_framework.wire.json_payments import ConfirmationJson, payment_from_json

from .answers import Answer, settlement_of
from .catalogue import Catalogue, CatalogueJson, Model
from .channel import Channel, Standing
from .escrow import check_due
from .events import Move, Moves
from .exchange import Call, Exchange, Paying, Reply, content_of, decoded, printable
from .inputs import Inputs, tensors_of
from .network import Network, NetworkJson, no_key, payment_mode
from .requests import (
    Named,
    Options,
    Prepared,
    Task,
    body,
    id_of,
    milliseconds,
    now_ms,
    number,
    parameter,
    prepared_of,
    units_within,
)
from .vouchers import Spending, Vouchers

__all__ = ["Session"]

T = TypeVar("T")

_GRACE_S = 5.0
"""How much longer than the deadline to wait, so that the gateway's own error arrives."""

_MOST_STREAMS = 100
"""Streams of events to open for one task, whose connections something on the way cuts."""

_TASKS = "/api/v1/inference"


class _Settled(msgspec.Struct):
    """Tells an ``AnswerJson`` from a ``StatusJson``."""

    receipt: msgspec.Raw = msgspec.Raw()


class Session:
    """Makes the exchanges of one client with one gateway.

    Args:
        gateway: URL, http or https.
        spending: how to pay.
        domain: that signatures are bound to; None takes what the gateway says at first.
        node: address of the only node whose answers are taken; None takes any node's.
        timeout_s: deadline of requests that name none.
    """

    def __init__(
        self, gateway: str, spending: Spending, domain: Domain | None, node: bytes | None, timeout_s: float
    ) -> None:
        if not gateway.startswith(("http://", "https://")):
            raise ConfigError(f"gateway {gateway!r} is not a URL; write http://host:port or https://host")
        if spending.payer is not None and spending.signer is None:
            raise ConfigError(f"payer {address_hex(spending.payer)} needs a signer: the session key of its channel")
        self.gateway = gateway.rstrip("/")
        self.spending, self.node, self.timeout_s = spending, node, timeout_s
        self._domain = domain
        self._network: Network | None = None
        self._catalogue: Catalogue | None = None
        self._vouchers = Vouchers(spending)
        self._paid: dict[EscrowTerms, bytes] = {}  # to the transaction

    # --- the network ---

    def network(self) -> Exchange[Network]:
        """Return what the gateway said of itself at first."""
        network = self._network
        if network is None:
            call = Call("GET", "/api/v1/network")
            network = self._network = Network.from_json(decoded(call, (yield call), NetworkJson))
        return network

    def domain(self) -> Exchange[Domain]:
        """Return the pinned domain, or the one that the gateway named first."""
        if self._domain is None:
            self._domain = (yield from self.network()).domain
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
        spending = self.spending
        found = yield from self.model(model)
        domain = yield from self.domain()
        nonce = options.get("nonce")
        if nonce is not None and len(nonce) != 32:
            raise MalformedRequest(f"the nonce has {len(nonce)} bytes; it must have 32")
        deadline_ms = options.get("deadline_ms")
        if deadline_ms is None:
            deadline_ms = now_ms() + milliseconds(options.get("timeout_s", self.timeout_s))
        pay = options.get("pay", spending.pay)
        payment = options.get("payment") or spending.payment
        if payment is None:
            modes = (yield from self.network()).modes
            payment = payment_mode(modes, has_key=spending.signer is not None, can_pay=pay is not None)
        elif payment != FREE and spending.signer is None:
            raise no_key(f"payment mode {payment!r} needs a signature")
        max_fee_wei = options.get("max_fee_wei", spending.max_fee_wei)
        request = InferenceRequest(
            model=found.digest,
            inputs=tensors_of(inputs, found.manifest.inputs),
            nonce=nonce or secrets.token_bytes(32),
            limit_units=units_within(found.manifest, payment, options.get("limit_units"), max_fee_wei),
            deadline_ms=number("deadline_ms", deadline_ms, least=1),
            parameters={name: parameter(name, value) for name, value in options.get("parameters", {}).items()},
            client=spending.signer.address if spending.signer else ANONYMOUS,
            payment=payment,
        )
        if spending.signer:
            request = replace(request, signature=spending.signer.sign(request_digest(domain, request)).value)
        return Prepared(found, request, domain, pay)

    def send(self, prepared: Prepared) -> Exchange[Answer]:
        """Send a request and return its answer, verified; pay for it, where that is due before it is executed."""
        if prepared.request.payment == ESCROW:
            return (yield from self._send_into_escrow(prepared))

        def take(call: Call, reply: Reply, voucher: Voucher | None) -> Answer:
            return self._answer(prepared, decoded(call, reply, AnswerJson), voucher)

        try:
            return (yield from self._post(prepared, _TASKS, prepared.left_s + _GRACE_S, take))
        except UnknownModel:
            self._catalogue = None  # it was served when it was looked up
            raise

    def submit(self, prepared: Prepared) -> Exchange[Task]:
        """Send a request without waiting for its answer; in mode ``escrow``, wait until it is known what to pay."""
        if prepared.request.payment == ESCROW:
            found = yield from self._open(prepared)
            if isinstance(found, Task):
                return found
            receipt = found.receipt.receipt
            settled = StatusJson(
                prepared.id, State.SETTLED, "0x" + receipt.model.hex(), receipt.started_ms, receipt.finished_ms
            )
            return Task(prepared, settled)

        def take(call: Call, reply: Reply, voucher: Voucher | None) -> Task:
            return Task(prepared, self._status(prepared, decoded(call, reply, StatusJson)), voucher)

        return (yield from self._post(prepared, f"{_TASKS}?async=1", 10.0, take))

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

    def _post(
        self, prepared: Prepared, path: str, timeout_s: float, take: Callable[[Call, Reply, Voucher | None], T]
    ) -> Exchange[T]:
        """Send a request, with a voucher in that mode, and return what ``take`` makes of the reply."""
        if prepared.request.payment != VOUCHER:
            call = Call("POST", path, body(prepared, None), timeout_s)
            return take(call, (yield call), None)
        channel = yield from self._channel(prepared.domain)
        try:
            return (yield from self._vouchers.post(channel, prepared, path, timeout_s, take))
        except (MalformedRequest, VerificationError):
            self._network = None  # another gateway may have taken over the address: look again before the next voucher
            raise

    def _channel(self, domain: Domain) -> Exchange[Channel]:
        return self._vouchers.channel((yield from self.network()).gateway, domain)

    def standing(self) -> Exchange[Standing]:
        """Return how the client's channel with the gateway stands."""
        return (yield from self._vouchers.ask((yield from self._channel((yield from self.domain())))))

    # --- escrow ---

    def _send_into_escrow(self, prepared: Prepared) -> Exchange[Answer]:
        found = yield from self._open(prepared)
        if isinstance(found, Answer):
            return found
        due: PaymentDue | None = None
        if found.status.state == State.AWAITING_PAYMENT:
            transaction = yield from self.pay(found)
            yield from self.confirm(found, transaction)
            due = yield from self.payment_due(found)
        answer = yield from self.wait(prepared)
        if due is not None and answer.receipt.receipt.node != due.terms.node:
            raise VerificationError("receipt.node", f"is another than {address_hex(due.terms.node)}, which was paid")
        return answer

    def _open(self, prepared: Prepared) -> Exchange[Answer | Task]:
        """Send a request that is paid on chain; return what is due for it, or its answer where it has settled."""
        call = Call("POST", _TASKS, body(prepared, None), prepared.left_s + _GRACE_S)
        reply = yield call
        if bytes(decoded(call, reply, _Settled).receipt):
            return self._answer(prepared, decoded(call, reply, AnswerJson))
        return Task(prepared, self._status(prepared, decoded(call, reply, StatusJson)))

    def pay(self, task: Task) -> Exchange[bytes]:
        """Pay what is due for a task, once it is checked and unless that was done; return the transaction's hash."""
        try:
            due = yield from self.payment_due(task)
            if due.terms not in self._paid:
                if task.prepared.pay is None:
                    raise PaymentRequired("mode 'escrow' is paid on chain; give a function that does so (pay)")
                self._paid[due.terms] = (yield Paying(task.prepared.pay, due)).content
            return self._paid[due.terms]
        except Exception:
            with suppress(NcnError):  # nobody will pay: let the node go; what was paid is refunded
                yield from self.cancel(task)
            raise

    def payment_due(self, task: Task) -> Exchange[PaymentDue]:
        """Return what is to be paid for a task that awaits payment, checked."""
        form, gateway = task.status.payment, (yield from self.network()).gateway
        if form is None:
            raise TaskEnded(f"task {task.id} is {task.status.state}; nothing is to be paid")
        try:
            due = payment_from_json(form)
        except MalformedRequest as cause:
            raise VerificationError("payment", str(cause)) from cause
        check_due(due, task.prepared, gateway=gateway, node=self.node)
        return due

    def confirm(self, task: Task, transaction: bytes) -> Exchange[StatusJson]:
        """Tell the gateway in which transaction a task was paid."""
        content = encode(ConfirmationJson("0x" + transaction.hex()))
        call = Call("POST", f"{_TASKS}/{task.id}/payment", content, task.prepared.left_s + _GRACE_S)
        return self._status(task, decoded(call, (yield call), StatusJson))

    # --- tasks ---

    def get(self, named: Named) -> Exchange[Answer | StatusJson]:
        """Return the verified answer of a settled task, else where it stands.

        By its id alone, the task's inputs and parameters are what the gateway says they were.
        """
        call = Call("GET", f"{_TASKS}/{id_of(named)}?encoding=base64")
        reply = yield call
        try:
            settled = bytes(decoded(call, reply, _Settled).receipt)
        except UnknownTask:
            self._over(named)
            raise
        if not settled:
            return self._status(named, decoded(call, reply, StatusJson))
        form = decoded(call, reply, AnswerJson)
        prepared = prepared_of(named)
        if prepared is not None:
            return self._answer(prepared, form)
        return self._proved((yield from self.proof(named)), form)

    def wait(self, named: Named) -> Exchange[Answer]:
        """Return the verified answer of a task once it has settled; raise its error where it failed."""
        for _ in range(_MOST_STREAMS):
            yield from self.moves(named)
            found = yield from self.get(named)
            if isinstance(found, Answer):
                return found
            if found.state in TERMINAL:
                raise _error_of(found)
        raise StageTimeout(f"task {id_of(named)} goes on, but the gateway ends every stream of its events")

    def moves(self, named: Named) -> Exchange[list[Move]]:
        """Return the moves of a task once it rests."""
        prepared, moves = prepared_of(named), Moves()
        left_s = self.timeout_s if prepared is None else prepared.left_s
        call = Call("GET", f"{_TASKS}/{id_of(named)}", timeout_s=left_s + _GRACE_S, feed=moves.feed)
        content_of(call, (yield call))
        return moves.found

    def cancel(self, named: Named) -> Exchange[StatusJson]:
        """Ask the gateway to cancel a task; return where it stands."""
        call = Call("DELETE", f"{_TASKS}/{id_of(named)}")
        return self._status(named, decoded(call, (yield call), StatusJson))

    def proof(self, named: Named) -> Exchange[Proof]:
        """Return the proof of a settled task, verified."""
        domain = yield from self.domain()
        call = Call("GET", f"{_TASKS}/{id_of(named)}/receipt")
        proof = verify(content_of(call, (yield call)), node=self.node)
        _same("receipt.request_id", "0x" + proof.request.request_id.hex(), id_of(named))
        if proof.domain != domain:
            raise VerificationError("domain", f"is {_shown(proof.domain)}, not this network's, {_shown(domain)}")
        prepared = prepared_of(named)
        if prepared is not None:
            _same("receipt.request_hash", proof.request.request_hash.hex(), prepared.request.request_hash.hex())
        return proof

    def _answer(self, prepared: Prepared, form: AnswerJson, voucher: Voucher | None = None) -> Answer:
        """Return the answer in ``form`` once it is proved to answer this very request."""
        _same("id", form.id, prepared.id)
        proof = Proof.from_answer(prepared.domain, prepared.model.manifest, prepared.request, form)
        proof.check(node=self.node)
        return self._proved(proof, form, voucher)

    def _proved(self, proof: Proof, form: AnswerJson, voucher: Voucher | None = None) -> Answer:
        """Return a proved answer, once what was charged is what the node's receipt says, and count that."""
        answer = Answer(proof, settlement_of(form.settlement, proof), voucher)
        self._vouchers.settle(proof)
        return answer

    def _status(self, named: Named, status: StatusJson) -> StatusJson:
        """Return the status of this very task; one that failed is not charged."""
        _same("id", status.id, id_of(named))
        if status.state in TERMINAL and status.state != State.SETTLED:
            self._over(named)
        return status

    def _over(self, named: Named) -> None:
        self._vouchers.release(bytes.fromhex(id_of(named)[2:]))


def _same(where: str, have: str, want: str) -> None:
    if have != want:
        raise VerificationError(where, f"the gateway answers for {have[:80]!r}, not for {want}")


def _error_of(status: StatusJson) -> NcnError:
    if status.error is None:
        return TaskEnded(f"task {status.id} is {printable(status.state)}, and the gateway does not say why")
    return error_from_code(status.error.code, printable(status.error.detail))


def _shown(domain: Domain) -> str:
    return f"chain {domain.chain_id} with contract {address_hex(domain.contract)}"
