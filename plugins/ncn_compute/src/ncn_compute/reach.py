"""Reach: lets a plain user see directories that lie below ones it may not enter, such as Python below ``/root``.

Nothing on the host changes. A thread of its own takes a private copy of the mount table, puts an empty file
system over the closed directory and mounts what is needed back at its own path. Only what that thread starts
sees the result.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ncn_framework.errors import SandboxError

__all__ = ["closed_ancestor", "open_up"]

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MS_NOSUID, _MS_NODEV = 1 << 1, 1 << 2


def closed_ancestor(path: Path) -> Path | None:
    """Return the topmost directory above ``path`` that others may not enter, or None.

    Raises:
        SandboxError: ``path`` is missing, or others may not read it itself; mounting does not help there.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SandboxError(f"{path} cannot be shown to a jailed worker: {error.strerror}") from error
    wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    if mode & wanted != wanted:
        raise SandboxError(
            f"{path} has mode {stat.S_IMODE(mode):04o} and cannot be read by the plain user that workers run as; "
            f"remedy: chmod -R o+rX {path}"
        )
    for directory in reversed(path.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return None


def open_up(paths: Iterable[Path]) -> None:
    """Make all ``paths`` reachable for plain users, for the calling thread and what it starts; root only.

    Args:
        paths: resolved, existing.

    Raises:
        SandboxError: a path cannot be read, or the kernel refused.
    """
    closed = [(path, ancestor) for path in paths if (ancestor := closed_ancestor(path)) is not None]
    if not closed:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.unshare(_CLONE_NEWNS), closed[0][0], "unshare(CLONE_NEWNS)")
    _mount(libc, None, Path("/"), None, _MS_REC | _MS_PRIVATE)
    handles = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path, _ in closed]
    try:
        for ancestor in {ancestor for _, ancestor in closed}:
            _mount(libc, "tmpfs", ancestor, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
        for path, handle in handles:
            is_directory = stat.S_ISDIR(os.fstat(handle).st_mode)
            _make_directories(path if is_directory else path.parent)
            if not is_directory:
                path.touch()
            _mount(libc, f"/proc/self/fd/{handle}", path, None, _MS_BIND | _MS_REC)
    finally:
        for _, handle in handles:
            os.close(handle)


def _make_directories(path: Path) -> None:
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            directory.mkdir()
            directory.chmod(0o755)  # whatever the process's umask is


def _mount(
    libc: ctypes.CDLL, source: str | None, target: Path, kind: str | None, flags: int, options: str | None = None
) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, str(target), kind, options)]
    result = libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _checked(result, target, "mount")


def _checked(result: int, path: Path, call: str) -> None:
    if result:
        raise SandboxError(
            f"{path} lies below a directory that plain users may not enter, and {call} is refused here "
            f"({os.strerror(ctypes.get_errno())}); remedy: install below a directory with mode 0755, "
            "or run as a plain user"
        )
