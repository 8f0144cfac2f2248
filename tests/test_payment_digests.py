"""What is hashed and signed about money: as eth_account and eth_abi have it, and sensitive to all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework import digests, merkle
from ncn_framework.models import Domain, Receipt, Signature, SignedReceipt
from ncn_framework.payments import Batch, Charge, Claim, Credit, EscrowTerms, TransferAuthorization, Voucher
from ncn_framework.signing import recover
from ncn_framework.testing.fakes import fake_signer
from tests.oracle import abi, address, typed

hashes = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20)
wei = st.integers(0, 2**96 - 1)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
domains = st.builds(Domain, st.integers(1, 2**64 - 1), addresses)
signatures = st.builds(
    lambda r, s, v: r + bytes((s[0] & 0x7F,)) + s[1:] + bytes((v,)), hashes, hashes, st.sampled_from((27, 28))
)
vouchers = st.builds(Voucher, addresses, addresses, addresses, wei, signatures)
transfers = st.builds(TransferAuthorization, addresses, addresses, wei, u64, u64, hashes, signatures)
terms = st.builds(EscrowTerms, addresses, u64, addresses, addresses, wei, u32, u64, hashes)
batches = st.builds(Batch, addresses, u64, u32, u32, hashes, hashes, hashes, hashes)
receipts = st.builds(Receipt, hashes, hashes, hashes, hashes, u64, u64, wei, addresses, u64, u64)
signed_receipts = st.builds(
    SignedReceipt, receipts, st.lists(st.builds(Signature, addresses, signatures), max_size=3).map(tuple)
)
charges = st.builds(Charge, vouchers, signed_receipts, hashes, addresses, signatures)
quick = settings(max_examples=25, deadline=None)


# --- EIP-712 ---


@quick
@given(domains, hashes, wei)
def test_a_voucher(domain: Domain, channel: bytes, cumulative: int) -> None:
    message = {"channelId": channel, "cumulative": cumulative}
    assert digests.voucher_digest(domain, channel, cumulative) == typed(domain, "Voucher", message)


@quick
@given(domains, st.text(max_size=20), transfers)
def test_a_transfer_is_the_tokens(domain: Domain, name: str, transfer: TransferAuthorization) -> None:
    message = {
        "from": address(transfer.payer),
        "to": address(transfer.payee),
        "value": transfer.value_wei,
        "validAfter": transfer.valid_after_s,
        "validBefore": transfer.valid_before_s,
        "nonce": transfer.nonce,
    }
    expected = typed(domain, "TransferWithAuthorization", message, name)
    assert digests.transfer_digest(domain, name, transfer) == expected


@quick
@given(domains, hashes, terms)
def test_a_preprocess_commits_to_the_terms(domain: Domain, request: bytes, due: EscrowTerms) -> None:
    struct = "(address,uint64,address,address,uint96,uint32,uint64,bytes32)"
    row = [value for value in vars(due).values()]
    assert [field.name for field in fields(due)] == list(vars(due)), "the order of the contract's Request"
    commitment = abi([struct], row)
    assert digests.preprocess_commitment(due) == commitment
    message = {"requestId": request, "commitment": commitment}
    assert digests.preprocess_digest(domain, request, due) == typed(domain, "Preprocess", message)


@quick
@given(domains, hashes, hashes, wei)
def test_a_completion(domain: Domain, request: bytes, output_hash: bytes, fee: int) -> None:
    message = {"requestId": request, "resultHash": abi(["bytes32", "uint96"], output_hash, fee)}
    assert digests.completion_digest(domain, request, output_hash, fee) == typed(domain, "Completion", message)


@quick
@given(domains, hashes)
def test_a_failure(domain: Domain, request: bytes) -> None:
    assert digests.failure_digest(domain, request) == typed(domain, "Failure", {"requestId": request})


@quick
@given(domains, batches)
def test_a_batch(domain: Domain, batch: Batch) -> None:
    message = {
        "gateway": address(batch.gateway),
        "nonce": batch.nonce,
        "epoch": batch.epoch,
        "count": batch.count,
        "receiptsRoot": batch.receipts_root,
        "daHash": batch.da_hash,
        "claimsHash": batch.claims_hash,
        "creditsHash": batch.credits_hash,
    }
    assert digests.batch_digest(domain, batch) == typed(domain, "Batch", message)


# --- Solidity's ABI ---


@quick
@given(addresses, addresses, addresses)
def test_a_channel_id(client: bytes, signer: bytes, gateway: bytes) -> None:
    assert digests.channel_id(client, signer, gateway) == abi(["address"] * 3, client, signer, gateway)


@quick
@given(domains, addresses, u64)
def test_an_escrow_id(domain: Domain, client: bytes, nonce: int) -> None:
    expected = abi(["address", "uint256", "address", "uint64"], domain.contract, domain.chain_id, client, nonce)
    assert digests.escrow_id(domain, client, nonce) == expected


@quick
@given(st.lists(st.builds(Claim, vouchers, wei), max_size=4))
def test_claims(claims: list[Claim]) -> None:
    rows = []
    for claim in claims:
        voucher, r, s, v = claim.voucher, *_split(claim.voucher.signature)
        vs = (int.from_bytes(s, "big") | (v - 27) << 255).to_bytes(32, "big")  # EIP-2098
        rows.append((voucher.client, voucher.signer, voucher.cumulative_wei, claim.total_wei, r, vs))
    assert digests.claims_hash(claims) == abi(["(address,address,uint96,uint96,bytes32,bytes32)[]"], rows)


def _split(signature: bytes) -> tuple[bytes, bytes, int]:
    return signature[:32], signature[32:64], signature[64]


@quick
@given(st.lists(st.builds(Credit, addresses, wei), max_size=4))
def test_credits(credits: list[Credit]) -> None:
    rows = [(credit.payee, credit.amount_wei) for credit in credits]
    assert digests.credits_hash(credits) == abi(["(address,uint96)[]"], rows)


@quick
@given(hashes)
def test_a_compact_signature_is_the_same_signature(digest: bytes) -> None:
    signer = fake_signer()
    compact = digests.compact_signature(signer.sign(digest).value)
    assert len(compact) == 64
    parity, low = compact[32] >> 7, bytes((compact[32] & 0x7F,))
    assert recover(digest, compact[:32] + low + compact[33:] + bytes((27 + parity,))) == signer.address
    assert digests.full_signature(compact) == signer.sign(digest).value


# --- the tree of receipts ---


@quick
@given(charges)
def test_a_leaf_is_hashed_twice(charge: Charge) -> None:
    voucher, receipt = charge.voucher, charge.receipt.receipt
    inner = abi(
        ["bytes32", "bytes32", "address", "uint96", "bytes32", "bytes32", "bytes32"],
        receipt.request_id,
        digests.channel_id(voucher.client, voucher.signer, voucher.gateway),
        receipt.node,
        receipt.fee_wei,
        receipt.model,
        charge.inputs_hash,
        receipt.output_hash,
    )
    assert digests.charge_leaf(charge) == digests.keccak(inner)


@quick
@given(st.lists(charges, max_size=9), st.randoms())
def test_every_receipt_is_proven_under_the_root_in_any_order(several: list[Charge], random: Any) -> None:
    root = merkle.root(map(digests.charge_leaf, several))
    for charge in several:
        leaf = digests.charge_leaf(charge)
        assert _processed(leaf, _proof(list(map(digests.charge_leaf, several)), leaf)) == root
    random.shuffle(several)
    assert merkle.root(map(digests.charge_leaf, several)) == root


def _proof(level: list[bytes], node: bytes) -> list[bytes]:
    """Return the siblings on the way up from ``node``; an odd one has none."""
    level, siblings = sorted(level), []
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        mine = next(pair for pair in pairs if node in pair)
        if len(mine) == 2:
            siblings.append(mine[1] if mine[0] == node else mine[0])
        level = [_pair(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        node = _pair(*mine) if len(mine) == 2 else node
    return siblings


def _processed(leaf: bytes, siblings: list[bytes]) -> bytes:
    """Return the root as OpenZeppelin's ``MerkleProof.processProof`` computes it."""
    for sibling in siblings:
        leaf = _pair(leaf, sibling)
    return leaf


def _pair(one: bytes, other: bytes) -> bytes:
    return digests.keccak(min(one, other) + max(one, other))


def test_nothing_has_the_root_zero() -> None:
    assert merkle.root([]) == bytes(32)


# --- sensitivity ---


VOUCHER = Voucher(b"\1" * 20, b"\2" * 20, b"\3" * 20, 4, b"\5" * 64 + b"\x1b")
RECEIPT = Receipt(b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32, 5, 6, 7, b"\6" * 20, 8, 9)
CHARGE = Charge(
    VOUCHER, SignedReceipt(RECEIPT, (Signature(b"\7" * 20, b"\6" * 65),)), b"\5" * 32, b"\1" * 20, b"\4" * 65
)
TERMS = EscrowTerms(b"\1" * 20, 2, b"\3" * 20, b"\4" * 20, 5, 6, 7, b"\7" * 32)
BATCH = Batch(b"\1" * 20, 2, 3, 4, b"\5" * 32, b"\6" * 32, b"\7" * 32, b"\4" * 32)
TRANSFER = TransferAuthorization(b"\1" * 20, b"\2" * 20, 3, 4, 5, b"\6" * 32, b"\7" * 65)


def changed(value: Any) -> list[Any]:
    """Return copies of ``value``, each with another field changed."""
    struct = isinstance(value, msgspec.Struct)
    names = value.__struct_fields__ if struct else [field.name for field in fields(value)]
    make: Any = msgspec.structs.replace if struct else replace
    copies = []
    for name in names:
        old = getattr(value, name)
        match old:
            case int():
                copies.append(make(value, **{name: old + 1}))
            case bytes():
                copies.append(make(value, **{name: bytes((old[0] ^ 1,)) + old[1:]}))
            case tuple():
                copies += [make(value, **{name: ()})] + [make(value, **{name: (new,)}) for new in changed(old[0])]
            case _:
                copies += [make(value, **{name: new}) for new in changed(old)]
    return copies


@pytest.mark.parametrize(
    ("digest", "value", "without"),
    [
        (lambda value: digests.charges_hash([value]), CHARGE, 0),
        (lambda value: digests.preprocess_digest(Domain(), bytes(32), value), TERMS, 0),
        (lambda value: digests.batch_digest(Domain(), value), BATCH, 0),
        (lambda value: digests.claims_hash([value]), Claim(VOUCHER, 1), 1),  # of a gateway, which the batch names
        (lambda value: digests.credits_hash([value]), Credit(b"\1" * 20, 1), 0),
        (lambda value: digests.transfer_digest(Domain(), "NCN", value), TRANSFER, 1),  # its signature
    ],
)
def test_every_field_counts(digest: Callable[[Any], bytes], value: Any, without: int) -> None:
    copies = changed(value)
    assert len({digest(copy) for copy in copies} | {digest(value)}) == 1 + len(copies) - without


def test_charges_count_in_their_order_and_are_published_as_said() -> None:
    other = replace(CHARGE, inputs_hash=bytes(32))
    assert digests.charges_hash([CHARGE, other]) != digests.charges_hash([other, CHARGE])
    receipt = [
        RECEIPT.request_id,
        RECEIPT.request_hash,
        RECEIPT.model,
        RECEIPT.output_hash,
        5,
        6,
        "7",
        RECEIPT.node,
        8,
        9,
    ]
    voucher = [VOUCHER.client, VOUCHER.signer, VOUCHER.gateway, "4", VOUCHER.signature]
    row = [voucher, receipt, [[b"\7" * 20, b"\6" * 65]], CHARGE.inputs_hash, CHARGE.client, CHARGE.request_signature]
    published = msgspec.msgpack.encode(["ncn.charges.v1", [row]])
    assert digests.charges_hash([CHARGE]) == sha256(published).digest()


@pytest.mark.parametrize(
    "digest",
    [
        lambda domain: digests.voucher_digest(domain, bytes(32), 1),
        lambda domain: digests.preprocess_digest(domain, bytes(32), TERMS),
        lambda domain: digests.completion_digest(domain, bytes(32), bytes(32), 1),
        lambda domain: digests.failure_digest(domain, bytes(32)),
        lambda domain: digests.batch_digest(domain, BATCH),
        lambda domain: digests.transfer_digest(domain, "NCN", TRANSFER),
        lambda domain: digests.escrow_id(domain, bytes(20), 1),
    ],
)
def test_a_digest_is_bound_to_chain_and_contract(digest: Callable[[Domain], bytes]) -> None:
    assert len({digest(d) for d in (Domain(), Domain(1), Domain(contract=b"\1" * 20))}) == 3


def test_a_transfer_is_bound_to_the_tokens_name() -> None:
    assert len({digests.transfer_digest(Domain(), name, TRANSFER) for name in ("NCN", digests.CONTRACT_NAME)}) == 2
