"""Writes digests.json: inputs and digests of every function of ncn_framework.digests, for other languages.

    python tests/vectors/generate.py

Bytes are hex; ``request`` and ``receipt`` digests are EIP-712's, bound to ``domain``. Under ``payments``, amounts of
wei are decimal strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from ncn_framework import Signer, digests, manifests, merkle
from ncn_framework.models import (
    ANONYMOUS,
    Chunk,
    Domain,
    InferenceRequest,
    ModelFile,
    ModelManifest,
    Receipt,
    Record,
    SignedReceipt,
)
from ncn_framework.payments import (
    MAX_WEI,
    Batch,
    Charge,
    Claim,
    Credit,
    EscrowTerms,
    TransferAuthorization,
    Voucher,
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


def _row(value: Any, **more: Any) -> dict[str, Any]:
    """Return the fields of something about money, amounts as text, and ``more``."""
    given = structs.asdict(value) if isinstance(value, Struct) else asdict(value)
    return {name: str(field) if name.endswith("_wei") else field for name, field in given.items()} | more


def example_manifests() -> list[ModelManifest]:
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
    model = example_manifests()[1].digest
    return [
        InferenceRequest(example_manifests()[0].digest, (bytes_tensor("text", [b"hi", b""]),), bytes(32), 1, 1),
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


def vouchers() -> list[Voucher]:
    """Return signed vouchers of two channels; the second's signer is a session key, its amount the largest."""
    made = []
    for client, signer, cumulative in ((b"\1", b"\1", 10**18), (b"\1", b"\3", MAX_WEI)):
        key, owner = Signer(signer * 32), Signer(client * 32).address
        channel = digests.channel_id(owner, key.address, b"\6" * 20)
        signature = key.sign(digests.voucher_digest(domains()[0], channel, cumulative)).value
        made.append(Voucher(owner, key.address, b"\6" * 20, cumulative, signature))
    return made


def charges() -> list[Charge]:
    """Return three receipts, each charged to a channel."""
    node, made = Signer(b"\2" * 32), []
    for number, voucher in enumerate((*vouchers(), vouchers()[0]), 1):
        receipt = replace(
            receipts()[1], request_id=bytes([number]) * 32, chunks=number, units=number, fee_wei=10**number
        )
        signature = node.sign(digests.receipt_digest(domains()[0], receipt))
        made.append(Charge(voucher, SignedReceipt(receipt, (signature,)), b"\7" * 32, voucher.client, b"\5" * 65))
    return made


def _bound(digest: Callable[[Domain], bytes]) -> list[dict[str, Any]]:
    return [{"domain": asdict(domain), "digest": digest(domain)} for domain in domains()]


def _voucher(voucher: Voucher) -> dict[str, Any]:
    channel = digests.channel_id(voucher.client, voucher.signer, voucher.gateway)
    return _row(
        voucher,
        channel_id=channel,
        compact_signature=digests.compact_signature(voucher.signature),
        digests=_bound(lambda d: digests.voucher_digest(d, channel, voucher.cumulative_wei)),
    )


def payment_vectors() -> dict[str, Any]:
    """Return the vectors of everything about money."""
    claims = [Claim(voucher, 10**17) for voucher in vouchers()]
    credits = [Credit(Signer(b"\2" * 32).address, 8 * 10**16), Credit(b"\7" * 20, MAX_WEI)]
    terms = EscrowTerms(b"\1" * 20, 2**63, b"\2" * 20, b"\3" * 20, MAX_WEI, 2**32 - 1, 2**63 - 1, b"\4" * 32)
    transfer = TransferAuthorization(b"\1" * 20, b"\2" * 20, 10**19, 0, 1_900_000_000, b"\3" * 32, b"\4" * 65)
    charged = charges()
    batch = Batch(
        gateway=b"\6" * 20,
        nonce=2**64 - 1,
        epoch=2**32 - 1,
        count=len(charged),
        receipts_root=merkle.root(map(digests.charge_leaf, charged)),
        da_hash=digests.charges_hash(charged),
        claims_hash=digests.claims_hash(claims),
        credits_hash=digests.credits_hash(credits),
    )

    return {
        "voucher": [_voucher(voucher) for voucher in vouchers()],
        "transfer": _row(
            transfer, token_name="NCN", digests=_bound(lambda d: digests.transfer_digest(d, "NCN", transfer))
        ),
        "escrow": {
            "terms": _row(terms),
            "escrow_ids": _bound(lambda d: digests.escrow_id(d, terms.client, terms.nonce)),
            "commitment": digests.preprocess_commitment(terms),
            "request_id": b"\5" * 32,
            "preprocess": _bound(lambda d: digests.preprocess_digest(d, b"\5" * 32, terms)),
            "output_hash": b"\6" * 32,
            "fee_wei": str(MAX_WEI),
            "completion": _bound(lambda d: digests.completion_digest(d, b"\5" * 32, b"\6" * 32, MAX_WEI)),
            "failure": _bound(lambda d: digests.failure_digest(d, b"\5" * 32)),
        },
        "claims": {
            "claims": [_row(claim, voucher=_row(claim.voucher)) for claim in claims],
            "digest": batch.claims_hash,
            "empty": digests.claims_hash([]),
        },
        "credits": {
            "credits": [_row(credit) for credit in credits],
            "digest": batch.credits_hash,
            "empty": digests.credits_hash([]),
        },
        "receipts": {
            "charges": [
                {
                    "voucher": _row(charge.voucher),
                    "receipt": _row(charge.receipt.receipt),
                    "signatures": [asdict(signature) for signature in charge.receipt.signatures],
                    "inputs_hash": charge.inputs_hash,
                    "client": charge.client,
                    "request_signature": charge.request_signature,
                    "leaf": digests.charge_leaf(charge),
                }
                for charge in charged
            ],
            "roots": [merkle.root(map(digests.charge_leaf, charged[:count])) for count in range(len(charged) + 1)],
            "charges_hash": batch.da_hash,
        },
        "batch": _row(batch, digests=_bound(lambda d: digests.batch_digest(d, batch))),
    }


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
        "manifest": [{"json": manifests.manifest_json(m).decode(), "digest": m.digest} for m in example_manifests()],
        "tensors": [{"tensors": [asdict(t) for t in r.inputs], "packed": pack_tensors(r.inputs)} for r in requests()],
        "request": [
            {
                **{k: v for k, v in asdict(r).items() if k not in ("signature", "authorization")},
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
        "payments": payment_vectors(),
    }
    return dict(_hex(found))


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n")
