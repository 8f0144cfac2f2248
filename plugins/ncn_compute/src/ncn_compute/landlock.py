"""Landlock: after ``restrict``, this process can open files for reading and do nothing else to any file system.

Called in the jail, by the worker, before it opens the model. It is a second wall: the jail's mounts are read-only
already. Source: landlock(7), ``linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import os
import struct

from ncn_framework.errors import SandboxError

__all__ = ["abi", "restrict"]

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Rights on files that each version of the interface knows; 5 and later have all 16."""
_BIND_TCP_AND_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the version of the kernel's Landlock interface; 0 where there is none."""
    return max(0, int(_libc().syscall(_CREATE, None, 0, _VERSION_FLAG)))


def restrict(readable: str = "/") -> int:
    """Deny this thread, and all it starts, everything on files but reading beneath ``readable``.

    Returns:
        The version of the interface that was used; 0, and nothing done, where the kernel has none.

    Raises:
        SandboxError: the kernel has Landlock but refused.
    """
    version = abi()
    if not version:
        return 0
    libc = _libc()
    attributes = struct.pack("<Q", _FILE_RIGHTS[min(version, 5)])
    if version >= 4:
        attributes += struct.pack("<Q", _BIND_TCP_AND_CONNECT_TCP)
    if version >= 6:
        attributes += struct.pack("<Q", _SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _checked(libc.syscall(_CREATE, attributes, len(attributes), 0), "landlock_create_ruleset")
    directory = os.open(readable, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("<Qi", _READ_FILE | _READ_DIR, directory)
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), "landlock_add_rule")
        if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
            raise SandboxError(f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(ctypes.get_errno())}")
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(directory)
        os.close(ruleset)
    return version


def _checked(result: int, call: str) -> int:
    if result < 0:
        raise SandboxError(f"{call}: {os.strerror(ctypes.get_errno())}")
    return result
