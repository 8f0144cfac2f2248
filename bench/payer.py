"""Requests of one client, each new and signed, with or without a voucher: what a paying client sends."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncn_framework import digests
from ncn_framework.manifests import manifest_from_json
from ncn_framework.models import Domain, InferenceRequest, ModelManifest
from ncn_framework.payments import Voucher
from ncn_framework.signing import Signer, address_from_hex, address_hex
from ncn_framework.tensors import Tensor
from ncn_framework.wire.json import TensorJson, inputs_from_json

__all__ = ["Payer", "asked"]


def asked(url: str) -> Any:
    """Return the JSON at ``url``."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


@dataclass
class Payer:
    """A client with a channel.

    Attributes:
        signer: its key.
        domain: of the network.
        gateway: address, 20 bytes.
        manifest: of the model it asks.
        inputs: the same for each request.
        template: the JSON of a request without what changes.
        payment: ``free`` or ``voucher``.
        cumulative_wei: of the last voucher.
    """

    signer: Signer
    domain: Domain
    gateway: bytes
    manifest: ModelManifest
    inputs: tuple[Tensor, ...]
    template: dict[str, Any]
    payment: str
    cumulative_wei: int
    count: int = 0

    @classmethod
    def of(cls, url: str, key: Path, body: str, payment: str) -> Payer:
        """Return the client whose key is in the file ``key``, for a request that asks for what ``body`` does.

        Args:
            url: of the gateway.
            key: file with 64 hex digits.
            body: JSON of an unsigned request.
            payment: mode.
        """
        signer, form = Signer.from_hex(key.read_text()), json.loads(body)
        network = asked(f"{url}/api/v1/network")
        row = next(m for m in asked(f"{url}/api/v1/models")["models"] if m["name"] == form["model"])
        manifest = manifest_from_json(json.dumps(row["manifest"]).encode())
        own = address_hex(signer.address)
        channel = asked(f"{url}/api/v1/channels/{own}/{own}")
        inputs = [TensorJson(**tensor) for tensor in form["inputs"]]
        return cls(
            signer,
            Domain(network["chain_id"], address_from_hex(network["contract"])),
            address_from_hex(network["gateway"]),
            manifest,
            inputs_from_json(inputs, manifest.inputs),
            {**form, "client": own, "limit_units": 1_000, "payment": payment},
            payment,
            int(channel["charged_wei"]) + int(channel["held_wei"]),
        )

    def body(self) -> bytes:
        """Return the JSON of a new request: signed, and with a voucher for all requests so far and this one."""
        self.count += 1
        request = InferenceRequest(
            model=self.manifest.digest,
            inputs=self.inputs,
            nonce=time.time_ns().to_bytes(24, "big") + self.count.to_bytes(8, "big"),
            limit_units=1_000,
            deadline_ms=time.time_ns() // 1_000_000 + 60_000,
            client=self.signer.address,
            payment=self.payment,
        )
        signature = self.signer.sign(digests.request_digest(self.domain, request)).value
        form = self.template | {
            "nonce": "0x" + request.nonce.hex(),
            "deadline_ms": request.deadline_ms,
            "signature": "0x" + signature.hex(),
        }
        if self.payment == "voucher":
            form["voucher"] = self._voucher()
        return json.dumps(form).encode()

    def _voucher(self) -> dict[str, str]:
        self.cumulative_wei += self.manifest.fee_wei(1_000, "voucher")
        own = self.signer.address
        channel = digests.channel_id(own, own, self.gateway)
        digest = digests.voucher_digest(self.domain, channel, self.cumulative_wei)
        voucher = Voucher(own, own, self.gateway, self.cumulative_wei, self.signer.sign(digest).value)
        return {
            "client": address_hex(own),
            "signer": address_hex(own),
            "gateway": address_hex(self.gateway),
            "cumulative_wei": str(voucher.cumulative_wei),
            "signature": "0x" + voucher.signature.hex(),
        }
