"""Batches: what their charges make of them, and that every single change is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework import digests, merkle
from ncn_framework.errors import EndorsementRefused
from ncn_framework.models import ANONYMOUS, Signature
from ncn_framework.payments import Charge, Credit, Voucher
from ncn_framework.signing import Signer
from ncn_framework.statements import BatchStatement
from ncn_framework.testing.fakes import fake_signer
from ncn_payments import batches
from ncn_payments.batches import MAX_CHANNELS, build, channel_of, check, shares, total_of

from .payments import CLIENT, DOMAIN, GATEWAY, NODE, make_charge, make_receipt, make_request, make_voucher, proof_of

CLIENTS = [CLIENT, *(fake_signer(f"client {n}") for n in range(3))]
NODES = [NODE, *(fake_signer(f"node {n}") for n in range(3))]
SESSION = fake_signer("session")
SPENT = 1_000
"""What each channel was at before."""


def spent_of(charges: list[Charge]) -> dict[bytes, int]:
    return {channel_of(charge): SPENT for charge in charges}


def charges_of(rows: list[tuple[int, int, int]]) -> list[Charge]:
    """Return charges (client, node, fee), each under a voucher that covers all of its channel's up to it, and more."""
    owed, charges = [SPENT] * len(CLIENTS), []
    for number, (client, node, fee) in enumerate(rows):
        owed[client] += fee
        voucher = make_voucher(owed[client] + 5, CLIENTS[client])
        charges.append(make_charge(number, fee, voucher, NODES[node], CLIENTS[client]))
    return charges


def batch_of(charges: list[Charge], nonce: int = 4, gateway: Signer = GATEWAY) -> BatchStatement:
    return build(gateway.address, nonce, 2, charges, spent_of(charges))


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 10_000)), min_size=1, max_size=12)
FOUR = charges_of([(0, 0, 100), (1, 1, 7), (0, 1, 33), (1, 0, 1)])


@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_a_batch_passes_and_adds_up(rows: list[tuple[int, int, int]]) -> None:
    charges = charges_of(rows)
    statement = batch_of(charges)
    check(DOMAIN, statement, spent_of(charges))
    total = sum(fee for _, _, fee in rows)
    assert total_of(statement) == total
    assert sum(claim.total_wei - SPENT for claim in statement.claims) == total
    credited = sum(credit.amount_wei for credit in statement.credits)
    # the contract's bounds: at most 80 %, rounded down, and less by at most a unit for each receipt
    assert total * 80 // 100 - len(rows) <= credited <= total * 80 // 100
    split = shares(total, statement.credits)
    parts = (sum(split.compute_wei.values()), split.gateway_wei, split.validators_wei, split.treasury_wei)
    assert sum(parts) == split.total_wei == total
    assert all(part >= 0 for part in parts)
    assert split.treasury_wei >= split.validators_wei
    assert statement.batch.count == len(rows)


@given(fees=st.lists(st.integers(1, 9), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_rounding_stays_within_what_the_contract_allows(fees: list[int]) -> None:
    """Fees of a few units each, where rounding down costs the most."""
    credited = sum(map(batches.node_share, fees))
    assert sum(fees) * 80 // 100 - len(fees) <= credited <= sum(fees) * 80 // 100


def test_claims_and_credits_are_sorted_and_one_for_each() -> None:
    statement = batch_of(FOUR)
    channels = [channel_of(FOUR[0]), channel_of(FOUR[1])]
    assert [claim.total_wei for claim in statement.claims] == [
        total for _, total in sorted(zip(channels, (SPENT + 133, SPENT + 8), strict=True))
    ]
    assert [credit.payee for credit in statement.credits] == sorted(node.address for node in NODES[:2])
    assert {claim.voucher for claim in statement.claims} == {FOUR[2].voucher, FOUR[3].voucher}


def test_a_node_whose_share_is_nothing_is_not_listed() -> None:
    statement = batch_of([make_charge(1, 1, 2_000)])
    assert statement.credits == ()
    check(DOMAIN, statement, spent_of(list(statement.charges)))


# --- single changes ---


def with_receipt(charge: Charge, **changes: Any) -> Charge:
    """Return the charge with another receipt under the node's old signature."""
    return replace(charge, receipt=replace(charge.receipt, receipt=replace(charge.receipt.receipt, **changes)))


def changed(index: int, change: Callable[[Charge], Charge]) -> BatchStatement:
    """Return the batch as somebody makes it who lies about a charge, with all hashes right."""
    charges = list(FOUR)
    charges[index] = change(charges[index])
    return batch_of(charges)


STRANGER = fake_signer("stranger")
FOREIGN = make_voucher(5_000, gateway=STRANGER)
UNKNOWN = make_charge(1, 100, make_voucher(5_000, STRANGER))
"""Signed by its channel's signer, but the request is of somebody else."""
HEAD = batch_of(FOUR)
LOWER = {FOUR[2].voucher: FOUR[0].voucher}
_BY_ANOTHER = make_receipt(make_request(0), 100, NODES[1]).signatures[0].value
FORGED = replace(FOUR[0].receipt, signatures=(Signature(NODE.address, _BY_ANOTHER),))

MUTATIONS: dict[str, tuple[BatchStatement, str]] = {
    "fee": (changed(0, lambda c: with_receipt(c, fee_wei=101)), "the receipt is signed by"),
    "node": (changed(0, lambda c: with_receipt(c, node=NODES[2].address)), "charge 0.*signature"),
    "output": (changed(0, lambda c: with_receipt(c, output_hash=bytes(32))), "the receipt is signed by"),
    "no node's signature": (
        changed(0, lambda c: replace(c, receipt=replace(c.receipt, signatures=()))),
        "charge 0.*0 bytes",
    ),
    "another node's signature": (changed(0, lambda c: replace(c, receipt=FORGED)), "the receipt is signed by"),
    "unsigned request": (changed(1, lambda c: replace(c, request_signature=b"")), "charge 1.*0 bytes"),
    "request of somebody else": (changed(1, lambda c: replace(c, client=STRANGER.address)), "does not own the channel"),
    "request of nobody": (changed(1, lambda c: replace(c, client=ANONYMOUS, request_signature=b"")), "does not own"),
    "voucher of somebody else": (changed(1, lambda c: replace(c, voucher=UNKNOWN.voucher)), "does not own the channel"),
    "voucher with more in it": (
        changed(1, lambda c: replace(c, voucher=msgspec.structs.replace(c.voucher, cumulative_wei=10**6))),
        "the voucher is signed by",
    ),
    "voucher for another gateway": (changed(1, lambda c: replace(c, voucher=FOREIGN)), "its voucher is for gateway"),
    "voucher too small": (
        batch_of([make_charge(n, 50, make_voucher(SPENT + 99)) for n in range(2)]),
        "come to 1100 wei; its voucher allows 1099",
    ),
    "duplicate": (batch_of([*FOUR, FOUR[0]]), "is in the batch twice"),
    "nothing": (replace(HEAD, charges=()), "has no charge"),
    "one charge less": (replace(HEAD, charges=HEAD.charges[:-1]), "the claims of the batch"),
    "order": (replace(HEAD, charges=HEAD.charges[::-1]), "the head of the batch"),
    "inputs hash": (
        replace(HEAD, charges=(replace(FOUR[0], inputs_hash=b"\1" * 32), *FOUR[1:])),
        "the head of the batch",
    ),
    "claim's total": (
        replace(HEAD, claims=(replace(HEAD.claims[0], total_wei=HEAD.claims[0].total_wei + 1), *HEAD.claims[1:])),
        "the claims of the batch",
    ),
    "claim's voucher": (
        replace(HEAD, claims=(replace(HEAD.claims[0], voucher=FOREIGN), *HEAD.claims[1:])),
        "the claims of the batch",
    ),
    "claim's forged voucher": (
        replace(
            HEAD,
            claims=(
                replace(HEAD.claims[0], voucher=msgspec.structs.replace(HEAD.claims[0].voucher, cumulative_wei=10**6)),
                *HEAD.claims[1:],
            ),
        ),
        "claim 0: the voucher is signed by",
    ),
    "claim's lower voucher": (
        replace(HEAD, claims=tuple(replace(c, voucher=LOWER.get(c.voucher, c.voucher)) for c in HEAD.claims)),
        "the claims of the batch",
    ),
    "order of claims": (replace(HEAD, claims=HEAD.claims[::-1]), "the claims of the batch"),
    "credit's amount": (
        replace(HEAD, credits=(replace(HEAD.credits[0], amount_wei=1), *HEAD.credits[1:])),
        "the credits of the batch",
    ),
    "credit's payee": (
        replace(HEAD, credits=(Credit(STRANGER.address, HEAD.credits[0].amount_wei), *HEAD.credits[1:])),
        "the credits of the batch",
    ),
    "one credit less": (replace(HEAD, credits=HEAD.credits[1:]), "the credits of the batch"),
    "gateway": (replace(HEAD, batch=replace(HEAD.batch, gateway=STRANGER.address)), "its voucher is for gateway"),
    "count": (replace(HEAD, batch=replace(HEAD.batch, count=5)), "the head of the batch"),
    "receipts root": (replace(HEAD, batch=replace(HEAD.batch, receipts_root=bytes(32))), "the head of the batch"),
    "published receipts": (replace(HEAD, batch=replace(HEAD.batch, da_hash=bytes(32))), "the head of the batch"),
    "claims hash": (replace(HEAD, batch=replace(HEAD.batch, claims_hash=bytes(32))), "the head of the batch"),
    "credits hash": (replace(HEAD, batch=replace(HEAD.batch, credits_hash=bytes(32))), "the head of the batch"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_single_change_is_refused(name: str) -> None:
    statement, why = MUTATIONS[name]
    with pytest.raises(EndorsementRefused, match=why):
        check(DOMAIN, statement, spent_of([*FOUR, *statement.charges]))


def test_a_claim_may_have_a_better_voucher_than_its_charges() -> None:
    """Others have drawn on the channel since, which a later voucher allowed."""
    (charge,) = charges = [make_charge(1, 50, SPENT)]
    channel, better = channel_of(charge), make_voucher(SPENT + 50)
    with pytest.raises(EndorsementRefused, match="its voucher allows 1000"):
        check(DOMAIN, batch_of(charges), spent_of(charges))
    statement = build(GATEWAY.address, 4, 2, charges, spent_of(charges), {channel: better})
    assert statement.claims[0].voucher == better
    check(DOMAIN, statement, spent_of(charges))


def test_the_unchanged_batch_is_not_refused() -> None:
    check(DOMAIN, HEAD, spent_of(FOUR))


def test_another_chains_batch_is_refused() -> None:
    with pytest.raises(EndorsementRefused, match="charge 0"):
        check(replace(DOMAIN, chain_id=1), HEAD, spent_of(FOUR))


def test_a_batch_is_refused_once_the_channel_has_moved_on() -> None:
    with pytest.raises(EndorsementRefused, match="the claims"):
        check(DOMAIN, HEAD, {channel: SPENT + 1 for channel in spent_of(FOUR)})


# --- whose request it may be ---


def own_channel(client: Signer | None) -> list[Charge]:
    """Return a charge on the gateway's channel with itself, for a request of ``client``'s."""
    return [make_charge(1, 100, make_voucher(5_000, GATEWAY), client=client)]


@pytest.mark.parametrize("client", [None, CLIENT])
def test_a_gateway_may_pay_for_anybody(client: Signer | None) -> None:
    charges = own_channel(client)
    check(DOMAIN, batch_of(charges), spent_of(charges))


def test_whom_it_pays_for_has_signed() -> None:
    charges = [replace(charge, request_signature=make_request(2).signature) for charge in own_channel(CLIENT)]
    with pytest.raises(EndorsementRefused, match="the request is signed by"):
        check(DOMAIN, batch_of(charges), spent_of(charges))


@pytest.mark.parametrize("client", [CLIENT, SESSION])
def test_client_and_session_key_may_both_ask(client: Signer) -> None:
    charges = [make_charge(1, 100, make_voucher(5_000, CLIENT, SESSION), client=client)]
    check(DOMAIN, batch_of(charges), spent_of(charges))


def test_more_channels_than_a_transaction_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CHANNELS == 1_400
    monkeypatch.setattr(batches, "MAX_CHANNELS", 1)
    with pytest.raises(EndorsementRefused, match="draws on 2 channels; at most 1"):
        check(DOMAIN, HEAD, spent_of(FOUR))


# --- the tree of receipts ---


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 11])
def test_every_receipt_is_proved_by_its_siblings(count: int) -> None:
    """As OpenZeppelin's ``MerkleProof.processProof`` computes it: pairs are sorted, whatever their place."""
    charges = charges_of([(n % 4, n % 3, n + 1) for n in range(count)])
    root = merkle.root(map(digests.charge_leaf, charges))
    for at, charge in enumerate(charges):
        found = digests.charge_leaf(charge)
        for sibling in proof_of(charges, at):
            found = digests.keccak(b"".join(sorted((found, sibling))))
        assert found == root


def test_no_receipts_have_no_root() -> None:
    assert merkle.root([]) == bytes(32)


def test_leaves_name_channel_and_voucher_only_by_the_channel() -> None:
    """A receipt is the same receipt under whichever voucher of its channel."""
    charge = FOUR[0]
    better = replace(charge, voucher=make_voucher(10**6))
    assert digests.charge_leaf(charge) == digests.charge_leaf(better)
    other = Voucher(CLIENT.address, SESSION.address, GATEWAY.address, 10**6, bytes(65))
    assert digests.charge_leaf(charge) != digests.charge_leaf(replace(charge, voucher=other))
