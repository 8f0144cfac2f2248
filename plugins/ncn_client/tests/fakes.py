"""A gateway with a node's key behind it: it answers as a real one does, and lies where it is told to."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from dataclasses import replace

import httpx
import msgspec

from ncn_client.channel import ChannelJson
from ncn_framework import digests, manifests
from ncn_framework.errors import (
    ModelFailed,
    NcnError,
    PaymentRequired,
    ReplayConflict,
    TaskEnded,
    UnknownModel,
    UnknownTask,
)
from ncn_framework.inclusion import Inclusion, inclusion_json
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import (
    ANONYMOUS,
    Chunk,
    Domain,
    InferenceRequest,
    ModelManifest,
    Receipt,
    Settlement,
    SignedReceipt,
)
from ncn_framework.payments import PaymentDue, TransferAuthorization
from ncn_framework.proof import Proof
from ncn_framework.signing import Signer, address_from_hex, address_hex, check_signature
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor, check_tensors, pack_tensors, split_bytes
from ncn_framework.wire.json import (
    AnswerJson,
    Encoding,
    ModelJson,
    StatusJson,
    SubmitJson,
    answer_json,
    decode,
    encode,
    error_json,
    hash_bytes,
    receipt_json,
    request_from_json,
)
from ncn_framework.wire.json_payments import ConfirmationJson, payment_json

from .escrow_desk import EscrowDesk
from .ledger import Ledger

NODE = Signer(b"\x11" * 32)
OTHER = Signer(b"\x22" * 32)
CLIENT = Signer(b"\x33" * 32)
GATEWAY = Signer(b"\x44" * 32)
DOMAIN = Domain(31337, bytes(range(20)))

EMBEDDER = ModelManifest(
    name="minilm",
    version="1",
    runtime="fake",
    architecture="",
    files=(),
    inputs=(TensorSpec("text", "BYTES", (-1,)),),
    outputs=(TensorSpec("embedding", "FP32", (-1, 8)),),
    base_fee_wei=10,
    unit_fee_wei=3,
)
ADDER = replace(
    EMBEDDER,
    name="adder",
    inputs=(TensorSpec("x", "FP32", (-1, 2)), TensorSpec("n", "INT64", ())),
    outputs=(TensorSpec("sum", "FP32", (-1,)), TensorSpec("note", "BYTES", (1,))),
)

Lie = Callable[[AnswerJson], object]
"""Changes a true answer before it is sent."""

INFERENCE = "/api/v1/inference"


def _outputs(request: InferenceRequest, part: int) -> list[Tensor]:
    if request.model == EMBEDDER.digest:
        texts = split_bytes(request.inputs[0])
        numbers = [len(text) + i / 8 for text in texts for i in range(8)]
        return [Tensor("embedding", "FP32", (len(texts), 8), struct.pack(f"<{len(numbers)}f", *numbers))]
    by_name = {tensor.name: tensor for tensor in request.inputs}
    x = struct.unpack(f"<{len(by_name['x'].data) // 4}f", by_name["x"].data)
    sums = [x[i] + x[i + 1] + part for i in range(0, len(x), 2)]
    return [
        Tensor("sum", "FP32", (len(sums),), struct.pack(f"<{len(sums)}f", *sums)),
        bytes_tensor("note", [b"\xffpart %d" % part]),
    ]


class FakeGateway:
    """Handler of an ``httpx.MockTransport``.

    Attributes:
        modes: payment modes that it takes.
        ledger: of vouchers.
        desk: of payments into escrow.
        lie: changes each answer.
        channel: changes what it says of a channel.
        signer: signs receipts; the node's key unless it lies.
        change: changes each receipt before it is signed.
        cut: changes a chunk's data before it is hashed.
        pieces: chunks of each answer.
        settled: whether tasks that are asked for have settled.
        failing: what each admitted task ends with, instead of an answer.
        deferred: whether tasks that are not waited for run until ``finish`` or ``fail``.
        losing: number of answers that are lost on their way, once the task has settled.
        broken: an exception to raise, or a response to give, in place of any answer.
        catalogue: changes ``/api/v1/models``.
        proof: changes the proof files.
        seen: method and path of each call.
    """

    def __init__(self) -> None:
        self.modes = ["voucher", "free", "escrow"]
        self.ledger = Ledger(DOMAIN, GATEWAY.address)
        self.desk = EscrowDesk(DOMAIN, GATEWAY.address, NODE.address)
        self.lie: Lie = lambda form: None
        self.channel: Callable[[ChannelJson], object] = lambda form: None
        self.signer = NODE
        self.change: Callable[[Receipt], Receipt] = lambda receipt: receipt
        self.cut: Callable[[list[Tensor]], list[Tensor]] = lambda tensors: tensors
        self.pieces = 1
        self.settled = True
        self.failing: NcnError | None = None
        self.deferred = False
        self.running: dict[str, tuple[ModelManifest, InferenceRequest]] = {}
        self.losing = 0
        self.broken: Exception | httpx.Response | None = None
        self.inclusion: Inclusion | None = None
        self.catalogue: Callable[[list[ModelJson]], object] = lambda models: None
        self.proof: Callable[[bytes], bytes] = lambda data: data
        self.seen: list[str] = []
        self.bodies: list[SubmitJson] = []
        self.tasks: dict[str, Proof] = {}
        self.awaiting: dict[str, tuple[ModelManifest, InferenceRequest, PaymentDue]] = {}
        self.failed: dict[str, StatusJson] = {}
        self.executed = 0

    def __call__(self, http: httpx.Request) -> httpx.Response:
        """Answer at once."""
        return self._respond(http, self._answer)

    def _respond(self, http: httpx.Request, answer: Callable[[httpx.Request], tuple[int, bytes]]) -> httpx.Response:
        self.seen.append(f"{http.method} {http.url.raw_path.decode()}")
        if isinstance(self.broken, Exception):
            raise self.broken
        if self.broken is not None:
            return self.broken
        try:
            status, body = answer(http)
        except NcnError as error:
            form = error_json(error)
            return httpx.Response(
                form.status, content=encode(form), headers={"content-type": "application/problem+json"}
            )
        return httpx.Response(status, content=body, headers={"content-type": "application/json"})

    async def slowly(self, http: httpx.Request, arrived: Callable[[], object], go: asyncio.Event) -> httpx.Response:
        """Admit a request, say so, and answer it after ``go``; answer anything else at once."""
        if http.method != "POST":
            return self(http)
        admitted: list[tuple[ModelManifest, InferenceRequest]] = []

        def admit(http: httpx.Request) -> tuple[int, bytes]:
            admitted.append(self._admit(decode(http.content, SubmitJson)))
            return 200, b""

        response = self._respond(http, admit)
        arrived()
        await go.wait()
        if not admitted:
            return response
        return httpx.Response(200, content=encode(self._form(self._finish(*admitted[0]), "base64")))

    def _answer(self, http: httpx.Request) -> tuple[int, bytes]:
        path = http.url.path
        if path.endswith("/inclusion"):
            if self.inclusion is None:
                raise TaskEnded("the receipt is in no batch on chain yet; ask again later")
            return 200, encode(inclusion_json(self.inclusion))
        if path == "/health":
            return 200, b'{"status":"ok"}'
        if path == "/api/v1/network":
            return 200, json.dumps(
                {
                    "chain_id": DOMAIN.chain_id,
                    "contract": address_hex(DOMAIN.contract),
                    "gateway": address_hex(GATEWAY.address),
                    "software": "fake 1",
                    "payment_modes": self.modes,
                }
            ).encode()
        if path == "/api/v1/models":
            models = [
                ModelJson("0x" + m.digest.hex(), m.name, 2, json.loads(manifests.manifest_json(m)))
                for m in (EMBEDDER, ADDER)
            ]
            self.catalogue(models)
            return 200, encode({"models": models})
        if path.startswith("/api/v1/channels/"):
            client, signer = (address_from_hex(part) for part in path.split("/")[-2:])
            form = self.ledger.form(client, signer)
            self.channel(form)
            return 200, encode(form)
        if path == INFERENCE:
            return self._submit(http)
        task, _, rest = path.removeprefix(INFERENCE + "/").partition("/")
        return self._task(http, task, rest)

    def _task(self, http: httpx.Request, task: str, rest: str) -> tuple[int, bytes]:
        if rest == "payment":
            return 202, encode(self._confirm(task, decode(http.content, ConfirmationJson)))
        if http.method == "DELETE" and task in self.awaiting:
            status = self._status(self.awaiting.pop(task)[1], "CANCELLED")
            self.failed[task] = status
            return 202, encode(status)
        if http.headers["accept"].startswith("text/event-stream"):
            return 200, self._events(task)
        if task in self.running:
            return 200, encode(self._status(self.running[task][1], "EXECUTING"))
        if task in self.failed:
            return 200, encode(self.failed[task])
        if task not in self.tasks:
            raise UnknownTask(f"no task has the id {task}")
        proof = self.tasks[task]
        if rest == "receipt":
            return 200, self.proof(proof.to_json())
        if http.method == "DELETE":
            return 202, encode(self._status(proof.request, "CANCELLED"))
        if not self.settled:
            return 200, encode(self._status(proof.request, "EXECUTING"))
        return 200, encode(self._form(proof, "base64" if b"base64" in http.url.query else "json"))

    def _events(self, task: str) -> bytes:
        if task not in self.tasks and task not in self.failed:
            raise UnknownTask(f"no task has the id {task}")
        paid = task in self.tasks and self.tasks[task].request.payment == "escrow"
        life = ["RECEIVED", "ROUTED", "RESERVED", *(["AWAITING_PAYMENT", "PAID"] if paid else []), "EXECUTING"]
        life += [self.failed[task].state] if task in self.failed else ["EXECUTED", "VALIDATED", "SETTLED"]
        moves = [
            b"event: event\nid: %d\ndata: %s\n\n"
            % (i, json.dumps({"type": "event", "id": task, "index": i, "state": s, "at_ms": i, "detail": ""}).encode())
            for i, s in enumerate(life, 1)
        ]
        moves.insert(-2, b'event: chunk\nid: 0\ndata: {"type":"chunk","chunk":"' + b"x" * 70_000 + b'"}\n\n')
        return b"".join([*moves, b'event: answer\ndata: {"type":"answer"}\n\n'])

    def _submit(self, http: httpx.Request) -> tuple[int, bytes]:
        form = decode(http.content, SubmitJson)
        task = (
            "0x"
            + digests.request_id(
                address_from_hex(form.client) if form.client else ANONYMOUS, hash_bytes(form.nonce or "", "nonce")
            ).hex()
        )
        if task in self.awaiting:
            manifest, request, due = self.awaiting[task]
            return 202, encode(self._status(request, "AWAITING_PAYMENT", due))
        if task not in self.tasks:
            manifest, request = self._admit(form)
            if request.payment == "escrow":
                due = self.desk.offer(request, manifest.fee_wei(request.limit_units, "escrow"))
                self.awaiting[task] = manifest, request, due
                return 202, encode(self._status(request, "AWAITING_PAYMENT", due))
            if self.failing is not None:
                self.ledger.free(request.request_id)
                self.failed[task] = self._status(request, "FAILED", error=self.failing)
                if b"async=1" in http.url.query:
                    return 202, encode(self._status(request, "RECEIVED"))
                raise self.failing
            if self.deferred:
                self.running[task] = manifest, request
            else:
                self._finish(manifest, request)
        else:
            self.bodies.append(form)
            if self.tasks[task].request.request_hash != self._request(form)[1].request_hash:
                raise ReplayConflict(f"task {task} has other content")
        if self.losing:
            self.losing -= 1
            raise httpx.ReadError("cut")
        if b"async=1" in http.url.query:
            request = self.running[task][1] if task in self.running else self.tasks[task].request
            return 202, encode(self._status(request, "RECEIVED"))
        return 200, encode(self._form(self.tasks[task], form.encoding))

    def finish(self, task: str) -> int:
        """Let a deferred task end well; return its fee."""
        return self._finish(*self.running.pop(task)).receipt.receipt.fee_wei

    def fail(self, task: str) -> None:
        """Let a deferred task fail."""
        request = self.running.pop(task)[1]
        self.ledger.free(request.request_id)
        self.failed[task] = self._status(request, "FAILED", error=ModelFailed("the model raised"))

    def _request(self, form: SubmitJson) -> tuple[ModelManifest, InferenceRequest]:
        manifest = next((m for m in (EMBEDDER, ADDER) if "0x" + m.digest.hex() == form.model), None)
        if manifest is None:
            raise UnknownModel(f"no node serves {form.model}")
        return manifest, request_from_json(form, manifest, nonce=b"", limit_units=0, deadline_ms=0, payment="")

    def _admit(self, form: SubmitJson) -> tuple[ModelManifest, InferenceRequest]:
        """Check a new request, and hold its limit where a voucher pays."""
        self.bodies.append(form)
        manifest, request = self._request(form)
        check_tensors(request.inputs, manifest.inputs)
        if request.client != ANONYMOUS:
            digest = digests.request_digest(DOMAIN, request)
            check_signature(digest, request.signature, request.client, "the request")
        if request.payment == "voucher":
            limit = manifest.fee_wei(request.limit_units, request.payment)
            assert not isinstance(request.authorization, TransferAuthorization)
            self.ledger.admit(request.request_id, request.client, limit, request.authorization)
        return manifest, request

    def _finish(self, manifest: ModelManifest, request: InferenceRequest) -> Proof:
        """Execute an admitted request and charge for it."""
        request = replace(request, authorization=None)
        proof = self.tasks["0x" + request.request_id.hex()] = self._execute(manifest, request)
        self.ledger.charge(request.request_id, proof.receipt.receipt.fee_wei)
        return proof

    def _confirm(self, task: str, form: ConfirmationJson) -> StatusJson:
        manifest, request, due = self.awaiting[task]
        if self.desk.paid.get(hash_bytes(form.transaction_hash, "transaction_hash")) != due:
            raise PaymentRequired(f"transaction {form.transaction_hash} did not pay for task {task}")
        del self.awaiting[task]
        if self.failing is not None:
            self.failed[task] = self._status(request, "REFUNDED", error=self.failing)
        else:
            self._finish(manifest, request)
        return self._status(request, "PAID")

    def _execute(self, manifest: ModelManifest, request: InferenceRequest) -> Proof:
        self.executed += 1
        link = digests.chain_start(request.request_hash, request.model, NODE.address)
        chunks: list[Chunk] = []
        for part in range(self.pieces):
            chunk = Chunk(part + 1, 5 * (part + 1), pack_tensors(self.cut(_outputs(request, part))))
            link = digests.chunk_link(link, chunk)
            chunks.append(replace(chunk, link=link))
        now, units = now_ms(), 5 * self.pieces
        receipt = self.change(
            Receipt(
                request_id=request.request_id,
                request_hash=request.request_hash,
                model=request.model,
                output_hash=link,
                chunks=len(chunks),
                units=units,
                fee_wei=manifest.fee_wei(units, request.payment),
                node=NODE.address,
                started_ms=now - 7,
                finished_ms=now,
            )
        )
        signature = replace(self.signer.sign(digests.receipt_digest(DOMAIN, receipt)), signer=NODE.address)
        return Proof(DOMAIN, manifest, request, tuple(chunks), SignedReceipt(receipt, (signature,)))

    def _form(self, proof: Proof, encoding: Encoding) -> AnswerJson:
        settlement = Settlement(proof.request.payment, proof.receipt.receipt.fee_wei)
        form = answer_json(proof.request, proof.chunks, proof.receipt, settlement, encoding)
        self.lie(form)
        return form

    def _status(
        self, request: InferenceRequest, state: str, due: PaymentDue | None = None, error: NcnError | None = None
    ) -> StatusJson:
        return StatusJson(
            id="0x" + request.request_id.hex(),
            state=state,
            model="0x" + request.model.hex(),
            created_ms=1,
            updated_ms=2,
            error=None if error is None else error_json(error),
            payment=None if due is None else payment_json(due),
        )


def resigned(form: AnswerJson, signer: Signer, **changes: object) -> None:
    """Change fields of a receipt and sign it again, by any key."""
    for name, value in changes.items():
        setattr(form.receipt, name, value)
    fields = msgspec.to_builtins(form.receipt)
    del fields["signatures"]
    hashes = {
        name: hash_bytes(value, name, 0)
        for name, value in fields.items()
        if isinstance(value, str) and value.startswith("0x")
    }
    receipt = Receipt(**{**fields, **hashes, "fee_wei": int(fields["fee_wei"])})
    made = signer.sign(digests.receipt_digest(DOMAIN, receipt))
    form.receipt = receipt_json(SignedReceipt(receipt, (made,)))
