"""Calls, answers, errors and events of the shipped ABIs, judged by web3.py."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncn_framework.digests import keccak
from ncn_framework.errors import ChainError
from ncn_framework.signing import address_hex
from ncn_payments.abi import Interface, interface
from ncn_payments.contracts import CONTRACTS, revert_of, reverted
from ncn_payments.errors import RpcError
from ncn_payments.recursion import recursion_limit_kept

with recursion_limit_kept():
    from web3 import Web3

ADDRESS = st.binary(min_size=20, max_size=20)
UINT96 = st.integers(0, 2**96 - 1)
WORD = st.binary(min_size=32, max_size=32)
CLAIMS = st.lists(st.tuples(ADDRESS, ADDRESS, UINT96, UINT96, WORD, WORD), max_size=4)
CREDITS = st.lists(st.tuples(ADDRESS, UINT96), max_size=4)
PAYMENT = interface("InferencePayment")


def abi(name: str) -> list[dict[str, Any]]:
    artifact = json.loads((resources.files("ncn_payments") / "artifacts" / f"{name}.json").read_text())
    return list(artifact["abi"])


def hexed(value: Any) -> Any:
    """Return arguments as web3.py wants them: addresses with checksum."""
    if isinstance(value, bytes) and len(value) == 20:
        return address_hex(value)
    return [hexed(one) for one in value] if isinstance(value, list | tuple) else value


@given(CLAIMS, CREDITS, st.integers(0, 2**256 - 1), st.binary(max_size=200))
def test_a_batch_is_encoded_as_web3_encodes_it(claims: Any, credits: Any, bitmap: int, signatures: bytes) -> None:
    head = (b"\x01" * 20, 5, 6, 7, b"\x02" * 32, b"\x03" * 32, b"\x04" * 32, b"\x05" * 32)
    arguments = (head, claims, credits, bitmap, signatures)
    other = Web3().eth.contract(abi=abi("InferencePayment"))
    assert PAYMENT.encode("settleBatch", *arguments).hex() == other.encode_abi("settleBatch", hexed(arguments))[2:]


def test_answers() -> None:
    word = (5).to_bytes(32, "big")
    assert PAYMENT.decode_answer("batchNonce", word) == 5
    assert PAYMENT.decode_answer("channels", word * 3) == (5, 5, 5)
    assert PAYMENT.decode_answer("token", bytes(12) + b"\x07" * 20) == b"\x07" * 20
    members = (32).to_bytes(32, "big") + (2).to_bytes(32, "big") + bytes(12) + b"\x01" * 20 + bytes(12) + b"\x02" * 20
    assert interface("ValidatorRegistry").decode_answer("members", members) == (b"\x01" * 20, b"\x02" * 20)


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(31), b"\xff" * 32])
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(ChainError, match=r"InferencePayment\.batchNonce: .* is the contract at that address"):
        PAYMENT.decode_answer("batchNonce", data)


def test_overloads_take_their_signature() -> None:
    token = interface("NCNToken")
    with pytest.raises(TypeError, match="overloaded"):
        token.encode("transferWithAuthorization")
    signature = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
    data = token.encode(signature, b"\x01" * 20, b"\x02" * 20, 1, 2, 3, bytes(32), b"x")
    assert data[:4] == keccak(signature.encode())[:4]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("nothing", (), "no function nothing"),
        ("batchNonce", (), "takes 1 arguments"),
        ("batchNonce", (5,), "does not fit"),
        ("batchNonce", (b"\x01" * 19,), "does not fit"),
        ("withdraw", (-1,), "does not fit"),
        ("withdraw", (2**96,), "does not fit"),
    ],
)
def test_arguments_that_do_not_fit(function: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PAYMENT.encode(function, *arguments)


def test_custom_errors_of_every_contract() -> None:
    checked = 0
    for name in CONTRACTS.values():
        for item in abi(name):
            if item["type"] != "error":
                continue
            types = [entry["type"] for entry in item["inputs"]]
            if any(kind.startswith("tuple") for kind in types):
                continue
            selector = keccak(f"{item['name']}({','.join(types)})".encode())[:4]
            dynamic = any(kind in ("bytes", "string") for kind in types)
            error = revert_of(selector + (bytes(32 * len(types)) if not dynamic else b""), "X.y")
            if not dynamic:
                assert error.reason == item["name"]
                assert len(error.arguments) == len(types)
                assert str(error).startswith(f"X.y reverted: {item['name']}")
                checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    ("data", "reason", "arguments"),
    [
        ("08c379a0" + "20".rjust(64, "0") + "03".rjust(64, "0") + b"why".hex().ljust(64, "0"), "why", ()),
        ("4e487b71" + "11".rjust(64, "0"), "an arithmetic operation overflowed", ()),
        ("4e487b71" + "99".rjust(64, "0"), "panic 0x99", ()),
        ("deadbeef", "unknown error 0xdeadbeef", ()),
        ("08c379a0", "unknown error 0x08c379a0", ()),
        ("", "", ()),
    ],
)
def test_other_reverts(data: str, reason: str, arguments: tuple[Any, ...]) -> None:
    error = revert_of(bytes.fromhex(data), "X.y")
    assert (error.reason, error.arguments) == (reason, arguments)
    assert str(error) == f"X.y reverted: {reason or 'the contract gave no reason'}"


def test_what_is_no_revert_stays_what_it_is() -> None:
    refused = RpcError(-32000, "the node is syncing")
    assert reverted(refused, "X.y") is refused
    assert str(reverted(RpcError(-32000, "VM execution error: revert"), "X.y")) == (
        "X.y reverted: the contract gave no reason"
    )


def test_events() -> None:
    small = Interface(
        "Thing",
        [
            {
                "type": "event",
                "name": "Happened",
                "inputs": [
                    {"name": "who", "type": "address", "indexed": True},
                    {"name": "amount", "type": "uint96", "indexed": False},
                    {"name": "text", "type": "string", "indexed": True},
                    {"name": "where", "type": "address", "indexed": False},
                ],
            }
        ],
        b"",
    )
    log = {
        "address": "0x" + "11" * 20,
        "topics": ["0x" + small.topic("Happened").hex(), "0x" + "00" * 12 + "22" * 20, "0x" + "33" * 32],
        "data": "0x" + (5).to_bytes(32, "big").hex() + "00" * 12 + "44" * 20,
        "blockNumber": "0x6",
        "transactionHash": "0x" + "55" * 32,
        "logIndex": "0x7",
    }
    event = small.event(log)
    assert event is not None
    assert event.arguments == {"who": b"\x22" * 20, "amount": 5, "text": b"\x33" * 32, "where": b"\x44" * 20}
    assert (event.name, event.address, event.block) == ("Happened", b"\x11" * 20, 6)
    assert (event.transaction_hash, event.log_index) == (b"\x55" * 32, 7)
    for topics in ([], ["0x" + "99" * 32], log["topics"][:2]):
        assert small.event({**log, "topics": topics}) is None
    with pytest.raises(KeyError):
        small.topic("Nothing")


def test_unknown_artifact() -> None:
    with pytest.raises(ChainError, match="make contracts"):
        interface("Nothing")
