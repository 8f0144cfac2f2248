"""What is checked of a payment into escrow before any money moves."""

from __future__ import annotations

import time

from ncn_framework import digests
from ncn_framework.errors import SignatureRejected, VerificationError
from ncn_framework.models import Domain
from ncn_framework.payments import PaymentDue
from ncn_framework.signing import address_hex, recover

from .requests import Prepared

__all__ = ["check_due"]


def check_due(due: PaymentDue, prepared: Prepared, *, gateway: bytes, node: bytes | None = None) -> None:
    """Check that a payment is due for this very request, and costs no more than it may.

    Who the validators are is known on chain alone: the contract checks that they belong to the epoch and are enough.

    Args:
        due: as the gateway gave it.
        prepared: the request.
        gateway: address of the gateway that was asked.
        node: address of the only node whose answer is taken; None takes any.

    Raises:
        VerificationError: naming the field.
    """
    terms, request, domain = due.terms, prepared.request, prepared.domain
    _equal("payment.chain_id", due.chain_id, domain.chain_id)
    _equal("payment.contract", due.contract, domain.contract)
    _equal("payment.terms.client", terms.client, request.client)
    _equal("payment.terms.request_hash", terms.request_hash, request.request_hash)
    _equal("payment.terms.gateway", terms.gateway, gateway)
    if node is not None:
        _equal("payment.terms.node", terms.node, node)
    if terms.amount_wei > prepared.limit_wei:
        raise VerificationError(
            "payment.terms.amount_wei", f"is {terms.amount_wei}; the request may cost {prepared.limit_wei} wei at most"
        )
    if terms.expiry_s <= time.time():
        raise VerificationError("payment.terms.expiry_s", f"is {terms.expiry_s}, which has passed")
    _equal("payment.escrow_id", due.escrow_id, digests.escrow_id(domain, terms.client, terms.nonce))
    _check_quorum(due, domain)


def _check_quorum(due: PaymentDue, domain: Domain) -> None:
    """Check that as many validators as the payment says signed its terms, none of them gateway or node."""
    terms, quorum = due.terms, due.quorum
    _equal("payment.quorum.epoch", quorum.epoch, terms.epoch)
    if not 0 < quorum.bitmap.bit_count() == len(quorum.signatures):
        raise VerificationError(
            "payment.quorum.bitmap", f"names {quorum.bitmap.bit_count()} validators of {len(quorum.signatures)}"
        )
    digest, seen = digests.preprocess_digest(domain, due.escrow_id, terms), {terms.gateway, terms.node}
    for index, signature in enumerate(quorum.signatures):
        where = f"payment.quorum.signatures[{index}]"
        try:
            signer = recover(digest, signature)
        except SignatureRejected as cause:
            raise VerificationError(where, str(cause)) from cause
        if signer in seen:
            raise VerificationError(where, f"is by {address_hex(signer)}, who is party to it or has signed already")
        seen.add(signer)


def _equal(where: str, have: bytes | int, want: bytes | int) -> None:
    if have != want:
        shown = [f"0x{value.hex()}" if isinstance(value, bytes) else str(value) for value in (have, want)]
        raise VerificationError(where, f"is {shown[0]}, not {shown[1]}")
