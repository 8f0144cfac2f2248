"""How validators answered when they were asked to check a statement."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Answered", "Outcome"]


class Answered(StrEnum):
    """What came of asking one validator."""

    SIGNED = "signed"
    REFUSED = "refused"
    """It said what is wrong, or gave something that is not its signature."""
    SILENT = "silent"
    """It could not be reached, or said nothing in time."""


@dataclass(frozen=True)
class Outcome:
    """What one validator did about one statement.

    Attributes:
        validator: its address.
        epoch: as whose member it was asked.
        digest: that it was to sign.
        answered: what came of it.
        agreed: a quorum signed the statement; a refusal is against it then.
    """

    validator: bytes
    epoch: int
    digest: bytes
    answered: Answered
    agreed: bool
