"""A proof that names the batch of an answer and the validators who signed that; any piece changed is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from ncn_framework import digests
from ncn_framework.errors import EndorsementRefused, MalformedRequest, VerificationError
from ncn_framework.inclusion import Inclusion, inclusion_from_json, inclusion_json
from ncn_framework.proof import Proof, verify
from ncn_framework.testing.funds import fake_inclusion
from tests.test_proof import make

Change = Callable[[Inclusion], Inclusion]


@pytest.fixture
def proof() -> Proof:
    plain = make()
    inputs = digests.inputs_hash(plain.request.inputs)
    return replace(plain, inclusion=fake_inclusion(plain.domain, plain.receipt.receipt, inputs))


def included(proof: Proof) -> Inclusion:
    assert proof.inclusion is not None
    return proof.inclusion


def test_a_proof_names_the_committee_and_its_signatures(proof: Proof) -> None:
    lines: list[str] = []
    assert verify(proof.to_json(), report=lines.append) == proof
    (committee,) = (line for line in lines if line.startswith("committee: "))
    assert committee == "committee: epoch 1, 3 of 5 validators signed the batch"
    named = [line for line in lines if line.startswith("validator: 0x")]
    assert len(named) == 3
    for line, signature in zip(named, included(proof).quorum.signatures, strict=True):
        assert line.endswith(f"signature 0x{signature.hex()}")


def test_a_proof_without_a_batch_stays_as_it_was(proof: Proof) -> None:
    assert b"inclusion" not in replace(proof, inclusion=None).to_json()


@pytest.mark.parametrize("others", [0, 1, 2, 7])
def test_the_path_leads_to_the_root_of_any_batch(proof: Proof, others: int) -> None:
    receipt, inputs = proof.receipt.receipt, digests.inputs_hash(proof.request.inputs)
    fake_inclusion(proof.domain, receipt, inputs, others).check(proof.domain, receipt, inputs, lambda line: None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: replace(i, channel=bytes(32)), "path does not lead"),
        (lambda i: replace(i, path=i.path[1:]), "path does not lead"),
        (lambda i: replace(i, batch=replace(i.batch, receipts_root=bytes(32))), "path does not lead"),
        (lambda i: replace(i, batch=replace(i.batch, nonce=2)), "does not match|is not|signed"),
        (lambda i: replace(i, members=i.members[:1] * 5), "named twice"),
        (lambda i: replace(i, members=i.members[:3]), "none at place 3"),
        (lambda i: replace(i, members=i.members + tuple(bytes([n]) * 20 for n in range(1, 3))), "4 of 7 must sign"),
        (lambda i: replace(i, quorum=replace(i.quorum, bitmap=0b00111)), "place 2"),
        (lambda i: replace(i, quorum=replace(i.quorum, bitmap=0b1011, signatures=i.quorum.signatures[:2])), "2 signat"),
        (
            lambda i: replace(i, quorum=replace(i.quorum, bitmap=0b11, signatures=i.quorum.signatures[:2])),
            "3 of 5 must",
        ),
        (lambda i: replace(i, quorum=replace(i.quorum, epoch=2)), "epoch 2"),
    ],
)
def test_what_was_changed_is_refused(proof: Proof, change: Change, said: str) -> None:
    receipt, inputs = proof.receipt.receipt, digests.inputs_hash(proof.request.inputs)
    with pytest.raises(EndorsementRefused, match=said):
        change(included(proof)).check(proof.domain, receipt, inputs, lambda line: None)


def test_another_receipt_or_other_inputs_are_refused(proof: Proof) -> None:
    receipt, inputs = proof.receipt.receipt, digests.inputs_hash(proof.request.inputs)
    for wrong in ((replace(receipt, output_hash=bytes(32)), inputs), (receipt, bytes(32))):
        with pytest.raises(EndorsementRefused, match="path does not lead"):
            included(proof).check(proof.domain, *wrong, lambda line: None)


def test_a_node_that_signs_for_itself_is_refused(proof: Proof) -> None:
    receipt, inputs = proof.receipt.receipt, digests.inputs_hash(proof.request.inputs)
    own = replace(included(proof), members=(receipt.node, *included(proof).members[1:]))
    with pytest.raises(EndorsementRefused, match="as a validator of its own receipt"):
        own.check(proof.domain, receipt, inputs, lambda line: None)


def test_the_place_of_a_wrong_committee_is_named(proof: Proof) -> None:
    wrong = replace(proof, inclusion=replace(included(proof), channel=bytes(32)))
    with pytest.raises(VerificationError, match=r"^inclusion: the path does not lead"):
        verify(wrong.to_json())


def test_the_json_form_comes_back_and_is_bounded(proof: Proof) -> None:
    form = inclusion_json(included(proof))
    assert inclusion_from_json(form) == included(proof)
    for wrong in ({"path": form.path * 40}, {"members": form.members * 60}, {"nonce": -1}, {"count": 0}):
        with pytest.raises(MalformedRequest):
            inclusion_from_json(msgspec.structs.replace(form, **wrong))
