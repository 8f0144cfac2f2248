"""Whether enough of an epoch's members signed a statement; as the contract judges it (``libraries/Quorum.sol``)."""

from __future__ import annotations

from .committees import Epoch
from .errors import EndorsementRefused, SignatureRejected
from .models import Domain
from .payments import Quorum
from .signing import check_signature
from .statements import Statement, digest_of, epoch_of, excluded_from

__all__ = ["check_quorum"]


def check_quorum(domain: Domain, statement: Statement, quorum: Quorum, epoch: Epoch) -> None:
    """Raise unless a quorum of ``epoch`` signed ``statement``.

    Args:
        domain: of InferencePayment.
        statement: what was to be signed.
        quorum: from anybody.
        epoch: the statement's, as the chain has it. Whether its time is over is not asked: what was signed stays so.

    Raises:
        EndorsementRefused: another epoch, too few signers, a place that the epoch does not have, a signer who may
            not sign, or a signature that is not its member's.
    """
    wanted = epoch_of(statement)
    if (quorum.epoch, epoch.number) != (wanted, wanted):
        raise EndorsementRefused(f"validators of epoch {quorum.epoch} signed; epoch {wanted} is to sign this")
    places = [place for place in range(quorum.bitmap.bit_length()) if quorum.bitmap >> place & 1]
    if len(places) != len(quorum.signatures) or len(places) < epoch.quorum:
        raise EndorsementRefused(
            f"{len(places)} validators of epoch {wanted} are named and {len(quorum.signatures)} signatures given; "
            f"{epoch.quorum} of {len(epoch.members)} must sign"
        )
    if places and places[-1] >= len(epoch.members):
        raise EndorsementRefused(f"epoch {wanted} has {len(epoch.members)} members, and none at place {places[-1]}")
    digest, excluded = digest_of(domain, statement), excluded_from(statement)
    for place, signature in zip(places, quorum.signatures, strict=True):
        member = epoch.members[place].address
        if member in excluded:
            raise EndorsementRefused(f"validator 0x{member.hex()} signed a statement about itself")
        try:
            check_signature(digest, signature, member, f"place {place} of epoch {wanted}")
        except SignatureRejected as cause:
            raise EndorsementRefused(str(cause)) from cause
