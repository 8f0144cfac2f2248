"""Between protobuf messages and batches of charges: how a ledger keeps them and validators are shown them."""

from __future__ import annotations

from ..models import ANONYMOUS
from ..payments import Batch, Charge, Claim, Credit
from ..statements import BatchStatement
from . import messages_pb2 as pb
from .convert import receipt_from_pb, receipt_to_pb
from .convert_payments import sized, voucher_from_pb, voucher_to_pb, wei_from_pb

__all__ = ["batch_from_pb", "batch_to_pb", "charge_from_pb", "charge_to_pb"]


def charge_to_pb(charge: Charge) -> pb.Charge:
    """Return the message of a charge."""
    return pb.Charge(
        voucher=voucher_to_pb(charge.voucher),
        receipt=receipt_to_pb(charge.receipt),
        inputs_hash=charge.inputs_hash,
        client=charge.client,
        request_signature=charge.request_signature,
    )


def charge_from_pb(message: pb.Charge) -> Charge:
    """Return the charge, unchecked but for form.

    Raises:
        MalformedRequest, ReceiptRejected: a field is missing or malformed.
    """
    return Charge(
        voucher_from_pb(message.voucher),
        receipt_from_pb(message.receipt),
        sized(message.inputs_hash, 32, "inputs_hash"),
        sized(message.client or ANONYMOUS, 20, "client"),
        message.request_signature and sized(message.request_signature, 65, "request_signature"),
    )


def batch_to_pb(statement: BatchStatement) -> pb.BatchStatement:
    """Return the message of a batch with all that it rests on."""
    batch = statement.batch
    return pb.BatchStatement(
        gateway=batch.gateway,
        nonce=batch.nonce,
        epoch=batch.epoch,
        count=batch.count,
        receipts_root=batch.receipts_root,
        da_hash=batch.da_hash,
        claims_hash=batch.claims_hash,
        credits_hash=batch.credits_hash,
        claims=[
            pb.Claim(voucher=voucher_to_pb(claim.voucher), total_wei=str(claim.total_wei)) for claim in statement.claims
        ],
        credits=[pb.Credit(payee=credit.payee, amount_wei=str(credit.amount_wei)) for credit in statement.credits],
        charges=[charge_to_pb(charge) for charge in statement.charges],
    )


def batch_from_pb(message: pb.BatchStatement) -> BatchStatement:
    """Return the batch, unchecked but for form.

    Raises:
        MalformedRequest, ReceiptRejected: a field is missing or malformed.
    """
    batch = Batch(
        gateway=sized(message.gateway, 20, "gateway"),
        nonce=message.nonce,
        epoch=message.epoch,
        count=message.count,
        receipts_root=sized(message.receipts_root, 32, "receipts_root"),
        da_hash=sized(message.da_hash, 32, "da_hash"),
        claims_hash=sized(message.claims_hash, 32, "claims_hash"),
        credits_hash=sized(message.credits_hash, 32, "credits_hash"),
    )
    return BatchStatement(
        batch,
        tuple(Claim(voucher_from_pb(m.voucher), wei_from_pb(m.total_wei, "total_wei")) for m in message.claims),
        tuple(Credit(sized(m.payee, 20, "payee"), wei_from_pb(m.amount_wei, "amount_wei")) for m in message.credits),
        tuple(map(charge_from_pb, message.charges)),
    )
