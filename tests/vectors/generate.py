"""Writes digests.json: inputs and digests of every function of ncn_framework.digests, for other languages.

    python tests/vectors/generate.py

Bytes are hex; ``request`` and ``receipt`` digests are EIP-712's, bound to ``domain``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ncn_framework import Signer, digests
from ncn_framework.models import (
    ANONYMOUS,
    Chunk,
    Domain,
    InferenceRequest,
    ModelFile,
    ModelManifest,
    Receipt,
    Record,
)
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor, pack_tensors

PATH = Path(__file__).with_name("digests.json")


def _hex(value: Any) -> Any:
    """Return ``value`` as JSON has it: bytes as 0x-hex, tuples as lists."""
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, dict):
        return {name: _hex(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_hex(item) for item in value]
    return value


def manifests() -> list[ModelManifest]:
    """Return a small manifest, and one with every field set."""
    spec = TensorSpec("text", "BYTES", (-1,))
    return [
        ModelManifest("a", "1", "echo", "", (ModelFile("m", 0, bytes(32)),), (spec,), (spec,)),
        ModelManifest(
            name="größer",
            version="2.0-β",
            runtime="safetensors",
            architecture="bert-embedding",
            files=(ModelFile("config.json", 612, b"\1" * 32), ModelFile("deep/model.safetensors", 2**33, b"\2" * 32)),
            inputs=(spec, TensorSpec("mask", "BOOL", (-1, 8))),
            outputs=(TensorSpec("embedding", "FP32", (-1, 384)),),
            parameters={"pooling": "mean", "max_tokens": 256, "normalise": True, "scale": 0.5},
            base_fee_wei=10**18,
            unit_fee_wei=2**96 - 1,
            memory_bytes=1 << 40,
            time_limit_ms=1,
        ),
    ]


def requests() -> list[InferenceRequest]:
    """Return an anonymous request, and one with every field set."""
    model = manifests()[1].digest
    return [
        InferenceRequest(manifests()[0].digest, (bytes_tensor("text", [b"hi", b""]),), bytes(32), 1, 1),
        InferenceRequest(
            model=model,
            inputs=(
                Tensor("x", "FP32", (2, 2), bytes(range(16))),
                bytes_tensor("text", ["grüß".encode()]),
                Tensor("empty", "INT64", (0,), b""),
            ),
            nonce=b"\7" * 32,
            limit_units=2**63 - 1,
            deadline_ms=1_900_000_000_000,
            parameters={"temperature": 0.25, "top_k": -3, "stop": "ende", "seed": 2**40, "echo": False},
            client=Signer(b"\1" * 32).address,
            payment="voucher",
        ),
    ]


def receipts() -> list[Receipt]:
    """Return a receipt of zeros, and one at the upper bounds."""
    return [
        Receipt(bytes(32), bytes(32), bytes(32), bytes(32), 0, 0, 0, ANONYMOUS, 0, 0),
        Receipt(
            request_id=b"\1" * 32,
            request_hash=b"\2" * 32,
            model=b"\3" * 32,
            output_hash=b"\4" * 32,
            chunks=2**64 - 1,
            units=2**64 - 2,
            fee_wei=2**96 - 1,
            node=Signer(b"\2" * 32).address,
            started_ms=2**63,
            finished_ms=2**64 - 1,
        ),
    ]


def domains() -> list[Domain]:
    """Return the development network's domain, and another one."""
    return [Domain(), Domain(1, b"\xab" * 20)]


def vectors() -> dict[str, Any]:
    """Return all vectors, as they stand in the file."""
    request = requests()[1]
    node = Signer(b"\2" * 32)
    start = digests.chain_start(request.request_hash, request.model, node.address)
    links, link = [], start
    for number in (1, 2):
        chunk = Chunk(number, number * 10, pack_tensors([Tensor("y", "UINT8", (number,), bytes(number))]))
        before, link = link, digests.chunk_link(link, chunk)
        links.append({"before": before, **asdict(chunk), "link": link})
    record = Record("node", node.address, 7, 1_900_000_000_000, b"payload")
    challenge = b"\5" * 32
    found = {
        "keccak": [{"data": data, "digest": digests.keccak(data)} for data in (b"", b"abc", bytes(200))],
        "types": digests.TYPES,
        "manifest": [{"json": digests.manifest_json(m).decode(), "digest": m.digest} for m in manifests()],
        "tensors": [{"tensors": [asdict(t) for t in r.inputs], "packed": pack_tensors(r.inputs)} for r in requests()],
        "request": [
            {
                **{k: v for k, v in asdict(r).items() if k != "signature"},
                "request_id": r.request_id,
                "inputs_hash": digests.inputs_hash(r.inputs),
                "parameters_hash": digests.parameters_hash(r.parameters),
                "request_hash": r.request_hash,
                "digests": [{"domain": asdict(d), "digest": digests.request_digest(d, r)} for d in domains()],
            }
            for r in requests()
        ],
        "chain": {
            "request_hash": request.request_hash,
            "model": request.model,
            "node": node.address,
            "start": start,
            "chunks": links,
        },
        "receipt": [
            {
                **asdict(r),
                "digests": [
                    {
                        "domain": asdict(d),
                        "digest": digests.receipt_digest(d, r),
                        "signature": asdict(node.sign(digests.receipt_digest(d, r))),
                    }
                    for d in domains()
                ],
            }
            for r in receipts()
        ],
        "record": [
            {**asdict(record), "domain": asdict(d), "digest": digests.record_digest(d, record)} for d in domains()
        ],
        "session": [
            {
                "domain": asdict(d),
                "node": node.address,
                "gateway": b"\6" * 20,
                "challenge": challenge,
                "digest": digests.session_digest(d, node.address, b"\6" * 20, challenge),
            }
            for d in domains()
        ],
    }
    return dict(_hex(found))


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n")
