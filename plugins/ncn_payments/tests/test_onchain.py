"""The contracts in this project's words: digests that the contract computes as well, and what it does when told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ncn_framework import digests
from ncn_framework.errors import ChainError, PaymentRequired, TransactionReverted
from ncn_framework.payments import EscrowTerms, Quorum
from ncn_framework.signing import recover
from ncn_framework.statements import BatchStatement
from ncn_framework.testing.fakes import fake_signer
from ncn_payments import batches
from ncn_payments.accounts import Deposit

from .conftest import KINDS
from .network import CLIENTS, NODES, Network
from .payments import CLIENT, GATEWAY, NODE, make_charge, make_transfer, proof_of

SESSION = fake_signer("session")


def charges_in(network: Network, count: int = 7) -> list[Any]:
    charges, owed = [], [0] * len(CLIENTS)
    for number in range(count):
        which, fee = number % 3, 1_000 + number
        owed[which] += fee
        voucher = network.voucher(owed[which] + number, CLIENTS[which])
        node, client = NODES[number % 4], CLIENTS[which]
        charges.append(make_charge(number, fee, voucher, node, client, network.domain))
    return charges


def statement_in(network: Network) -> BatchStatement:
    charges = charges_in(network)
    spent = {batches.channel_of(charge): 0 for charge in charges}
    return batches.build(GATEWAY.address, 2**40, 7, charges, spent)


def head_of(statement: BatchStatement) -> tuple[Any, ...]:
    return tuple(vars(statement.batch).values())


def terms_in(client: bytes = CLIENT.address, **changes: Any) -> EscrowTerms:
    terms = EscrowTerms(client, 5, GATEWAY.address, NODE.address, 2**90 + 1, 3, 2**33, b"\x17" * 32)
    return replace(terms, **changes)


# --- the same digests on both sides ---


async def test_digests_of_a_batch_are_the_contracts(network: Network) -> None:
    payment, statement = network.contracts.payment, statement_in(network)
    assert len(statement.claims) == 3
    claims = []
    for claim in statement.claims:
        compact = digests.compact_signature(claim.voucher.signature)
        voucher = claim.voucher
        claims.append(
            (voucher.client, voucher.signer, voucher.cumulative_wei, claim.total_wei, compact[:32], compact[32:])
        )
    credits_ = [(credit.payee, credit.amount_wei) for credit in statement.credits]
    assert await payment.read("hashClaims", claims) == digests.claims_hash(statement.claims)
    assert await payment.read("hashCredits", credits_) == digests.credits_hash(statement.credits)
    assert await payment.read("hashClaims", []) == digests.claims_hash([])
    assert await payment.read("hashCredits", []) == digests.credits_hash([])
    assert await payment.read("hashBatch", head_of(statement)) == digests.batch_digest(network.domain, statement.batch)


@pytest.mark.parametrize("count", [1, 2, 5, 7])
async def test_receipts_are_proved_to_openzeppelin(network: Network, count: int) -> None:
    """A report of a receipt gets past its proof, to the signature that this one lacks; not past a false one."""
    chain, disputes = await network.onchain(), network.contracts.disputes
    charges = charges_in(network, count)
    spent = {batches.channel_of(charge): 0 for charge in charges}
    head = head_of(batches.build(GATEWAY.address, 1, 1, charges, spent))
    for at, charge in enumerate(charges):
        receipt = charge.receipt.receipt
        row = (
            receipt.request_id,
            batches.channel_of(charge),
            receipt.node,
            receipt.fee_wei,
            receipt.model,
            charge.inputs_hash,
            receipt.output_hash,
        )
        assert await disputes.read("hashReceipt", row) == digests.charge_leaf(charge)
        for proof, reason in ((proof_of(charges, at), "ECDSAInvalidSignatureLength"), ([bytes(32)], "NotInBatch")):
            report = disputes.call("reportInvalidReceipt", head, b"", row, proof, (1, 0, b""))
            with pytest.raises(TransactionReverted, match=reason):
                await disputes.simulate(report, chain.writer.address)


async def test_digests_of_a_channel_are_the_contracts(network: Network) -> None:
    payment = network.contracts.payment
    channel = digests.channel_id(CLIENT.address, SESSION.address, GATEWAY.address)
    assert await payment.read("channelId", CLIENT.address, SESSION.address, GATEWAY.address) == channel
    for amount in (0, 1, 2**96 - 1):
        digest = digests.voucher_digest(network.domain, channel, amount)
        assert await payment.read("hashVoucher", channel, amount) == digest
        assert recover(digest, network.voucher(amount, CLIENT, SESSION).signature) == SESSION.address


async def test_digests_of_an_escrow_are_the_contracts(network: Network) -> None:
    payment, terms = network.contracts.payment, terms_in()
    fields, output = tuple(vars(terms).values()), b"\x18" * 32
    identity = digests.escrow_id(network.domain, terms.client, terms.nonce)
    commitment = digests.preprocess_commitment(terms)
    assert await payment.read("requestId", terms.client, terms.nonce) == identity
    assert await payment.read("hashRequest", fields) == commitment
    assert await payment.read("hashPreprocess", identity, commitment) == digests.preprocess_digest(
        network.domain, identity, terms
    )
    for fee in (0, 2**96 - 1):
        digest = digests.completion_digest(network.domain, identity, output, fee)
        assert await payment.read("hashCompletion", identity, output, fee) == digest
    assert await payment.read("hashFailure", identity) == digests.failure_digest(network.domain, identity)


async def test_a_transfers_digest_is_the_tokens(network: Network) -> None:
    """The token takes what was signed over our digest, in a simulation."""
    chain = await network.onchain()
    await chain.simulate_transfer(make_transfer(10**18, network.token))
    with pytest.raises(TransactionReverted):
        await chain.simulate_transfer(make_transfer(10**18, replace(network.token, chain_id=1)))


# --- channels ---


@pytest.mark.parametrize("network", KINDS, indirect=True)
async def test_a_channel_is_paid_into_and_left(network: Network) -> None:
    chain = await network.onchain(CLIENT)
    before = await chain.tokens(CLIENT.address)
    channel = digests.channel_id(CLIENT.address, SESSION.address, GATEWAY.address)
    assert await chain.deposit(channel) == Deposit(0, 0)
    await chain.fund(CLIENT.address, SESSION.address, GATEWAY.address, 100, "first")
    await chain.fund(CLIENT.address, SESSION.address, GATEWAY.address, 100, "first")  # one name, one payment
    await chain.fund(CLIENT.address, SESSION.address, GATEWAY.address, 50, "second")
    assert await chain.deposit(channel) == Deposit(150, 0)
    await chain.leave(SESSION.address, GATEWAY.address, "leave")
    assert (await chain.deposit(channel)).unlock_at_s > await network.now_s()
    await chain.stay(SESSION.address, GATEWAY.address, "stay")
    assert (await chain.deposit(channel)).unlock_at_s == 0
    await chain.leave(SESSION.address, GATEWAY.address, "leave again")
    with pytest.raises(TransactionReverted) as refused:
        await chain.withdraw(CLIENT.address, SESSION.address, GATEWAY.address, "too early")
    assert refused.value.reason == "InferencePayment__StillLocked"
    await network.pass_time(61)
    await chain.withdraw(CLIENT.address, SESSION.address, GATEWAY.address, "withdraw")
    assert await chain.deposit(channel) == Deposit(0, 0)
    assert await chain.tokens(CLIENT.address) == before


async def test_several_channels_at_once(network: Network) -> None:
    chain = await network.onchain()
    channels = [await network.deposit(10 + n, client) for n, client in enumerate(CLIENTS)]
    unknown = [bytes([n]) * 32 for n in range(40)]
    found = await chain.deposits([*channels, *unknown])
    assert [found[channel].deposited_wei for channel in channels] == [10, 11, 12, 13]
    assert all(found[channel] == Deposit(0, 0) for channel in unknown)
    assert await chain.deposits([]) == {}


async def test_a_wallet_without_tokens_is_told_so(network: Network) -> None:
    chain = await network.onchain(fake_signer("poor"))
    with pytest.raises(PaymentRequired, match=r"5 wei of the token are needed; this wallet has 0"):
        await chain.fund(CLIENT.address, CLIENT.address, GATEWAY.address, 5, "key")


# --- validators ---


async def test_the_validators_are_those_of_the_epoch(network: Network) -> None:
    chain = await network.onchain()
    members = await chain.members(1)
    assert len(set(members)) == 5
    assert await chain.members(1) is members  # they never change


# --- transactions ---


async def test_a_transaction_that_did_not_happen_confirms_nothing(network: Network) -> None:
    chain = await network.onchain()
    with pytest.raises(PaymentRequired, match="not on the chain yet"):
        await chain.confirmed(b"\x09" * 32)
    with pytest.raises(ChainError, match="has no transaction"):
        await chain.receipt(b"\x09" * 32)


async def test_a_batch_that_nobody_signed_is_refused_in_simulation(network: Network) -> None:
    chain, statement = await network.onchain(), statement_in(network)
    with pytest.raises(TransactionReverted) as refused:
        await chain.simulate_batch(statement, Quorum(1, 0, ()))
    assert chain.refused_claim(refused.value) is None
    assert not await chain.is_settled(GATEWAY.address, statement.batch.nonce)
    assert await chain.settled_in(statement) is None
