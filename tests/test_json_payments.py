"""What is said about payments survives its JSON and its protocol buffers, and what is malformed is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework.errors import MalformedRequest
from ncn_framework.payments import EscrowTerms, PaymentDue, Quorum, TransferAuthorization, Voucher
from ncn_framework.testing.fakes import fake_request, fake_route
from ncn_framework.testing.funds import fake_due
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import request_from_pb, request_to_pb
from ncn_framework.wire.convert_payments import payment_due_from_pb, payment_due_to_pb
from ncn_framework.wire.json import decode, encode
from ncn_framework.wire.json_payments import (
    PaymentJson,
    VoucherJson,
    payment_from_json,
    payment_json,
    voucher_from_json,
    voucher_json,
)

hashes = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20)
signatures = st.binary(min_size=65, max_size=65)
wei, u63 = st.integers(0, 2**96 - 1), st.integers(0, 2**63 - 1)
vouchers = st.builds(Voucher, addresses, addresses, addresses, wei, signatures)
transfers = st.builds(TransferAuthorization, addresses, addresses, wei, u63, u63, hashes, signatures)
terms = st.builds(EscrowTerms, addresses, u63, addresses, addresses, wei, u63, u63, hashes)
quorums = st.builds(Quorum, u63, st.integers(0, 2**256 - 1), st.lists(signatures, max_size=3).map(tuple))
dues = st.builds(PaymentDue, terms, hashes, addresses, u63, quorums)
quick = settings(max_examples=25, deadline=None)

VOUCHER = Voucher(b"\1" * 20, b"\2" * 20, b"\3" * 20, 4, b"\5" * 65)
DUE = fake_due(fake_request(), fake_route())


@quick
@given(vouchers)
def test_a_voucher_survives_json(voucher: Voucher) -> None:
    assert voucher_from_json(decode(encode(voucher_json(voucher)), VoucherJson)) == voucher


@quick
@given(dues)
def test_a_due_survives_json_and_protocol_buffers(due: PaymentDue) -> None:
    assert payment_from_json(decode(encode(payment_json(due)), PaymentJson)) == due
    message = payment_due_to_pb(due)
    assert (message.mode, message.state, message.amount_wei) == ("escrow", "due", str(due.terms.amount_wei))
    assert payment_due_from_pb(pb.PaymentStatus.FromString(message.SerializeToString())) == due


@quick
@given(vouchers | transfers)
def test_an_authorization_survives_protocol_buffers(authorization: Any) -> None:
    request = fake_request(authorization=authorization, deadline_ms=1)
    data = request_to_pb(request).SerializeToString()
    assert request_from_pb(pb.InferenceRequest.FromString(data)) == request


@pytest.mark.parametrize(
    "changes",
    [
        *({name: "0x12"} for name in ("client", "signer", "gateway", "signature")),
        *({name: "0xzz" + "1" * 38} for name in ("client", "signer", "gateway", "signature")),
        *({"cumulative_wei": text} for text in ("", "-1", "1.0", "1e3", "0x1", " 1", "\u0661", str(2**96), "1" * 5000)),
    ],
)
def test_a_malformed_voucher(changes: dict[str, str]) -> None:
    form = voucher_json(VOUCHER)
    for name, value in changes.items():
        setattr(form, name, value)
    with pytest.raises(MalformedRequest, match=next(iter(changes))):
        voucher_from_json(form)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("terms.client", "0x12"),
        ("terms.nonce", -1),
        ("terms.amount_wei", str(2**96)),
        ("terms.epoch", 2**63),
        ("terms.expiry_s", -1),
        ("terms.request_hash", "0x12"),
        ("escrow_id", "12"),
        ("contract", ""),
        ("chain_id", -1),
        ("quorum.epoch", 2**64),
        ("quorum.bitmap", "-0x1"),
        ("quorum.bitmap", "seven"),
        ("quorum.bitmap", hex(2**256)),
        ("quorum.signatures", ["0x12"]),
    ],
)
def test_a_malformed_due(path: str, value: Any) -> None:
    form: Any = payment_json(DUE)
    *outer, last = path.split(".")
    inside = form
    for name in outer:
        inside = getattr(inside, name)
    setattr(inside, last, value)
    with pytest.raises(MalformedRequest):
        payment_from_json(form)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("terms.client", b"\1"),
        ("terms.amount_wei", "-1"),
        ("terms.request_hash", b""),
        ("escrow_id", b"\1" * 31),
        ("contract", b""),
        ("quorum.bitmap", b"\1"),
    ],
)
def test_a_malformed_due_of_protocol_buffers(path: str, value: Any) -> None:
    message: Any = payment_due_to_pb(DUE)
    *outer, last = path.split(".")
    inside = message
    for name in outer:
        inside = getattr(inside, name)
    setattr(inside, last, value)
    with pytest.raises(MalformedRequest, match=last):
        payment_due_from_pb(message)


@pytest.mark.parametrize("name", ["payer", "payee", "value_wei", "nonce", "signature"])
def test_a_malformed_transfer_of_protocol_buffers(name: str) -> None:
    transfer = TransferAuthorization(b"\1" * 20, b"\2" * 20, 3, 4, 5, b"\6" * 32, b"\7" * 65)
    message: Any = request_to_pb(fake_request(authorization=transfer))
    message.transfer.ClearField(name)
    with pytest.raises(MalformedRequest, match=f"transfer.{name}"):
        request_from_pb(message)


def test_the_terms_are_the_contracts_request() -> None:
    assert [field.name for field in fields(EscrowTerms)] == [field.name for field in pb.EscrowTerms.DESCRIPTOR.fields]
