"""Charges become batches on chain: when it is due, checked and signed by a quorum, and found again after any crash.

A batch is on disk before anybody signs it, and its transaction is on disk before it is sent (``writer``). So at every
point a crash leaves one of three things, which ``recover`` tells apart by asking the chain: a batch that is on chain,
one whose nonce has been passed (it can never be), or one to be sent (again, by the same key, as the same transaction).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass

from ncn_framework.committees import Epoch
from ncn_framework.digests import batch_digest, channel_id, keccak
from ncn_framework.errors import EndorsementRefused, NcnError, TransactionReverted
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain
from ncn_framework.payments import Charge, Quorum, Voucher
from ncn_framework.statements import BatchStatement, Statement

from . import batches
from .accounts import Deposit
from .config import PaymentsSettings
from .ledger import Ledger
from .ledger_reader import BatchState, Owed
from .onchain import OnChain

__all__ = ["Settled", "Settler"]

log = logging.getLogger(__name__)

_ATTEMPTS = 8
"""How often a batch is made anew, without what was refused, before it is left for the next time."""

_SKIPPED = 2**32 - 2**16
"""How far above the last nonce on chain validators may send a batch; they sign a little more than that, so that one who
sends it there does not leave it without a nonce."""

_ASKED = 5
"""How often validators may want to see an answer that is kept no more before its charge is given up."""

_LONGEST_PAUSE = 60
"""In polls: how long to wait at most after one failure after the other."""


@dataclass(frozen=True)
class Settled:
    """A batch that is on chain now."""

    statement: BatchStatement
    tx: str
    gas: int


class Settler:
    """Settles the charges of one ledger.

    Args:
        domain: of the contract.
        ledger: of charges.
        chain: the contracts.
        endorse: collects a quorum's signatures.
        settings: when a batch is due.
        undelivered: returns the requests whose charges may still be taken back.
        clock: milliseconds since the epoch.
        epoch: returns the current epoch, whose validators sign.
        refused: hears of each charge that will never be settled.
        standing: hears of each node whose result was found wrong, and why.
    """

    def __init__(
        self,
        domain: Domain,
        ledger: Ledger,
        chain: OnChain,
        endorse: Callable[[Statement], Awaitable[Quorum]],
        settings: PaymentsSettings,
        undelivered: Callable[[], Collection[bytes]] = tuple,
        clock: Callable[[], int] = now_ms,
        *,
        epoch: Callable[[], Awaitable[Epoch]],
        refused: Callable[[Charge], None] = lambda charge: None,
        standing: Callable[[bytes, bool, str], None] = lambda account, out, reason: None,
    ) -> None:
        self.domain, self.ledger, self.chain, self.endorse = domain, ledger, chain, endorse
        self.settings, self.undelivered, self.clock = settings, undelivered, clock
        self.epoch, self.refused, self.standing = epoch, refused, standing
        self._busy = asyncio.Lock()
        self._wake = asyncio.Event()
        self._leaving: Set[bytes] = frozenset()
        self._left_out: dict[bytes, int] = {}  # channels that could not pay, until when (ms)
        self._wanted: dict[int, tuple[int, int]] = {}  # charges with answers gone: how often wanted, until when (ms)
        self._count = self._value_wei = 0  # charged since the last look

    def charged(self, fee_wei: int) -> None:
        """Hear of a charge, so that a batch which has become due is not waited for."""
        self._count += 1
        self._value_wei += fee_wei
        if self._count >= self.settings.batch_count or self._value_wei >= self.settings.batch_value_wei:
            self._wake.set()

    @property
    def leaving(self) -> Set[bytes]:
        """The channels whose clients withdraw: what they owe is settled at once, within the delay."""
        return self._leaving

    def leave(self, channels: Set[bytes]) -> None:
        """Hear which channels' clients withdraw now."""
        if channels - self._leaving:
            self._wake.set()
        self._leaving = frozenset(channels)

    async def run(self) -> None:
        """Settle whatever is due, until cancelled; what fails is logged and tried again, less often each time."""
        pause = 1
        while True:
            self._count = self._value_wei = 0
            self._wake.clear()
            try:
                await self.settle()
                pause = 1
            except NcnError as error:
                log.warning("the batch waits: %s", error)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except Exception:
                log.exception("the batch waits")
                pause = _LONGEST_PAUSE
            try:
                async with asyncio.timeout(pause * self.settings.batch_poll_ms / 1000):
                    await (self._wake.wait() if pause == 1 else asyncio.Event().wait())
            except TimeoutError:
                pass

    async def settle(self, *, everything: bool = False) -> list[Settled]:
        """Finish what a crash left, then put what is due on chain; ``everything``: whatever is charged and unsettled.

        Raises:
            EndorsementRefused: the validators do not sign.
            TransactionReverted: the contract refuses a batch, for another reason than one of its claims.
            ChainError: the chain does not answer.
        """
        async with self._busy:
            done = await self._recover()
            for gateway, owed in self._open().items():
                due = owed if everything else self._due(owed)
                while due:
                    now, due = self._one_batch(due)
                    settled = await self._settle(gateway, now)
                    if settled is not None:
                        done.append(settled)
            return done

    # --- what is due ---

    def _open(self) -> dict[bytes, list[Owed]]:
        """Return the charges that may be settled, by gateway, oldest first."""
        undelivered = self.undelivered()
        found: dict[bytes, list[Owed]] = {}
        for owed in self.ledger.unsettled():
            if owed.request_id not in undelivered:
                found.setdefault(owed.gateway, []).append(owed)
        return found

    def _due(self, owed: Sequence[Owed]) -> list[Owed]:
        """Return the charges to settle now: none before there are enough, or they have waited long enough.

        A channel whose client withdraws does not wait. One that owes little waits longer: its place in a batch costs
        about 11,000 gas. One that could not pay is left out for a while, as is a charge whose answer is gone.
        """
        settings, now = self.settings, self.clock()
        self._left_out = {channel: until for channel, until in self._left_out.items() if until > now}
        owed = [
            charge
            for charge in owed
            if charge.channel not in self._left_out and self._wanted.get(charge.number, (0, 0))[1] <= now
        ]
        value = sum(charge.fee_wei for charge in owed)
        aged = bool(owed) and now - owed[0].at_ms >= settings.batch_age_ms
        if not (aged or len(owed) >= settings.batch_count or value >= settings.batch_value_wei):
            return [charge for charge in owed if charge.channel in self._leaving]
        channels: dict[bytes, list[Owed]] = {}
        for charge in owed:
            channels.setdefault(charge.channel, []).append(charge)
        due = {
            channel
            for channel, charges in channels.items()
            if channel in self._leaving
            or sum(charge.fee_wei for charge in charges) >= settings.channel_min_wei
            or now - charges[0].at_ms >= settings.channel_age_ms
        }
        return [charge for charge in owed if charge.channel in due]

    def _one_batch(self, due: Sequence[Owed]) -> tuple[list[Owed], list[Owed]]:
        """Return what fits into one batch, and the rest."""
        now, later = list[Owed](), list[Owed]()
        channels: set[bytes] = set()
        for charge in due:
            fits = charge.channel in channels or len(channels) < batches.MAX_CHANNELS
            if fits and len(now) < self.settings.batch_max_count:
                channels.add(charge.channel)
                now.append(charge)
            else:
                later.append(charge)
        return now, later

    # --- one batch ---

    async def _settle(self, gateway: bytes, owed: Sequence[Owed]) -> Settled | None:
        """Put a batch of ``owed`` on chain, less those that are refused; None where nothing is left of it."""
        numbers, nonce = [charge.number for charge in owed], 0
        charges = dict(zip(numbers, await asyncio.to_thread(self.ledger.charges, numbers), strict=True))
        vouchers = await asyncio.to_thread(self.ledger.vouchers, {charge.channel for charge in owed})
        for _ in range(_ATTEMPTS):
            if not charges:
                return None
            passed = max(await self.chain.batch_nonce(gateway), self.ledger.highest_nonce(gateway))
            nonce = max(nonce, passed + 1)
            spent = {channel: deposit.spent_wei for channel, deposit in (await self._deposits(charges)).items()}
            epoch, batch_of = (await self.epoch()).number, tuple(charges.values())
            statement = await asyncio.to_thread(batches.build, gateway, nonce, epoch, batch_of, spent, vouchers)
            batch = await self.ledger.add_batch(statement, charges, self.clock())
            try:
                return await self._finish(batch, statement)
            except EndorsementRefused as error:
                # What few validators say may be wrong. So the chain is asked first, and then our own books; a result
                # counts as wrong, or an answer as missing, where nothing else explains why there is no quorum.
                if left := await self._settled_before(gateway, charges, error.settled):
                    pass
                elif nonce < error.next_nonce <= await self.chain.batch_nonce(gateway) + _SKIPPED:
                    nonce = error.next_nonce
                elif better := await self._better(gateway, charges, vouchers):
                    vouchers = vouchers | better
                else:
                    left = await asyncio.to_thread(self._unsound, gateway, charges)
                    left = left or await self._unaffordable(charges, vouchers)
                    left = left or await self._wrong(gateway, charges, error)
                    left = left or await self._unshown(gateway, charges, error)
                    if not left:
                        raise
            except TransactionReverted as error:
                refused = self.chain.refused_claim(error)
                if refused is None:
                    raise
                left = await self._unaffordable(charges, vouchers)
                if not left:
                    voucher = statement.claims[refused].voucher
                    channel = channel_id(voucher.client, voucher.signer, voucher.gateway)
                    self._leave_out(channel, str(error))
                    left = {number for number, charge in charges.items() if batches.channel_of(charge) == channel}
            charges = {number: charge for number, charge in charges.items() if number not in left}
        return None

    async def _deposits(self, charges: Mapping[int, Charge]) -> dict[bytes, Deposit]:
        return await self.chain.deposits({batches.channel_of(charge) for charge in charges.values()})

    async def _better(
        self, gateway: bytes, charges: Mapping[int, Charge], vouchers: Mapping[bytes, Voucher]
    ) -> dict[bytes, Voucher]:
        """Return vouchers on chain that allow more than ours: a node knows of none that others were shown later."""
        channels = {batches.channel_of(charge) for charge in charges.values()}
        found = await self.chain.published_vouchers(gateway, channels)
        return {
            channel: voucher
            for channel, voucher in found.items()
            if channel not in vouchers or voucher.cumulative_wei > vouchers[channel].cumulative_wei
        }

    async def _unaffordable(self, charges: Mapping[int, Charge], vouchers: Mapping[bytes, Voucher]) -> set[int]:
        """Return the charges that their channels cannot pay as well, out of deposit and voucher; the oldest come
        first."""
        deposits, left = await self._deposits(charges), set[int]()
        total = {channel: deposit.spent_wei for channel, deposit in deposits.items()}
        for number, charge in sorted(charges.items()):
            channel, fee = batches.channel_of(charge), charge.receipt.receipt.fee_wei
            limit = min(vouchers[channel].cumulative_wei, deposits[channel].deposited_wei)
            if total[channel] + fee <= limit:
                total[channel] += fee
            else:
                self._leave_out(channel, f"{total[channel] + fee} wei would be drawn, and {limit} wei may be")
                left.add(number)
        return left

    def _unsound(self, gateway: bytes, charges: Mapping[int, Charge]) -> set[int]:
        """Return the charges for which validators would refuse any batch: only a damaged ledger has such."""
        found = {n for n, charge in charges.items() if not batches.is_sound(self.domain, gateway, charge)}
        for channel in {batches.channel_of(charges[number]) for number in found}:
            self._leave_out(channel, "a charge does not bear the signatures that it should")
        return found

    def _leave_out(self, channel: bytes, why: str) -> None:
        if self._left_out.get(channel, 0) <= self.clock():
            log.error("channel 0x%s is left out of the batch: %s", channel.hex(), why)
        self._left_out[channel] = self.clock() + self.settings.batch_age_ms

    async def _settled_before(
        self, gateway: bytes, charges: Mapping[int, Charge], settled: Mapping[bytes, int]
    ) -> set[int]:
        """Return the charges that are settled already, as validators say, having noted it; whoever made those batches.

        They have to be on chain; and of a batch that was made here, it is known what is in it.
        """
        found: dict[int, dict[int, bytes]] = {}
        for number, charge in charges.items():
            request_id = charge.receipt.receipt.request_id
            if request_id in settled:
                found.setdefault(settled[request_id], {})[number] = request_id
        left = set[int]()
        for nonce, those in sorted(found.items()):
            own = await asyncio.to_thread(self.ledger.statement, gateway, nonce)
            if own is None and await self.chain.is_settled(gateway, nonce):
                await self.ledger.settle_elsewhere(gateway, nonce, those.values(), self.clock())
                left |= those.keys()
        if left:
            log.info("%d charges were settled by somebody else", len(left))
        return left

    # --- what validators will not sign ---

    async def _wrong(self, gateway: bytes, charges: Mapping[int, Charge], error: EndorsementRefused) -> set[int]:
        """Return the charges for results that are wrong, having given their money back and their nodes away."""
        left = {n for n, charge in charges.items() if charge.receipt.receipt.request_id in error.invalid}
        await self._give_up(gateway, {n: charges[n] for n in left}, "validators found the result wrong")
        for node in {charges[number].receipt.receipt.node for number in left}:
            self.standing(node, True, "validators found a result of it wrong")
        return left

    async def _unshown(self, gateway: bytes, charges: Mapping[int, Charge], error: EndorsementRefused) -> set[int]:
        """Return the charges that validators want to see the answers of, where these are gone.

        They may not be among those wanted of another batch, later; but they are given up after a while.
        """
        left = {n for n, charge in charges.items() if charge.receipt.receipt.request_id in error.wanted}
        until = self.clock() + self.settings.batch_age_ms
        for number in left:
            self._wanted[number] = (self._wanted.get(number, (0, 0))[0] + 1, until)
        over = {number: charges[number] for number in left if self._wanted[number][0] >= _ASKED}
        await self._give_up(gateway, over, "validators want to see the answer, which is kept no more")
        for number in over:
            del self._wanted[number]
        return left

    async def _give_up(self, gateway: bytes, charges: Mapping[int, Charge], why: str) -> None:
        if not charges:
            return
        await self.ledger.refuse(gateway, charges, why, self.clock())
        for charge in charges.values():
            self.refused(charge)
        log.error("%d charges will never be settled: %s", len(charges), why)

    async def _finish(self, batch: int, statement: BatchStatement) -> Settled:
        """Have a batch signed and put it on chain; where that is refused it is dead, unless it is there already."""
        try:
            quorum = await self.endorse(statement)
            await self.chain.simulate_batch(statement, quorum)
            # the same signatures are the same transaction; with others it is another one, and the contract takes one
            key = keccak(batch_digest(self.domain, statement.batch) + b"".join(quorum.signatures)).hex()
            landed = await self.chain.settle_batch(statement, quorum, f"batch:{key}")
        except (EndorsementRefused, TransactionReverted) as error:
            found = await self.chain.settled_in(statement)
            if found is None:
                await self.ledger.drop_batch(batch, str(error))
                raise
            landed = found
        return await self._landed(batch, statement, *landed)

    async def _landed(self, batch: int, statement: BatchStatement, tx: str, gas: int) -> Settled:
        await self.ledger.settle_batch(batch, tx, gas)
        head, total = statement.batch, batches.total_of(statement)
        log.info("batch %d: %d receipts, %d wei, %d gas, transaction %s", head.nonce, head.count, total, gas, tx)
        return Settled(statement, tx, gas)

    # --- after a crash ---

    async def _recover(self) -> list[Settled]:
        """Bring every batch that was signed to its end."""
        done = []
        for row in self.ledger.batches(BatchState.SIGNED):
            statement = await asyncio.to_thread(self.ledger.statement, row.gateway, row.nonce)
            if statement is None:
                continue
            landed = await self.chain.settled_in(statement)
            if landed is not None:
                done.append(await self._landed(row.id, statement, *landed))
            elif await self.chain.batch_nonce(row.gateway) >= row.nonce:
                await self.ledger.drop_batch(row.id, "a batch with a higher nonce is on chain")
            else:
                try:
                    done.append(await self._finish(row.id, statement))
                except (EndorsementRefused, TransactionReverted) as error:
                    log.warning("batch %d of an earlier run is dead: %s", row.nonce, error)
        return done
