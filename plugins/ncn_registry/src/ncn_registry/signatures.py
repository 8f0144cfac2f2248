"""Validators' signatures over one statement, as they come in; those that count make a quorum."""

from __future__ import annotations

from ncn_framework.committees import Epoch
from ncn_framework.errors import SignatureRejected
from ncn_framework.models import Domain, Signature
from ncn_framework.payments import Quorum
from ncn_framework.signing import check_signature
from ncn_framework.statements import Statement, digest_of, excluded_from

__all__ = ["Signatures"]


class Signatures:
    """Those that count: of members of the epoch who may sign, each checked, one of each.

    Args:
        domain: of InferencePayment.
        epoch: whose members sign.
        statement: what they sign.

    Attributes:
        digest: that is signed.
    """

    def __init__(self, domain: Domain, epoch: Epoch, statement: Statement) -> None:
        self.digest = digest_of(domain, statement)
        self._epoch = epoch
        excluded = excluded_from(statement)
        self._places = {
            member.address: place for place, member in enumerate(epoch.members) if member.address not in excluded
        }
        self._found: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, member: bytes) -> bool:
        return self._places.get(member) in self._found

    @property
    def able(self) -> int:
        """How many members may sign."""
        return len(self._places)

    @property
    def enough(self) -> bool:
        """Whether they make a quorum."""
        return len(self._found) >= self._epoch.quorum

    def add(self, signature: Signature) -> bool:
        """Take a signature from anybody; return whether it counts and is new."""
        place = self._places.get(signature.signer)
        if place is None or place in self._found:
            return False
        try:
            check_signature(self.digest, signature.value, signature.signer, "the statement")
        except SignatureRejected:
            return False
        self._found[place] = signature.value
        return True

    def all(self) -> list[Signature]:
        """Return those that count."""
        members = self._epoch.members
        return [Signature(members[place].address, value) for place, value in self._found.items()]

    def quorum(self) -> Quorum:
        """Return just as many as the contract wants, since each costs gas, in ascending order of member."""
        places = sorted(self._found)[: self._epoch.quorum]
        bitmap = sum(1 << place for place in places)
        return Quorum(self._epoch.number, bitmap, tuple(self._found[place] for place in places))
