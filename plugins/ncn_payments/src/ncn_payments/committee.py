"""The validators that this process speaks for: they check statements, sign them, and never contradict themselves.

In a registry they answer whoever collects a quorum (``vouch``). A gateway of a network without registries holds enough
of them for a quorum of its own (``endorse``), as that of a development network does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ncn_framework import digests
from ncn_framework.committees import Epoch
from ncn_framework.errors import ChainError, EndorsementRefused, NcnError, StoreError
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain, Signature, SignedReceipt
from ncn_framework.payments import Batch, Quorum
from ncn_framework.signing import Signer, address_hex, check_signature
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Evidence,
    FailureStatement,
    PerformancesStatement,
    Statement,
    SubnetStatement,
    TermsStatement,
    VerdictStatement,
    digest_of,
    epoch_of,
    excluded_from,
)
from ncn_framework.validation import Validation

from . import batches
from .conduct import check_performances, check_subnet, check_verdict
from .config import PaymentsSettings
from .onchain import OnChain
from .treasury import check_fee
from .validator_memory import Signed, ValidatorMemory

__all__ = ["Committee"]

T = TypeVar("T")
Escrowed = TermsStatement | CompletionStatement | FailureStatement
Conduct = VerdictStatement | SubnetStatement | PerformancesStatement

_NONCES_AHEAD = 2**32
"""How far a batch's nonce may lie above the last one on chain, so that nobody can use the nonces up."""

_ROUNDS = 8
"""How often ``endorse`` shows evidence at the most before it gives up."""


class Committee:
    """The validators whose keys this process holds.

    A statement is checked in this order: who may sign it; whether what it says of money is right; whether any plugin
    objects (``ncn_inspect``), which may mean to execute requests again; what was signed before. The cheap comes first,
    so that nobody has requests executed for a statement that is refused anyway, and the memory last, so that nothing
    changes between it and the signature.

    Args:
        domain: that they sign for.
        signers: their keys.
        chain: the contracts.
        memory: what they have signed; closed with this.
        validation: asks for epochs, for objections and for evidence.
        settings: of payments.
        inspected: whether plugins of this process execute requests again: otherwise nothing is said about conduct.
        clock: milliseconds since the epoch.
    """

    def __init__(
        self,
        domain: Domain,
        signers: Sequence[Signer],
        chain: OnChain,
        memory: ValidatorMemory,
        validation: Validation,
        settings: PaymentsSettings,
        *,
        inspected: bool = False,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.domain, self.chain, self.memory, self.validation = domain, chain, memory, validation
        self.settings, self.inspected, self.clock = settings, inspected, clock
        self._signers = {signer.address: signer for signer in signers}
        # the memory has one user at a time; what takes long, as a batch's signatures do, is checked elsewhere
        self._thread = ThreadPoolExecutor(1, "ncn-validators")

    def close(self) -> None:
        """Wait for what is being checked, and close the memory."""
        self._thread.shutdown()
        self.memory.close()

    async def endorse(self, statement: Statement) -> Quorum:
        """Check a statement and sign it with as many keys as the contract wants.

        Raises:
            EndorsementRefused: naming what is wrong with it, or that too few members of the epoch are here.
            ChainError: the chain does not answer.
        """
        epoch, able = await self._able(statement)
        if len(able) < epoch.quorum:
            raise EndorsementRefused(
                f"{len(able)} of the {len(epoch.members)} validators of epoch {epoch.number} can sign here; "
                f"{epoch.quorum} are needed"
            )
        shown: dict[bytes, Evidence] = {}
        for left in reversed(range(_ROUNDS)):
            try:
                signatures = {one.signer: one.value for one in await self.vouch(statement, shown)}
                break
            except EndorsementRefused as error:
                found = await self._disclosed(error.wanted - shown.keys()) if left else {}
                if not found:
                    raise
                shown |= found
        signing = list(able)[: epoch.quorum]
        members = [epoch.members[place].address for place in signing]
        return Quorum(epoch.number, sum(1 << place for place in signing), tuple(signatures[one] for one in members))

    async def _disclosed(self, request_ids: frozenset[bytes]) -> dict[bytes, Evidence]:
        found = [(request_id, await self.validation.disclose(request_id)) for request_id in sorted(request_ids)]
        return {request_id: evidence for request_id, evidence in found if evidence is not None}

    async def vouch(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        """Check a statement from anybody, and sign it with every key that may.

        Args:
            statement: unchecked.
            evidence: by request id, unchecked.

        Raises:
            EndorsementRefused: what is wrong, or which evidence is wanted.
            ChainError: the chain does not answer, or has no such epoch.
        """
        epoch, able = await self._able(statement)
        if not able:
            raise EndorsementRefused(f"no validator of this process may sign this in epoch {epoch.number}")
        try:
            await self._check(statement, epoch, evidence)
            await self.validation.inspect(statement, evidence)
            await self._remember(statement)
        except (EndorsementRefused, ChainError, StoreError):
            raise
        except NcnError as cause:  # a signature, a record, an answer that is not as it should be
            raise EndorsementRefused(str(cause)) from cause
        digest = digest_of(self.domain, statement)
        return tuple(signer.sign(digest) for signer in able.values())

    async def _able(self, statement: Statement) -> tuple[Epoch, dict[int, Signer]]:
        """Return the statement's epoch, and who may sign it of those here, by place among the epoch's members."""
        number, excluded = epoch_of(statement), excluded_from(statement)
        if number < 1:
            raise EndorsementRefused(f"there is no epoch {number}")
        epoch = await self.validation.epoch(number)
        places = {place: member.address for place, member in enumerate(epoch.members)}
        return epoch, {
            place: self._signers[address]
            for place, address in places.items()
            if address in self._signers and address not in excluded
        }

    # --- what is checked, and what is remembered ---

    async def _check(self, statement: Statement, epoch: Epoch, evidence: Mapping[bytes, Evidence]) -> None:
        match statement:
            case BatchStatement():
                await self._check_batch(statement)
            case TermsStatement() | CompletionStatement() | FailureStatement():
                await self._check_escrow(statement)
            case VerdictStatement() | SubnetStatement() | PerformancesStatement():
                await self._check_conduct(statement, epoch, evidence)

    async def _remember(self, statement: Statement) -> None:
        """Write down that a statement is about to be signed; refuse one that contradicts what was."""
        memory = self.memory
        match statement:
            case BatchStatement():
                await self._remember_batch(statement)
            case TermsStatement():
                pass  # a client may ask for several requests under one nonce: the contract takes one of them
            case CompletionStatement() | FailureStatement():
                kind, digest = type(statement).__name__, digest_of(self.domain, statement)
                contrary = "FailureStatement" if isinstance(statement, CompletionStatement) else "CompletionStatement"
                await self._in_thread(lambda: memory.sign_escrow(statement.escrow_id, kind, digest, contrary))
            case VerdictStatement():
                receipt = statement.receipt.receipt
                wrong = digests.receipt_digest(self.domain, receipt)
                await self._in_thread(lambda: memory.sign_verdict(receipt.request_id, wrong))
            case SubnetStatement():
                record, fee = statement.record, statement.fee_transaction
                version = digests.record_digest(self.domain, record)
                await self._in_thread(
                    lambda: memory.sign_record(record.kind, record.owner, record.sequence, version, fee)
                )
            case PerformancesStatement():
                pass  # several may count a little differently: each signs what is near its own count; one is reported

    # --- batches ---

    async def _check_batch(self, statement: BatchStatement) -> None:
        batch = statement.batch
        passed = await self.chain.batch_nonce(batch.gateway)
        if not passed < batch.nonce <= passed + _NONCES_AHEAD:
            raise EndorsementRefused(
                f"nonce {batch.nonce} does not follow {passed}, the gateway's last one on chain", None, passed + 1
            )
        await self._signed_before(statement)  # first: who makes the batch may not know of it
        deposits = await self.chain.deposits({batches.channel_of(charge) for charge in statement.charges})
        spent = {channel: deposit.spent_wei for channel, deposit in deposits.items()}
        await asyncio.to_thread(batches.check, self.domain, statement, spent)
        for claim in statement.claims:
            voucher = claim.voucher
            channel = digests.channel_id(voucher.client, voucher.signer, voucher.gateway)
            if claim.total_wei > deposits[channel].deposited_wei:
                raise EndorsementRefused(
                    f"the charges of client {address_hex(voucher.client)} come to {claim.total_wei} wei; "
                    f"its channel has {deposits[channel].deposited_wei} wei"
                )
        await self._in_thread(lambda: self._refuse_wrong(charge.receipt for charge in statement.charges))

    def _refuse_wrong(self, signed: Iterable[SignedReceipt]) -> None:
        """Refuse receipts that were called wrong here."""
        receipts = {one.receipt.request_id: one.receipt for one in signed}
        wrong = [
            request_id
            for request_id, known in self.memory.wrong_receipts(receipts).items()
            if digests.receipt_digest(self.domain, receipts[request_id]) in known
        ]
        if wrong:
            raise EndorsementRefused(f"{len(wrong)} receipts are of wrong results", invalid=wrong)

    async def _remember_batch(self, statement: BatchStatement) -> None:
        batch, request_ids = statement.batch, _request_ids(statement)
        signed = await self._signed_before(statement)
        digest = digests.batch_digest(self.domain, batch)

        def remember() -> None:
            self._refuse_wrong(charge.receipt for charge in statement.charges)
            self.memory.sign_batch(batch.gateway, batch.nonce, digest, request_ids, signed)

        await self._in_thread(remember)

    async def _signed_before(self, statement: BatchStatement) -> Signed:
        """Return the batches in which receipts of this one were signed before, having refused it where it must be."""
        request_ids = _request_ids(statement)
        signed = await self._in_thread(lambda: self.memory.batches_of(request_ids))
        await self._refuse_settled(statement.batch, signed)
        return signed

    async def _refuse_settled(self, batch: Batch, signed: Signed) -> None:
        """A receipt that was signed before may be signed again only under a higher nonce of the same gateway, and if
        none of the batches that it was in is on chain: of those, the contract then takes none any more."""
        earlier = {found for batches_ in signed.values() for found in batches_} - {(batch.gateway, batch.nonce)}
        if any(gateway != batch.gateway for gateway, _ in earlier):
            raise EndorsementRefused("a receipt was signed in a batch of another gateway")
        above = max((nonce for _, nonce in earlier), default=0) + 1
        if above > batch.nonce:
            raise EndorsementRefused(f"a receipt was signed under nonce {above - 1}; use {above}", None, above)
        on_chain = {nonce for _, nonce in earlier if await self.chain.is_settled(batch.gateway, nonce)}
        settled = {
            request_id: nonce for request_id, batches_ in signed.items() for _, nonce in batches_ if nonce in on_chain
        }
        if settled:
            raise EndorsementRefused(f"{len(settled)} receipts are settled already; leave them out", settled)

    # --- escrow ---

    async def _check_escrow(self, statement: Escrowed) -> None:
        terms = statement.terms
        identity = digests.escrow_id(self.domain, terms.client, terms.nonce)
        if identity != statement.escrow_id:
            raise EndorsementRefused(f"the escrow of these terms is 0x{identity.hex()}")
        if isinstance(statement, TermsStatement):
            return self._check_terms(statement)
        if isinstance(statement, CompletionStatement):
            self._check_completion(statement)
            await self._in_thread(lambda: self._refuse_wrong([statement.receipt]))
        else:  # whom it harms says it: the gateway, which is not paid then, nor is its node
            digest = digests.failure_digest(self.domain, identity)
            check_signature(digest, statement.signature, terms.gateway, "the failure")
        # What is signed names the escrow alone: with other terms, somebody else's node or gateway would decide on it.
        if not await self.chain.is_escrowed(terms):
            raise EndorsementRefused(
                f"these terms are not in escrow: 0x{identity.hex()} is unpaid, ended, or another's"
            )

    def _check_terms(self, statement: TermsStatement) -> None:
        terms, request = statement.terms, statement.request
        if terms.client != request.client or terms.request_hash != request.request_hash:
            raise EndorsementRefused("the terms are not of this request")
        check_signature(digests.request_digest(self.domain, request), request.signature, request.client, "the request")
        fee = statement.base_fee_wei + request.limit_units * statement.unit_fee_wei
        if terms.amount_wei != fee:
            raise EndorsementRefused(f"{request.limit_units} units cost {fee} wei, not {terms.amount_wei}")
        if not self.clock() < terms.expiry_s * 1000:
            raise EndorsementRefused(f"the terms expired at {terms.expiry_s}")

    def _check_completion(self, statement: CompletionStatement) -> None:
        terms, receipt = statement.terms, statement.receipt.receipt
        if receipt.node != terms.node or receipt.request_hash != terms.request_hash:
            raise EndorsementRefused("the receipt is not of this escrow's node and request")
        if receipt.fee_wei > terms.amount_wei:
            raise EndorsementRefused(f"a fee of {receipt.fee_wei} wei passes the {terms.amount_wei} in escrow")
        signature = statement.receipt.signature_of(receipt.node)
        check_signature(digests.receipt_digest(self.domain, receipt), signature, receipt.node, "the receipt")

    # --- conduct and configurations ---

    async def _check_conduct(self, statement: Conduct, epoch: Epoch, evidence: Mapping[bytes, Evidence]) -> None:
        if not self.inspected:
            raise EndorsementRefused(
                f"this process executes nothing again, and signs no {type(statement).__name__}; ask a registry's"
            )
        if self.clock() >= epoch.valid_until_s * 1000:
            raise EndorsementRefused(f"epoch {epoch.number} is over: its validators sign nothing new")
        match statement:
            case VerdictStatement():
                check_verdict(self.domain, statement, epoch.disputes, evidence)
            case PerformancesStatement():
                current = await self.validation.epoch()
                if not 0 < statement.period < current.number:
                    raise EndorsementRefused(
                        f"epoch {statement.period} is not over; the current one is {current.number}"
                    )
                judged = await self.validation.epoch(statement.period)
                check_performances(statement, epoch.disputes, {member.address for member in judged.members})
            case SubnetStatement():
                check_subnet(self.domain, statement, self.clock())
                if statement.fee_transaction:
                    await check_fee(
                        self.chain.contracts,
                        statement.fee_transaction,
                        statement.record.owner,
                        self.settings.subnet_fee_wei,
                        self.settings.confirmations,
                    )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _request_ids(statement: BatchStatement) -> list[bytes]:
    return [charge.receipt.receipt.request_id for charge in statement.charges]
