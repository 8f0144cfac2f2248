"""What is hashed and what is signed, in one place.

Content hashes are SHA-256 (FIPS 180-4) over MessagePack arrays in shortest form, each with a tag of its own as
first element, so that no encoding of one kind is an encoding of another. Signatures are over EIP-712 digests
(keccak-256), bound to a chain id and a contract. ``tests/vectors/digests.json`` pins every function here for
implementations in other languages, Solidity among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .models import Chunk, Domain, InferenceRequest, ModelManifest, Parameter, Receipt, Record
    from .payments import Batch, Charge, Claim, Credit, EscrowTerms, TransferAuthorization
    from .tensors import Tensor

__all__ = [
    "CONTRACT_NAME",
    "TYPES",
    "array_hash",
    "batch_digest",
    "chain_start",
    "channel_id",
    "charge_leaf",
    "charges_hash",
    "chunk_link",
    "claims_hash",
    "compact_signature",
    "completion_digest",
    "credits_hash",
    "escrow_id",
    "failure_digest",
    "full_signature",
    "inputs_hash",
    "keccak",
    "model_digest",
    "preprocess_commitment",
    "preprocess_digest",
    "receipt_digest",
    "receipt_leaf",
    "receive_challenge",
    "record_digest",
    "request_digest",
    "request_hash",
    "request_id",
    "session_digest",
    "transfer_digest",
    "typed",
    "voucher_digest",
]

_encode = msgspec.msgpack.Encoder().encode


def keccak(data: bytes) -> bytes:
    """Return keccak-256 of ``data`` (the original padding, as Ethereum uses it; not SHA3-256)."""
    from sha3 import keccak_256

    return bytes(keccak_256(data).digest())


# --- content hashes ---


def model_digest(manifest: ModelManifest) -> bytes:
    """Return SHA-256 of the manifest's canonical JSON, 32 bytes."""
    from .manifests import manifest_json  # it knows the models, which know the digests

    return sha256(manifest_json(manifest)).digest()


def request_id(client: bytes, nonce: bytes) -> bytes:
    """Return the id of a request: SHA-256 of ``["ncn.id.v1", client, nonce]``, 32 bytes."""
    return sha256(_encode(("ncn.id.v1", client, nonce))).digest()


def inputs_hash(inputs: Sequence[Tensor]) -> bytes:
    """Return SHA-256 of ``["ncn.inputs.v1", [[name, dtype, shape, SHA-256(data)]...]]``, sorted by name."""
    rows = sorted((t.name, t.dtype, t.shape, sha256(t.data).digest()) for t in inputs)
    return sha256(_encode(("ncn.inputs.v1", rows))).digest()


def parameters_hash(parameters: Mapping[str, Parameter]) -> bytes:
    """Return SHA-256 of ``["ncn.parameters.v1", [[name, value]...]]``, sorted by name."""
    return sha256(_encode(("ncn.parameters.v1", sorted(parameters.items())))).digest()


def request_hash(request: InferenceRequest) -> bytes:
    """Return the hash that stands for all of a request's content but its signature, 32 bytes."""
    return sha256(
        _encode(
            (
                "ncn.request.v1",
                request.model,
                inputs_hash(request.inputs),
                parameters_hash(request.parameters),
                request.client,
                request.nonce,
                request.limit_units,
                request.deadline_ms,
                request.payment,
            )
        )
    ).digest()


def chain_start(request_hash: bytes, model: bytes, node: bytes) -> bytes:
    """Return h0 = SHA-256(tag, request hash, model digest, node), the link before the first chunk."""
    return sha256(b"ncn.chain.v1" + request_hash + model + node).digest()


def chunk_link(previous: bytes, chunk: Chunk) -> bytes:
    """Return hi = SHA-256(h(i-1), sequence, cumulative units, SHA-256(data)); numbers as 8 bytes, big-endian."""
    return sha256(
        previous + chunk.sequence.to_bytes(8, "big") + chunk.units.to_bytes(8, "big") + sha256(chunk.data).digest()
    ).digest()


# --- EIP-712 ---

TYPES = {
    "EIP712Domain": "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
    "Request": "Request(bytes32 requestId,bytes32 requestHash)",
    "Receipt": (
        "Receipt(bytes32 requestId,bytes32 requestHash,bytes32 model,bytes32 outputHash,uint64 chunks,"
        "uint64 units,uint96 fee,address node,uint64 startedMs,uint64 finishedMs)"
    ),
    "Record": "Record(string kind,address owner,uint64 sequence,uint64 expiresMs,bytes32 payloadHash)",
    "Session": "Session(address node,address gateway,bytes32 challenge)",
    "Voucher": "Voucher(bytes32 channelId,uint96 cumulative)",
    "Preprocess": "Preprocess(bytes32 requestId,bytes32 commitment)",
    "Completion": "Completion(bytes32 requestId,bytes32 resultHash)",
    "Failure": "Failure(bytes32 requestId)",
    "Batch": (
        "Batch(address gateway,uint64 nonce,uint32 epoch,uint32 count,bytes32 receiptsRoot,bytes32 daHash,"
        "bytes32 claimsHash,bytes32 creditsHash)"
    ),
    "TransferWithAuthorization": (
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
        "bytes32 nonce)"
    ),
    "Subnet": "Subnet(bytes32 record,uint32 epoch)",
    "Verdict": "Verdict(uint8 misconduct,address validator,bytes32 subject,uint32 epoch)",
    "Performances": "Performances(uint32 period,bytes32 performancesHash,uint32 epoch)",
}
"""One type per purpose, never shared: a signature for one purpose means nothing for another."""

CONTRACT_NAME = "NCN InferencePayment"
"""EIP-712 name of the contract that all signatures but those of token transfers are bound to."""

_TYPE_HASH = {name: keccak(text.encode()) for name, text in TYPES.items()}


@lru_cache(maxsize=64)
def _domain_separator(domain: Domain, name: str) -> bytes:
    return keccak(
        _TYPE_HASH["EIP712Domain"]
        + keccak(name.encode())
        + keccak(b"1")
        + domain.chain_id.to_bytes(32, "big")
        + _address(domain.contract)
    )


def _address(value: bytes) -> bytes:
    return value.rjust(32, b"\0")


def _uint(value: int) -> bytes:
    return value.to_bytes(32, "big")


def typed(domain: Domain, type_name: str, *words: bytes, name: str = CONTRACT_NAME) -> bytes:
    """Return the EIP-712 digest of a structure of ``TYPES`` whose fields are encoded as ``words`` of 32 bytes."""
    return keccak(b"\x19\x01" + _domain_separator(domain, name) + keccak(_TYPE_HASH[type_name] + b"".join(words)))


def request_digest(domain: Domain, request: InferenceRequest | Receipt) -> bytes:
    """Return what a client signs: EIP-712 ``Request``; a receipt names the same id and hash as its request."""
    return typed(domain, "Request", request.request_id, request.request_hash)


def receipt_digest(domain: Domain, receipt: Receipt) -> bytes:
    """Return what a node (and later a committee) signs: EIP-712 ``Receipt``."""
    return typed(
        domain,
        "Receipt",
        receipt.request_id,
        receipt.request_hash,
        receipt.model,
        receipt.output_hash,
        _uint(receipt.chunks),
        _uint(receipt.units),
        _uint(receipt.fee_wei),
        _address(receipt.node),
        _uint(receipt.started_ms),
        _uint(receipt.finished_ms),
    )


def record_digest(domain: Domain, record: Record) -> bytes:
    """Return what the owner of a record signs: EIP-712 ``Record``; the payload enters by its keccak-256."""
    return typed(
        domain,
        "Record",
        keccak(record.kind.encode()),
        _address(record.owner),
        _uint(record.sequence),
        _uint(record.expires_ms),
        keccak(record.payload),
    )


def receive_challenge(at_ms: int) -> bytes:
    """Return the challenge that a node answers unasked when it calls ReceiveTask at this time (ms); used once."""
    return sha256(b"ncn.receive.v1" + at_ms.to_bytes(8, "big")).digest()


def session_digest(domain: Domain, node: bytes, gateway: bytes, challenge: bytes) -> bytes:
    """Return what a node signs to open a session: EIP-712 ``Session`` over the gateway's fresh challenge."""
    return typed(domain, "Session", _address(node), _address(gateway), challenge)


# --- payments: the same digests as in contracts/ ---


@lru_cache(maxsize=65_536)
def channel_id(client: bytes, signer: bytes, gateway: bytes) -> bytes:
    """Return the key of a channel: Keccak-256 of the three addresses, ABI-encoded."""
    return keccak(_address(client) + _address(signer) + _address(gateway))


def voucher_digest(domain: Domain, channel: bytes, cumulative_wei: int) -> bytes:
    """Return what the signer of a channel signs: EIP-712 ``Voucher``."""
    return typed(domain, "Voucher", channel, _uint(cumulative_wei))


def transfer_digest(domain: Domain, token_name: str, authorization: TransferAuthorization) -> bytes:
    """Return what a payer signs for EIP-3009 ``transferWithAuthorization``.

    Args:
        domain: chain id and address of the token (not of InferencePayment).
        token_name: EIP-712 name of the token; its version is "1".
        authorization: its signature does not matter.
    """
    body = (
        _address(authorization.payer),
        _address(authorization.payee),
        _uint(authorization.value_wei),
        _uint(authorization.valid_after_s),
        _uint(authorization.valid_before_s),
        authorization.nonce,
    )
    return typed(domain, "TransferWithAuthorization", *body, name=token_name)


def escrow_id(domain: Domain, client: bytes, nonce: int) -> bytes:
    """Return the contract's id of a client's request: Keccak-256 of contract, chain id, client and nonce."""
    return keccak(_address(domain.contract) + _uint(domain.chain_id) + _address(client) + _uint(nonce))


def preprocess_digest(domain: Domain, request: bytes, terms: EscrowTerms) -> bytes:
    """Return what validators sign before a client pays: EIP-712 ``Preprocess`` over the terms' commitment."""
    return typed(domain, "Preprocess", request, preprocess_commitment(terms))


def preprocess_commitment(terms: EscrowTerms) -> bytes:
    """Return what the contract keeps of an escrow: Keccak-256 of its terms, ABI-encoded as ``Request``."""
    return keccak(
        _address(terms.client)
        + _uint(terms.nonce)
        + _address(terms.gateway)
        + _address(terms.node)
        + _uint(terms.amount_wei)
        + _uint(terms.epoch)
        + _uint(terms.expiry_s)
        + terms.request_hash
    )


def completion_digest(domain: Domain, request: bytes, output_hash: bytes, fee_wei: int) -> bytes:
    """Return what validators sign of a result: EIP-712 ``Completion`` over Keccak-256 of output hash and fee."""
    return typed(domain, "Completion", request, keccak(output_hash + _uint(fee_wei)))


def failure_digest(domain: Domain, request: bytes) -> bytes:
    """Return what validators sign of a request that came to nothing: EIP-712 ``Failure``."""
    return typed(domain, "Failure", request)


def claims_hash(claims: Sequence[Claim]) -> bytes:
    """Return Keccak-256 of the claims, ABI-encoded as ``Claim[]``; signatures in EIP-2098's 64 bytes."""
    return array_hash(
        _address(claim.voucher.client)
        + _address(claim.voucher.signer)
        + _uint(claim.voucher.cumulative_wei)
        + _uint(claim.total_wei)
        + compact_signature(claim.voucher.signature)
        for claim in claims
    )


def credits_hash(credits: Sequence[Credit]) -> bytes:
    """Return Keccak-256 of the credits, ABI-encoded as ``Credit[]``."""
    return array_hash(_address(credit.payee) + _uint(credit.amount_wei) for credit in credits)


def array_hash(rows: Iterable[bytes]) -> bytes:
    """Return Keccak-256 of a dynamic array of static structs: offset, length, elements (Solidity's ABI)."""
    elements = list(rows)
    return keccak(_uint(32) + _uint(len(elements)) + b"".join(elements))


def compact_signature(signature: bytes) -> bytes:
    """Return r, s, v as the 64 bytes of EIP-2098: v's parity in the top bit of s."""
    parity = 0x80 if signature[64] == 28 else 0
    return signature[:32] + bytes((signature[32] | parity,)) + signature[33:64]


def full_signature(compact: bytes) -> bytes:
    """Return the 65 bytes r, s, v of a signature in EIP-2098's 64 bytes."""
    v = 28 if compact[32] & 0x80 else 27
    return compact[:32] + bytes((compact[32] & 0x7F,)) + compact[33:64] + bytes((v,))


def batch_digest(domain: Domain, batch: Batch) -> bytes:
    """Return what validators sign of a batch: EIP-712 ``Batch``."""
    return typed(
        domain,
        "Batch",
        _address(batch.gateway),
        _uint(batch.nonce),
        _uint(batch.epoch),
        _uint(batch.count),
        batch.receipts_root,
        batch.da_hash,
        batch.claims_hash,
        batch.credits_hash,
    )


def receipt_leaf(receipt: Receipt, channel: bytes, inputs: bytes) -> bytes:
    """Return the leaf of a receipt in its batch's tree, hashed twice so that no inner node can pass for one.

    Args:
        channel: id of the channel that was charged.
        inputs: ``inputs_hash`` of the request's inputs.
    """
    row = (receipt.request_id, channel, _address(receipt.node), _uint(receipt.fee_wei), receipt.model, inputs)
    return keccak(keccak(b"".join(row) + receipt.output_hash))


def charge_leaf(charge: Charge) -> bytes:
    """Return the leaf of a charge's receipt."""
    voucher = charge.voucher
    channel = channel_id(voucher.client, voucher.signer, voucher.gateway)
    return receipt_leaf(charge.receipt.receipt, channel, charge.inputs_hash)


def charges_hash(charges: Sequence[Charge]) -> bytes:
    """Return SHA-256 of the charges as published: MessagePack ``["ncn.charges.v1", [charge...]]``, fields in order."""
    return sha256(_encode(("ncn.charges.v1", [_charge_row(charge) for charge in charges]))).digest()


def _charge_row(charge: Charge) -> tuple[Any, ...]:
    voucher, receipt = charge.voucher, charge.receipt.receipt
    return (
        (voucher.client, voucher.signer, voucher.gateway, str(voucher.cumulative_wei), voucher.signature),
        (
            receipt.request_id,
            receipt.request_hash,
            receipt.model,
            receipt.output_hash,
            receipt.chunks,
            receipt.units,
            str(receipt.fee_wei),
            receipt.node,
            receipt.started_ms,
            receipt.finished_ms,
        ),
        [(signature.signer, signature.value) for signature in charge.receipt.signatures],
        charge.inputs_hash,
        charge.client,
        charge.request_signature,
    )
