"""Where the ledger of a role is, and who writes it: one process, as long as it lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ncn_framework.errors import StoreError

__all__ = ["ledger_path", "lock_ledger", "writing_process"]


def ledger_path(home: Path, role: str) -> Path:
    """Return where the ledger of a role is."""
    return home / f"payments-{role}.db"


def writing_process(path: Path) -> str | None:
    """Return the id of the process that writes the ledger at ``path`` now; None where there is none.

    Raises:
        StoreError: that cannot be found out.
    """
    if not path.exists():
        return None
    try:
        os.close(lock_ledger(path))
    except StoreError as error:
        if isinstance(error.__cause__, BlockingIOError):
            return _lock_path(path).read_text(errors="replace").strip() or "?"
        raise
    return None


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def lock_ledger(path: Path) -> int:
    """Return an open file beside the ledger that keeps other writers out until it is closed.

    Raises:
        StoreError: another process has it.
    """
    beside = _lock_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        raise StoreError(f"the ledger's lock {beside} cannot be opened: {cause.strerror}") from cause
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        holder = os.read(file, 32).decode(errors="replace").strip()
        os.close(file)
        raise StoreError(
            f"process {holder or '?'} writes the ledger {path} already, and only one may; "
            "stop it, or set another NCN_HOME"
        ) from cause
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file
