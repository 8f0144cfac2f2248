"""What gateways' records and heartbeats say, and what of strangers' ones is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_framework.errors import CapacityError, MalformedRequest, NcnError
from ncn_framework.models import Record
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_records import (
    GatewayInfo,
    gateway_info_from_record,
    gateway_record,
    heartbeat_record,
    host_and_port,
)
from ncn_framework.wire.grpc_errors import error_from_rpc

OWNER = bytes(range(20))


def test_a_gateways_record_says_what_went_in() -> None:
    info = GatewayInfo(OWNER, "gateway.internal:50051", "ncn 1")
    record = gateway_record(info, 3, 4)
    assert (record.kind, record.owner, record.sequence, record.expires_ms) == ("gateway", OWNER, 3, 4)
    assert gateway_info_from_record(record) == info


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", msgspec.msgpack.encode({"grpc_addr": "here"}), msgspec.msgpack.encode({"grpc_addr": 1})]
    + [msgspec.msgpack.encode({"grpc_addr": text, "software": ""}) for text in ("here", "a b:1", "h:70000", "h:-1")],
)
def test_a_malformed_record_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedRequest, match="malformed"):
        gateway_info_from_record(Record("gateway", OWNER, 1, 2, payload))


def test_another_kinds_record_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="not a gateway's"):
        gateway_info_from_record(Record("node", OWNER, 1, 2, b""))


@pytest.mark.parametrize(
    ("text", "parts"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:65535", ("::1", 65535)), ("a-b.example:50051", ("a-b.example", 50051))],
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert host_and_port(text) == parts


@pytest.mark.parametrize(
    "text", ["", ":1", "h:", "h", "h:65536", "h:1x", "::1:5", "[h]:1", "u@h:1", "h/p:1", "x" * 300 + ":1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|65535"):
        host_and_port(text)


@given(st.text(max_size=40))
def test_an_address_is_what_it_is_made_of(text: str) -> None:
    try:
        host, port = host_and_port(text)
    except ValueError:
        return
    assert text in (f"{host}:{text.rpartition(':')[2]}", f"[{host}]:{text.rpartition(':')[2]}")
    assert 0 <= port < 65_536


def test_a_heartbeat_is_a_record() -> None:
    record = heartbeat_record(pb.HeartbeatRequest(node=OWNER, at_ms=7, in_flight=258, signature=b"s"))
    assert record == Record("heartbeat", OWNER, 7, 7, bytes(6) + b"\x01\x02", b"s")
    with pytest.raises(MalformedRequest):
        heartbeat_record(pb.HeartbeatRequest(node=b"short"))


def test_the_error_of_a_call_is_known_by_its_code() -> None:
    import grpc

    def failed(code: grpc.StatusCode, *trailing: tuple[str, str]) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), "why")

    refused = error_from_rpc(failed(grpc.StatusCode.INVALID_ARGUMENT, ("ncn-error", "malformed")), "it")
    assert type(refused) is MalformedRequest
    assert str(refused) == "why"
    away = error_from_rpc(failed(grpc.StatusCode.UNAVAILABLE), "it")
    assert type(away) is CapacityError
    assert type(error_from_rpc(failed(grpc.StatusCode.UNKNOWN), "it")) is NcnError
