"""Stakes on a real chain: a node's bond, a verdict of a real quorum, jail and the way out of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ncn_framework import digests
from ncn_framework.errors import ConfigError, PaymentRequired, TransactionReverted
from ncn_framework.models import SignedReceipt
from ncn_framework.payments import Batch, Quorum
from ncn_framework.statements import (
    INVALID_RESULT,
    Performance,
    PerformancesStatement,
    Reputation,
    VerdictStatement,
    digest_of,
)
from ncn_payments.stakes import Decision, Stakes, Standing, StandingChange

from .conftest import KINDS
from .network import CLIENTS, VALIDATORS, Network
from .payments import CLIENT, GATEWAY, NODE
from .staking import NCN, advance, bonded, signed_by, stakes_of, verdict_on, wrong_receipt

BOND = 1_000 * NCN


# --- the same digests on both sides ---


async def test_digests_of_verdicts_and_performances_are_the_contracts(network: Network) -> None:
    disputes, receipt = network.contracts.disputes, wrong_receipt(network)
    digest = digests.receipt_digest(network.domain, receipt.receipt)
    assert await disputes.read("hashNodeReceipt", tuple(vars(receipt.receipt).values())) == digest
    verdict = VerdictStatement(disputes.address, 3, receipt, "")
    expected = await disputes.read("hashVerdict", INVALID_RESULT, NODE.address, digest, 3)
    assert digest_of(network.domain, verdict) == expected
    rows = (Performance(b"\x01" * 20, 2**32 - 1, 2, 3), Performance(b"\x02" * 20, 0, 0, 2**32 - 1))
    for performances in (rows, rows[:1], ()):
        statement = PerformancesStatement(disputes.address, 9, 8, performances)
        shown = [tuple(vars(row).values()) for row in performances]
        assert digest_of(network.domain, statement) == await disputes.read("hashPerformances", 8, shown, 9)


# --- a node ---


@pytest.mark.parametrize("network", KINDS, indirect=True)
async def test_a_node_bonds_is_slashed_jailed_and_freed(network: Network) -> None:
    stakes = await bonded(network)
    assert await stakes.standing(NODE.address) == Standing("bonded", BOND, 0, 0, 0, True)
    reporter, receipt = await stakes_of(network, CLIENT), wrong_receipt(network)
    start = await network.chain.block_number() + 1
    assert await stakes.changes(start) == ([], start)
    assert not await stakes.is_proven(NODE.address, receipt.receipt.request_id)
    statement, quorum = await verdict_on(network, receipt, reporter)
    sent = await reporter.report_result(statement, quorum, "report")
    assert await reporter.report_result(statement, quorum, "report") == sent  # the same transaction
    assert await stakes.standing(NODE.address) == Standing("jailed", BOND * 7 // 10, 0, -20, 0, True)
    assert await stakes.is_proven(NODE.address, receipt.receipt.request_id)
    jailed, following = await stakes.changes(start)
    assert jailed == [StandingChange(NODE.address, True, "invalid result", following - 1)]

    await stakes.add(BOND * 3 // 10 - 1, "too little")
    assert (await stakes.standing(NODE.address)).state == "jailed"
    assert (await stakes.changes(following))[0] == []
    await stakes.add(1, "enough")
    assert await stakes.standing(NODE.address) == Standing("bonded", BOND, 0, -20, 0, True)
    (freed,), last = await stakes.changes(following)
    assert freed == StandingChange(NODE.address, False, "stake was added", last - 1)
    assert (await stakes.changes(start))[0] == [*jailed, freed]


async def test_a_result_is_reported_once_whoever_reports(network: Network) -> None:
    await bonded(network)
    receipt = wrong_receipt(network)
    first, second = await stakes_of(network, CLIENTS[0]), await stakes_of(network, CLIENTS[1])
    statement, quorum = await verdict_on(network, receipt, first)
    await first.report_result(statement, quorum, "report")
    with pytest.raises(TransactionReverted) as refused:
        await second.report_result(statement, quorum, "report")
    assert refused.value.reason == "ValidatorRegistry__EvidenceUsed"
    other = await verdict_on(network, wrong_receipt(network, 2), second)
    await second.report_result(*other, "another")
    assert (await second.standing(NODE.address)).stake_wei == BOND * 49 // 100


async def test_what_is_no_proof_slashes_nobody(network: Network) -> None:
    reporter, receipt = await stakes_of(network, CLIENT), wrong_receipt(network)
    await bonded(network)

    async def refused(statement: VerdictStatement, quorum: Quorum) -> str:
        with pytest.raises(TransactionReverted) as error:
            await reporter.report_result(statement, quorum, "report")
        return error.value.reason

    statement, quorum = await verdict_on(network, receipt, reporter)
    forged = SignedReceipt(receipt.receipt, (replace(CLIENT.sign(bytes(32)), signer=NODE.address),))
    assert await refused(replace(statement, receipt=forged), quorum) == "DisputeManager__NotOfNode"
    changed = replace(receipt, receipt=replace(receipt.receipt, fee_wei=1))
    assert await refused(replace(statement, receipt=changed), quorum) == "DisputeManager__NotOfNode"
    assert await refused(*await verdict_on(network, receipt, reporter, judges=2)) == "Quorum__TooFewSigners"
    other = await verdict_on(network, wrong_receipt(network, 2), reporter)
    assert await refused(statement, other[1]) == "Quorum__BadSignature"
    assert (await reporter.standing(NODE.address)).stake_wei == BOND


async def test_who_never_bonded_has_nothing_to_lose(network: Network) -> None:
    reporter = await stakes_of(network, CLIENT)
    assert await reporter.standing(NODE.address) == Standing("none", 0, 0, 0, 0, False)
    with pytest.raises(TransactionReverted) as refused:
        await reporter.report_result(*await verdict_on(network, wrong_receipt(network), reporter), "report")
    assert refused.value.reason == "ValidatorRegistry__WrongState"


async def test_bonding_a_development_node_twice_bonds_it_once(network: Network) -> None:
    stakes = await bonded(network)
    before = await network.tokens(NODE.address)
    await bonded(network)
    assert (await stakes.standing(NODE.address)).stake_wei == BOND
    assert await network.tokens(NODE.address) == before


async def test_a_node_leaves_and_comes_back_as_a_validator(network: Network) -> None:
    stakes = await bonded(network)
    before = await network.tokens(NODE.address)
    await stakes.exit("exit")
    standing, minimums = await stakes.standing(NODE.address), await stakes.minimums()
    assert (standing.state, standing.is_bond) == ("exiting", True)
    with pytest.raises(TransactionReverted) as early:
        await stakes.finalize("early")
    assert early.value.reason == "ValidatorRegistry__StillUnbonding"
    await network.pass_time(minimums.unbonding_s)
    await stakes.finalize("finish")
    assert await stakes.standing(NODE.address) == Standing("exited", 0, 0, 0, 0, False)
    assert await network.tokens(NODE.address) == before + BOND
    await stakes.register(minimums.stake_wei, "register")
    assert (await stakes.standing(NODE.address)).state == "active"
    await advance(network, stakes, "next")
    assert (await stakes.epoch()).members[-1].address == NODE.address


# --- validators ---


async def test_a_validator_that_signed_two_batches_is_slashed(network: Network) -> None:
    stakes, cheat = await stakes_of(network, CLIENT), VALIDATORS[2]

    def signed(batch: Batch) -> bytes:
        return cheat.sign(digests.batch_digest(network.domain, batch)).value

    number = (await stakes.epoch()).number
    first = Batch(GATEWAY.address, 2**40, number, 1, *(bytes([n]) * 32 for n in range(4)))
    second = replace(first, count=2)
    start = await network.chain.block_number() + 1
    await stakes.report_conflicting_batches(first, second, signed(first), signed(second), "report")
    assert await stakes.standing(cheat.address) == Standing("active", 10_000 * NCN, 0, -20, 0, False)
    assert (await stakes.changes(start))[0] == []  # it has its minimum still
    first, second = replace(first, nonce=9), replace(second, nonce=9)
    await stakes.report_conflicting_batches(first, second, signed(first), signed(second), "again")
    assert (await stakes.standing(cheat.address)).state == "jailed"
    (change,), _ = await stakes.changes(start)
    assert (change.account, change.jailed, change.reason) == (cheat.address, True, "contradicting signatures")


async def test_a_validator_that_decided_twice_is_slashed(network: Network) -> None:
    stakes, cheat, escrow = await stakes_of(network, CLIENT), VALIDATORS[3], b"\x05" * 32
    done, failed = Decision(False, b"\x06" * 32, 7), Decision(True)
    signatures = (
        cheat.sign(digests.completion_digest(network.domain, escrow, done.output_hash, done.fee_wei)).value,
        cheat.sign(digests.failure_digest(network.domain, escrow)).value,
    )
    await stakes.report_conflicting_decisions(escrow, done, failed, *signatures, "report")
    assert (await stakes.standing(cheat.address)).stake_wei == 10_000 * NCN


async def test_performances_of_a_past_epoch_are_booked_once(network: Network) -> None:
    stakes = await stakes_of(network, CLIENT)
    period = (await stakes.epoch()).number
    await advance(network, stakes, "next")
    epoch = await stakes.epoch()
    rows = tuple(Performance(one.address, 10, 1, n) for n, one in enumerate(VALIDATORS))
    statement = PerformancesStatement(epoch.disputes, epoch.number, period, rows)
    quorum = signed_by(network, statement, epoch, VALIDATORS[:3])
    assert await stakes.reputation(VALIDATORS[0].address, period) == Reputation(0, booked=False)
    await stakes.report_performances(statement, quorum, "report")
    assert await stakes.reputation(VALIDATORS[0].address, period) == Reputation(8, booked=True)
    assert await stakes.reputation(VALIDATORS[4].address, 0) == Reputation(-12, booked=False)
    assert [(await stakes.standing(one.address)).reputation for one in VALIDATORS] == [8, 3, -2, -7, -12]
    with pytest.raises(TransactionReverted) as refused:
        await stakes.report_performances(statement, quorum, "again")
    assert refused.value.reason == "DisputeManager__PeriodReported"


async def test_rewards_are_claimed(network: Network) -> None:
    giver, validator = await stakes_of(network, CLIENT), await stakes_of(network, VALIDATORS[0])
    token, registry = network.contracts.token, network.contracts.registry
    await giver.sender.send(token.call("approve", registry.address, 5 * NCN), key="approve")
    await giver.sender.send(registry.call("distribute", 5 * NCN), key="distribute")
    before = await network.tokens(VALIDATORS[0].address)
    assert (await validator.standing(VALIDATORS[0].address)).rewards_wei == NCN
    await validator.claim("claim")
    assert (await validator.standing(VALIDATORS[0].address)).rewards_wei == 0
    assert await network.tokens(VALIDATORS[0].address) == before + NCN


# --- the account's own part ---


async def test_who_has_too_little_is_told_before_anything_is_sent(network: Network) -> None:
    stakes = await stakes_of(network, CLIENT)
    has, ether = await network.tokens(CLIENT.address), await network.chain.balance(CLIENT.address)
    for put in (stakes.bond, stakes.register, stakes.add):
        with pytest.raises(PaymentRequired, match=f"this wallet has {has}"):
            await put(has + 1, "much")
    assert await network.chain.balance(CLIENT.address) == ether


async def test_without_a_writer_stakes_are_only_read(network: Network) -> None:
    stakes = Stakes(network.contracts)
    assert (await stakes.standing(VALIDATORS[0].address)).state == "active"
    for tell in (stakes.exit, stakes.claim, stakes.finalize):
        with pytest.raises(ConfigError, match="read only"):
            await tell("key")
