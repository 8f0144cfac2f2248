"""Quorums as the contract judges them: enough different members of the epoch, none with an interest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ncn_framework.committees import Epoch, Member
from ncn_framework.errors import EndorsementRefused
from ncn_framework.models import Domain, Record
from ncn_framework.payments import Quorum
from ncn_framework.quorums import check_quorum
from ncn_framework.statements import SubnetStatement, digest_of
from ncn_framework.testing.fakes import fake_signer

DOMAIN = Domain(31337, b"\x05" * 20)
SIGNERS = tuple(fake_signer(f"validator {number}") for number in range(5))
EPOCH = Epoch(4, tuple(Member(signer.address, 1) for signer in SIGNERS), 3, 0, bytes(32), bytes(20))
STATEMENT = SubnetStatement(4, Record("subnet", b"\x01" * 20, 1, 2, b"payload", bytes(65)))


def signed(places: Sequence[int], statement: SubnetStatement = STATEMENT, domain: Domain = DOMAIN) -> Quorum:
    digest = digest_of(domain, statement)
    signatures = tuple(SIGNERS[place].sign(digest).value for place in places)
    return Quorum(statement.epoch, sum(1 << place for place in places), signatures)


@pytest.mark.parametrize("places", [(0, 1, 2), (0, 2, 4), (0, 1, 2, 3), (0, 1, 2, 3, 4)])
def test_enough_members_make_a_quorum(places: tuple[int, ...]) -> None:
    check_quorum(DOMAIN, STATEMENT, signed(places), EPOCH)


GOOD = signed((0, 1, 2))


@pytest.mark.parametrize(
    ("quorum", "reason"),
    [
        (signed((0, 1)), "3 of 5 must sign"),
        (replace(GOOD, bitmap=0), "0 validators"),
        (replace(GOOD, bitmap=0b1111), "4 validators"),
        (replace(GOOD, signatures=GOOD.signatures * 2), "6 signatures"),
        (replace(GOOD, bitmap=0b100011), "none at place 5"),
        (replace(GOOD, epoch=5), "epoch 5"),
        (replace(GOOD, bitmap=0b1011), "not by"),
        (replace(GOOD, signatures=GOOD.signatures[::-1]), "not by"),
        (replace(GOOD, signatures=(*GOOD.signatures[:2], bytes(65))), "signature"),
        (replace(GOOD, signatures=(GOOD.signatures[0],) * 3), "not by"),
        (signed((0, 1, 2), domain=Domain(1, bytes(20))), "not by"),
        (replace(signed((0, 1, 2), SubnetStatement(5, STATEMENT.record)), epoch=4), "not by"),
    ],
)
def test_what_is_no_quorum_is_refused(quorum: Quorum, reason: str) -> None:
    with pytest.raises(EndorsementRefused, match=reason):
        check_quorum(DOMAIN, STATEMENT, quorum, EPOCH)


def test_another_epochs_members_are_not_taken() -> None:
    with pytest.raises(EndorsementRefused, match="epoch 4 is to sign"):
        check_quorum(DOMAIN, STATEMENT, GOOD, replace(EPOCH, number=5))


def test_who_has_an_interest_does_not_count() -> None:
    own = SubnetStatement(4, replace(STATEMENT.record, owner=SIGNERS[1].address))
    with pytest.raises(EndorsementRefused, match="about itself"):
        check_quorum(DOMAIN, own, signed((0, 1, 2), own), EPOCH)
    check_quorum(DOMAIN, own, signed((0, 2, 3), own), EPOCH)
