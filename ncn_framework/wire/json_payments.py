"""The JSON forms of what is said about payments, and conversions to models."""

from __future__ import annotations

from ..errors import MalformedRequest
from ..payments import MAX_WEI, EscrowTerms, PaymentDue, Quorum, Voucher
from ..signing import address_from_hex, address_hex
from .json_tensors import Form

__all__ = [
    "ConfirmationJson",
    "EscrowTermsJson",
    "PaymentJson",
    "QuorumJson",
    "VoucherJson",
    "address_bytes",
    "hash_bytes",
    "payment_from_json",
    "payment_json",
    "quorum_from_json",
    "quorum_json",
    "voucher_from_json",
    "voucher_json",
    "wei_from_json",
]


def hash_bytes(text: str, field: str, size: int = 32) -> bytes:
    """Return the bytes of 0x-hex ``text``, which must have ``size`` bytes (0: any)."""
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as cause:
        raise MalformedRequest(f"{field} is not 0x-hex") from cause
    if size and len(value) != size:
        raise MalformedRequest(f"{field} has {len(value)} bytes; it must have {size}")
    return value


def address_bytes(text: str, field: str) -> bytes:
    """Return the 20 bytes of an address in hex."""
    try:
        return address_from_hex(text)
    except ValueError as cause:
        raise MalformedRequest(f"{field}: {cause}") from cause


def wei_from_json(text: str, field: str) -> int:
    """Return a decimal number of wei, of at most 96 bits."""
    if not (text.isascii() and text.isdecimal() and len(text) < 30) or int(text) > MAX_WEI:
        raise MalformedRequest(f"{field} is not a decimal number of wei of at most 96 bits")
    return int(text)


class VoucherJson(Form, omit_defaults=False):
    """EIP-712 Voucher: the gateway may draw the channel of these three addresses down to ``cumulative_wei``, ever."""

    client: str
    signer: str
    gateway: str
    cumulative_wei: str
    signature: str


class EscrowTermsJson(Form, omit_defaults=False):
    """The contract's ``Request``."""

    client: str
    nonce: int
    gateway: str
    node: str
    amount_wei: str
    epoch: int
    expiry_s: int
    request_hash: str


class QuorumJson(Form, omit_defaults=False):
    """Validators' signatures; bit i of ``bitmap`` (0x-hex) stands for member i of the epoch."""

    epoch: int
    bitmap: str
    signatures: list[str]


class PaymentJson(Form, omit_defaults=False):
    """What to pay into escrow: give ``terms`` and ``quorum`` to ``initiateInferenceRequest`` of ``contract``."""

    terms: EscrowTermsJson
    escrow_id: str
    contract: str
    chain_id: int
    quorum: QuorumJson


class ConfirmationJson(Form):
    """A client's word that it has paid."""

    transaction_hash: str


def voucher_json(voucher: Voucher) -> VoucherJson:
    """Return the JSON form of a voucher."""
    return VoucherJson(
        address_hex(voucher.client),
        address_hex(voucher.signer),
        address_hex(voucher.gateway),
        str(voucher.cumulative_wei),
        "0x" + voucher.signature.hex(),
    )


def voucher_from_json(form: VoucherJson) -> Voucher:
    """Return the voucher, unchecked but for form.

    Raises:
        MalformedRequest: a field is malformed.
    """
    return Voucher(
        address_bytes(form.client, "voucher.client"),
        address_bytes(form.signer, "voucher.signer"),
        address_bytes(form.gateway, "voucher.gateway"),
        wei_from_json(form.cumulative_wei, "voucher.cumulative_wei"),
        hash_bytes(form.signature, "voucher.signature", 65),
    )


def quorum_json(quorum: Quorum) -> QuorumJson:
    """Return the JSON form of a quorum."""
    return QuorumJson(quorum.epoch, hex(quorum.bitmap), ["0x" + signature.hex() for signature in quorum.signatures])


def quorum_from_json(form: QuorumJson) -> Quorum:
    """Return the quorum, unchecked but for form.

    Raises:
        MalformedRequest: a field is malformed.
    """
    if not 0 <= form.epoch < 2**63:
        raise MalformedRequest("quorum.epoch is negative or passes 63 bits")
    try:
        bitmap = int(form.bitmap, 16)
    except ValueError as cause:
        raise MalformedRequest("quorum.bitmap is not 0x-hex") from cause
    if not 0 <= bitmap < 2**256:
        raise MalformedRequest("quorum.bitmap passes 256 bits")
    return Quorum(form.epoch, bitmap, tuple(hash_bytes(one, "quorum.signatures", 65) for one in form.signatures))


def payment_json(due: PaymentDue) -> PaymentJson:
    """Return the JSON form of what is to be paid."""
    terms = due.terms
    return PaymentJson(
        terms=EscrowTermsJson(
            address_hex(terms.client),
            terms.nonce,
            address_hex(terms.gateway),
            address_hex(terms.node),
            str(terms.amount_wei),
            terms.epoch,
            terms.expiry_s,
            "0x" + terms.request_hash.hex(),
        ),
        escrow_id="0x" + due.escrow_id.hex(),
        contract=address_hex(due.contract),
        chain_id=due.chain_id,
        quorum=quorum_json(due.quorum),
    )


def payment_from_json(form: PaymentJson) -> PaymentDue:
    """Return what is to be paid, unchecked but for form.

    Raises:
        MalformedRequest: a field is malformed.
    """
    terms = form.terms
    if not all(0 <= n < 2**63 for n in (terms.nonce, terms.epoch, terms.expiry_s, form.chain_id)):
        raise MalformedRequest("a number of the payment is negative or passes 63 bits")
    return PaymentDue(
        EscrowTerms(
            client=address_bytes(terms.client, "terms.client"),
            nonce=terms.nonce,
            gateway=address_bytes(terms.gateway, "terms.gateway"),
            node=address_bytes(terms.node, "terms.node"),
            amount_wei=wei_from_json(terms.amount_wei, "terms.amount_wei"),
            epoch=terms.epoch,
            expiry_s=terms.expiry_s,
            request_hash=hash_bytes(terms.request_hash, "terms.request_hash"),
        ),
        escrow_id=hash_bytes(form.escrow_id, "escrow_id"),
        contract=address_bytes(form.contract, "contract"),
        chain_id=form.chain_id,
        quorum=quorum_from_json(form.quorum),
    )
