"""Keys, signatures and addresses; what is malleable, mistyped or of another key is refused."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from ncn_framework import Signer
from ncn_framework.errors import ConfigError, SignatureRejected
from ncn_framework.signing import address_from_hex, address_hex, check_signature, load_or_create_signer, recover

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
quick = settings(max_examples=25, deadline=None)
digests = st.binary(min_size=32, max_size=32)
keys = st.integers(1, ORDER - 1).map(lambda key: key.to_bytes(32, "big"))


@quick
@given(keys, digests)
def test_signatures_and_addresses_are_ethereums(key: bytes, digest: bytes) -> None:
    signer, account = Signer(key), Account.from_key(key)
    signature = signer.sign(digest)
    assert address_hex(signer.address) == account.address
    assert signature.value == bytes(account.unsafe_sign_hash(digest).signature)
    assert signature.signer == signer.address == recover(digest, signature.value)


def test_the_same_digest_gives_the_same_signature(signer: Signer) -> None:
    assert signer.sign(bytes(32)) == signer.sign(bytes(32))


@quick
@given(keys, digests)
def test_a_malleated_signature_is_refused(key: bytes, digest: bytes) -> None:
    value = Signer(key).sign(digest).value
    high = (ORDER - int.from_bytes(value[32:64], "big")).to_bytes(32, "big")
    with pytest.raises(SignatureRejected, match="upper half"):
        recover(digest, value[:32] + high + bytes((55 - value[64],)))


@pytest.mark.parametrize("v", [0, 1, 26, 29, 255])
def test_v_is_27_or_28(signer: Signer, v: int) -> None:
    with pytest.raises(SignatureRejected, match="v 27 or 28"):
        recover(bytes(32), signer.sign(bytes(32)).value[:64] + bytes((v,)))


@pytest.mark.parametrize("value", [b"", bytes(64), bytes(66)])
def test_a_signature_has_65_bytes(value: bytes) -> None:
    with pytest.raises(SignatureRejected, match=f"of {len(value)} bytes"):
        recover(bytes(32), value)


@pytest.mark.parametrize("value", [bytes(64) + b"\x1b", b"\xff" * 32 + bytes(31) + b"\1\x1b"])
def test_what_recovers_to_no_key_is_refused(value: bytes) -> None:
    with pytest.raises(SignatureRejected, match="recovers to no key"):
        recover(bytes(32), value)


def test_a_signature_of_another_key_or_digest_is_refused(signer: Signer) -> None:
    value = signer.sign(bytes(32)).value
    check_signature(bytes(32), value, signer.address, "the letter")
    with pytest.raises(SignatureRejected, match=f"the letter is signed by {address_hex(signer.address)}, not by 0x00"):
        check_signature(bytes(32), value, bytes(20), "the letter")
    with pytest.raises(SignatureRejected, match="the letter is signed by"):
        check_signature(b"\1" * 32, value, signer.address, "the letter")


# --- addresses ---


@quick
@given(st.binary(min_size=20, max_size=20))
def test_addresses_survive_with_and_without_checksum(address: bytes) -> None:
    text = address_hex(address)
    for form in (text, text.lower(), text[2:], "0x" + text[2:].upper()):
        assert address_from_hex(form) == address


def test_the_checksum_is_eip_55s() -> None:
    example = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # the first test case of EIP-55
    assert address_hex(address_from_hex(example)) == example
    with pytest.raises(ValueError, match="wrong checksum"):
        address_from_hex(example.replace("aA", "Aa"))


@pytest.mark.parametrize("text", ["", "0x", "0x12", "0x" + "1" * 42, "0x" + "g" * 40])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|hexadecimal"):
        address_from_hex(text)


# --- keys ---


def test_a_key_is_never_shown(signer: Signer) -> None:
    assert repr(signer) == f"Signer({address_hex(signer.address)})"
    secret = "f" * 64
    with pytest.raises(ConfigError, match="the key is not a private key") as refused:
        Signer.from_hex(secret, "the key")
    assert secret not in str(refused.value)


@pytest.mark.parametrize("text", ["", "0x", "12", "1" * 62, "z" * 64, "0" * 64, f"{ORDER:x}"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a private key"):
        Signer.from_hex(text)


@pytest.mark.parametrize("form", ["{}", "0x{}", " 0x{}\n"])
def test_a_key_is_hex_with_or_without_prefix(form: str) -> None:
    assert Signer.from_hex(form.format("01" * 32)).address == Signer(b"\1" * 32).address


def test_a_key_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node.key"
    first = load_or_create_signer(path)
    assert load_or_create_signer(path).address == first.address
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["node.key"]


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\xfe"])
def test_a_damaged_key_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"key file {path} is not a private key"):
        load_or_create_signer(path)
    assert path.read_bytes() == content


def test_of_two_that_make_the_key_at_once_both_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.key"
    both = threading.Barrier(2, timeout=30)
    link = os.link

    def at_once(source: Path, target: Path) -> None:
        both.wait()
        link(source, target)

    monkeypatch.setattr(os, "link", at_once)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(load_or_create_signer(path).address)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["node.key"]
