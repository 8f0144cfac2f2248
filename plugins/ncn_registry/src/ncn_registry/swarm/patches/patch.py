"""A change to a method or constant of libp2p that can be taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["Patch"]


class Patch:
    """Replacements that belong together, because they mend one fault.

    Args:
        fault: what goes wrong without it, in one sentence.
        changes: (owner, attribute, replacement) of each.
    """

    def __init__(self, fault: str, changes: Sequence[tuple[Any, str, Any]]) -> None:
        self.fault = fault
        self._changes = [(owner, name, getattr(owner, name), new) for owner, name, new in changes]

    def apply(self) -> None:
        """Put the replacements in. Doing so twice changes nothing."""
        for owner, name, _, new in self._changes:
            setattr(owner, name, new)

    def revert(self) -> None:
        """Put the library's own back."""
        for owner, name, original, _ in self._changes:
            setattr(owner, name, original)

    @contextmanager
    def absent(self) -> Iterator[None]:
        """Run without this patch: how a test shows that the fault is still there and the patch still needed."""
        self.revert()
        try:
            yield
        finally:
            self.apply()
