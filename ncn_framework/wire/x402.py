"""x402, version 2: HTTP 402 with the headers PAYMENT-REQUIRED, PAYMENT-SIGNATURE and PAYMENT-RESPONSE.

Each header is base64 (RFC 4648, section 4) of a JSON object; networks have CAIP-2's names (``eip155:1``). Scheme
``exact`` is spoken, by EIP-3009. Vouchers are like x402's ``batch-settlement`` and have its fields, but that scheme is
bound to a contract of its own: who listed ours under its name would have clients sign for the other. So they stand
beside ``accepts``, as extension ``ncn-voucher``, which clients that do not know it pass over.

Sources: x402's specification, version 2, with its HTTP transport and scheme ``exact`` on EVM; EIP-3009; CAIP-2.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Any

import msgspec

from ..errors import MalformedRequest, PaymentRequired
from ..models import Settlement
from ..payments import EXACT, VOUCHER, Offer, TransferAuthorization
from ..signing import address_hex
from .json import decode, encode
from .json_payments import address_bytes, hash_bytes, wei_from_json

__all__ = [
    "MAX_HEADER_BYTES",
    "REQUIRED",
    "RESPONSE",
    "SIGNATURE",
    "VOUCHER_EXTENSION",
    "network_name",
    "nonce_of",
    "required_header",
    "response_header",
    "transfer_from_header",
]

REQUIRED, SIGNATURE, RESPONSE = "PAYMENT-REQUIRED", "PAYMENT-SIGNATURE", "PAYMENT-RESPONSE"
"""Names of the headers."""

VERSION = 2

MAX_HEADER_BYTES = 16_384
"""Longest PAYMENT-SIGNATURE; a payment with what a gateway offered in it has about 2,000 bytes."""

VOUCHER_EXTENSION = "ncn-voucher"

_LONGEST_ERROR = 256  # characters; some proxies take 4,000 bytes of header and no more


class _Form(msgspec.Struct, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    pass


class _Resource(_Form):
    url: str
    description: str
    mime_type: str


class Requirements(_Form, omit_defaults=False):
    """A way to pay: ``amount`` of ``asset`` to ``payTo`` on ``network``."""

    scheme: str
    network: str
    amount: str
    asset: str
    pay_to: str
    max_timeout_seconds: int
    extra: dict[str, Any] = {}


class _Extension(_Form):
    info: Requirements
    schema: dict[str, Any]  # of info


class _Required(_Form, omit_defaults=False):
    x402_version: int
    error: str
    resource: _Resource
    accepts: list[Requirements]
    extensions: dict[str, _Extension]


class _Signed(_Form):
    x402_version: int
    accepted: Requirements
    payload: msgspec.Raw
    resource: msgspec.Raw = msgspec.Raw()  # what the gateway said, sent back
    extensions: msgspec.Raw = msgspec.Raw()


class _Authorization(_Form):
    payer: str = msgspec.field(name="from")
    to: str
    value: str
    valid_after: str
    valid_before: str
    nonce: str


class _Exact(_Form):
    authorization: _Authorization
    signature: str


class _Response(_Form, omit_defaults=False):
    success: bool
    transaction: str
    network: str
    payer: str
    amount: str


_SCHEMA = msgspec.json.schema_components([Requirements])[1]["Requirements"]


def network_name(chain_id: int) -> str:
    """Return the CAIP-2 name of an EVM chain."""
    return f"eip155:{chain_id}"


def nonce_of(transfer: TransferAuthorization) -> bytes:
    """Return the nonce of a request that is paid with ``transfer`` and has none: it comes once for each payment.

    SHA-256 of ``ncn.x402.v1``, the authorization's nonce and the payer's address.
    """
    return sha256(b"ncn.x402.v1" + transfer.nonce + transfer.payer).digest()


# --- from the client ---


def transfer_from_header(header: bytes, chain_id: int) -> TransferAuthorization:
    """Return the transfer that a PAYMENT-SIGNATURE authorises, unchecked but for form.

    Args:
        header: its value, from anybody.
        chain_id: of the only chain whose payments are taken.

    Raises:
        MalformedRequest: anything else than an x402 payment of scheme ``exact`` on that chain, by EIP-3009.
    """
    try:
        return _transfer(header, chain_id)
    except MalformedRequest as error:
        raise MalformedRequest(f"{SIGNATURE} is not a payment: {error}") from error


def _transfer(header: bytes, chain_id: int) -> TransferAuthorization:
    if len(header) > MAX_HEADER_BYTES:
        raise MalformedRequest(f"it has {len(header)} bytes; at most {MAX_HEADER_BYTES}")
    try:
        data = b64decode(header, validate=True)
    except ValueError as cause:
        raise MalformedRequest("it is not base64") from cause
    signed: _Signed = decode(data, _Signed, what="its content")
    if signed.x402_version != VERSION:
        raise MalformedRequest(f"its x402Version is {signed.x402_version}; this is version {VERSION}")
    accepted, network = signed.accepted, network_name(chain_id)
    if (accepted.scheme, accepted.network) != (EXACT, network):
        raise MalformedRequest(
            f"it pays by scheme {accepted.scheme[:32]!r} on {accepted.network[:32]!r}; here it is {EXACT!r} on "
            f"{network!r}"
        )
    exact: _Exact = decode(bytes(signed.payload), _Exact, what="its payload")
    terms = exact.authorization
    return TransferAuthorization(
        payer=address_bytes(terms.payer, "authorization.from"),
        payee=address_bytes(terms.to, "authorization.to"),
        value_wei=wei_from_json(terms.value, "authorization.value"),
        valid_after_s=_seconds(terms.valid_after, "authorization.validAfter"),
        valid_before_s=_seconds(terms.valid_before, "authorization.validBefore"),
        nonce=hash_bytes(terms.nonce, "authorization.nonce"),
        signature=hash_bytes(exact.signature, "signature", 65),
    )


def _seconds(text: str, field: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or int(text) >= 2**63:
        raise MalformedRequest(f"{field} is not a decimal number of seconds of at most 63 bits")
    return int(text)


# --- to the client ---


def required_header(error: PaymentRequired, url: str) -> str:
    """Return PAYMENT-REQUIRED for the offers of ``error``.

    Args:
        error: which has offers.
        url: of what was asked for.
    """
    exact = [_requirements(offer) for offer in error.offers if offer.mode == EXACT]
    voucher = next((_requirements(offer) for offer in error.offers if offer.mode == VOUCHER), None)
    return _header(
        _Required(
            x402_version=VERSION,
            error=str(error)[:_LONGEST_ERROR],
            resource=_Resource(url, "one inference request", "application/json"),
            accepts=exact,
            extensions={} if voucher is None else {VOUCHER_EXTENSION: _Extension(voucher, _SCHEMA)},
        )
    )


def _requirements(offer: Offer) -> Requirements:
    return Requirements(
        scheme=offer.mode,
        network=network_name(offer.chain_id),
        amount=str(offer.amount_wei),
        asset=address_hex(offer.token),
        pay_to=address_hex(offer.pay_to),
        max_timeout_seconds=offer.timeout_s,
        extra=dict(offer.extra),
    )


def response_header(settlement: Settlement, payer: bytes, chain_id: int) -> str:
    """Return PAYMENT-RESPONSE for a request that was settled by a transfer of ``payer``'s."""
    return _header(
        _Response(
            success=True,
            transaction=settlement.reference,
            network=network_name(chain_id),
            payer=address_hex(payer),
            amount=str(settlement.charged_wei),
        )
    )


def _header(form: _Form) -> str:
    return b64encode(encode(form)).decode()
