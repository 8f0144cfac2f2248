"""What validators and the contract do for a payment into escrow, in the tests: sign the terms, take the payment."""

from __future__ import annotations

import time
from collections.abc import Callable

from ncn_framework import digests
from ncn_framework.models import Domain, InferenceRequest
from ncn_framework.payments import EscrowTerms, PaymentDue, Quorum
from ncn_framework.signing import Signer, recover

VALIDATORS = tuple(Signer(bytes([0x50 + i]) * 32) for i in range(5))
EPOCH = 7


class EscrowDesk:
    """Five validators, three of which sign; and a contract that takes what they signed.

    Attributes:
        terms: changes the terms before they are signed.
        due: changes what is signed before it is told.
        paid: transaction to what it paid for.
    """

    def __init__(self, domain: Domain, gateway: bytes, node: bytes) -> None:
        self.domain, self.gateway, self.node = domain, gateway, node
        self.terms: Callable[[EscrowTerms], EscrowTerms] = lambda terms: terms
        self.due: Callable[[PaymentDue], PaymentDue] = lambda due: due
        self.signers = VALIDATORS[1:4]
        self.bitmap = 0b01110
        self.paid: dict[bytes, PaymentDue] = {}
        self._nonces: dict[bytes, int] = {}

    def offer(self, request: InferenceRequest, amount_wei: int) -> PaymentDue:
        """Return what a client has to pay for a request."""
        terms = self.terms(
            EscrowTerms(
                client=request.client,
                nonce=self._nonces.get(request.client, 0),
                gateway=self.gateway,
                node=self.node,
                amount_wei=amount_wei,
                epoch=EPOCH,
                expiry_s=int(time.time()) + 600,
                request_hash=request.request_hash,
            )
        )
        escrow = digests.escrow_id(self.domain, terms.client, terms.nonce)
        digest = digests.preprocess_digest(self.domain, escrow, terms)
        quorum = Quorum(EPOCH, self.bitmap, tuple(signer.sign(digest).value for signer in self.signers))
        return self.due(PaymentDue(terms, escrow, self.domain.contract, self.domain.chain_id, quorum))

    def pay(self, due: PaymentDue) -> bytes:
        """Do what the contract does; return the transaction's hash."""
        digest = digests.preprocess_digest(self.domain, due.escrow_id, due.terms)
        members = [signer.address for signer in VALIDATORS]
        named = [members[i] for i in range(5) if due.quorum.bitmap >> i & 1]
        assert [recover(digest, signature) for signature in due.quorum.signatures] == named
        assert len(named) >= 3
        nonce = self._nonces.get(due.terms.client, 0)
        assert due.terms.nonce == nonce
        self._nonces[due.terms.client] = nonce + 1
        transaction = digests.keccak(b"transaction" + due.escrow_id)
        self.paid[transaction] = due
        return transaction
