"""What bounds the asking of validators: time and size."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["MOST_BYTES", "Limits"]

MOST_BYTES = 16 << 20
"""Of a statement with its evidence."""


@dataclass(frozen=True)
class Limits:
    """How long validators are waited for, in seconds.

    Attributes:
        answer_s: for a quorum.
        repeat_s: for a quorum, where answers are shown that validators execute again.
        hedge_s: after which another validator is asked, too.
    """

    answer_s: float = 8.0
    repeat_s: float = 20.0
    hedge_s: float = 0.3

    def of(self, shown: Collection[bytes]) -> tuple[float, float]:
        """Return time limit and hedge of a statement beside which so many answers are shown."""
        return (self.repeat_s, self.repeat_s / 4) if shown else (self.answer_s, self.hedge_s)
