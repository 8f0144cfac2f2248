"""Answers of nodes, right and wrong, and registries that execute them again."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.errors import NcnError
from ncn_framework.hookspecs import hookimpl
from ncn_framework.manager import loaded_plugin
from ncn_framework.models import Chunk, Domain, InferenceRequest, Leases, ModelManifest, Receipt, SignedReceipt
from ncn_framework.node import Node
from ncn_framework.payments import Batch, Charge, EscrowTerms, Voucher
from ncn_framework.signing import Signer
from ncn_framework.sources import Sources
from ncn_framework.statements import BatchStatement, Evidence, TermsStatement
from ncn_framework.tensors import Tensor, pack_tensors
from ncn_framework.testing.fakes import fake_manifest, fake_request, fake_signer

DOMAIN = Domain()
LIAR = fake_signer("a node that lies")
CLIENT = fake_signer("a client")
MANIFEST = fake_manifest(base_fee_wei=10, unit_fee_wei=1, tolerance=0.001)


class Runtime:
    """Doubles its input, in one chunk of one unit.

    Attributes:
        executed: request ids, in order.
        error: what it raises instead.
        drift: what is added to each answer after the first.
        go: cleared, executions wait.
    """

    roles = ("registry",)

    def __init__(self) -> None:
        self.executed: list[bytes] = []
        self.error: NcnError | None = None
        self.drift = 0.0
        self.go = asyncio.Event()
        self.go.set()

    @hookimpl
    def ncn_execute(self, request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk, None]:
        return self._execute(request)

    async def _execute(self, request: InferenceRequest) -> AsyncGenerator[Chunk, None]:
        self.executed.append(request.request_id)
        await self.go.wait()
        if self.error is not None:
            raise self.error
        yield answered(request, self.drift * (len(self.executed) - 1))


def answered(request: InferenceRequest, off_by: float = 0.0) -> Chunk:
    """Return the one chunk of an answer: the input, doubled, and off by a number."""
    count = len(request.inputs[0].data) // 4
    values = struct.unpack(f"<{count}f", request.inputs[0].data)
    data = struct.pack(f"<{count}f", *(2 * value + off_by for value in values))
    return Chunk(1, 1, pack_tensors([Tensor("y", "FP32", (count,), data)]))


def an_answer(number: int = 0, off_by: float = 0.0, node: Signer = LIAR, **receipt: Any) -> Evidence:
    """Return a request with its answer and a receipt that ``node`` signed.

    Args:
        number: of the request; each has its own.
        off_by: by how much the answer is wrong.
        node: whose answer it is.
        **receipt: fields that the receipt has wrong.
    """
    nonce = number.to_bytes(32, "big")
    request = fake_request(MANIFEST, CLIENT, DOMAIN, nonce=nonce, payment="voucher", deadline_ms=2**42)
    return answer_to(request, [answered(request, off_by)], node, **receipt)


def answer_to(request: InferenceRequest, chunks: Sequence[Chunk], node: Signer = LIAR, **receipt: Any) -> Evidence:
    """Return the evidence of an answer of ``chunks``."""
    link, linked = digests.chain_start(request.request_hash, request.model, node.address), []
    for chunk in chunks:
        link = digests.chunk_link(link, chunk)
        linked.append(replace(chunk, link=link))
    units = chunks[-1].units if chunks else 0
    fee = MANIFEST.fee_wei(units, request.payment)
    found = Receipt(
        request.request_id, request.request_hash, request.model, link, len(chunks), units, fee, node.address, 1, 2
    )
    found = replace(found, **receipt)
    signed = SignedReceipt(found, (node.sign(digests.receipt_digest(DOMAIN, found)),))
    return Evidence(request, tuple(linked), signed, MANIFEST)


def a_batch(*answers: Evidence) -> BatchStatement:
    """Return a batch over answers; its money is nobody's business here."""
    voucher = Voucher(CLIENT.address, CLIENT.address, bytes(20), 1, bytes(65))
    charges = tuple(Charge(voucher, one.receipt, bytes(32), CLIENT.address, one.request.signature) for one in answers)
    batch = Batch(bytes(20), 1, 1, len(answers), bytes(32), bytes(32), bytes(32), bytes(32))
    return BatchStatement(batch, (), (), charges)


def terms_of(request: InferenceRequest, node: Signer = LIAR) -> TermsStatement:
    """Return terms for a request at the manifest's price."""
    escrow = bytes(32)
    terms = EscrowTerms(request.client, 1, bytes(20), node.address, 100, 1, 2**40, request.request_hash)
    return TermsStatement(terms, escrow, request, MANIFEST.base_fee_wei, MANIFEST.unit_fee_wei)


def a_registry_node(home: Path, *plugins: Any) -> Node:
    """Return a registry's process with these plugins alone."""
    config = Config(Sources(environment={"NCN_HOME": str(home)}, folder=home))
    return Node("registry", config, [loaded_plugin(type(one).__name__.lower(), one) for one in plugins])


def shown(*answers: Evidence) -> dict[bytes, Evidence]:
    """Return evidence by request id."""
    return {one.request.request_id: one for one in answers}


def manifest_of(**changes: Any) -> ModelManifest:
    """Return another manifest than the answers'."""
    return replace(MANIFEST, **changes)
