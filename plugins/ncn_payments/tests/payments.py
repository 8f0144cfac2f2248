"""Vouchers, requests, receipts and charges of any amount, signed as the real ones are."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

import msgspec

from ncn_framework import digests, merkle
from ncn_framework.models import Domain, InferenceRequest, ModelManifest, Receipt, SignedReceipt
from ncn_framework.payments import VOUCHER, Charge, EscrowTerms, TransferAuthorization, Voucher
from ncn_framework.signing import Signer
from ncn_framework.testing.fakes import fake_manifest, fake_request, fake_signer
from ncn_payments.ledger import Ledger

__all__ = [
    "CLIENT",
    "DOMAIN",
    "GATEWAY",
    "NODE",
    "NOW_MS",
    "charge_of",
    "make_charge",
    "make_receipt",
    "make_request",
    "make_transfer",
    "make_voucher",
    "priced",
    "proof_of",
    "written",
]

GATEWAY, CLIENT, NODE = fake_signer("gateway"), fake_signer("client"), fake_signer("node")
DOMAIN = Domain(31337, b"\x70" * 20)
"""Where there is no chain; tests with one give that of its contracts."""
NOW_MS = 1_800_000_000_000
"""Time of the receipts that nobody compares with a clock."""


async def written(ledger: Ledger) -> None:
    """Return once all that the ledger was given is on disk: with a commit behind it."""
    await ledger.close_escrow(EscrowTerms(bytes(20), 0, bytes(20), bytes(20), 0, 0, 0, bytes(32)))


def priced(base_wei: int = 0, unit_wei: int = 1) -> ModelManifest:
    """Return a manifest with these prices."""
    return fake_manifest(base_fee_wei=base_wei, unit_fee_wei=unit_wei)


@lru_cache(maxsize=4096)
def make_voucher(
    cumulative_wei: int,
    client: Signer = CLIENT,
    signer: Signer | None = None,
    gateway: Signer = GATEWAY,
    domain: Domain = DOMAIN,
) -> Voucher:
    """Return a signed voucher; ``signer`` is the client itself unless it is given."""
    signer = signer or client
    channel = digests.channel_id(client.address, signer.address, gateway.address)
    signature = signer.sign(digests.voucher_digest(domain, channel, cumulative_wei)).value
    return Voucher(client.address, signer.address, gateway.address, cumulative_wei, signature)


def make_request(
    number: int,
    client: Signer | None = CLIENT,
    manifest: ModelManifest | None = None,
    domain: Domain = DOMAIN,
    **changes: Any,
) -> InferenceRequest:
    """Return the signed request with this number, paid by voucher unless ``changes`` say otherwise."""
    nonce = sha256(number.to_bytes(8, "big")).digest()
    fields: dict[str, Any] = {"payment": VOUCHER, "nonce": nonce, "deadline_ms": 2**42}
    return fake_request(manifest or priced(), client, domain, **(fields | changes))


def make_receipt(
    request: InferenceRequest, fee_wei: int, node: Signer = NODE, domain: Domain = DOMAIN
) -> SignedReceipt:
    """Return the receipt of a request, signed by ``node``."""
    receipt = Receipt(
        request_id=request.request_id,
        request_hash=request.request_hash,
        model=request.model,
        output_hash=sha256(request.request_id).digest(),
        chunks=1,
        units=min(fee_wei, 2**63 - 1),
        fee_wei=fee_wei,
        node=node.address,
        started_ms=NOW_MS,
        finished_ms=NOW_MS + 1,
    )
    return SignedReceipt(receipt, (node.sign(digests.receipt_digest(domain, receipt)),))


def charge_of(request: InferenceRequest, receipt: SignedReceipt, voucher: Voucher) -> Charge:
    """Return the charge of a request that was served on a voucher."""
    return Charge(voucher, receipt, digests.inputs_hash(request.inputs), request.client, request.signature)


def make_charge(
    number: int,
    fee_wei: int,
    voucher: Voucher | int,
    node: Signer = NODE,
    client: Signer | None = CLIENT,
    domain: Domain = DOMAIN,
    **changes: Any,
) -> Charge:
    """Return the charge of the request with this number; a voucher given as an amount is that of ``CLIENT``."""
    request = make_request(number, client, domain=domain)
    found = make_voucher(voucher, domain=domain) if isinstance(voucher, int) else voucher
    return replace(charge_of(request, make_receipt(request, fee_wei, node, domain), found), **changes)


def make_transfer(
    value_wei: int, token: Domain, nonce: int = 1, payer: Signer = CLIENT, **changes: Any
) -> TransferAuthorization:
    """Return a signed transfer of the token to the gateway, which holds from always to the far future."""
    fields: dict[str, Any] = {
        "payer": payer.address,
        "payee": GATEWAY.address,
        "value_wei": value_wei,
        "valid_after_s": 0,
        "valid_before_s": 2**40,
        "nonce": nonce.to_bytes(32, "big"),
    }
    unsigned = TransferAuthorization(**(fields | changes))
    signature = payer.sign(digests.transfer_digest(token, "NCN Token", unsigned)).value
    return msgspec.structs.replace(unsigned, signature=signature)


def proof_of(charges: list[Charge], at: int) -> list[bytes]:
    """Return the siblings on the way from a receipt's leaf to the root."""
    return list(merkle.path(map(digests.charge_leaf, charges), digests.charge_leaf(charges[at])))
