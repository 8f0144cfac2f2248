"""Progress: a bar for one task at a time, on standard error, where that is a terminal."""

from __future__ import annotations

import sys

import click

__all__ = ["Bar"]


class Bar:
    """A bar that appears with the first byte.

    Args:
        label: written before it.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: click.progressbar[int] | None = None  # type: ignore[valid-type]
        self._done = 0

    def move(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are done."""
        if self._bar is None:
            self._bar = click.progressbar(length=total, label=self._label, file=sys.stderr)
        self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        """End the bar, if one is shown."""
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
