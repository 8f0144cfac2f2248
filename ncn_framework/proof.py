"""A saved answer that anybody can check offline: what was asked, what came back, and who signed it.

A proof is one JSON file in one canonical form: keys sorted, two spaces of indentation, one newline at the end,
bytes as lower-case 0x-hex, addresses with EIP-55's checksum, tensors' data in base64. There is one file for one
proof, so that a file with any byte changed is refused, white space included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec

from . import digests, manifests
from .canonical import check_canonical, malformed_at
from .errors import NcnError, OutputRejected, VerificationError
from .inclusion import Inclusion, InclusionJson, inclusion_from_json, inclusion_json
from .models import ANONYMOUS, Chunk, Domain, InferenceRequest, ModelManifest, Receipt, SignedReceipt
from .signing import address_hex, check_signature
from .tensors import Tensor, check_tensors, pack_tensors, unpack_tensors
from .wire.json import (
    AnswerJson,
    ChunkJson,
    ReceiptJson,
    SubmitJson,
    address_bytes,
    chunk_json,
    hash_bytes,
    receipt_from_json,
    receipt_json,
    request_from_json,
    tensor_from_json,
    tensor_json,
)

__all__ = ["MAX_PROOF_BYTES", "MAX_SIGNATURES", "SCHEMA", "Proof", "Report", "verify"]

SCHEMA = "ncn.proof.v1"

MAX_PROOF_BYTES = 256 << 20
"""Largest file that is read."""

MAX_SIGNATURES = 64
"""Most signatures on one receipt."""

Report = Callable[[str], None]
"""Hears one line for each check that passed."""


class _DomainJson(msgspec.Struct, forbid_unknown_fields=True):
    chain_id: int
    contract: str


class _ProofJson(msgspec.Struct, forbid_unknown_fields=True):
    schema: str
    domain: _DomainJson
    manifest: msgspec.Raw
    request: SubmitJson
    chunks: list[ChunkJson]
    receipt: ReceiptJson
    inclusion: InclusionJson | None = None


_decoder = msgspec.json.Decoder(_ProofJson)


@dataclass(frozen=True)
class Proof:
    """All that is needed to check an answer without asking anybody.

    Attributes:
        domain: that the signatures are bound to.
        manifest: of the model.
        request: as it was hashed, and signed where the client has a key.
        chunks: of the answer, each with its link.
        receipt: with every signature.
        inclusion: the batch in which the receipt was settled, and the validators' signatures over it; None before that,
            and where nothing was owed.
    """

    domain: Domain
    manifest: ModelManifest
    request: InferenceRequest
    chunks: tuple[Chunk, ...]
    receipt: SignedReceipt
    inclusion: Inclusion | None = None

    def to_json(self) -> bytes:
        """Return the canonical file.

        Raises:
            VerificationError: something in it has no canonical form, such as a parameter that is not finite, or
                a chunk that is not the one encoding of its tensors.
        """
        for index, chunk in enumerate(self.chunks):
            _outputs(chunk, f"chunks[{index}]")
        request = self.request
        form = SubmitJson(
            model="0x" + request.model.hex(),
            inputs=[tensor_json(tensor, "base64") for tensor in request.inputs],
            parameters=dict(request.parameters),
            client=address_hex(request.client),
            nonce="0x" + request.nonce.hex(),
            limit_units=request.limit_units,
            deadline_ms=request.deadline_ms,
            payment=request.payment,
            signature="0x" + request.signature.hex() if request.signature else None,
        )
        with _at("file"):
            included = {} if self.inclusion is None else {"inclusion": inclusion_json(self.inclusion)}
            text = json.dumps(
                {
                    **msgspec.to_builtins(included),
                    "schema": SCHEMA,
                    "domain": {"chain_id": self.domain.chain_id, "contract": address_hex(self.domain.contract)},
                    "manifest": json.loads(manifests.manifest_json(self.manifest)),
                    "request": msgspec.to_builtins(form),
                    "chunks": [msgspec.to_builtins(chunk_json(chunk, "base64")) for chunk in self.chunks],
                    "receipt": msgspec.to_builtins(receipt_json(self.receipt)),
                },
                sort_keys=True,
                indent=2,
                ensure_ascii=False,
                allow_nan=False,
            )
            return text.encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Proof:
        """Return the proof in ``data``, checked for form and bounds only (``verify`` checks all); safe on any bytes.

        Raises:
            VerificationError: too large, not JSON, or a field unknown, missing, malformed or out of its bounds.
        """
        if len(data) > MAX_PROOF_BYTES:
            raise VerificationError("file", f"has {len(data)} bytes; a proof has at most {MAX_PROOF_BYTES}")
        form = _decode(data)
        if form.schema != SCHEMA:
            raise VerificationError("schema", f"is {form.schema[:40]!r}; this version reads {SCHEMA!r}")
        if not 0 < form.domain.chain_id < 2**64:
            raise VerificationError("domain.chain_id", "lies outside 1 to 2^64-1")
        with _at("domain.contract"):
            domain = Domain(form.domain.chain_id, address_bytes(form.domain.contract, "contract"))
        with _at("manifest"):
            manifest = manifests.manifest_from_json(bytes(form.manifest))
        for name in ("client", "nonce", "limit_units", "deadline_ms", "payment"):
            if getattr(form.request, name) is None:
                raise VerificationError(f"request.{name}", "is missing")
        with _at("request"):
            request = request_from_json(form.request, manifest, nonce=b"", limit_units=0, deadline_ms=0, payment="")
        with _at("request.model"):
            request = replace(request, model=hash_bytes(form.request.model, "model"))
        with _at("inclusion"):
            inclusion = None if form.inclusion is None else inclusion_from_json(form.inclusion)
        return cls(domain, manifest, request, *_answered(form, manifest), inclusion)

    @classmethod
    def from_answer(
        cls, domain: Domain, manifest: ModelManifest, request: InferenceRequest, answer: AnswerJson
    ) -> Proof:
        """Return the proof of a gateway's answer to ``request``, checked for form only; call ``check`` on it.

        Raises:
            VerificationError: a field of ``answer`` is malformed, or a tensor is unknown to the manifest.
        """
        return cls(domain, manifest, request, *_answered(answer, manifest))

    def check(self, *, node: bytes | None = None, report: Report | None = None) -> None:
        """Check everything but the form of the file: digests, hashes, tensors, links, receipt, signatures.

        Args:
            node: address whose answer it must be; None accepts any node that signed its own receipt.
            report: hears what passed.

        Raises:
            VerificationError: naming the place.
        """
        say = report or (lambda line: None)
        self._check_request(say)
        last, units = self._check_chunks(say)
        self._check_receipt(last, units, say)
        self._check_signatures(say)
        if self.inclusion is not None:
            with _at("inclusion"):
                content = digests.inputs_hash(self.request.inputs)
                self.inclusion.check(self.domain, self.receipt.receipt, content, say)
        if node is not None:
            if node != self.receipt.receipt.node:
                raise VerificationError(
                    "receipt.node", f"is {address_hex(self.receipt.receipt.node)}, not {address_hex(node)} as required"
                )
            say(f"node: {address_hex(node)}, as required")

    def _check_request(self, say: Report) -> None:
        request, manifest = self.request, self.manifest
        _equal("request.model", request.model, manifest.digest, "the manifest's digest")
        say(f"model: {manifest.name} {manifest.version}, manifest 0x{manifest.digest.hex()}")
        with _at("request.inputs"):
            check_tensors(request.inputs, manifest.inputs)
        if not 0 < request.limit_units < 2**63:
            raise VerificationError("request.limit_units", f"is {request.limit_units}, outside 1 to 2^63-1")
        with _at("request"):
            identity, content = request.request_id, request.request_hash
        _equal("receipt.request_id", self.receipt.receipt.request_id, identity, "the id of the request")
        _equal("receipt.request_hash", self.receipt.receipt.request_hash, content, "the hash of the request")
        say(f"request: 0x{identity.hex()}, inputs fit the manifest, hash 0x{content.hex()}")
        if request.client == ANONYMOUS:
            if request.signature:
                raise VerificationError("request.signature", "is there, but the client is anonymous")
            say("client: anonymous, nothing to sign")
            return
        with _at("request.signature"):
            digest = digests.request_digest(self.domain, request)
            check_signature(digest, request.signature, request.client, "the request")
        say(f"client: signed by {address_hex(request.client)}")

    def _check_chunks(self, say: Report) -> tuple[bytes, int]:
        """Return the last link and the units, both as computed here."""
        request, node = self.request, self.receipt.receipt.node
        link, units = digests.chain_start(request.request_hash, request.model, node), 0
        if not self.chunks:
            raise VerificationError("chunks", "is empty; an answer has at least one")
        for index, chunk in enumerate(self.chunks):
            where = f"chunks[{index}]"
            if chunk.sequence != index + 1:
                raise VerificationError(f"{where}.sequence", f"is {chunk.sequence}; the next is {index + 1}")
            if not units <= chunk.units <= request.limit_units:
                raise VerificationError(
                    f"{where}.units", f"is {chunk.units}, outside {units} to the limit, {request.limit_units}"
                )
            link, units = digests.chunk_link(link, chunk), chunk.units
            if chunk.link != link:
                raise VerificationError(
                    where, f"its link is 0x{chunk.link.hex()}, but what it holds hashes to 0x{link.hex()}"
                )
            outputs = _outputs(chunk, where)
            with _at(f"{where}.outputs"):
                check_tensors(outputs, self.manifest.outputs, error=OutputRejected)
        say(f"chunks: {len(self.chunks)}, every link holds, outputs fit the manifest")
        return link, units

    def _check_receipt(self, last: bytes, units: int, say: Report) -> None:
        receipt, request = self.receipt.receipt, self.request
        expected = Receipt(
            request_id=request.request_id,
            request_hash=request.request_hash,
            model=request.model,
            output_hash=last,
            chunks=len(self.chunks),
            units=units,
            fee_wei=self.manifest.fee_wei(units, request.payment),
            node=receipt.node,
            started_ms=receipt.started_ms,
            finished_ms=receipt.finished_ms,
        )
        for name, value in vars(expected).items():
            _equal(f"receipt.{name}", getattr(receipt, name), value, "what the request and the chunks make it")
        if not 0 < receipt.started_ms <= receipt.finished_ms:
            raise VerificationError("receipt.finished_ms", f"is {receipt.finished_ms}, before {receipt.started_ms}")
        say(
            f"receipt: output 0x{last.hex()}, {units} of at most {request.limit_units} units, "
            f"fee {receipt.fee_wei} wei ({request.payment}), {receipt.finished_ms - receipt.started_ms} ms"
        )

    def _check_signatures(self, say: Report) -> None:
        receipt, signatures = self.receipt.receipt, self.receipt.signatures
        if not self.receipt.signature_of(receipt.node):
            raise VerificationError(
                "receipt.signatures", f"has none of {address_hex(receipt.node)}, the node that executed"
            )
        digest = digests.receipt_digest(self.domain, receipt)
        seen: set[bytes] = set()
        for index, signature in enumerate(signatures):
            with _at(f"receipt.signatures[{index}]"):
                if signature.signer in seen:
                    raise OutputRejected(f"{address_hex(signature.signer)} has signed already")
                check_signature(digest, signature.value, signature.signer, "the receipt")
            seen.add(signature.signer)
            role = "the node" if signature.signer == receipt.node else "a witness"
            say(f"signature: {address_hex(signature.signer)}, {role}")
        say(f"domain: chain {self.domain.chain_id}, contract {address_hex(self.domain.contract)}")


def verify(data: bytes, *, node: bytes | None = None, report: Report | None = None) -> Proof:
    """Check a proof file offline and return what it proves.

    Whether the node is one to trust, and the domain the network that is meant, is for the caller to say: pass
    ``node``, and compare ``domain``.

    Args:
        data: the file.
        node: address whose answer it must be; None accepts any node that signed its own receipt.
        report: hears one line for each check that passed.

    Raises:
        VerificationError: ``where`` names the field, or the line and byte.
    """
    proof = Proof.from_json(data)
    check_canonical(data, proof.to_json())
    if report is not None:
        report(f"form: canonical {SCHEMA}, {len(data)} bytes")
    proof.check(node=node, report=report)
    return proof


def _answered(form: _ProofJson | AnswerJson, manifest: ModelManifest) -> tuple[tuple[Chunk, ...], SignedReceipt]:
    """Return the chunks, each with the data that its link must hash, and the receipt."""
    chunks = []
    for index, chunk in enumerate(form.chunks):
        with _at(f"chunks[{index}]"):
            data = pack_tensors([tensor_from_json(tensor, manifest.outputs) for tensor in chunk.outputs])
            chunks.append(Chunk(chunk.sequence, chunk.units, data, hash_bytes(chunk.link, "link")))
    if len(form.receipt.signatures) > MAX_SIGNATURES:
        raise VerificationError("receipt.signatures", f"has more than {MAX_SIGNATURES} of them")
    with _at("receipt"):
        return tuple(chunks), receipt_from_json(form.receipt)


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Turn an error of the kernel, or of a value that no encoding holds, into one that names the place."""
    try:
        yield
    except VerificationError:
        raise
    except (NcnError, ValueError, OverflowError) as cause:
        raise VerificationError(where, str(cause)) from cause


def _equal(where: str, have: bytes | int, want: bytes | int, meaning: str) -> None:
    if have != want:
        shown = [f"0x{value.hex()}" if isinstance(value, bytes) else str(value) for value in (have, want)]
        raise VerificationError(where, f"is {shown[0]}; {meaning}: {shown[1]}")


def _outputs(chunk: Chunk, where: str) -> tuple[Tensor, ...]:
    """Return a chunk's tensors; refuse data that their one encoding would not give again."""
    with _at(f"{where}.outputs"):
        tensors = unpack_tensors(chunk.data, error=OutputRejected)
        if pack_tensors(tensors) != chunk.data:
            raise OutputRejected("the data is not the one encoding of its tensors (MessagePack in shortest form)")
    return tensors


# --- form ---


def _decode(data: bytes) -> _ProofJson:
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as cause:
        what, _, path = str(cause).partition(" - at `$")
        raise VerificationError(path.strip(".`") or "file", what) from cause
    except (msgspec.DecodeError, RecursionError, ValueError) as cause:
        where, what = malformed_at(data, str(cause))
        raise VerificationError(where, what) from cause
