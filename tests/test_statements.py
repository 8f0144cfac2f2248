"""What validators sign: digests as eth_account has them, and messages that come back as they went."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ncn_framework import digests
from ncn_framework.errors import EndorsementRefused, MalformedRequest
from ncn_framework.models import Chunk, Domain, Receipt, Signature, SignedReceipt
from ncn_framework.payments import Batch, Charge, Claim, Credit, EscrowTerms, Quorum, Voucher
from ncn_framework.statements import (
    DISPUTES_NAME,
    INVALID_RESULT,
    BatchStatement,
    CompletionStatement,
    Evidence,
    FailureStatement,
    Performance,
    PerformancesStatement,
    Statement,
    SubnetStatement,
    TermsStatement,
    VerdictStatement,
    digest_of,
    epoch_of,
    excluded_from,
    subject_of,
)
from ncn_framework.testing.fakes import fake_manifest, fake_record, fake_request, fake_signer
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_payments import quorum_from_pb, quorum_to_pb
from ncn_framework.wire.convert_statements import (
    MAX_EVIDENCE,
    evidence_from_pb,
    evidence_to_pb,
    refusal_from_pb,
    refusal_to_pb,
    signatures_from_pb,
    signatures_to_pb,
    statement_from_pb,
    statement_to_pb,
)
from tests.oracle import abi, address, typed

DOMAIN = Domain(31337, b"\x0c" * 20)
DISPUTES = b"\x0d" * 20
NODE, GATEWAY, CLIENT, OWNER = map(fake_signer, ("node", "gateway", "client", "owner"))
REQUEST = fake_request()
SIGNATURE = b"\x01" * 64 + b"\x1b"
TERMS = EscrowTerms(CLIENT.address, 3, GATEWAY.address, NODE.address, 500, 7, 99, REQUEST.request_hash)
RECEIPT = SignedReceipt(
    Receipt(REQUEST.request_id, REQUEST.request_hash, REQUEST.model, b"\x0a" * 32, 1, 4, 50, NODE.address, 5, 6),
    (Signature(NODE.address, SIGNATURE),),
)
VOUCHER = Voucher(CLIENT.address, CLIENT.address, GATEWAY.address, 900, SIGNATURE)
ID = b"\x0e" * 32
CONFIGURATION = fake_record(OWNER)
BATCH = BatchStatement(
    Batch(GATEWAY.address, 4, 7, 1, *(bytes([i]) * 32 for i in range(1, 5))),
    (Claim(VOUCHER, 50),),
    (Credit(NODE.address, 40),),
    (Charge(VOUCHER, RECEIPT, b"\x0b" * 32, CLIENT.address, SIGNATURE),),
)
STATEMENTS: tuple[Statement, ...] = (
    BATCH,
    TermsStatement(TERMS, ID, REQUEST, 10, 2),
    CompletionStatement(TERMS, ID, RECEIPT),
    FailureStatement(TERMS, ID, "the node is gone", SIGNATURE),
    VerdictStatement(DISPUTES, 7, RECEIPT, "output y differs by 0.5"),
    SubnetStatement(7, CONFIGURATION, b"\x0f" * 32),
    PerformancesStatement(DISPUTES, 7, 6, (Performance(NODE.address, 3, 1, 2),)),
)
EVIDENCE = Evidence(REQUEST, (Chunk(1, 4, b"data", b"\x0a" * 32),), RECEIPT, fake_manifest())
every = pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: type(statement).__name__)


@every
def test_a_message_brings_the_statement_and_its_evidence_back(statement: Statement) -> None:
    message = statement_to_pb(statement, {REQUEST.request_id: EVIDENCE})
    read = pb.StatementRequest.FromString(message.SerializeToString())
    assert statement_from_pb(read) == statement
    if isinstance(statement, BatchStatement | CompletionStatement | VerdictStatement):
        assert evidence_from_pb(read.evidence) == {REQUEST.request_id: EVIDENCE}


@every
def test_whoever_signs_is_of_the_epoch_and_not_concerned(statement: Statement) -> None:
    assert epoch_of(statement) == 7
    concerned = {
        "BatchStatement": {GATEWAY.address, NODE.address},
        "VerdictStatement": {NODE.address},
        "SubnetStatement": {OWNER.address},
        "PerformancesStatement": set[bytes](),
    }
    assert excluded_from(statement) == concerned.get(type(statement).__name__, {GATEWAY.address, NODE.address})


@every
def test_the_digest_depends_on_chain_and_contract(statement: Statement) -> None:
    digest = digest_of(DOMAIN, statement)
    assert digest != digest_of(replace(DOMAIN, chain_id=1), statement)
    assert digest != digest_of(replace(DOMAIN, contract=b"\x0e" * 20), statement) or isinstance(
        statement,
        PerformancesStatement,  # bound to DisputeManager alone, which has one payment contract
    )


def test_all_digests_and_subjects_differ() -> None:
    assert len({digest_of(DOMAIN, statement) for statement in STATEMENTS}) == len(STATEMENTS)
    assert len({subject_of(statement) for statement in STATEMENTS}) == len(STATEMENTS) - 2  # one escrow has three


def test_a_gateway_cannot_choose_the_committee_of_a_batch() -> None:
    other = replace(BATCH, batch=replace(BATCH.batch, nonce=99, receipts_root=b"\x09" * 32), charges=())
    assert subject_of(other) == subject_of(BATCH)


def test_a_verdict_is_the_contracts() -> None:
    subject = digests.receipt_digest(DOMAIN, RECEIPT.receipt)
    message = {"misconduct": INVALID_RESULT, "validator": address(NODE.address), "subject": subject, "epoch": 7}
    expected = typed(Domain(DOMAIN.chain_id, DISPUTES), "Verdict", message, DISPUTES_NAME)
    assert digest_of(DOMAIN, STATEMENTS[4]) == expected


def test_performances_are_the_contracts() -> None:
    rows = abi(["(address,uint32,uint32,uint32)[]"], [(NODE.address, 3, 1, 2)])
    message = {"period": 6, "performancesHash": rows, "epoch": 7}
    expected = typed(Domain(DOMAIN.chain_id, DISPUTES), "Performances", message, DISPUTES_NAME)
    assert digest_of(DOMAIN, STATEMENTS[6]) == expected


def test_a_subnet_is_bound_to_its_record_and_epoch() -> None:
    record = digests.record_digest(DOMAIN, CONFIGURATION)
    assert digest_of(DOMAIN, STATEMENTS[5]) == typed(DOMAIN, "Subnet", {"record": record, "epoch": 7})


# --- what comes from outside ---


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (pb.StatementRequest(), "no statement"),
        (pb.StatementRequest(verdict=pb.Verdict(contract=b"\x01")), "contract has 1 bytes"),
        (pb.StatementRequest(verdict=pb.Verdict(contract=bytes(20), epoch=2**32)), "at most 32 bits"),
        (pb.StatementRequest(failure=pb.EscrowFailure()), "terms.client has 0 bytes"),
        (pb.StatementRequest(performances=pb.Performances(contract=bytes(20), performances=[pb.Performance()])), "0 b"),
    ],
)
def test_a_malformed_message_is_refused(message: pb.StatementRequest, said: str) -> None:
    with pytest.raises(MalformedRequest, match=said):
        statement_from_pb(message)


def test_too_much_evidence_is_refused() -> None:
    shown = [evidence_to_pb(replace(EVIDENCE, request=replace(REQUEST, nonce=bytes([i]) * 32))) for i in range(65)]
    assert len(evidence_from_pb(shown[:MAX_EVIDENCE])) == MAX_EVIDENCE
    with pytest.raises(MalformedRequest, match="more than 64"):
        evidence_from_pb(shown)


def test_signatures_come_back_and_are_bounded() -> None:
    signatures = (Signature(NODE.address, SIGNATURE), Signature(OWNER.address, SIGNATURE))
    assert signatures_from_pb(signatures_to_pb(signatures)) == signatures
    with pytest.raises(MalformedRequest, match="at most 256"):
        signatures_from_pb(signatures_to_pb(signatures[:1] * 257))
    with pytest.raises(MalformedRequest, match="signature has 3 bytes"):
        signatures_from_pb([pb.ValidatorSignature(validator=bytes(20), signature=b"abc")])


def test_a_quorum_comes_back() -> None:
    quorum = Quorum(7, 0b10110, (SIGNATURE, SIGNATURE, SIGNATURE))
    assert quorum_from_pb(quorum_to_pb(quorum)) == quorum


def test_a_refusal_comes_back_with_all_that_a_gateway_acts_on() -> None:
    error = EndorsementRefused("too low", {ID: 4}, 5, invalid=[b"\1" * 32], wanted=[b"\2" * 32])
    back = refusal_from_pb(pb.Refusal.FromString(refusal_to_pb(error).SerializeToString()))
    assert (str(back), back.settled, back.next_nonce) == ("too low", {ID: 4}, 5)
    assert (set(back.invalid), set(back.wanted)) == ({b"\1" * 32}, {b"\2" * 32})
