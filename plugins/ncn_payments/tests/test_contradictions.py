"""Validators that contradict themselves, reported through the hook: on real contracts, with real stakes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ncn_framework.digests import escrow_id
from ncn_framework.errors import MalformedRequest, TransactionReverted
from ncn_framework.models import Domain
from ncn_framework.payments import Batch, EscrowTerms
from ncn_framework.signing import Signer
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Contradiction,
    FailureStatement,
    Statement,
    digest_of,
)
from ncn_payments.stakes import Stakes

from .network import VALIDATORS
from .payments import GATEWAY, NODE, make_receipt, make_request
from .test_watch import Judged, home, judged

__all__ = ["home", "judged"]


def contradiction(domain: Domain, signer: Signer, first: Statement, second: Statement) -> Contradiction:
    """Return what a validator is caught with that has signed both."""
    signatures = [signer.sign(digest_of(domain, statement)).value for statement in (first, second)]
    return Contradiction(signer.address, first, second, signatures[0], signatures[1])


def two_batches(number: int) -> tuple[BatchStatement, BatchStatement]:
    """Return two batches of one gateway with one nonce, of an epoch."""
    head = Batch(GATEWAY.address, 2**40, number, 1, *(bytes([n]) * 32 for n in range(4)))
    first, second = (BatchStatement(replace(head, count=count), (), (), ()) for count in (1, 2))
    return first, second


def two_decisions(domain: Domain) -> tuple[CompletionStatement, FailureStatement]:
    """Return how an escrow was completed, and that it failed."""
    request = make_request(9, domain=domain)
    receipt = make_receipt(request, 7, domain=domain)
    node, gateway = receipt.receipt.node, GATEWAY.address
    terms = EscrowTerms(request.client, 1, gateway, node, 7, 1, 2**40, request.request_hash)
    escrow = escrow_id(domain, terms.client, terms.nonce)
    return CompletionStatement(terms, escrow, receipt), FailureStatement(terms, escrow, "it failed", bytes(65))


async def test_a_validator_that_contradicts_itself_loses_half(judged: Judged) -> None:
    """Once for each thing it said twice, whoever reports it, and without anybody's signature but its own."""
    domain, stakes, cheat = judged.registry.domain, Stakes(judged.contracts), VALIDATORS[2]
    number = (await judged.registry.validation.epoch()).number
    before = (await stakes.standing(cheat.address)).stake_wei
    assert before == 20_000 * 10**18
    batches = contradiction(domain, cheat, *two_batches(number))
    transaction = await judged.registry.validation.report(batches, None)
    assert len(transaction) == 66
    assert await judged.registry.validation.report(batches, None) == transaction
    for reporter in (judged.registry, judged.gateway):
        with pytest.raises(TransactionReverted) as refused:
            await reporter.validation.report(contradiction(domain, cheat, *reversed(two_batches(number))), None)
        assert refused.value.reason == "ValidatorRegistry__EvidenceUsed"
    standing = await stakes.standing(cheat.address)
    assert (standing.state, standing.stake_wei, standing.reputation) == ("active", before // 2, -20)
    await judged.gateway.validation.report(contradiction(domain, cheat, *two_decisions(domain)), None)
    standing = await stakes.standing(cheat.address)
    assert (standing.state, standing.stake_wei) == ("jailed", before // 4)
    other = contradiction(domain, VALIDATORS[3], *two_batches(number))
    await judged.registry.validation.report(other, None)
    assert (await stakes.standing(VALIDATORS[3].address)).stake_wei == before // 2


async def test_what_a_validator_did_not_sign_costs_it_nothing(judged: Judged) -> None:
    domain, stakes, honest, forger = judged.registry.domain, Stakes(judged.contracts), VALIDATORS[2], NODE
    first, second = two_batches((await judged.registry.validation.epoch()).number)
    true, forged = contradiction(domain, honest, first, second), contradiction(domain, forger, first, second)
    before = await stakes.standing(honest.address)
    for proof, why in (
        (replace(true, second_signature=forged.second_signature), "DisputeManager__DifferentSigners"),
        (replace(true, second_signature=true.first_signature), "DisputeManager__DifferentSigners"),
        (replace(true, second=first, second_signature=true.first_signature), "DisputeManager__NoConflict"),
        (replace(forged, validator=honest.address), "ValidatorRegistry__WrongState"),
    ):
        with pytest.raises(TransactionReverted) as refused:
            await judged.registry.validation.report(proof, None)
        assert refused.value.reason == why
    with pytest.raises(MalformedRequest, match="BatchStatement and FailureStatement are none"):
        await judged.registry.validation.report(replace(true, second=two_decisions(domain)[1]), None)
    assert await stakes.standing(honest.address) == before
