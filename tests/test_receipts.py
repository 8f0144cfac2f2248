"""What a gateway believes of another node's receipt: nothing that it did not see itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ncn_framework import digests
from ncn_framework.errors import ChainBroken, OutputRejected, ReceiptRejected
from ncn_framework.models import Chunk, Domain, InferenceRequest, Receipt, Signature, SignedReceipt
from ncn_framework.states import State
from ncn_framework.testing.fakes import FakeRuntime, fake_request, fake_route, fake_signer
from ncn_framework.testing.walks import RecordedWalk, executing, fake_chunk


async def honest(request: InferenceRequest) -> tuple[tuple[Chunk, ...], SignedReceipt]:
    """Return what an honest node sends for ``request``."""
    outcome = await RecordedWalk(FakeRuntime()).run(request, fake_route())
    return outcome.chunks, outcome.receipt


def signed_by_the_node(receipt: Receipt) -> SignedReceipt:
    return SignedReceipt(receipt, (fake_signer().sign(digests.receipt_digest(Domain(), receipt)),))


async def test_the_receipt_of_an_honest_node_is_taken_over() -> None:
    request = fake_request()
    chunks, receipt = await honest(request)
    walk = RecordedWalk(executing(*chunks, receipt))
    walk.recorder.signers = {}
    outcome = await walk.run(request)
    assert outcome.receipt == receipt
    assert outcome.chunks == chunks


@pytest.mark.parametrize(
    "field", ["request_id", "request_hash", "model", "output_hash", "chunks", "units", "fee_wei", "node"]
)
async def test_a_wrong_field_is_rejected_though_signed(field: str) -> None:
    request = fake_request()
    chunks, honestly = await honest(request)
    value = getattr(honestly.receipt, field)
    change: dict[str, Any] = {field: value + 1 if isinstance(value, int) else bytes(len(value))}
    wrong = replace(honestly.receipt, **change)
    walk = RecordedWalk(executing(*chunks, signed_by_the_node(wrong)))
    await walk.fails(ReceiptRejected, f"the node's receipt is wrong about {field}", request)
    assert walk.last.state == State.FAILED


@pytest.mark.parametrize("times", [{"started_ms": 0}, {"started_ms": 5, "finished_ms": 4}])
async def test_impossible_times_are_rejected(times: dict[str, Any]) -> None:
    request = fake_request()
    chunks, honestly = await honest(request)
    walk = RecordedWalk(executing(*chunks, signed_by_the_node(replace(honestly.receipt, **times))))
    await walk.fails(ReceiptRejected, "the receipt ends at", request)


async def test_a_receipt_that_the_node_did_not_sign_is_rejected() -> None:
    request = fake_request()
    chunks, honestly = await honest(request)
    other = fake_signer("other").sign(digests.receipt_digest(Domain(), honestly.receipt))
    elsewhere = fake_signer().sign(digests.receipt_digest(Domain(1), honestly.receipt))
    pretended = Signature(honestly.receipt.node, other.value)
    for signatures in ((), (other,), (pretended,), (elsewhere,)):
        walk = RecordedWalk(executing(*chunks, SignedReceipt(honestly.receipt, signatures)))
        await walk.fails(ReceiptRejected, "sign", request)


async def test_more_behind_a_receipt_breaks_the_chain() -> None:
    request = fake_request()
    chunks, receipt = await honest(request)
    for more in (receipt, fake_chunk(3, 3)):
        walk = RecordedWalk(executing(*chunks, receipt, more))
        await walk.fails(ChainBroken, "sent more behind its receipt", request)


async def test_chunks_of_another_request_break_the_chain() -> None:
    chunks, receipt = await honest(fake_request(nonce=bytes(32)))
    await RecordedWalk(executing(*chunks, receipt)).fails(ChainBroken, "chunk 1 has link")


async def test_a_dropped_or_exchanged_chunk_breaks_the_chain() -> None:
    request = fake_request()
    chunks, receipt = await honest(request)
    for sent in (chunks[1:], chunks[::-1]):
        await RecordedWalk(executing(*sent, receipt)).fails(ChainBroken, "chunk 2", request)
    walk = RecordedWalk(executing(chunks[0], receipt))
    await walk.fails(ReceiptRejected, "wrong about output_hash", request)


async def test_a_receipt_without_output_is_rejected() -> None:
    _, receipt = await honest(fake_request())
    await RecordedWalk(executing(receipt)).fails(OutputRejected, "gave no output")
