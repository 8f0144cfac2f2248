"""Who is asked to check a statement: validators drawn by stake from a pinned epoch, the same whoever draws."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["COMMITTEE", "Epoch", "Member", "draw"]

COMMITTEE = 5
"""Validators that are asked at once (the network's N); the contract says how many of them must sign (its M)."""

_TAG = b"ncn.committee.v1"


@dataclass(frozen=True)
class Member:
    """A validator of an epoch, with its stake (wei) when the epoch began."""

    address: bytes
    stake_wei: int


@dataclass(frozen=True)
class Epoch:
    """A set of validators, pinned on chain.

    Attributes:
        number: counts from 1.
        members: in the order of a quorum's bitmap.
        quorum: how many of them must sign, the contract's threshold or a majority, whichever is more.
        valid_until_s: seconds since the epoch; after it, the contract takes no new statement of theirs.
        seed: hash of the block with which it began; nobody could choose it.
        disputes: address of the contract that judges conduct (DisputeManager).
    """

    number: int
    members: tuple[Member, ...]
    quorum: int
    valid_until_s: int
    seed: bytes
    disputes: bytes


def draw(epoch: Epoch, subject: bytes, excluded: Collection[bytes] = ()) -> tuple[int, ...]:
    """Return all members in the order in which they are asked, by their places in the epoch.

    The first ``COMMITTEE`` are the committee; who comes behind stands in where one of them does not answer. Drawn one
    after the other without replacement, each by its share of the stake that is left: draw k takes the number
    SHA-256(tag, seed, subject, k) modulo that stake. Integers alone, so that every program gets the same.

    Args:
        epoch: whose members.
        subject: 32 bytes, what is to be checked (``statements.subject_of``).
        excluded: addresses that may not sign.
    """
    left = {i: m.stake_wei for i, m in enumerate(epoch.members) if m.address not in excluded and m.stake_wei > 0}
    order = []
    for k in range(len(left)):
        number = hashlib.sha256(_TAG + epoch.seed + subject + k.to_bytes(4, "big")).digest()
        point = int.from_bytes(number, "big") % sum(left.values())
        for place, stake in left.items():  # noqa: B007 - the place that was reached is the one drawn
            if point < stake:
                break
            point -= stake
        order.append(place)
        del left[place]
    return tuple(order)
