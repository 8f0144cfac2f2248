"""Validators: they sign what is right, refuse everything else, and never contradict themselves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from ncn_framework import digests
from ncn_framework.errors import ChainError, EndorsementRefused, StoreError
from ncn_framework.payments import (
    BatchStatement,
    Charge,
    CompletionStatement,
    EscrowTerms,
    FailureStatement,
    Quorum,
    TermsStatement,
)
from ncn_framework.signing import Signer, recover
from ncn_framework.testing.fakes import ManualClock, fake_signer
from ncn_payments import batches
from ncn_payments.accounts import Deposit
from ncn_payments.committee import Committee
from ncn_payments.onchain import OnChain
from ncn_payments.validator_memory import ValidatorMemory

from .payments import CLIENT, DOMAIN, GATEWAY, NODE, make_charge, make_receipt, make_request, make_voucher, priced

VALIDATORS = [fake_signer(f"validator {n}") for n in range(5)]
CLOCK = ManualClock()
NOW_S = CLOCK.at_ms // 1000
OTHER = fake_signer("another gateway")


@dataclass
class Contracts:
    """What validators ask of the contracts.

    Attributes:
        validators: members of every epoch.
        settled: nonces of the gateway's batches on chain, the last of them the highest.
        spent: of every channel.
    """

    validators: Sequence[Signer] = tuple(VALIDATORS)
    settled: list[int] = field(default_factory=list)
    spent: int = 0
    broken: bool = False

    async def members(self, epoch: int) -> tuple[bytes, ...]:
        return tuple(validator.address for validator in self.validators)

    async def quorum_size(self, epoch: int) -> int:
        return max(3, len(self.validators) // 2 + 1)

    async def batch_nonce(self, gateway: bytes) -> int:
        if self.broken:
            raise ChainError("no answer")
        return self.settled[-1] if self.settled and gateway == GATEWAY.address else 0

    async def is_settled(self, gateway: bytes, nonce: int) -> bool:
        await asyncio.sleep(0)
        return gateway == GATEWAY.address and nonce in self.settled

    async def deposits(self, channels: Iterable[bytes]) -> dict[bytes, Deposit]:
        return {channel: Deposit(10**6, self.spent) for channel in channels}


class Validators:
    """A committee that can be closed and opened again, with what it remembers."""

    def __init__(self, folder: Path) -> None:
        self.path, self.chain, self.stack = folder / "validators.db", Contracts(), ExitStack()

    def opened(self, signers: Sequence[Signer] = VALIDATORS) -> Committee:
        """Return the committee, opened anew."""
        self.stack.close()
        committee = Committee(DOMAIN, signers, cast(OnChain, self.chain), ValidatorMemory(self.path), CLOCK)
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
    committee = validators.opened()
    await committee.endorse(batch(1, 1))  # so that both wait for the chain
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
FAILED = FailureStatement(TERMS, ESCROW, "the node left")


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
    committee = validators.opened()
    with pytest.raises(EndorsementRefused, match=why):
        await committee.endorse(wrong)
    await committee.endorse(DONE)


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(("first", "second"), [(DONE, FAILED), (FAILED, DONE)])
async def test_an_escrow_ends_one_way(validators: Validators, first: Any, second: Any, reopened: bool) -> None:
    committee = validators.opened()
    quorum = await committee.endorse(first)
    committee = validators.opened() if reopened else committee
    for _ in range(2):
        with pytest.raises(EndorsementRefused, match="another statement was signed for the escrow"):
            await committee.endorse(second)
    assert await committee.endorse(first) == quorum


async def test_two_results_of_one_escrow_are_never_signed(validators: Validators) -> None:
    committee = validators.opened()
    await committee.endorse(DONE)
    with pytest.raises(EndorsementRefused, match="another statement was signed"):
        await committee.endorse(replace(DONE, receipt=make_receipt(REQUEST, 239)))


async def test_node_and_gateway_do_not_decide_on_their_own_escrow(validators: Validators) -> None:
    terms = replace(TERMS, node=VALIDATORS[1].address, gateway=VALIDATORS[3].address)
    signers = check_quorum(
        await validators.opened().endorse(FailureStatement(terms, ESCROW, "lost")),
        digests.failure_digest(DOMAIN, ESCROW),
    )
    assert signers == [VALIDATORS[i].address for i in (0, 2, 4)]


async def test_a_memory_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    path = tmp_path / "validators.db"
    await asyncio.to_thread(path.write_bytes, b"no database" * 100)
    with pytest.raises(StoreError, match=r"the validators' memory .* cannot be opened"):
        ValidatorMemory(path)


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
