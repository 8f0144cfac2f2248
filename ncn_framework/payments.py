"""What is said and signed about money: frozen values, in base units (wei) of the network's token.

The contracts of PAYMENTS.md (``contracts/``) know the same structures; ``digests`` says how each is hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from .models import SignedReceipt

__all__ = [
    "ESCROW",
    "EXACT",
    "MAX_WEI",
    "VOUCHER",
    "Authorization",
    "Batch",
    "Charge",
    "Claim",
    "Credit",
    "Escrow",
    "EscrowTerms",
    "FeeDue",
    "Offer",
    "PaymentConfirmation",
    "PaymentDue",
    "Quorum",
    "TransferAuthorization",
    "Voucher",
]

VOUCHER = "voucher"
"""Payment mode in which a deposit is drawn on by cumulative vouchers, settled in batches."""

ESCROW = "escrow"
"""Payment mode in which each request is paid on chain before it is executed."""

EXACT = "exact"
"""Payment mode of a one-off payment (x402's scheme of this name): a signed transfer (EIP-3009) of the whole fee."""

MAX_WEI = 2**96 - 1
"""Largest amount that the contracts hold."""


class Voucher(msgspec.Struct, frozen=True, tag="voucher"):
    """A client's signed word that a gateway may draw its channel down to ``cumulative_wei``, ever.

    Attributes:
        client: whose deposit it is.
        signer: key that signs the channel's vouchers; the client's own, or a session key.
        gateway: whom the channel is with.
        cumulative_wei: most that may have been drawn, counted from the channel's beginning.
        signature: of ``signer`` over ``digests.voucher_digest``.
    """

    client: bytes
    signer: bytes
    gateway: bytes
    cumulative_wei: int
    signature: bytes = b""


class TransferAuthorization(msgspec.Struct, frozen=True, tag="transfer"):
    """A signed transfer of the network's token (EIP-3009 ``TransferWithAuthorization``).

    Attributes:
        payer: ``from``.
        payee: ``to``.
        value_wei: the whole of it is transferred.
        valid_after_s, valid_before_s: seconds since the epoch between which it holds, both excluded.
        nonce: 32 random bytes; used once.
        signature: of ``payer``.
    """

    payer: bytes
    payee: bytes
    value_wei: int
    valid_after_s: int
    valid_before_s: int
    nonce: bytes
    signature: bytes = b""


Authorization = Voucher | TransferAuthorization
"""What a payer signs so that a request's fee may be taken. Tagged structs: a store can tell one from the other."""


@dataclass(frozen=True)
class Offer:
    """A way to pay for a request, as told to who has not paid.

    Attributes:
        mode: ``voucher`` or ``exact``.
        amount_wei: most that the request may cost (``exact``: what it costs).
        token: address of the token.
        pay_to: whom: the gateway.
        chain_id: EIP-155 id of the chain.
        timeout_s: how long the offer holds.
        extra: what else the scheme needs, such as the token's EIP-712 name and version.
    """

    mode: str
    amount_wei: int
    token: bytes
    pay_to: bytes
    chain_id: int
    timeout_s: int
    extra: Mapping[str, str] = field(default_factory=dict)


# --- escrow ---


@dataclass(frozen=True)
class EscrowTerms:
    """What a client pays into escrow for one request (the contract's ``Request``).

    Attributes:
        client: who pays.
        nonce: the client's ``requestNonce`` in the contract.
        gateway, node: who serve it.
        amount_wei: most that it may cost; what is not used returns.
        epoch: whose validators decide.
        expiry_s: seconds since the epoch; after it, anybody may have it refunded.
        request_hash: of the request.
    """

    client: bytes
    nonce: int
    gateway: bytes
    node: bytes
    amount_wei: int
    epoch: int
    expiry_s: int
    request_hash: bytes


@dataclass(frozen=True)
class Quorum:
    """Signatures of validators over one digest.

    Attributes:
        epoch: whose members signed.
        bitmap: bit i stands for member i of the epoch.
        signatures: 65 bytes each, in ascending order of member.
    """

    epoch: int
    bitmap: int
    signatures: tuple[bytes, ...]


@dataclass(frozen=True)
class PaymentDue:
    """What a client has to pay into escrow before its request is executed, and the validators' word for it."""

    terms: EscrowTerms
    escrow_id: bytes
    contract: bytes
    chain_id: int
    quorum: Quorum


@dataclass(frozen=True)
class FeeDue:
    """A fee to the network's treasury, such as that of a new subnet.

    Attributes:
        chain_id: of the chain.
        amount_wei: of the token.
        purpose: what it is for, in words; also the key under which it is paid once and not twice.
    """

    chain_id: int
    amount_wei: int
    purpose: str


@dataclass(frozen=True)
class PaymentConfirmation:
    """A client's word that it has paid for a request, in a transaction (32 bytes, its hash)."""

    request_id: bytes
    transaction: bytes


class Escrow(Protocol):
    """The escrow of one request, carried by the lease of its funds."""

    due: PaymentDue

    async def paid(self) -> None:
        """Return once the payment is on chain."""

    async def refund(self) -> bool:
        """After a failure: give back what was paid, where the validators agree; return whether that was done."""


# --- batches ---


@dataclass(frozen=True)
class Claim:
    """What a batch takes from one channel: the voucher that allows it, and the channel's total after it."""

    voucher: Voucher
    total_wei: int


@dataclass(frozen=True)
class Credit:
    """What a batch pays to one compute node."""

    payee: bytes
    amount_wei: int


@dataclass(frozen=True)
class Batch:
    """The head of a batch, which the validators sign.

    Attributes:
        gateway: whose channels it draws on.
        nonce: higher than that of the last batch of this gateway on chain.
        epoch: whose validators sign.
        count: number of receipts.
        receipts_root: Merkle root of their leaves (``digests.charge_leaf``, ``merkle.root``).
        da_hash: SHA-256 of the receipts as published (``digests.charges_hash``).
        claims_hash, credits_hash: Keccak-256 of both lists as the contract is given them.
    """

    gateway: bytes
    nonce: int
    epoch: int
    count: int
    receipts_root: bytes
    da_hash: bytes
    claims_hash: bytes
    credits_hash: bytes


@dataclass(frozen=True)
class Charge:
    """One request that was served on a voucher: who pays, for what, and the proof that it was done.

    Attributes:
        voucher: that covered the request; its channel is charged.
        receipt: signed by the node.
        inputs_hash: of the request's inputs.
        client: of the request: the channel's client or signer; where a gateway pays for somebody, whoever that is.
        request_signature: of ``client`` over the request, empty for ``ANONYMOUS``.
    """

    voucher: Voucher
    receipt: SignedReceipt
    inputs_hash: bytes
    client: bytes
    request_signature: bytes
