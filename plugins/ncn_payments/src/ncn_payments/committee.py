"""Validators that check statements and sign them: here those of one process, with the keys it holds.

A development network has five of them in its gateway's process. On a network with a registry, another plugin answers
``ncn_endorse`` first and asks the committee there; what each member checks is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ncn_framework import digests
from ncn_framework.errors import EndorsementRefused, NcnError
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain
from ncn_framework.payments import (
    Batch,
    BatchStatement,
    CompletionStatement,
    FailureStatement,
    Quorum,
    Statement,
    TermsStatement,
)
from ncn_framework.signing import Signer, check_signature

from . import batches
from .onchain import OnChain
from .validator_memory import Signed, ValidatorMemory

__all__ = ["Committee"]

T = TypeVar("T")

_NONCES_AHEAD = 2**32
"""How far a batch's nonce may lie above the last one on chain, so that nobody can use the nonces up."""


class Committee:
    """The validators whose keys this process holds.

    Args:
        domain: that they sign for.
        signers: their keys.
        chain: the contracts.
        memory: what they have signed.
        clock: milliseconds since the epoch.
    """

    def __init__(
        self,
        domain: Domain,
        signers: Sequence[Signer],
        chain: OnChain,
        memory: ValidatorMemory,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.domain, self.chain, self.memory, self.clock = domain, chain, memory, clock
        self._signers = {signer.address: signer for signer in signers}
        # one thread: checking a thousand signatures must not hold up the loop, and the memory has one user
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
        match statement:
            case BatchStatement():
                epoch = statement.batch.epoch
                excluded = {statement.batch.gateway, *(credit.payee for credit in statement.credits)}
            case TermsStatement() | CompletionStatement() | FailureStatement():
                epoch, excluded = statement.terms.epoch, {statement.terms.gateway, statement.terms.node}
        signing = await self._who_signs(epoch, excluded)
        digest = await (self._batch(statement) if isinstance(statement, BatchStatement) else self._escrow(statement))
        signatures = tuple(signer.sign(digest).value for signer in signing.values())
        return Quorum(epoch, sum(1 << i for i in signing), signatures)

    async def _who_signs(self, epoch: int, excluded: set[bytes]) -> dict[int, Signer]:
        """Return as many signers as make a quorum, by their place among the epoch's members."""
        members = await self.chain.members(epoch)
        needed = await self.chain.quorum_size(epoch)
        able = [i for i, member in enumerate(members) if member in self._signers and member not in excluded]
        if len(able) < needed:
            raise EndorsementRefused(
                f"{len(able)} of the {len(members)} validators of epoch {epoch} can sign here; {needed} are needed"
            )
        return {i: self._signers[members[i]] for i in able[:needed]}

    # --- batches ---

    async def _batch(self, statement: BatchStatement) -> bytes:
        batch = statement.batch
        passed = await self.chain.batch_nonce(batch.gateway)
        if not passed < batch.nonce <= passed + _NONCES_AHEAD:
            raise EndorsementRefused(
                f"nonce {batch.nonce} does not follow {passed}, the gateway's last one on chain", None, passed + 1
            )
        request_ids = [charge.receipt.receipt.request_id for charge in statement.charges]
        signed = await self._in_thread(lambda: self.memory.batches_of(request_ids))
        await self._refuse_settled(batch, signed)  # first: who makes the batch may not know of it
        deposits = await self.chain.deposits({batches.channel_of(charge) for charge in statement.charges})
        spent = {channel: deposit.spent_wei for channel, deposit in deposits.items()}
        await self._in_thread(lambda: batches.check(self.domain, statement, spent))
        digest = digests.batch_digest(self.domain, batch)
        await self._in_thread(lambda: self.memory.sign_batch(batch.gateway, batch.nonce, digest, request_ids, signed))
        return digest

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

    async def _escrow(self, statement: TermsStatement | CompletionStatement | FailureStatement) -> bytes:
        terms = statement.terms
        identity = digests.escrow_id(self.domain, terms.client, terms.nonce)
        if identity != statement.escrow_id:
            raise EndorsementRefused(f"the escrow of these terms is 0x{identity.hex()}")
        try:
            match statement:
                case TermsStatement():
                    self._check_terms(statement)
                case CompletionStatement():
                    self._check_completion(statement)
                case FailureStatement():
                    pass  # whom it harms says it: the gateway and the node, who are not paid then
        except NcnError as cause:
            raise EndorsementRefused(str(cause)) from cause
        digest = self._digest(statement)
        if isinstance(statement, TermsStatement):
            return digest  # a client may ask for several requests under one nonce: the contract takes one of them
        kind = type(statement).__name__
        contrary = "FailureStatement" if isinstance(statement, CompletionStatement) else "CompletionStatement"
        await self._in_thread(lambda: self.memory.sign_escrow(identity, kind, digest, contrary))
        return digest

    def _digest(self, statement: TermsStatement | CompletionStatement | FailureStatement) -> bytes:
        match statement:
            case TermsStatement():
                return digests.preprocess_digest(self.domain, statement.escrow_id, statement.terms)
            case CompletionStatement():
                receipt = statement.receipt.receipt
                return digests.completion_digest(self.domain, statement.escrow_id, receipt.output_hash, receipt.fee_wei)
            case FailureStatement():
                return digests.failure_digest(self.domain, statement.escrow_id)

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

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
