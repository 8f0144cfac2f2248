"""Signed records of the form that the swarm's tests use, and the peers that use them.

A record is JSON. Its key is ``ncn/node/`` and the first 20 bytes of its owner's public point's SHA-256, so that a
foreign implementation can make and check one with what its standard library has.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256K1, EllipticCurvePublicKey, derive_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ncn_registry.swarm import Swarm, Timing

LOCAL = "/ip4/127.0.0.1/tcp/0"
QUICK = Timing(rpc_s=1.0, probe_s=0.5, backoff_s=0.3, backoff_cap_s=1.0)


def _message(sequence: int, expires: float, body: str) -> bytes:
    return f"{sequence}|{expires}|{body}".encode()


class Owner:
    """Who signs the records of one key."""

    def __init__(self, secret: int) -> None:
        self._key = derive_private_key(secret, SECP256K1())
        self._point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.key = f"ncn/node/{hashlib.sha256(self._point).digest()[:20].hex()}"

    def record(self, sequence: int, body: str = "", expires_in_s: int = 3600) -> bytes:
        expires = int(time.time()) + expires_in_s
        signature = self._key.sign(_message(sequence, expires, body), ECDSA(SHA256()))
        fields = {"sequence": sequence, "expires": expires, "body": body}
        return json.dumps({**fields, "point": self._point.hex(), "signature": signature.hex()}).encode()


def sequence_of(key: str, value: bytes) -> int | None:
    """Check a record; raise on nonsense, which the swarm must take for a bad record."""
    record = json.loads(value)
    point = bytes.fromhex(record["point"])
    if key != f"ncn/node/{hashlib.sha256(point).digest()[:20].hex()}" or record["expires"] < time.time():
        return None
    message = _message(record["sequence"], record["expires"], record["body"])
    try:
        EllipticCurvePublicKey.from_encoded_point(SECP256K1(), point).verify(
            bytes.fromhex(record["signature"]), message, ECDSA(SHA256())
        )
    except InvalidSignature:
        return None
    return int(record["sequence"])


class Ears:
    """What a peer hears, to be waited for."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[str, bytes, str]] = asyncio.Queue()

    def __call__(self, topic: str, data: bytes, peer: str) -> None:
        self.messages.put_nowait((topic, data, peer))


def peer(number: int, *bootstrap: Swarm, **options: Any) -> Swarm:
    """Make a peer of the test network on loopback, not started yet."""
    options.setdefault("heard", Ears())
    options.setdefault("validate", sequence_of)
    options.setdefault("timing", QUICK)
    options.setdefault("bootstrap", [address for other in bootstrap for address in other.addresses])
    return Swarm(number.to_bytes(32, "big"), options.pop("listen", [LOCAL]), **options)


async def until(condition: Callable[[], object], what: str, within_s: float = 30) -> None:
    """Wait for a state that nothing announces."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"within {within_s} s it did not come to pass: {what}") from None
