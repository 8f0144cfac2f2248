"""What a batch is made of, and what is wrong with one: pure functions, the same for who makes and who checks it.

The contract sees three things: what each channel is at after the batch (``Claim``), what each node gets (``Credit``),
and the head that a quorum signed over both. The charges behind them stay off chain, committed to by two hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ncn_framework import digests, merkle
from ncn_framework.errors import EndorsementRefused, NcnError
from ncn_framework.models import ANONYMOUS, Domain
from ncn_framework.payments import Batch, Charge, Claim, Credit, Voucher
from ncn_framework.signing import address_hex, check_signature
from ncn_framework.statements import BatchStatement

from .accounts import check_voucher

__all__ = [
    "COMPUTE_BPS",
    "MAX_CHANNELS",
    "Shares",
    "build",
    "channel_of",
    "check",
    "is_sound",
    "node_share",
    "shares",
    "total_of",
]

COMPUTE_BPS = 8_000
"""Share of a fee that the node gets, in basis points; the contract splits the rest."""

MAX_CHANNELS = 1_400
"""Most channels of one batch: what a transaction may cost at the most (EIP-7825: 2^24 gas)."""


def channel_of(charge: Charge) -> bytes:
    """Return the id of the channel that a charge draws on."""
    voucher = charge.voucher
    return digests.channel_id(voucher.client, voucher.signer, voucher.gateway)


def node_share(fee_wei: int) -> int:
    """Return what the node gets of a receipt's fee: 80%, rounded down."""
    return fee_wei * COMPUTE_BPS // 10_000


@dataclass(frozen=True)
class Shares:
    """Who gets what of a batch, in wei: each compute node, its gateway, the validators, the treasury."""

    compute_wei: Mapping[bytes, int]
    gateway_wei: int
    validators_wei: int
    treasury_wei: int

    @property
    def total_wei(self) -> int:
        """What the batch takes from its channels."""
        return sum(self.compute_wei.values()) + self.gateway_wei + self.validators_wei + self.treasury_wei


def total_of(statement: BatchStatement) -> int:
    """Return what a batch takes from its channels, in wei."""
    return sum(charge.receipt.receipt.fee_wei for charge in statement.charges)


def shares(total_wei: int, credits_: Iterable[Credit]) -> Shares:
    """Return what the contract makes of a batch's total (``InferencePayment._split``): the nodes' credits, a tenth to
    the gateway, a twentieth to the validators, each rounded down; the rest to the treasury."""
    compute = {credit.payee: credit.amount_wei for credit in credits_}
    gateway, validators = total_wei // 10, total_wei // 20
    return Shares(compute, gateway, validators, total_wei - sum(compute.values()) - gateway - validators)


def build(
    gateway: bytes,
    nonce: int,
    epoch: int,
    charges: Sequence[Charge],
    spent_wei: Mapping[bytes, int],
    vouchers: Mapping[bytes, Voucher] | None = None,
) -> BatchStatement:
    """Return the batch of ``charges``.

    Args:
        gateway: whose channels they draw on.
        nonce: higher than that of any batch of this gateway.
        epoch: whose validators shall sign.
        charges: at least one.
        spent_wei: what the contract has taken of each of their channels so far, by channel id.
        vouchers: of their channels, where there are better ones than those of the charges: what others have drawn
            meanwhile was allowed by later vouchers.
    """
    total, credit, best = dict[bytes, int](), dict[bytes, int](), dict(vouchers or {})
    for charge in charges:
        channel, receipt = channel_of(charge), charge.receipt.receipt
        total[channel] = total.get(channel, spent_wei[channel]) + receipt.fee_wei
        credit[receipt.node] = credit.get(receipt.node, 0) + node_share(receipt.fee_wei)
        if channel not in best or charge.voucher.cumulative_wei > best[channel].cumulative_wei:
            best[channel] = charge.voucher
    claims = tuple(Claim(best[channel], wei) for channel, wei in sorted(total.items()) if wei > spent_wei[channel])
    credits_ = tuple(Credit(node, wei) for node, wei in sorted(credit.items()) if wei)
    return BatchStatement(_head(gateway, nonce, epoch, claims, credits_, charges), claims, credits_, tuple(charges))


def _head(
    gateway: bytes,
    nonce: int,
    epoch: int,
    claims: Sequence[Claim],
    credits_: Sequence[Credit],
    charges: Sequence[Charge],
) -> Batch:
    return Batch(
        gateway=gateway,
        nonce=nonce,
        epoch=epoch,
        count=len(charges),
        receipts_root=merkle.root(map(digests.charge_leaf, charges)),
        da_hash=digests.charges_hash(charges),
        claims_hash=digests.claims_hash(claims),
        credits_hash=digests.credits_hash(credits_),
    )


def check(domain: Domain, statement: BatchStatement, spent_wei: Mapping[bytes, int]) -> None:
    """Check all of a batch that can be checked without asking anybody but the chain.

    Every charge is a receipt that its node signed, for a request that its client signed, under a voucher that the
    channel's signer signed; no request is in it twice; and claims, credits and hashes are just what the charges make
    them. Only a claim's voucher may be a better one than its charges have.

    Raises:
        EndorsementRefused: naming what is wrong.
    """
    batch = statement.batch
    if not statement.charges:
        raise EndorsementRefused("the batch has no charge")
    seen: set[bytes] = set()
    for index, charge in enumerate(statement.charges):
        receipt = charge.receipt.receipt
        try:
            _check_charge(domain, batch.gateway, charge)
        except NcnError as cause:
            raise EndorsementRefused(f"charge {index}, request 0x{receipt.request_id.hex()}: {cause}") from cause
        if receipt.request_id in seen:
            raise EndorsementRefused(f"charge {index}: request 0x{receipt.request_id.hex()} is in the batch twice")
        seen.add(receipt.request_id)
    vouchers = _claimed(domain, statement)
    expected = build(batch.gateway, batch.nonce, batch.epoch, statement.charges, spent_wei, vouchers)
    if len(expected.claims) > MAX_CHANNELS:
        raise EndorsementRefused(f"the batch draws on {len(expected.claims)} channels; at most {MAX_CHANNELS}")
    for name, part in (("claims", "claims"), ("credits", "credits"), ("head", "batch")):
        if getattr(statement, part) != getattr(expected, part):
            raise EndorsementRefused(f"the {name} of the batch: not what its charges make of it")
    for claim in expected.claims:
        if claim.total_wei > claim.voucher.cumulative_wei:
            raise EndorsementRefused(
                f"the charges of client {address_hex(claim.voucher.client)} come to {claim.total_wei} wei; "
                f"its voucher allows {claim.voucher.cumulative_wei}"
            )


def _claimed(domain: Domain, statement: BatchStatement) -> dict[bytes, Voucher]:
    """Return the vouchers of a batch's claims, by channel, their signatures checked."""
    for index, claim in enumerate(statement.claims):
        try:
            check_voucher(domain, claim.voucher)
        except NcnError as cause:
            raise EndorsementRefused(f"claim {index}: {cause}") from cause
    vouchers = (claim.voucher for claim in statement.claims)
    return {digests.channel_id(voucher.client, voucher.signer, voucher.gateway): voucher for voucher in vouchers}


def is_sound(domain: Domain, gateway: bytes, charge: Charge) -> bool:
    """Return whether a charge by itself would be let pass in a batch of ``gateway``."""
    try:
        _check_charge(domain, gateway, charge)
    except NcnError:
        return False
    return True


def _check_charge(domain: Domain, gateway: bytes, charge: Charge) -> None:
    voucher, receipt = charge.voucher, charge.receipt.receipt
    if voucher.gateway != gateway:
        raise EndorsementRefused(f"its voucher is for gateway {address_hex(voucher.gateway)}")
    check_voucher(domain, voucher)
    node_signature = charge.receipt.signature_of(receipt.node)
    check_signature(digests.receipt_digest(domain, receipt), node_signature, receipt.node, "the receipt")
    by_gateway = voucher.client == gateway  # it may pay for anybody, out of its own channel
    if charge.client == ANONYMOUS and by_gateway:
        return
    if charge.client not in (voucher.client, voucher.signer) and not by_gateway:
        raise EndorsementRefused(f"its request is of {address_hex(charge.client)}, who does not own the channel")
    digest = digests.request_digest(domain, receipt)
    check_signature(digest, charge.request_signature, charge.client, "the request")
