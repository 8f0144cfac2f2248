"""How much of what members say against each other counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["ALONE", "Fault", "counted"]

ALONE = 10
"""Faults of one validator in one epoch for which one member's word is enough; more of its words count only as far as
others say as much. That somebody gave no answer cannot be proven: so one member alone can do no great harm."""


@dataclass(frozen=True)
class Fault:
    """A member says that a validator did not sign a statement which a quorum has signed.

    Attributes:
        validator: that did not.
        digest: of the statement.
        teller: the member that says so.
        silent: it gave no answer; else it refused.
    """

    validator: bytes
    digest: bytes
    teller: bytes
    silent: bool


def counted(faults: Iterable[Fault]) -> Mapping[bytes, tuple[int, int]]:
    """Return, by validator, how often it refused and how often it gave no answer, each statement once.

    Where members differ about one statement, it refused, which costs less.

    Args:
        faults: of one epoch, in any order, without those of validators that did sign the statement in the end.
    """
    refused: dict[bytes, dict[bytes, bool]] = defaultdict(dict)
    told: dict[bytes, dict[bytes, int]] = defaultdict(lambda: defaultdict(int))
    for fault in faults:
        known = refused[fault.validator].get(fault.digest, False)
        refused[fault.validator][fault.digest] = known or not fault.silent
        told[fault.validator][fault.teller] += 1
    found = {}
    for validator, statements in refused.items():
        said = told[validator].values()
        most = max(said)
        doubted = max(0, most - (sum(said) - most) - ALONE)
        failed = sum(statements.values())
        timeouts = len(statements) - failed
        less = min(doubted, timeouts)  # the dearer is doubted first
        found[validator] = (max(0, failed - (doubted - less)), timeouts - less)
    return found
