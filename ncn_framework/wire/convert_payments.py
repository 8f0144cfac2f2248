"""Between protobuf messages and what is said about money. What comes from outside is checked for form and bounds."""

from __future__ import annotations

from ..errors import MalformedRequest
from ..payments import MAX_WEI, EscrowTerms, PaymentDue, Quorum, TransferAuthorization, Voucher
from . import messages_pb2 as pb

__all__ = [
    "authorization_from_pb",
    "escrow_terms_from_pb",
    "escrow_terms_to_pb",
    "payment_due_from_pb",
    "payment_due_to_pb",
    "quorum_from_pb",
    "quorum_to_pb",
    "sized",
    "transfer_to_pb",
    "voucher_from_pb",
    "voucher_to_pb",
    "wei_from_pb",
]


def sized(value: bytes, size: int, field: str) -> bytes:
    """Return ``value``, which must have ``size`` bytes."""
    if len(value) != size:
        raise MalformedRequest(f"{field} has {len(value)} bytes; it must have {size}")
    return value


def wei_from_pb(text: str, field: str) -> int:
    """Return a decimal number of wei, of at most 96 bits."""
    if not (text.isascii() and text.isdecimal() and len(text) < 30) or int(text) > MAX_WEI:
        raise MalformedRequest(f"{field} {text[:40]!r} is not a number of wei of at most 96 bits")
    return int(text)


def voucher_to_pb(voucher: Voucher) -> pb.Voucher:
    """Return the message of a voucher."""
    return pb.Voucher(
        client=voucher.client,
        signer=voucher.signer,
        gateway=voucher.gateway,
        cumulative_wei=str(voucher.cumulative_wei),
        signature=voucher.signature,
    )


def voucher_from_pb(message: pb.Voucher) -> Voucher:
    """Return the voucher, unchecked but for form.

    Raises:
        MalformedRequest: an address is not 20 bytes, the signature not 65, or the amount no number of wei.
    """
    return Voucher(
        sized(message.client, 20, "voucher.client"),
        sized(message.signer, 20, "voucher.signer"),
        sized(message.gateway, 20, "voucher.gateway"),
        wei_from_pb(message.cumulative_wei, "voucher.cumulative_wei"),
        sized(message.signature, 65, "voucher.signature"),
    )


def transfer_to_pb(transfer: TransferAuthorization) -> pb.TransferAuthorization:
    return pb.TransferAuthorization(
        payer=transfer.payer,
        payee=transfer.payee,
        value_wei=str(transfer.value_wei),
        valid_after_s=transfer.valid_after_s,
        valid_before_s=transfer.valid_before_s,
        nonce=transfer.nonce,
        signature=transfer.signature,
    )


def authorization_from_pb(message: pb.InferenceRequest) -> Voucher | TransferAuthorization | None:
    kind = message.WhichOneof("authorization")
    if kind == "voucher":
        return voucher_from_pb(message.voucher)
    if kind is None:
        return None
    transfer = message.transfer
    return TransferAuthorization(
        sized(transfer.payer, 20, "transfer.payer"),
        sized(transfer.payee, 20, "transfer.payee"),
        wei_from_pb(transfer.value_wei, "transfer.value_wei"),
        transfer.valid_after_s,
        transfer.valid_before_s,
        sized(transfer.nonce, 32, "transfer.nonce"),
        sized(transfer.signature, 65, "transfer.signature"),
    )


def escrow_terms_to_pb(terms: EscrowTerms) -> pb.EscrowTerms:
    """Return the message of an escrow's terms."""
    return pb.EscrowTerms(
        client=terms.client,
        nonce=terms.nonce,
        gateway=terms.gateway,
        node=terms.node,
        amount_wei=str(terms.amount_wei),
        epoch=terms.epoch,
        expiry_s=terms.expiry_s,
        request_hash=terms.request_hash,
    )


def escrow_terms_from_pb(terms: pb.EscrowTerms) -> EscrowTerms:
    """Return the terms, unchecked but for form.

    Raises:
        MalformedRequest: a field is missing or malformed.
    """
    return EscrowTerms(
        client=sized(terms.client, 20, "terms.client"),
        nonce=terms.nonce,
        gateway=sized(terms.gateway, 20, "terms.gateway"),
        node=sized(terms.node, 20, "terms.node"),
        amount_wei=wei_from_pb(terms.amount_wei, "terms.amount_wei"),
        epoch=terms.epoch,
        expiry_s=terms.expiry_s,
        request_hash=sized(terms.request_hash, 32, "terms.request_hash"),
    )


def quorum_to_pb(quorum: Quorum) -> pb.Quorum:
    """Return the message of a quorum."""
    return pb.Quorum(epoch=quorum.epoch, bitmap=quorum.bitmap.to_bytes(32, "big"), signatures=quorum.signatures)


def quorum_from_pb(message: pb.Quorum) -> Quorum:
    """Return the quorum, unchecked but for form.

    Raises:
        MalformedRequest: the bitmap is not 32 bytes, or a signature not 65.
    """
    bitmap = int.from_bytes(sized(message.bitmap, 32, "quorum.bitmap"), "big")
    return Quorum(message.epoch, bitmap, tuple(sized(one, 65, "quorum.signatures") for one in message.signatures))


def payment_due_to_pb(due: PaymentDue) -> pb.PaymentStatus:
    """Return the message that tells a client what to pay into escrow."""
    terms = due.terms
    return pb.PaymentStatus(
        mode="escrow",
        state="due",
        amount_wei=str(terms.amount_wei),
        contract=due.contract,
        chain_id=due.chain_id,
        terms=escrow_terms_to_pb(terms),
        escrow_id=due.escrow_id,
        quorum=quorum_to_pb(due.quorum),
    )


def payment_due_from_pb(message: pb.PaymentStatus) -> PaymentDue:
    """Return what is to be paid, unchecked but for form.

    Raises:
        MalformedRequest: a field is missing or malformed.
    """
    return PaymentDue(
        escrow_terms_from_pb(message.terms),
        escrow_id=sized(message.escrow_id, 32, "escrow_id"),
        contract=sized(message.contract, 20, "contract"),
        chain_id=message.chain_id,
        quorum=quorum_from_pb(message.quorum),
    )
