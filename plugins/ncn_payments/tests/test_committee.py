"""Validators: they sign what is right, refuse everything else, and never contradict themselves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from ncn_framework import digests, statements
from ncn_framework.committees import Epoch, Member
from ncn_framework.errors import ChainError, EndorsementRefused, SignatureRejected, StoreError
from ncn_framework.models import Record
from ncn_framework.payments import Charge, EscrowTerms, Quorum
from ncn_framework.signing import Signer, recover
from ncn_framework.statements import (
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
)
from ncn_framework.testing.fakes import ManualClock, fake_signer
from ncn_framework.validation import Validation
from ncn_payments import batches
from ncn_payments.accounts import Deposit
from ncn_payments.committee import Committee
from ncn_payments.onchain import OnChain
from ncn_payments.validator_memory import ValidatorMemory

from .network import settings_of
from .payments import CLIENT, DOMAIN, GATEWAY, NODE, make_charge, make_receipt, make_request, make_voucher, priced

VALIDATORS = [fake_signer(f"validator {n}") for n in range(5)]
CLOCK = ManualClock()
NOW_S = CLOCK.at_ms // 1000
OTHER = fake_signer("another gateway")
DISPUTES = b"\xd1" * 20


@dataclass
class Contracts:
    """What validators ask of the contracts, and of other plugins.

    Attributes:
        validators: members of every epoch.
        settled: nonces of the gateway's batches on chain, the last of them the highest.
        spent: of every channel.
        deposited: into every channel.
        escrowed: terms that are in escrow.
        objection: whatever is inspected is refused with this, unless all that it wants is shown.
        kept: answers that the gateway still has.
        inspected: what was inspected, and which answers were shown with it.
    """

    validators: Sequence[Signer] = tuple(VALIDATORS)
    settled: list[int] = field(default_factory=list)
    spent: int = 0
    broken: bool = False
    deposited: int = 10**6
    escrowed: list[EscrowTerms] = field(default_factory=list)
    objection: EndorsementRefused | None = None
    kept: dict[bytes, Evidence] = field(default_factory=dict)
    inspected: list[tuple[Statement, frozenset[bytes]]] = field(default_factory=list)

    async def epoch(self, number: int = 0) -> Epoch:
        members = tuple(Member(validator.address, 1) for validator in self.validators)
        return Epoch(number or 2, members, max(3, len(members) // 2 + 1), NOW_S + 1, bytes(32), DISPUTES)

    async def inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        self.inspected.append((statement, frozenset(evidence)))
        if self.objection is not None and not (self.objection.wanted and self.objection.wanted <= evidence.keys()):
            raise self.objection

    async def disclose(self, request_id: bytes) -> Evidence | None:
        return self.kept.get(request_id)

    async def is_escrowed(self, terms: EscrowTerms) -> bool:
        return terms in self.escrowed

    async def batch_nonce(self, gateway: bytes) -> int:
        if self.broken:
            raise ChainError("no answer")
        return self.settled[-1] if self.settled and gateway == GATEWAY.address else 0

    async def is_settled(self, gateway: bytes, nonce: int) -> bool:
        await asyncio.sleep(0)
        return gateway == GATEWAY.address and nonce in self.settled

    async def deposits(self, channels: Iterable[bytes]) -> dict[bytes, Deposit]:
        return {channel: Deposit(self.deposited, self.spent) for channel in channels}


class Validators:
    """A committee that can be closed and opened again, with what it remembers."""

    def __init__(self, folder: Path) -> None:
        self.path, self.chain, self.stack = folder / "validators.db", Contracts(), ExitStack()

    def opened(self, signers: Sequence[Signer] = VALIDATORS, *, inspected: bool = True) -> Committee:
        """Return the committee, opened anew."""
        self.stack.close()
        return self.beside(signers, inspected=inspected)

    def beside(self, signers: Sequence[Signer] = VALIDATORS, *, inspected: bool = True) -> Committee:
        """Return another one with the same memory, as another process has it."""
        committee = Committee(
            DOMAIN,
            signers,
            cast(OnChain, self.chain),
            ValidatorMemory(self.path),
            cast(Validation, self.chain),
            settings_of(self.path.parent),
            inspected=inspected,
            clock=CLOCK,
        )
        self.stack.callback(committee.close)
        return committee


@pytest.fixture
async def validators(tmp_path: Path) -> AsyncIterator[Validators]:
    made = Validators(tmp_path)
    with made.stack:
        yield made


def batch(nonce: int, *numbers: int, spent: int = 0, **changes: Any) -> BatchStatement:
    charges = [make_charge(number, 100, 10_000) for number in numbers or (1, 2)]
    return batch_of(nonce, charges, spent, **changes)


def batch_of(
    nonce: int, charges: list[Charge], spent: int = 0, gateway: Signer = GATEWAY, epoch: int = 1
) -> BatchStatement:
    known = {batches.channel_of(charge): spent for charge in charges}
    return batches.build(gateway.address, nonce, epoch, charges, known)


def digest_of(statement: BatchStatement) -> bytes:
    return digests.batch_digest(DOMAIN, statement.batch)


def check_quorum(quorum: Quorum, digest: bytes, *, size: int = 3) -> list[bytes]:
    """Check a quorum's signatures and return whose they are."""
    at = [i for i in range(len(VALIDATORS)) if quorum.bitmap >> i & 1]
    signers = [recover(digest, signature) for signature in quorum.signatures]
    assert signers == [VALIDATORS[i].address for i in at]  # in ascending order
    assert len(signers) == size
    return signers


# --- batches ---


async def test_a_batch_is_signed_by_as_many_as_the_contract_wants(validators: Validators) -> None:
    statement = batch(1)
    quorum = await validators.opened().endorse(statement)
    check_quorum(quorum, digest_of(statement))
    assert quorum.epoch == 1


async def test_gateway_and_payees_do_not_sign_for_themselves(validators: Validators) -> None:
    """A validator that is the batch's node or gateway is passed over."""
    node, gateway = VALIDATORS[0], VALIDATORS[2]
    charge = make_charge(1, 100, make_voucher(10_000, gateway=gateway), node)
    statement = batch_of(1, [charge], gateway=gateway)
    signers = check_quorum(await validators.opened().endorse(statement), digest_of(statement))
    assert signers == [VALIDATORS[i].address for i in (1, 3, 4)]


async def test_too_few_validators_are_no_quorum(validators: Validators) -> None:
    with pytest.raises(EndorsementRefused, match="2 of the 5 validators of epoch 1 can sign here; 3 are needed"):
        await validators.opened(VALIDATORS[3:]).endorse(batch(1))
    validators.chain.validators = (fake_signer("somebody"), *VALIDATORS[:4])
    await validators.opened().endorse(batch(1))


async def test_strangers_keys_do_not_count(validators: Validators) -> None:
    strangers = [fake_signer(f"stranger {n}") for n in range(5)]
    with pytest.raises(EndorsementRefused, match="0 of the 5"):
        await validators.opened(strangers).endorse(batch(1))


async def test_a_wrong_batch_is_not_signed_nor_remembered(validators: Validators) -> None:
    committee, right = validators.opened(), batch(1)
    for wrong in (
        replace(right, claims=right.claims[:-1] or ()),
        replace(right, batch=replace(right.batch, count=3)),
        batch(1, spent=1),
        replace(right, charges=()),
    ):
        with pytest.raises(EndorsementRefused):
            await committee.endorse(wrong)
    await committee.endorse(right)  # the nonce is free for it


@pytest.mark.parametrize("reopened", [False, True])
async def test_two_batches_with_one_nonce_are_never_signed(validators: Validators, reopened: bool) -> None:
    committee = validators.opened()
    first = await committee.endorse(batch(1, 1, 2))
    committee = validators.opened() if reopened else committee
    for other in (batch(1, 1), batch(1, 1, 2, 3), batch(1, 3), batch_of(1, [make_charge(1, 99, 10_000)])):
        with pytest.raises(
            EndorsementRefused, match="another batch of this gateway was signed under nonce 1"
        ) as refused:
            await committee.endorse(other)
        assert refused.value.next_nonce == 2
    assert await committee.endorse(batch(1, 1, 2)) == first  # the same once more contradicts nothing
    with pytest.raises(EndorsementRefused):  # nor another epoch's: it is another digest
        await committee.endorse(replace(batch(1, 1, 2), batch=replace(batch(1, 1, 2).batch, epoch=2)))


async def test_the_same_nonce_of_another_gateway_is_another_batch(validators: Validators) -> None:
    committee = validators.opened()
    await committee.endorse(batch(1))
    other = batch_of(1, [make_charge(7, 100, make_voucher(500, gateway=OTHER))], gateway=OTHER)
    check_quorum(await committee.endorse(other), digest_of(other))


async def test_a_batch_that_never_came_is_made_again_under_a_higher_nonce(validators: Validators) -> None:
    committee = validators.opened()
    await committee.endorse(batch(3, 1, 2))
    await committee.endorse(batch(4, 1, 2, 3))
    with pytest.raises(EndorsementRefused, match="signed under nonce 4; use 5") as refused:
        await committee.endorse(batch(2, 2))
    assert refused.value.next_nonce == 5


async def test_a_settled_receipt_is_never_signed_again(validators: Validators) -> None:
    """It was in two batches; the first of them is on chain, though it was signed again since."""
    committee, chain = validators.opened(), validators.chain
    await committee.endorse(batch(1, 1, 2))
    await committee.endorse(batch(2, 1, 2, 3))
    chain.settled, chain.spent = [1], 200
    committee = validators.opened()
    with pytest.raises(EndorsementRefused, match="2 receipts are settled already") as refused:
        await committee.endorse(batch(3, 1, 2, 3, spent=200))
    first = [make_charge(n, 100, 10_000).receipt.receipt.request_id for n in (1, 2)]
    assert refused.value.settled == dict.fromkeys(first, 1)
    left = batch(3, 3, spent=200)
    check_quorum(await committee.endorse(left), digest_of(left))


async def test_a_receipt_is_not_signed_for_two_gateways(validators: Validators) -> None:
    """Its client has channels with both; the request does not say which of them served it."""
    committee = validators.opened()
    await committee.endorse(batch(1, 1))
    elsewhere = make_charge(1, 100, make_voucher(500, gateway=OTHER))
    with pytest.raises(EndorsementRefused, match="in a batch of another gateway"):
        await committee.endorse(batch_of(9, [elsewhere], gateway=OTHER))


async def test_two_batches_at_once_are_not_both_signed_by_chance(validators: Validators) -> None:
    """Both are looked at before either is remembered: the later one is refused, and right when it is asked again."""
    committee, both = validators.opened(), asyncio.Barrier(2)
    await committee.endorse(batch(1, 1))  # so that both wait for the chain

    async def inspect(statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        await both.wait()

    validators.chain.inspect = inspect  # type: ignore[method-assign]
    results = await asyncio.gather(
        committee.endorse(batch(3, 1, 2)), committee.endorse(batch(2, 1, 3)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, EndorsementRefused)]
    assert len(refused) == 1
    assert "meanwhile; ask again" in str(refused[0])


async def test_a_nonce_that_is_passed_or_out_of_reach_is_refused(validators: Validators) -> None:
    committee, validators.chain.settled = validators.opened(), [7]
    for nonce in (0, 7, 2**32 + 8, 2**64 - 1):
        with pytest.raises(EndorsementRefused, match="does not follow 7") as refused:
            await committee.endorse(batch(nonce))
        assert refused.value.next_nonce == 8
    await committee.endorse(batch(2**32 + 7))


async def test_a_chain_that_does_not_answer_is_no_refusal(validators: Validators) -> None:
    validators.chain.broken = True
    with pytest.raises(ChainError):
        await validators.opened().endorse(batch(1))


# --- escrow ---

MANIFEST = priced(base_wei=50, unit_wei=2)
REQUEST = make_request(1, manifest=MANIFEST, limit_units=100, payment="escrow")
TERMS = EscrowTerms(CLIENT.address, 4, GATEWAY.address, NODE.address, 250, 1, NOW_S + 60, REQUEST.request_hash)
ESCROW = digests.escrow_id(DOMAIN, TERMS.client, TERMS.nonce)
OFFER = TermsStatement(TERMS, ESCROW, REQUEST, 50, 2)
DONE = CompletionStatement(TERMS, ESCROW, make_receipt(REQUEST, 240))
FAILED = FailureStatement(TERMS, ESCROW, "the node left", GATEWAY.sign(digests.failure_digest(DOMAIN, ESCROW)).value)


async def test_terms_are_signed(validators: Validators) -> None:
    quorum = await validators.opened().endorse(OFFER)
    check_quorum(quorum, digests.preprocess_digest(DOMAIN, ESCROW, TERMS))


STRANGER = fake_signer("stranger")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (replace(OFFER, escrow_id=bytes(32)), "the escrow of these terms is"),
        (replace(OFFER, base_fee_wei=49), "100 units cost 249 wei, not 250"),
        (replace(OFFER, unit_fee_wei=3), "100 units cost 350 wei, not 250"),
        (replace(OFFER, terms=replace(TERMS, amount_wei=251)), "cost 250 wei, not 251"),
        (replace(OFFER, terms=replace(TERMS, request_hash=bytes(32))), "not of this request"),
        (replace(OFFER, request=replace(REQUEST, signature=make_request(2).signature)), "the request is signed by"),
        (replace(OFFER, request=replace(REQUEST, signature=b"")), "signature"),
        (replace(OFFER, request=replace(REQUEST, limit_units=99)), "not of this request"),
        (replace(OFFER, terms=replace(TERMS, expiry_s=NOW_S)), f"expired at {NOW_S}"),
        (
            replace(
                OFFER,
                terms=replace(TERMS, client=STRANGER.address),
                escrow_id=digests.escrow_id(DOMAIN, STRANGER.address, 4),
            ),
            "not of this request",
        ),
    ],
)
async def test_wrong_terms_are_refused(validators: Validators, wrong: TermsStatement, why: str) -> None:
    with pytest.raises(EndorsementRefused, match=why):
        await validators.opened().endorse(wrong)


async def test_a_client_may_ask_twice_before_it_pays(validators: Validators) -> None:
    committee = validators.opened()
    second = replace(TERMS, node=fake_signer("node 2").address)
    await committee.endorse(OFFER)
    check_quorum(
        await committee.endorse(replace(OFFER, terms=second)), digests.preprocess_digest(DOMAIN, ESCROW, second)
    )


async def test_a_result_is_signed(validators: Validators) -> None:
    validators.chain.escrowed = [TERMS]
    receipt = DONE.receipt.receipt
    digest = digests.completion_digest(DOMAIN, ESCROW, receipt.output_hash, 240)
    check_quorum(await validators.opened().endorse(DONE), digest)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (replace(DONE, escrow_id=bytes(32)), "the escrow of these terms is"),
        (replace(DONE, receipt=make_receipt(REQUEST, 251)), "a fee of 251 wei passes the 250 in escrow"),
        (replace(DONE, receipt=make_receipt(make_request(2), 240)), "not of this escrow's node and request"),
        (replace(DONE, receipt=make_receipt(REQUEST, 240, STRANGER)), "not of this escrow's node and request"),
        (replace(DONE, receipt=replace(DONE.receipt, signatures=())), "a signature of 0 bytes"),
        (replace(DONE, receipt=replace(make_receipt(REQUEST, 239), receipt=DONE.receipt.receipt)), "is signed by"),
    ],
)
async def test_a_wrong_result_is_refused(validators: Validators, wrong: CompletionStatement, why: str) -> None:
    committee, validators.chain.escrowed = validators.opened(), [TERMS]
    with pytest.raises(EndorsementRefused, match=why):
        await committee.endorse(wrong)
    await committee.endorse(DONE)


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(("first", "second"), [(DONE, FAILED), (FAILED, DONE)])
async def test_an_escrow_ends_one_way(validators: Validators, first: Any, second: Any, reopened: bool) -> None:
    committee, validators.chain.escrowed = validators.opened(), [TERMS]
    quorum = await committee.endorse(first)
    committee = validators.opened() if reopened else committee
    for _ in range(2):
        with pytest.raises(EndorsementRefused, match="another statement was signed for the escrow"):
            await committee.endorse(second)
    assert await committee.endorse(first) == quorum


async def test_two_results_of_one_escrow_are_never_signed(validators: Validators) -> None:
    committee, validators.chain.escrowed = validators.opened(), [TERMS]
    await committee.endorse(DONE)
    with pytest.raises(EndorsementRefused, match="another statement was signed"):
        await committee.endorse(replace(DONE, receipt=make_receipt(REQUEST, 239)))


async def test_node_and_gateway_do_not_decide_on_their_own_escrow(validators: Validators) -> None:
    terms = replace(TERMS, node=VALIDATORS[1].address, gateway=VALIDATORS[3].address)
    validators.chain.escrowed = [terms]
    digest = digests.failure_digest(DOMAIN, ESCROW)
    statement = FailureStatement(terms, ESCROW, "lost", VALIDATORS[3].sign(digest).value)
    signers = check_quorum(await validators.opened().endorse(statement), digest)
    assert signers == [VALIDATORS[i].address for i in (0, 2, 4)]


async def test_a_memory_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    path = tmp_path / "validators.db"
    await asyncio.to_thread(path.write_bytes, b"no database" * 100)
    with pytest.raises(StoreError, match=r"the validators' memory .* cannot be opened"):
        ValidatorMemory(path)


# --- terms that are not those in escrow ---


async def test_nobody_decides_on_an_escrow_with_terms_of_their_own(validators: Validators) -> None:
    """What is signed names the escrow and not its node or gateway: whoever is in the terms might be anybody."""
    committee, validators.chain.escrowed = validators.opened(), [TERMS]
    own = replace(TERMS, node=STRANGER.address, gateway=STRANGER.address)
    digest = digests.failure_digest(DOMAIN, ESCROW)
    for statement in (
        FailureStatement(own, ESCROW, "nothing came", STRANGER.sign(digest).value),
        CompletionStatement(own, ESCROW, make_receipt(REQUEST, 240, STRANGER)),
    ):
        with pytest.raises(EndorsementRefused, match="these terms are not in escrow"):
            await committee.vouch(statement, {})
    validators.chain.escrowed = []
    with pytest.raises(EndorsementRefused, match="these terms are not in escrow"):
        await committee.vouch(DONE, {})


@pytest.mark.parametrize("signer", [CLIENT, NODE, STRANGER])
async def test_that_a_request_failed_its_gateway_says(validators: Validators, signer: Signer) -> None:
    committee, validators.chain.escrowed = validators.opened(), [TERMS]
    signature = signer.sign(digests.failure_digest(DOMAIN, ESCROW)).value
    for wrong in (replace(FAILED, signature=signature), replace(FAILED, signature=b"")):
        with pytest.raises(EndorsementRefused, match=r"the failure is signed by|a signature of 0 bytes"):
            await committee.vouch(wrong, {})
    await committee.endorse(DONE)  # nothing of it was remembered


# --- what may be signed by whom, and what others object to ---


async def test_every_key_that_may_sign_does(validators: Validators) -> None:
    committee, statement = validators.opened(VALIDATORS[1:]), batch(1)
    signatures = await committee.vouch(statement, {})
    assert [one.signer for one in signatures] == [validator.address for validator in VALIDATORS[1:]]
    assert [recover(digest_of(statement), one.value) for one in signatures] == [one.signer for one in signatures]


async def test_who_may_not_sign_does_not_look(validators: Validators) -> None:
    strangers = validators.opened([STRANGER])
    with pytest.raises(EndorsementRefused, match="no validator of this process may sign this in epoch 1"):
        await strangers.vouch(batch(1), {})
    for epoch in (0, -1):
        with pytest.raises(EndorsementRefused, match="there is no epoch"):
            await validators.opened().vouch(batch_of(1, [make_charge(1, 100, 10_000)], epoch=epoch), {})
    assert validators.chain.inspected == []


async def test_a_batch_that_passes_a_deposit_is_refused(validators: Validators) -> None:
    committee, validators.chain.deposited = validators.opened(), 199
    with pytest.raises(EndorsementRefused, match="come to 200 wei; its channel has 199 wei"):
        await committee.endorse(batch(1))
    validators.chain.deposited = 200
    await committee.endorse(batch(1))


async def test_nothing_is_executed_for_what_is_refused_anyway(validators: Validators) -> None:
    committee, right = validators.opened(), batch(1)
    for wrong in (replace(right, claims=right.claims[:-1]), batch(0), batch(1, spent=1)):
        with pytest.raises(EndorsementRefused):
            await committee.vouch(wrong, {})
    assert validators.chain.inspected == []


async def test_what_a_plugin_objects_to_is_not_signed_nor_remembered(validators: Validators) -> None:
    committee, chain = validators.opened(), validators.chain
    chain.objection = EndorsementRefused("a result is wrong", invalid=[id_of(1)])
    for _ in range(2):
        with pytest.raises(EndorsementRefused, match="a result is wrong") as refused:
            await committee.endorse(batch(1))
        assert refused.value.invalid == {id_of(1)}
    chain.objection = None
    await committee.endorse(batch(1, 2))  # the nonce is free


async def test_an_error_of_another_plugin_is_a_refusal(validators: Validators) -> None:
    async def inspect(statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        raise SignatureRejected("the request is signed by somebody")

    validators.chain.inspect = inspect  # type: ignore[method-assign]
    with pytest.raises(EndorsementRefused, match="the request is signed by somebody"):
        await validators.opened().vouch(batch(1), {})


async def test_what_is_wanted_is_shown(validators: Validators) -> None:
    committee, chain = validators.opened(), validators.chain
    chain.objection = EndorsementRefused("show them", wanted=[id_of(1), id_of(2)])
    chain.kept = {id_of(n): evidence_of(n) for n in (1, 2)}
    statement = batch(1)
    check_quorum(await committee.endorse(statement), digest_of(statement))
    assert [shown for _, shown in chain.inspected] == [frozenset(), {id_of(1), id_of(2)}]


@pytest.mark.parametrize("kept", [[], [1]])
async def test_what_is_wanted_and_gone_is_said(validators: Validators, kept: list[int]) -> None:
    committee, chain = validators.opened(), validators.chain
    chain.objection = EndorsementRefused("show them", wanted=[id_of(1), id_of(2)])
    chain.kept = {id_of(n): evidence_of(n) for n in kept}
    with pytest.raises(EndorsementRefused, match="show them") as refused:
        await committee.endorse(batch(1))
    assert refused.value.wanted == {id_of(1), id_of(2)}
    assert len(chain.inspected) == 1 + len(kept)


async def test_one_who_wants_ever_more_is_not_followed_for_ever(validators: Validators) -> None:
    committee, chain = validators.opened(), validators.chain
    chain.kept = {id_of(n): evidence_of(n) for n in range(1, 30)}
    chain.objection = EndorsementRefused("show one more", wanted=[])

    async def inspect(statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        chain.inspected.append((statement, frozenset(evidence)))
        raise EndorsementRefused("show one more", wanted=[id_of(len(chain.inspected))])

    chain.inspect = inspect  # type: ignore[method-assign]
    with pytest.raises(EndorsementRefused, match="show one more"):
        await committee.endorse(batch(1))
    assert len(chain.inspected) == 8


# --- two processes, one memory ---


async def test_two_processes_with_one_memory_are_one(validators: Validators) -> None:
    one, other, validators.chain.escrowed = validators.opened(), validators.beside(), [TERMS]
    await one.vouch(batch(1, 1, 2), {})
    assert await other.vouch(batch(1, 1, 2), {}) == await one.vouch(batch(1, 1, 2), {})
    with pytest.raises(EndorsementRefused, match="another batch of this gateway was signed under nonce 1"):
        await other.vouch(batch(1, 3), {})
    await other.vouch(DONE, {})
    with pytest.raises(EndorsementRefused, match="another statement was signed"):
        await one.vouch(FAILED, {})


# --- verdicts ---

WRONG = make_receipt(REQUEST, 240)
VERDICT = VerdictStatement(DISPUTES, 2, WRONG, "chunk 1 differs")
SHOWN = {REQUEST.request_id: Evidence(REQUEST, (), WRONG, MANIFEST)}


def evidence_of(number: int) -> Evidence:
    request = make_request(number)
    return Evidence(request, (), make_receipt(request, 100), MANIFEST)


async def test_a_verdict_is_signed_again_and_again(validators: Validators) -> None:
    committee = validators.opened()
    first = await committee.vouch(VERDICT, SHOWN)
    assert len(first) == 5
    assert recover(statements.digest_of(DOMAIN, VERDICT), first[0].value) == VALIDATORS[0].address
    assert await committee.vouch(VERDICT, SHOWN) == first
    assert await committee.vouch(replace(VERDICT, epoch=3), SHOWN) != first  # a later epoch's may have to


async def test_the_node_does_not_judge_itself(validators: Validators) -> None:
    receipt = make_receipt(REQUEST, 240, VALIDATORS[2])
    shown = {REQUEST.request_id: replace(SHOWN[REQUEST.request_id], receipt=receipt)}
    signed = await validators.opened().vouch(replace(VERDICT, receipt=receipt), shown)
    assert [one.signer for one in signed] == [VALIDATORS[n].address for n in (0, 1, 3, 4)]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (replace(VERDICT, contract=bytes(20)), "this network's DisputeManager is"),
        (replace(VERDICT, receipt=make_receipt(make_request(2), 240)), "for an answer that is shown"),
        (replace(VERDICT, receipt=make_receipt(REQUEST, 239)), "of another receipt"),
        (replace(VERDICT, receipt=replace(WRONG, signatures=())), "a signature of 0 bytes"),
        (
            replace(VERDICT, receipt=replace(make_receipt(REQUEST, 239), receipt=WRONG.receipt)),
            "the receipt is signed by",
        ),
        (replace(VERDICT, epoch=0), "there is no epoch 0"),
    ],
)
async def test_a_wrong_verdict_is_refused(validators: Validators, wrong: VerdictStatement, why: str) -> None:
    with pytest.raises(EndorsementRefused, match=why):
        await validators.opened().vouch(wrong, SHOWN)
    assert validators.chain.inspected == []


async def test_a_verdict_that_nobody_confirms_is_not_signed(validators: Validators) -> None:
    committee, chain = validators.opened(), validators.chain
    chain.objection = EndorsementRefused("the result is right")
    with pytest.raises(EndorsementRefused, match="the result is right"):
        await committee.vouch(VERDICT, SHOWN)
    with pytest.raises(EndorsementRefused, match="for an answer that is shown") as refused:
        await committee.vouch(VERDICT, {})
    assert refused.value.wanted == {REQUEST.request_id}
    chain.objection, chain.escrowed = None, [TERMS]
    await committee.endorse(DONE)  # nothing was remembered against it


async def test_what_was_called_wrong_is_never_paid(validators: Validators) -> None:
    committee, chain = validators.opened(), validators.chain
    chain.escrowed = [TERMS]
    await committee.vouch(VERDICT, SHOWN)
    with pytest.raises(EndorsementRefused, match="1 receipts are of wrong results") as refused:
        await committee.endorse(DONE)
    assert refused.value.invalid == {REQUEST.request_id}
    lie = make_charge(1, 100, 10_000).receipt
    await committee.vouch(replace(VERDICT, receipt=lie), {id_of(1): evidence_of(1)})
    with pytest.raises(EndorsementRefused, match="1 receipts are of wrong results") as refused:
        await committee.endorse(batch(1, 1, 2))
    assert refused.value.invalid == {id_of(1)}
    await committee.endorse(batch(1, 2))
    honest = make_charge(1, 100, 10_000, node=fake_signer("node 2"))  # who did the same request afterwards
    await committee.endorse(batch_of(2, [honest]))


# --- performances ---

MEMBERS = sorted(validator.address for validator in VALIDATORS)
DONE_WORK = PerformancesStatement(DISPUTES, 2, 1, tuple(Performance(one, 9, 1, 0) for one in MEMBERS))


async def test_several_who_count_a_little_differently_are_signed(validators: Validators) -> None:
    committee = validators.opened()
    other = replace(DONE_WORK, performances=(Performance(MEMBERS[0], 10, 0, 0), *DONE_WORK.performances[1:]))
    for statement in (DONE_WORK, other):  # one of them is reported; ncn_inspect says which are near enough
        assert len(await committee.vouch(statement, {})) == 5


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (replace(DONE_WORK, contract=bytes(20)), "this network's DisputeManager is"),
        (replace(DONE_WORK, performances=()), "there is one"),
        (replace(DONE_WORK, performances=DONE_WORK.performances[::-1]), "ascending order"),
        (replace(DONE_WORK, performances=DONE_WORK.performances[:1] * 2), "ascending order"),
        (replace(DONE_WORK, performances=(Performance(b"\xff" * 20, 1, 0, 0),)), "was no validator of epoch 1"),
        (replace(DONE_WORK, period=2), "epoch 2 is not over"),
        (replace(DONE_WORK, period=0), "epoch 0 is not over"),
    ],
)
async def test_wrong_performances_are_refused(validators: Validators, wrong: PerformancesStatement, why: str) -> None:
    with pytest.raises(EndorsementRefused, match=why):
        await validators.opened().vouch(wrong, {})
    assert validators.chain.inspected == []


# --- who says nothing about conduct ---

SUBNET = SubnetStatement(2, Record("subnet", GATEWAY.address, 1, 2**42, b"models"))


@pytest.mark.parametrize("statement", [VERDICT, DONE_WORK, SUBNET])
async def test_who_executes_nothing_again_says_nothing_about_conduct(
    validators: Validators, statement: Statement
) -> None:
    committee = validators.opened(inspected=False)
    with pytest.raises(EndorsementRefused, match="this process executes nothing again"):
        await committee.vouch(statement, SHOWN)


@pytest.mark.parametrize("statement", [VERDICT, DONE_WORK, SUBNET])
async def test_an_epoch_that_is_over_judges_nobody(validators: Validators, statement: Statement) -> None:
    committee = validators.opened()
    committee.clock = lambda: (NOW_S + 1) * 1000
    with pytest.raises(EndorsementRefused, match="epoch 2 is over"):
        await committee.vouch(statement, SHOWN)


# --- a gateway that lies as it can ---


@pytest.mark.parametrize("seed", range(8))
async def test_no_receipt_is_paid_twice_whatever_a_gateway_asks_for(validators: Validators, seed: int) -> None:
    """It has any batch signed that they sign, keeps what it likes, and sends it in any order that the contract takes.

    The contract is told by its rules: nonces rise; a claim's total passes what was spent; credits are within a unit
    for each receipt of 80 % of what is drawn.
    """
    draw, committee, chain = random.Random(seed), validators.opened(), validators.chain
    signed, by_nonce = list[BatchStatement](), dict[int, bytes]()
    landed, refused = list[int](), 0
    for _ in range(200):
        if draw.random() < 0.1:
            committee = validators.opened()
        if draw.random() < 0.8 or not signed:
            numbers = draw.sample(range(12), draw.randrange(1, 4))
            last = chain.settled[-1] if chain.settled else 0
            nonce = max(by_nonce, default=0) + 1 if draw.random() < 0.7 else last + draw.randrange(1, 4)
            asked = batch(nonce, *numbers, spent=chain.spent)
            try:
                await committee.endorse(asked)
            except EndorsementRefused:
                refused += 1
                continue
            digest = digest_of(asked)
            assert by_nonce.setdefault(asked.batch.nonce, digest) == digest
            signed.append(asked)
        else:
            sent = draw.choice(signed)
            last = chain.settled[-1] if chain.settled else 0
            drawn = sent.claims[0].total_wei - chain.spent
            credited = sum(credit.amount_wei for credit in sent.credits)
            most = drawn * 80 // 100
            if sent.batch.nonce > last and drawn > 0 and most - sent.batch.count <= credited <= most:
                chain.settled.append(sent.batch.nonce)
                chain.spent += drawn
                landed += [number for number in range(12) if id_of(number) in ids_of(sent)]
    assert len(landed) == len(set(landed)), "a receipt was paid twice"
    assert chain.spent == 100 * len(landed)
    assert len(landed) > 5
    assert refused > 10


@cache
def id_of(number: int) -> bytes:
    return make_request(number).request_id


def ids_of(statement: BatchStatement) -> set[bytes]:
    return {charge.receipt.receipt.request_id for charge in statement.charges}
