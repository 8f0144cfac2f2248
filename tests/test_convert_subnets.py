"""Records of subnets and memberships: there and back, and what is not one is refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_framework.errors import MalformedRequest
from ncn_framework.models import Record
from ncn_framework.payments import Quorum
from ncn_framework.wire.convert_subnets import (
    MAX_CONFIGURATION_BYTES,
    MAX_GATEWAYS,
    MAX_MODELS,
    MAX_SUBNETS,
    PRICE_TREE,
    EndorsedSubnet,
    ListedModel,
    Subnet,
    descriptor_from_pb,
    descriptor_to_pb,
    endorsed_from_record,
    endorsed_record,
    membership_from_record,
    membership_record,
    subnet_from_record,
    subnet_record,
)

OWNER = b"\x01" * 20
MODEL = ListedModel(b"\x02" * 32, "minilm", "safetensors", 90_000_000, ("https://models.example/minilm/",))
SUBNET = Subnet(OWNER, "first-one", (MODEL,), (OWNER, b"\x03" * 20), "For tests.")
QUORUM = Quorum(7, 0b10101, (b"a" * 65, b"b" * 65, b"c" * 65))


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


addresses = st.binary(min_size=20, max_size=20)
urls = st.sampled_from(("https://a.example/b", "http://127.0.0.1:1/x/", "file:///models"))
models = st.builds(
    ListedModel,
    st.binary(min_size=32, max_size=32),
    st.text("abcä 漢-", min_size=1, max_size=20),
    st.sampled_from(("safetensors", "onnx")),
    st.integers(0, 2**63 - 1),
    st.lists(st.sampled_from(("https://a.example/b", "http://127.0.0.1:1/x/", "file:///models")), max_size=4).map(
        tuple
    ),
)
subnets = st.builds(
    Subnet,
    addresses,
    st.from_regex(r"(?!0x)[a-z0-9](?:-?[a-z0-9]){0,10}", fullmatch=True),
    st.lists(models, max_size=5, unique_by=lambda model: model.digest).map(tuple),
    st.lists(addresses, max_size=5, unique=True).map(tuple),
    st.text("abcä 漢.", max_size=100),
)


@given(subnets, st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1))
def test_a_configuration_comes_back_as_it_was(subnet: Subnet, sequence: int, expires_ms: int) -> None:
    record = subnet_record(subnet, sequence, expires_ms)
    assert subnet_from_record(record) == subnet
    for model in subnet.models:
        assert descriptor_from_pb(descriptor_to_pb(model)) == model


def test_a_published_subnet_holds_configuration_and_quorum() -> None:
    inner = replace(subnet_record(SUBNET, 3, 10_000), signature=b"s" * 65)
    record = endorsed_record(inner, QUORUM, b"\x09" * 32)
    assert (record.kind, record.owner, record.sequence, record.expires_ms) == ("endorsed-subnet", OWNER, 3, 10_000)
    assert endorsed_from_record(record) == EndorsedSubnet(inner, SUBNET, QUORUM, b"\x09" * 32)
    assert endorsed_from_record(endorsed_record(inner, QUORUM)).fee_transaction == b""


def test_a_membership_comes_back_as_it_was() -> None:
    for joined in ((), (OWNER,), tuple(number(i, 20) for i in range(MAX_SUBNETS))):
        assert membership_from_record(membership_record(OWNER, joined, 1, 2)) == joined
    for bad in ((OWNER, OWNER), (b"short",), tuple(number(i, 20) for i in range(MAX_SUBNETS + 1))):
        with pytest.raises(MalformedRequest, match="membership of node"):
            membership_record(OWNER, bad, 1, 2)


def test_what_fits_beside_a_quorum_is_the_bound() -> None:
    """A hundred models and the signatures of 27 validators fit into what a registry takes of one record, 15 KiB."""
    listed = tuple(
        ListedModel(number(i, 32), f"a-model-{i}", "safetensors", 10**9, (f"https://models.example/{i}/",))
        for i in range(MAX_MODELS)
    )
    record = subnet_record(replace(SUBNET, models=listed), 1, 2)
    assert len(record.payload) <= MAX_CONFIGURATION_BYTES
    full = replace(record, payload=record.payload.ljust(MAX_CONFIGURATION_BYTES, b"\0"), signature=bytes(65))
    quorum = Quorum(2**32 - 1, 2**53 - 1, (bytes(65),) * 27)
    assert len(endorsed_record(full, quorum, bytes(32)).payload) <= 15 << 10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "name"),
        ({"name": "Upper"}, "name"),
        ({"name": "two--hyphens"}, "name"),
        ({"name": "-first"}, "name"),
        ({"name": "x" * 41}, "name"),
        ({"name": "0xabc"}, "name"),
        ({"name": "line\n"}, "name"),
        ({"description": "two\nlines"}, "one line"),
        ({"description": "x" * 281}, "one line"),
        ({"description": "\x1b[2J"}, "one line"),
        ({"price_tree": (9_000, 0, 500, 500)}, "price tree"),
        ({"models": (MODEL, MODEL)}, "models"),
        ({"models": tuple(replace(MODEL, digest=number(i, 32)) for i in range(MAX_MODELS + 1))}, "models|bytes"),
        ({"models": (replace(MODEL, digest=b"short"),)}, "models"),
        ({"gateways": (OWNER, OWNER)}, "gateways"),
        ({"gateways": tuple(number(i, 20) for i in range(MAX_GATEWAYS + 1))}, "gateways"),
        ({"models": (replace(MODEL, name=""),)}, "printable"),
        ({"models": (replace(MODEL, runtime="a\x00b"),)}, "printable"),
        ({"models": (replace(MODEL, size_bytes=-1),)}, "size"),
        ({"models": (replace(MODEL, sources=MODEL.sources * 5),)}, "sources"),
        ({"models": (replace(MODEL, name="x" * 14_000),)}, "bytes"),
    ],
)
def test_what_is_no_configuration_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedRequest, match=reason):
        subnet_record(replace(SUBNET, **changes), 1, 2)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "models/here",
        "ftp://models.example/",
        "https:///nobody",
        "file://relative",
        "https://models.example/?key=1",
        "https://models.example/#part",
        "https://user@models.example/",
        "https://user:secret@models.example/",
        "https://models.example/with space",
        "https://models.example/ü",
        "https://models.example/" + "x" * 512,
        "https://[::1",
    ],
)
def test_what_is_no_folder_is_no_source(source: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        subnet_record(replace(SUBNET, models=(replace(MODEL, sources=(source,)),)), 1, 2)
    assert "secret" not in str(caught.value)


def encoded(**changes: Any) -> bytes:
    good = {
        "expires_ms": 2,
        "payload": subnet_record(SUBNET, 1, 2).payload,
        "signature": bytes(65),
        "epoch": 1,
        "bitmap": b"\x07",
        "signatures": [bytes(65)] * 3,
        "fee_transaction": b"",
    }
    return msgspec.msgpack.encode(good | changes)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff" * 40,
        encoded(expires_ms=3),
        encoded(epoch=2**32),
        encoded(epoch=-1),
        encoded(bitmap=bytes(33)),
        encoded(signatures=[b""] * 257),
        encoded(fee_transaction=b"1"),
        encoded(payload=b"{}"),
        encoded(more=1),
    ],
)
def test_what_is_no_published_subnet_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedRequest):
        endorsed_from_record(Record("endorsed-subnet", OWNER, 1, 2, payload))


def test_a_record_of_another_kind_is_refused() -> None:
    record = Record("node", OWNER, 1, 2, b"{}")
    for read in (subnet_from_record, endorsed_from_record, membership_from_record):
        with pytest.raises(MalformedRequest, match="of kind 'node'"):
            read(record)


def test_the_price_tree_is_the_contracts() -> None:
    assert sum(PRICE_TREE) == 10_000


@given(st.binary(max_size=200))
def test_bytes_of_anybody_raise_nothing_else(data: bytes) -> None:
    for kind, read in (
        ("subnet", subnet_from_record),
        ("endorsed-subnet", endorsed_from_record),
        ("membership", membership_from_record),
    ):
        try:
            read(Record(kind, OWNER, 1, 2, data))
        except MalformedRequest:
            continue
