"""Keys, signatures and the addresses they stand for (secp256k1, Ethereum's form)."""

from __future__ import annotations

import os
import secrets
from functools import lru_cache
from pathlib import Path

from coincurve import PrivateKey, PublicKey

from .digests import keccak
from .errors import ConfigError, SignatureRejected
from .models import Signature

__all__ = ["Signer", "address_from_hex", "address_hex", "check_signature", "load_or_create_signer", "recover"]

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class Signer:
    """Holds a private key and signs 32-byte digests with it; ``repr`` shows the address only."""

    def __init__(self, private_key: bytes) -> None:
        try:
            if len(private_key) != 32:  # coincurve would pad a truncated key to another one
                raise ValueError(f"{len(private_key)} bytes")
            self._key = PrivateKey(private_key)
        except ValueError as cause:
            raise ConfigError("a private key is not 32 bytes below the curve's order; give 64 hex digits") from cause
        self.address = _address_of(self._key.public_key)

    @classmethod
    def from_hex(cls, text: str, name: str = "private key") -> Signer:
        """Return the signer for 64 hex digits, with or without 0x. The value is never part of an error."""
        try:
            return cls(bytes.fromhex(text.strip().removeprefix("0x")))
        except (ValueError, ConfigError) as cause:
            raise ConfigError(f"{name} is not a private key: give 64 hex digits, with or without 0x") from cause

    def __repr__(self) -> str:
        return f"Signer({address_hex(self.address)})"

    def sign(self, digest: bytes) -> Signature:
        """Return the signature over a 32-byte digest: r, s (low, EIP-2) and v 27 or 28; deterministic (RFC 6979)."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return Signature(self.address, raw[:64] + bytes((raw[64] + 27,)))


def _address_of(key: PublicKey) -> bytes:
    return keccak(key.format(compressed=False)[1:])[12:]


def recover(digest: bytes, signature: bytes) -> bytes:
    """Return the address whose key made ``signature`` over ``digest``.

    Raises:
        SignatureRejected: not 65 bytes, v not 27 or 28, s in the upper half (malleable, EIP-2), or no such key.
    """
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise SignatureRejected(f"a signature of {len(signature)} bytes is not r, s and v (65 bytes, v 27 or 28)")
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise SignatureRejected("a signature's s lies in the upper half of the order (EIP-2 refuses it)")
    try:
        raw = signature[:64] + bytes((signature[64] - 27,))
        return _address_of(PublicKey.from_signature_and_message(raw, digest, hasher=None))
    except Exception as cause:  # coincurve raises bare Exception for "failed to recover"
        raise SignatureRejected("a signature recovers to no key") from cause


def check_signature(digest: bytes, signature: bytes, signer: bytes, what: str) -> None:
    """Raise ``SignatureRejected`` unless ``signer`` made ``signature`` over ``digest``; ``what`` is for the message."""
    actual = recover(digest, signature)
    if actual != signer:
        raise SignatureRejected(f"{what} is signed by {address_hex(actual)}, not by {address_hex(signer)}")


@lru_cache(maxsize=4096)
def address_hex(address: bytes) -> str:
    """Return an address with EIP-55's checksum."""
    plain = address.hex()
    digest = keccak(plain.encode()).hex()
    return "0x" + "".join(c.upper() if int(d, 16) >= 8 else c for c, d in zip(plain, digest, strict=False))


def address_from_hex(text: str) -> bytes:
    """Return the 20 bytes of an address; a mixed-case one must have EIP-55's checksum.

    Raises:
        ValueError: not an address, or its checksum is wrong.
    """
    address = bytes.fromhex(text.removeprefix("0x"))
    if len(address) != 20:
        raise ValueError(f"{text!r} is not an address: it has {len(address)} bytes, not 20")
    digits = text.removeprefix("0x")
    if digits not in (digits.lower(), digits.upper()) and address_hex(address) != "0x" + digits:
        raise ValueError(f"{text!r} has a wrong checksum (EIP-55); one of its characters is mistyped")
    return address


def load_or_create_signer(path: Path) -> Signer:
    """Return the signer whose key is in ``path`` (hex, mode 0600), making a new random key where there is none.

    Raises:
        ConfigError: the file is not a key.
    """
    try:
        return Signer.from_hex(path.read_text(errors="replace"), f"key file {path}")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_bytes(32).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # atomic, and loses against a process that was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return Signer.from_hex(path.read_text(), f"key file {path}")
