"""What is at stake in a network: validators' stakes and compute nodes' bonds, and how misconduct is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ncn_framework.committees import Epoch
from ncn_framework.digests import keccak
from ncn_framework.errors import ConfigError, PaymentRequired
from ncn_framework.payments import Batch, Quorum
from ncn_framework.statements import INVALID_RESULT, PerformancesStatement, Reputation, VerdictStatement

from .contracts import Contracts
from .epochs import Epochs
from .transactions import Call
from .writer import Receipt, TransactionWriter

__all__ = ["STATES", "Decision", "Minimums", "Stakes", "Standing", "StandingChange"]

STATES = ("none", "active", "jailed", "exiting", "exited", "bonded")
"""``IValidatorRegistry.State``: active is a validator, bonded a compute node; jailed or exiting may be either."""

_MISCONDUCT = ("downtime", "invalid result", "contradicting signatures", "collusion")
"""``IDisputeManager.Misconduct``, for people."""


@dataclass(frozen=True)
class Standing:
    """How an account stands.

    Attributes:
        state: one of ``STATES``.
        stake_wei: what can be slashed, in base units of the token.
        exit_at_s: while it is exiting, when it may take the stake out, seconds since the epoch; else 0.
        reputation: points.
        rewards_wei: of a validator, not claimed yet.
        is_bond: whether the stake is a compute node's bond, not a validator's; also while jailed or exiting.
    """

    state: str
    stake_wei: int
    exit_at_s: int
    reputation: int
    rewards_wei: int
    is_bond: bool


@dataclass(frozen=True)
class StandingChange:
    """An account was jailed, or freed again.

    Attributes:
        account: 20 bytes.
        jailed: else freed.
        reason: for people.
        block: number of the block.
    """

    account: bytes
    jailed: bool
    reason: str
    block: int


@dataclass(frozen=True)
class Minimums:
    """What must be at stake, in wei, and for how long it stays so after an exit was asked for."""

    stake_wei: int
    bond_wei: int
    unbonding_s: int


@dataclass(frozen=True)
class Decision:
    """How validators decided on a request in escrow: it failed, or what it resulted in."""

    failed: bool
    output_hash: bytes = bytes(32)
    fee_wei: int = 0


class Stakes:
    """The registry of stakes and the judge over them, asked and told.

    Args:
        contracts: of the network, on a chain of any kind.
        writer: sends transactions with this process's key; without one, nothing can be told.
        confirmations: blocks, its own included, that make what happened in one final.
    """

    def __init__(self, contracts: Contracts, writer: TransactionWriter | None = None, confirmations: int = 1) -> None:
        self.contracts, self.writer = contracts, writer
        self._epochs = Epochs(contracts, confirmations)

    # --- asked ---

    async def standing(self, account: bytes) -> Standing:
        """Return how an account stands now; one that nobody has heard of is in state ``none``."""
        registry = self.contracts.registry
        state, stake, exit_at, reputation, rewards = await registry.read("validators", account)
        return Standing(STATES[state], stake, exit_at, reputation, rewards, await registry.read("isBond", account))

    async def reputation(self, account: bytes, period: int) -> Reputation:
        """Return an account's points, and whether what validators did in a period (0: none) is booked."""
        booked = period > 0 and await self.contracts.disputes.read("performancesReported", period)
        return Reputation((await self.contracts.registry.read("validators", account))[3], bool(booked))

    async def minimums(self) -> Minimums:
        """Return what the network asks for; it never changes."""
        registry = self.contracts.registry
        names = ("minStake", "minBond", "unbondingPeriod")
        return Minimums(*[int(await registry.read(name)) for name in names])

    async def epoch(self, number: int = 0) -> Epoch:
        """Return an epoch with its members' stakes; see ``Epochs.epoch``.

        Args:
            number: of the epoch; 0 for the current one.

        Raises:
            ChainError: there is none, or the chain does not have its logs.
        """
        return await self._epochs.epoch(number)

    async def changes(self, from_block: int) -> tuple[list[StandingChange], int]:
        """Return who was jailed or freed since a block, oldest first, and the block to look from next time.

        An exit is no such change: who is asked for work should be looked up with ``standing`` as well.
        """
        last, registry = await self._epochs.last_block(), self.contracts.registry
        if last < from_block:
            return [], from_block
        topics = [registry.interface.topic(name) for name in ("ValidatorJailed", "ValidatorFreed")]
        logs = await registry.past_logs((topics,), from_block, last)
        events = [*registry.events(logs, "ValidatorJailed"), *registry.events(logs, "ValidatorFreed")]
        reasons = {}
        if any(event.name == "ValidatorJailed" for event in events):
            for proven in await self.contracts.disputes.past_events("MisconductProven", from_block, last):
                accused = (proven.transaction_hash, proven.arguments["validator"])
                reasons[accused] = _MISCONDUCT[proven.arguments["misconduct"]]
        changes = []
        for event in sorted(events, key=lambda one: (one.block, one.log_index)):
            account, jailed = event.arguments["validator"], event.name == "ValidatorJailed"
            reason = reasons.get((event.transaction_hash, account), "slashed") if jailed else "stake was added"
            changes.append(StandingChange(account, jailed, reason, event.block))
        return changes, last + 1

    async def is_proven(self, node: bytes, request_id: bytes) -> bool:
        """Return whether a wrong result of this node for this request was reported; it counts once."""
        evidence = keccak(INVALID_RESULT.to_bytes(32, "big") + node.rjust(32, b"\0") + request_id)
        return bool(await self.contracts.registry.read("evidenceUsed", evidence))

    # --- told: this process's own stake ---

    async def register(self, amount_wei: int, key: str) -> Receipt:
        """Make this process's account a validator: a member from the next epoch on.

        Args:
            amount_wei: what it stakes.
            key: names the transaction, which is made once.

        Raises:
            PaymentRequired: the account does not have that many tokens.
            TransactionReverted: the contract refused: too little, or the account has a stake already.
            ChainError: the chain cannot be reached.
        """
        return await self._pay("registerValidator", amount_wei, key)

    async def bond(self, amount_wei: int, key: str) -> Receipt:
        """Put stake of this process's account at risk, as a compute node's; raises as ``register``."""
        return await self._pay("bond", amount_wei, key)

    async def add(self, amount_wei: int, key: str) -> Receipt:
        """Add to the stake of this process's account, which frees it where it is jailed and has its minimum then;
        raises as ``register``."""
        return await self._pay("addStake", amount_wei, key)

    async def exit(self, key: str) -> Receipt:
        """Begin to take this process's stake out; it stays at risk for the unbonding period."""
        return await self._send(self.contracts.registry.call("requestExit"), key)

    async def finalize(self, key: str) -> Receipt:
        """Take this process's stake out after the unbonding period."""
        return await self._send(self.contracts.registry.call("finalizeExit"), key)

    async def claim(self, key: str) -> Receipt:
        """Take this process's rewards, a validator's."""
        return await self._send(self.contracts.registry.call("claimRewards"), key)

    async def _pay(self, function: str, amount_wei: int, key: str) -> Receipt:
        token, registry, own = self.contracts.token, self.contracts.registry, self.sender.address
        has = int(await token.read("balanceOf", own))
        if has < amount_wei:
            raise PaymentRequired(f"{amount_wei} wei of the token are needed; this wallet has {has}")
        if await token.read("allowance", own, registry.address) < amount_wei:
            await self._send(token.call("approve", registry.address, amount_wei), f"approve:{key}")
        return await self._send(registry.call(function, amount_wei), key)

    # --- told: others' misconduct, which anybody may report ---

    async def report_result(self, statement: VerdictStatement, quorum: Quorum, key: str) -> str:
        """Slash a node for a wrong result, on the validators' verdict; return the transaction's hash.

        Args:
            statement: that they signed; the node's signature is in its receipt.
            quorum: their signatures.
            key: names the transaction, which is made once.

        Raises:
            TransactionReverted: the contract refused it; with reason ``ValidatorRegistry__EvidenceUsed``, because it
                was reported before, with ``ValidatorRegistry__WrongState``, because the node never had a stake.
            ChainError: not known yet; asked again with the same key, it goes on with the same transaction.
        """
        receipt = statement.receipt.receipt
        fields = (
            receipt.request_id,
            receipt.request_hash,
            receipt.model,
            receipt.output_hash,
            receipt.chunks,
            receipt.units,
            receipt.fee_wei,
            receipt.node,
            receipt.started_ms,
            receipt.finished_ms,
        )
        signature = statement.receipt.signature_of(receipt.node)
        return await self._report("reportInvalidResult", (fields, signature, _endorsement(quorum)), key)

    async def report_performances(self, statement: PerformancesStatement, quorum: Quorum, key: str) -> str:
        """Book what the validators did in an epoch that is over; return the transaction's hash.

        Raises:
            TransactionReverted: the contract refused it; with reason ``DisputeManager__PeriodReported``, because it was
                booked before.
            ChainError: as ``report_result``.
        """
        rows = [(one.validator, one.done, one.failed, one.timeouts) for one in statement.performances]
        return await self._report("reportPerformances", (statement.period, rows, _endorsement(quorum)), key)

    async def report_conflicting_batches(
        self, first: Batch, second: Batch, first_signature: bytes, second_signature: bytes, key: str
    ) -> str:
        """Slash a validator that signed two batches of one gateway with one nonce; return the transaction's hash.

        Raises:
            TransactionReverted, ChainError: as ``report_result``.
        """
        arguments = (_batch(first), _batch(second), first_signature, second_signature)
        return await self._report("reportConflictingBatches", arguments, key)

    async def report_conflicting_decisions(
        self,
        escrow_id: bytes,
        first: Decision,
        second: Decision,
        first_signature: bytes,
        second_signature: bytes,
        key: str,
    ) -> str:
        """Slash a validator that decided twice, and differently, on one escrow; return the transaction's hash.

        Raises:
            TransactionReverted, ChainError: as ``report_result``.
        """
        decisions = [(one.failed, one.output_hash, one.fee_wei) for one in (first, second)]
        arguments = (escrow_id, *decisions, first_signature, second_signature)
        return await self._report("reportConflictingDecisions", arguments, key)

    async def _report(self, function: str, arguments: tuple[Any, ...], key: str) -> str:
        receipt = await self._send(self.contracts.disputes.call(function, *arguments), key)
        return "0x" + receipt.hash.hex()

    # --- inside ---

    @property
    def sender(self) -> TransactionWriter:
        """The writer.

        Raises:
            ConfigError: there is none.
        """
        if self.writer is None:
            raise ConfigError("no key to send transactions with: these stakes were opened to be read only")
        return self.writer

    async def _send(self, call: Call, key: str) -> Receipt:
        return await self.sender.send(call, key=key)


def _endorsement(quorum: Quorum) -> tuple[int, int, bytes]:
    return quorum.epoch, quorum.bitmap, b"".join(quorum.signatures)


def _batch(batch: Batch) -> tuple[Any, ...]:
    return (
        batch.gateway,
        batch.nonce,
        batch.epoch,
        batch.count,
        batch.receipts_root,
        batch.da_hash,
        batch.claims_hash,
        batch.credits_hash,
    )
