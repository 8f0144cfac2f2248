"""In which batch a receipt was settled, and which validators signed that batch: what a proof says of a committee."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import digests, merkle
from .committees import Epoch, Member
from .errors import EndorsementRefused, MalformedRequest
from .models import Domain, Receipt
from .payments import Batch, Quorum
from .quorums import check_quorum
from .signing import address_hex
from .statements import BatchStatement
from .wire.json_payments import QuorumJson, address_bytes, hash_bytes, quorum_from_json, quorum_json
from .wire.json_tensors import Form

__all__ = ["Inclusion", "InclusionJson", "inclusion_from_json", "inclusion_json"]

_MOST_MEMBERS = 256
_LONGEST_PATH = 32


@dataclass(frozen=True)
class Inclusion:
    """The way from a receipt to a batch that validators signed.

    Attributes:
        batch: head of the batch.
        channel: id of the channel that was charged.
        path: Merkle path from the receipt's leaf to the batch's root.
        members: the validators of the batch's epoch, in the order of the quorum's bitmap.
        quorum: their signatures over the batch.
        transaction: hash of the transaction that put it on chain.
    """

    batch: Batch
    channel: bytes
    path: tuple[bytes, ...]
    members: tuple[bytes, ...]
    quorum: Quorum
    transaction: bytes

    @property
    def signers(self) -> tuple[bytes, ...]:
        """Addresses of those who signed."""
        return tuple(member for place, member in enumerate(self.members) if self.quorum.bitmap >> place & 1)

    def check(self, domain: Domain, receipt: Receipt, inputs: bytes, say: Callable[[str], None]) -> None:
        """Raise unless more than half of ``members`` signed a batch that has the receipt.

        Whether the members are the epoch's, and the batch on chain, only the chain can tell: ask it for
        ``members(epoch)`` of ValidatorRegistry and for the transaction.

        Args:
            domain: of the contract.
            receipt: of the answer.
            inputs: hash of the request's inputs.
            say: hears what passed.

        Raises:
            EndorsementRefused: naming what is wrong.
        """
        leaf = digests.receipt_leaf(receipt, self.channel, inputs)
        if merkle.climb(leaf, self.path) != self.batch.receipts_root:
            raise EndorsementRefused("the path does not lead from this receipt to the root of the batch")
        if len(set(self.members)) != len(self.members):
            raise EndorsementRefused("a validator is named twice among the members of the epoch")
        if receipt.node in self.signers:
            raise EndorsementRefused(f"the node {address_hex(receipt.node)} signed as a validator of its own receipt")
        members = tuple(Member(address, 1) for address in self.members)
        epoch = Epoch(self.batch.epoch, members, len(members) // 2 + 1, 0, bytes(32), bytes(20))
        check_quorum(domain, BatchStatement(self.batch, (), (), ()), self.quorum, epoch)
        say(
            f"batch: {self.batch.nonce} of gateway {address_hex(self.batch.gateway)}, {self.batch.count} receipts, "
            f"transaction 0x{self.transaction.hex()}"
        )
        say(f"committee: epoch {self.batch.epoch}, {len(self.signers)} of {len(members)} validators signed the batch")
        for signer, signature in zip(self.signers, self.quorum.signatures, strict=True):
            say(f"validator: {address_hex(signer)}, signature 0x{signature.hex()}")


class InclusionJson(Form, omit_defaults=False):
    """``Inclusion`` as JSON."""

    gateway: str
    nonce: int
    count: int
    receipts_root: str
    da_hash: str
    claims_hash: str
    credits_hash: str
    channel: str
    path: list[str]
    members: list[str]
    quorum: QuorumJson
    transaction: str


def inclusion_json(inclusion: Inclusion) -> InclusionJson:
    """Return the JSON form."""
    batch = inclusion.batch
    return InclusionJson(
        gateway=address_hex(batch.gateway),
        nonce=batch.nonce,
        count=batch.count,
        receipts_root="0x" + batch.receipts_root.hex(),
        da_hash="0x" + batch.da_hash.hex(),
        claims_hash="0x" + batch.claims_hash.hex(),
        credits_hash="0x" + batch.credits_hash.hex(),
        channel="0x" + inclusion.channel.hex(),
        path=["0x" + step.hex() for step in inclusion.path],
        members=[address_hex(member) for member in inclusion.members],
        quorum=quorum_json(inclusion.quorum),
        transaction="0x" + inclusion.transaction.hex(),
    )


def inclusion_from_json(form: InclusionJson) -> Inclusion:
    """Return the inclusion, checked for form and bounds only.

    Raises:
        MalformedRequest: a field is malformed, or a list too long.
    """
    if len(form.path) > _LONGEST_PATH or len(form.members) > _MOST_MEMBERS:
        raise MalformedRequest(f"path or members has more than {_LONGEST_PATH} or {_MOST_MEMBERS} entries")
    if not 0 <= form.nonce < 2**64 or not 0 < form.count < 2**32 or not 0 <= form.quorum.epoch < 2**32:
        raise MalformedRequest("nonce, count or epoch is out of the contract's range")
    quorum = quorum_from_json(form.quorum)
    batch = Batch(
        address_bytes(form.gateway, "gateway"),
        form.nonce,
        quorum.epoch,
        form.count,
        hash_bytes(form.receipts_root, "receipts_root"),
        hash_bytes(form.da_hash, "da_hash"),
        hash_bytes(form.claims_hash, "claims_hash"),
        hash_bytes(form.credits_hash, "credits_hash"),
    )
    return Inclusion(
        batch,
        hash_bytes(form.channel, "channel"),
        tuple(hash_bytes(step, "path") for step in form.path),
        tuple(address_bytes(member, "members") for member in form.members),
        quorum,
        hash_bytes(form.transaction, "transaction"),
    )
