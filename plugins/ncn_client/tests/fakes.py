"""A gateway with a node's key behind it: it answers as a real one does, and lies where it is told to."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace

import httpx
import msgspec

from ncn_framework import digests
from ncn_framework.errors import NcnError, ReplayConflict, UnknownModel, UnknownTask
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
from ncn_framework.proof import Proof
from ncn_framework.signing import Signer, address_hex, check_signature
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

NODE = Signer(b"\x11" * 32)
OTHER = Signer(b"\x22" * 32)
CLIENT = Signer(b"\x33" * 32)
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
        lie: changes each answer.
        signer: signs receipts; the node's key unless it lies.
        change: changes each receipt before it is signed.
        cut: changes a chunk's data before it is hashed.
        pieces: chunks of each answer.
        settled: whether tasks that are asked for have settled.
        broken: an exception to raise, or a response to give, in place of any answer.
        catalogue: changes ``/api/v1/models``.
        proof: changes the proof files.
        seen: method and path of each call.
    """

    def __init__(self) -> None:
        self.lie: Lie = lambda form: None
        self.signer = NODE
        self.change: Callable[[Receipt], Receipt] = lambda receipt: receipt
        self.cut: Callable[[list[Tensor]], list[Tensor]] = lambda tensors: tensors
        self.pieces = 1
        self.settled = True
        self.broken: Exception | httpx.Response | None = None
        self.catalogue: Callable[[list[ModelJson]], object] = lambda models: None
        self.proof: Callable[[bytes], bytes] = lambda data: data
        self.seen: list[str] = []
        self.bodies: list[SubmitJson] = []
        self.tasks: dict[str, Proof] = {}
        self.executed = 0

    def __call__(self, http: httpx.Request) -> httpx.Response:
        self.seen.append(f"{http.method} {http.url.raw_path.decode()}")
        if isinstance(self.broken, Exception):
            raise self.broken
        if self.broken is not None:
            return self.broken
        try:
            status, body = self._answer(http)
        except NcnError as error:
            form = error_json(error)
            return httpx.Response(
                form.status, content=encode(form), headers={"content-type": "application/problem+json"}
            )
        return httpx.Response(status, content=body, headers={"content-type": "application/json"})

    def _answer(self, http: httpx.Request) -> tuple[int, bytes]:
        path = http.url.path
        if path == "/health":
            return 200, b'{"status":"ok"}'
        if path == "/api/v1/network":
            return 200, json.dumps(
                {
                    "chain_id": DOMAIN.chain_id,
                    "contract": address_hex(DOMAIN.contract),
                    "gateway": address_hex(OTHER.address),
                    "software": "fake 1",
                }
            ).encode()
        if path == "/api/v1/models":
            models = [
                ModelJson("0x" + m.digest.hex(), m.name, 2, json.loads(digests.manifest_json(m)))
                for m in (EMBEDDER, ADDER)
            ]
            self.catalogue(models)
            return 200, encode({"models": models})
        if path == INFERENCE:
            return self._submit(http)
        task = path.removeprefix(INFERENCE + "/").removesuffix("/receipt")
        if task not in self.tasks:
            raise UnknownTask(f"no task has the id {task}")
        proof = self.tasks[task]
        if path.endswith("/receipt"):
            return 200, self.proof(proof.to_json())
        if http.method == "DELETE":
            return 202, encode(self._status(proof, "CANCELLED"))
        if not self.settled:
            return 200, encode(self._status(proof, "EXECUTING"))
        return 200, encode(self._form(proof, "base64" if b"base64" in http.url.query else "json"))

    def _submit(self, http: httpx.Request) -> tuple[int, bytes]:
        form = decode(http.content, SubmitJson)
        self.bodies.append(form)
        manifest = next((m for m in (EMBEDDER, ADDER) if "0x" + m.digest.hex() == form.model), None)
        if manifest is None:
            raise UnknownModel(f"no node serves {form.model}")
        request = request_from_json(form, manifest, nonce=b"", limit_units=0, deadline_ms=0, payment="")
        check_tensors(request.inputs, manifest.inputs)
        if request.client != ANONYMOUS:
            digest = digests.request_digest(DOMAIN, request)
            check_signature(digest, request.signature, request.client, "the request")
        task = "0x" + request.request_id.hex()
        if task not in self.tasks:
            self.tasks[task] = self._execute(manifest, request)
        if self.tasks[task].request != request:
            raise ReplayConflict(f"task {task} has other content")
        if b"async=1" in http.url.query:
            return 202, encode(self._status(self.tasks[task], "RECEIVED"))
        return 200, encode(self._form(self.tasks[task], form.encoding))

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

    def _status(self, proof: Proof, state: str) -> StatusJson:
        return StatusJson("0x" + proof.request.request_id.hex(), state, "0x" + proof.request.model.hex(), 1, 2)


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
