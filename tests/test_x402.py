"""x402's headers, judged by the x402 package: its models read what is written here, and its client pays for it."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from eth_account import Account
from hypothesis import example, given, settings
from hypothesis import strategies as st
from x402 import x402ClientSync
from x402.http import constants
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    encode_payment_signature_header,
)
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.schemas import NoMatchingRequirementsError, PaymentPayload, PaymentRequired, SettleResponse

from ncn_framework import digests, errors
from ncn_framework.errors import MalformedRequest
from ncn_framework.models import Domain, Settlement
from ncn_framework.payments import EXACT, MAX_WEI, VOUCHER, Offer, TransferAuthorization
from ncn_framework.signing import Signer, address_hex, check_signature
from ncn_framework.wire import x402

TOKEN, GATEWAY = b"\x0a" * 20, b"\x0b" * 20
KEY = b"\x07" * 32
CHAIN = 31337
URL = "http://gateway/api/v1/inference"
NAMED = {"name": "NCN", "version": "1"}

exact_offer = Offer(EXACT, 10**20, TOKEN, GATEWAY, CHAIN, 60, NAMED)
voucher_offer = Offer(VOUCHER, 7, TOKEN, GATEWAY, CHAIN, 60, {"contract": "0x" + "0c" * 20})

addresses = st.binary(min_size=20, max_size=20)
amounts = st.integers(0, MAX_WEI)
quick = settings(max_examples=25, deadline=None)


def required(*offers: Offer, message: str = "pay first") -> str:
    return x402.required_header(errors.PaymentRequired(message, offers), URL)


def read(header: str) -> PaymentRequired:
    found = decode_payment_required_header(header)
    assert isinstance(found, PaymentRequired)
    return found


def paying(*schemes: Any) -> x402ClientSync:
    """Return x402's client, which pays in any token."""
    client = x402ClientSync().set_spend_controls(False)
    for scheme in schemes:
        client.register("eip155:*", scheme)
    return client


def paid(header: str, *schemes: Any) -> bytes:
    """Return the PAYMENT-SIGNATURE that x402's client answers a PAYMENT-REQUIRED with."""
    payload = paying(*schemes).create_payment_payload(read(header))
    assert isinstance(payload, PaymentPayload)
    return encode_payment_signature_header(payload).encode()


def test_the_headers_have_x402s_names() -> None:
    assert x402.REQUIRED == constants.PAYMENT_REQUIRED_HEADER
    assert x402.SIGNATURE == constants.PAYMENT_SIGNATURE_HEADER
    assert x402.RESPONSE == constants.PAYMENT_RESPONSE_HEADER


# --- PAYMENT-REQUIRED ---


def test_offers_are_read_by_x402() -> None:
    found = read(required(exact_offer, voucher_offer, message="größer"))
    assert (found.x402_version, found.error) == (2, "größer")
    assert found.resource is not None
    assert (found.resource.url, found.resource.mime_type) == (URL, "application/json")
    [accepted] = found.accepts
    assert accepted.model_dump() == {
        "scheme": "exact",
        "network": "eip155:31337",
        "amount": str(10**20),
        "asset": address_hex(TOKEN),
        "payTo": address_hex(GATEWAY),
        "maxTimeoutSeconds": 60,
        "extra": NAMED,
    }
    assert found.extensions is not None
    voucher = found.extensions[x402.VOUCHER_EXTENSION]["info"]
    assert (voucher["amount"], voucher["network"]) == ("7", "eip155:31337")
    assert voucher["extra"] == {"contract": "0x" + "0c" * 20}


def test_every_word_of_the_voucher_extension_is_in_its_schema() -> None:
    extension = json.loads(b64decode(required(voucher_offer)))["extensions"][x402.VOUCHER_EXTENSION]
    assert extension["info"].keys() == extension["schema"]["properties"].keys()
    assert set(extension["schema"]["required"]) <= extension["info"].keys()


@quick
@given(st.text(max_size=400), amounts, addresses, addresses, st.integers(1, 2**63 - 1), st.integers(0, 2**31))
def test_any_offer_is_read_by_x402(
    message: str, amount: int, token: bytes, pay_to: bytes, chain_id: int, timeout_s: int
) -> None:
    offer = Offer(EXACT, amount, token, pay_to, chain_id, timeout_s, NAMED)
    header = required(offer, message=message)
    assert header.isascii()
    found = read(header)
    [accepted] = found.accepts
    assert found.error is not None
    assert message.startswith(found.error)
    assert (int(accepted.amount), accepted.asset, accepted.pay_to) == (amount, address_hex(token), address_hex(pay_to))
    assert (accepted.network, accepted.max_timeout_seconds) == (f"eip155:{chain_id}", timeout_s)


# --- PAYMENT-SIGNATURE ---


def test_a_payment_of_x402s_client_is_read_and_its_signature_holds() -> None:
    account = Account.from_key(KEY)
    transfer = x402.transfer_from_header(paid(required(exact_offer, voucher_offer), ExactEvmScheme(account)), CHAIN)
    assert address_hex(transfer.payer) == account.address
    assert (transfer.payee, transfer.value_wei) == (GATEWAY, 10**20)
    assert transfer.valid_after_s < transfer.valid_before_s
    digest = digests.transfer_digest(Domain(CHAIN, TOKEN), "NCN", transfer)
    check_signature(digest, transfer.signature, transfer.payer, "the transfer")


def test_a_client_that_knows_batch_settlement_is_not_led_to_sign_for_its_contract() -> None:
    account = Account.from_key(KEY)
    both = BatchSettlementEvmScheme(account), ExactEvmScheme(account)
    header = required(voucher_offer, exact_offer)
    assert x402.transfer_from_header(paid(header, *both), CHAIN).payee == GATEWAY
    with pytest.raises(NoMatchingRequirementsError):
        paid(header, both[0])


def signed(**changes: Any) -> dict[str, Any]:
    """Return a payment as JSON knows it; keys with dots reach inside, None leaves a field out."""
    form: dict[str, Any] = {
        "x402Version": 2,
        "accepted": {
            "scheme": "exact",
            "network": "eip155:31337",
            "amount": "5",
            "asset": address_hex(TOKEN),
            "payTo": address_hex(GATEWAY),
            "maxTimeoutSeconds": 60,
            "extra": NAMED,
        },
        "payload": {
            "signature": "0x" + "1b" * 65,
            "authorization": {
                "from": address_hex(Signer(KEY).address),
                "to": address_hex(GATEWAY),
                "value": "5",
                "validAfter": "0",
                "validBefore": "2000000000",
                "nonce": "0x" + "0d" * 32,
            },
        },
    }
    for path, value in changes.items():
        *outer, last = path.split(".")
        inside = form
        for name in outer:
            inside = inside[name]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
    return form


def header_of(form: Any) -> bytes:
    return b64encode(json.dumps(form).encode())


@quick
@given(addresses, addresses, amounts, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.binary(min_size=65))
def test_any_payment_is_read_as_x402_writes_it(
    payer: bytes, payee: bytes, value: int, after: int, before: int, random: bytes
) -> None:
    nonce, signature = random[:32], random[:65]
    form = signed()
    form["payload"] = {
        "signature": "0x" + signature.hex(),
        "authorization": {
            "from": address_hex(payer),
            "to": address_hex(payee),
            "value": str(value),
            "validAfter": str(after),
            "validBefore": str(before),
            "nonce": "0x" + nonce.hex(),
        },
    }
    header = encode_payment_signature_header(PaymentPayload.model_validate(form)).encode()
    expected = TransferAuthorization(payer, payee, value, after, before, nonce, signature)
    assert x402.transfer_from_header(header, CHAIN) == expected


@pytest.mark.parametrize(
    "more",
    [{}, {"resource": {"url": URL, "new": 1}}, {"extensions": {"any": {"info": {}, "schema": {}}}}, {"extensions": {}}],
)
def test_what_the_gateway_said_may_come_back(more: dict[str, Any]) -> None:
    assert x402.transfer_from_header(header_of(signed(**more)), CHAIN).value_wei == 5


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "its content is not what is expected"),
        (b"?", "it is not base64"),
        (b"e30", "it is not base64"),
        (b"e30=\n", "it is not base64"),
        (b"\xff", "it is not base64"),
        (b"A" * 16_388, "it has 16388 bytes; at most 16384"),
        (b64encode(b"[" * 9000), "nested too deep"),
        (b64encode(b'{"extensions":' + b"[" * 5000 + b"]" * 5000 + b"}"), "nested too deep"),
        (b64encode(b'"\xff"'), "its content"),
        (header_of([]), "Expected `object`"),
        (header_of({}), "missing required field"),
        (header_of(signed(surprise=1)), "unknown field `surprise`"),
        (header_of(signed(x402Version=1)), "its x402Version is 1; this is version 2"),
        (header_of(signed(x402Version="2")), "Expected `int`"),
        (header_of(signed(x402Version=None)), "x402Version"),
        (header_of(signed(payload=None)), "missing required field `payload`"),
        (header_of(signed(accepted=None)), "missing required field `accepted`"),
        (header_of(signed(**{"accepted.scheme": "upto"})), "scheme 'upto' on 'eip155:31337'; here it is 'exact'"),
        (header_of(signed(**{"accepted.network": "eip155:1"})), "on 'eip155:1'; here it is 'exact' on 'eip155:31337'"),
        (header_of(signed(**{"accepted.network": "base"})), "on 'base'"),
        (header_of(signed(payload={"permit2Authorization": {}, "signature": "0x"})), "its payload"),
        (header_of(signed(payload=[])), "its payload"),
        (header_of(signed(**{"payload.surprise": 1})), "unknown field `surprise`"),
        (header_of(signed(**{"payload.signature": None})), "missing required field `signature`"),
        (header_of(signed(**{"payload.signature": "0x" + "1b" * 64})), "signature has 64 bytes; it must have 65"),
        (header_of(signed(**{"payload.signature": "0xzz"})), "signature is not 0x-hex"),
        (header_of(signed(**{"payload.authorization.from": "0x12"})), "authorization.from"),
        (header_of(signed(**{"payload.authorization.to": "me"})), "authorization.to"),
        (header_of(signed(**{"payload.authorization.to": "0x" + "aB" * 20})), "wrong checksum"),
        (header_of(signed(**{"payload.authorization.value": 5})), "Expected `str`"),
        (header_of(signed(**{"payload.authorization.value": "-5"})), "authorization.value"),
        (header_of(signed(**{"payload.authorization.value": "\u0665"})), "authorization.value"),
        (header_of(signed(**{"payload.authorization.value": str(2**96)})), "authorization.value"),
        (header_of(signed(**{"payload.authorization.value": "9" * 8000})), "authorization.value"),
        (header_of(signed(**{"payload.authorization.validAfter": "1.5"})), "authorization.validAfter"),
        (header_of(signed(**{"payload.authorization.validBefore": str(2**63)})), "authorization.validBefore"),
        (header_of(signed(**{"payload.authorization.validBefore": "9" * 8000})), "authorization.validBefore"),
        (header_of(signed(**{"payload.authorization.nonce": "0x00"})), "authorization.nonce has 1 bytes"),
        (header_of(signed(**{"payload.authorization.nonce": None})), "missing required field `nonce`"),
        (header_of(signed(**{"payload.authorization.surprise": 1})), "unknown field `surprise`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_malformed(header: bytes, problem: str) -> None:
    with pytest.raises(MalformedRequest, match=r"^PAYMENT-SIGNATURE is not a payment: ") as refused:
        x402.transfer_from_header(header, CHAIN)
    assert problem in str(refused.value)


def harmless(header: bytes) -> None:
    """Read a header that may be anything: it is a payment, or malformed, and nothing else."""
    try:
        transfer = x402.transfer_from_header(header, CHAIN)
    except MalformedRequest:
        return
    assert isinstance(transfer, TransferAuthorization)
    assert (len(transfer.payer), len(transfer.payee), len(transfer.nonce), len(transfer.signature)) == (20, 20, 32, 65)
    assert 0 <= transfer.value_wei <= MAX_WEI


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
anything = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    harmless(data)
    harmless(b64encode(data))


@given(st.data())
def test_no_json_crashes_the_reader(data: st.DataObject) -> None:
    """Every part of a payment becomes anything at all."""
    paths = ["x402Version", "accepted", "payload", "accepted.scheme", "accepted.extra", "payload.authorization"]
    paths += [f"payload.authorization.{name}" for name in signed()["payload"]["authorization"]]
    where = data.draw(st.sampled_from(paths))
    harmless(header_of(signed(**{where: data.draw(anything)})))


@given(st.integers(0, 900), st.integers(0, 255))
@example(0, 0)
def test_no_flipped_byte_crashes_the_reader(at: int, by: int) -> None:
    whole = bytearray(json.dumps(signed()).encode())
    whole[at % len(whole)] ^= by
    harmless(b64encode(bytes(whole)))


def test_the_same_payment_names_the_same_request() -> None:
    transfer = TransferAuthorization(b"\1" * 20, b"\2" * 20, 3, 4, 5, b"\6" * 32, b"\7" * 65)
    assert x402.nonce_of(transfer) == sha256(b"ncn.x402.v1" + b"\6" * 32 + b"\1" * 20).digest()


# --- PAYMENT-RESPONSE ---


@quick
@given(st.text(max_size=80), amounts, addresses, st.integers(1, 2**63 - 1))
def test_a_settlement_is_read_by_x402(reference: str, charged: int, payer: bytes, chain_id: int) -> None:
    found: SettleResponse = decode_payment_response_header(
        x402.response_header(Settlement(EXACT, charged, reference), payer, chain_id)
    )
    assert (found.success, found.transaction, found.payer) == (True, reference, address_hex(payer))
    assert (found.network, found.amount, found.error_reason) == (f"eip155:{chain_id}", str(charged), None)


@pytest.mark.parametrize("write", [lambda: required(exact_offer), lambda: required(voucher_offer)])
def test_a_header_is_one_line_that_proxies_take(write: Callable[[], str]) -> None:
    assert len(write()) < 3000
    assert "\n" not in write()
