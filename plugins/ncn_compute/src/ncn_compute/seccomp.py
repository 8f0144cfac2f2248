"""System call filters: a small assembler for classic BPF, and the two filters of the jail.

Stage ``START`` is given to bwrap, which puts it on the jailed program before its first instruction; it allows
what an interpreter needs to start. Stage ``WORKER`` is put on all threads by the worker itself, once its libraries
are loaded and before it opens the model: no new program, no new process, no socket, no change of limits.

Both are lists of what is allowed; all else answers ``EPERM``. ``clone3`` answers ``ENOSYS``, so that the C library
falls back to ``clone``, whose flags a filter can read. Source: seccomp(2), the kernel's ``seccomp_filter.rst``.

One list serves every runtime, since what differs between them happens before the walls are up: ``test_runtimes.py``
runs TorchScript, ONNX Runtime and programs of models' own under stage ``WORKER``, and they need no call that
safetensors models do not. To see what a library misses, let it run in mode ``permissive`` under ``strace -f -c``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from ncn_framework.errors import SandboxError

from .syscalls import AARCH64, X86_64

__all__ = ["MACHINES", "Machine", "Stage", "allowed", "install", "machine", "program"]

_LOAD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH, _ARGS = 0, 4, 16
_X32 = 0x40000000

_THREAD = 0x00010900
"""CLONE_VM, CLONE_SIGHAND and CLONE_THREAD: together, a thread and not a process."""
_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: never TIOCSTI, which types into a terminal."""
_PRCTLS = (15, 16, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and memory."""

_WORKER_CALLS = """
    access arch_prctl brk clock_getres clock_gettime clock_nanosleep close dup epoll_create1 epoll_ctl epoll_pwait
    epoll_wait eventfd2 exit exit_group faccessat faccessat2 fadvise64 fcntl fstat fstatfs futex getcpu
    getcwd getdents64 getegid geteuid getgid getpid getppid getrandom getrusage gettid gettimeofday getuid lseek
    lstat madvise membarrier mincore mmap mprotect mremap munmap nanosleep newfstatat open openat poll ppoll pread64
    pselect6 read readlink readlinkat readv recvfrom recvmsg restart_syscall rseq rt_sigaction
    rt_sigprocmask rt_sigreturn sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getparam
    sched_getscheduler sched_setaffinity sched_yield select sendmsg sendto set_robust_list sigaltstack
    stat statfs statx sysinfo tgkill times uname write writev
"""
_WORKER = frozenset(_WORKER_CALLS.split())

_START_CALLS = """
    alarm chdir close_range copy_file_range dup2 dup3 epoll_create execve fchdir fdatasync flock fork fsync ftruncate
    getgroups getitimer getpgid getpgrp getpriority getresgid getresuid getrlimit getsid getsockname getsockopt kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self memfd_create mkdir mkdirat msync pause pipe pipe2
    prctl prlimit64 pwrite64 rename renameat renameat2 rmdir seccomp sendfile set_tid_address setitimer setrlimit setsid
    shutdown tkill truncate umask unlink unlinkat utimensat vfork wait4 waitid
"""
_START = _WORKER | frozenset(_START_CALLS.split())


class Stage(StrEnum):
    """Which filter: of the jailed program's start, or of its work."""

    START = "start"
    WORKER = "worker"


class Machine(NamedTuple):
    """A kind of processor: its audit constant (``linux/audit.h``) and its system call numbers."""

    audit: int
    numbers: dict[str, int]


MACHINES = {"x86_64": Machine(0xC000003E, X86_64), "aarch64": Machine(0xC00000B7, AARCH64)}
"""Known machines, by the name that ``platform.machine()`` gives."""


def machine(name: str | None = None) -> Machine:
    """Return the machine called ``name``, by default this one.

    Raises:
        SandboxError: the machine has no table.
    """
    name = name or platform.machine()
    try:
        return MACHINES[name]
    except KeyError:
        known = ", ".join(MACHINES)
        raise SandboxError(f"no system call filter for machine {name!r}; known: {known}") from None


def allowed(stage: Stage) -> frozenset[str]:
    """Return the names of the system calls that ``stage`` allows whatever their arguments are."""
    return _START if stage is Stage.START else _WORKER


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _answer(action: int) -> bytes:
    return _instruction(_RET, action)


def _refuse(code: int = errno.EPERM) -> bytes:
    return _answer(_ERRNO | code)


def _argument(index: int, *, high: bool = False) -> bytes:
    """Load one half of a 64-bit argument; both machines are little-endian."""
    return _instruction(_LOAD, _ARGS + 8 * index + (4 if high else 0))


def _when(number: int, body: bytes) -> bytes:
    """Run ``body``, which always answers, if the loaded call number is ``number``."""
    return _instruction(_JEQ, number, 0, len(body) // 8) + body


def _one_of(index: int, values: Iterable[int]) -> bytes:
    """Allow if the low half of an argument is one of ``values``; the kernel reads such arguments as 32 bits."""
    tests = b"".join(_instruction(_JEQ, value, 0, 1) + _answer(_ALLOW) for value in values)
    return _argument(index) + tests + _refuse()


def _clone(stage: Stage) -> bytes:
    body = _argument(0) + _instruction(_JSET, _NAMESPACES, 0, 1) + _refuse()
    if stage is Stage.WORKER:
        body += _instruction(_AND, _THREAD) + _instruction(_JEQ, _THREAD, 1, 0) + _refuse()
    return body + _answer(_ALLOW)


def _own_limits_only_read() -> bytes:
    """Allow prlimit64 of the caller itself (pid 0) without a new limit (a null pointer)."""
    body = b""
    for load in (_argument(0), _argument(2), _argument(2, high=True)):
        body += load + _instruction(_JEQ, 0, 1, 0) + _refuse()
    return body + _answer(_ALLOW)


def program(stage: Stage, machine_name: str | None = None) -> bytes:
    """Return the BPF program of ``stage``: an array of ``struct sock_filter``, as seccomp(2) and bwrap take it.

    Args:
        stage: which filter.
        machine_name: as ``platform.machine()`` gives it; by default this machine's.

    Raises:
        SandboxError: the machine has no table.
    """
    audit, numbers = machine(machine_name)
    code = _instruction(_LOAD, _ARCH) + _instruction(_JEQ, audit, 1, 0) + _answer(_KILL)
    code += _instruction(_LOAD, _NR) + _instruction(_JGE, _X32, 0, 1) + _refuse()
    for name in sorted(allowed(stage)):
        if name in numbers:
            code += _when(numbers[name], _answer(_ALLOW))
    code += _when(numbers["clone"], _clone(stage))
    code += _when(numbers["clone3"], _refuse(errno.ENOSYS))
    code += _when(numbers["ioctl"], _one_of(1, _IOCTLS))
    if stage is Stage.WORKER:
        code += _when(numbers["prlimit64"], _own_limits_only_read())
        code += _when(numbers["prctl"], _one_of(0, _PRCTLS))
    return code + _refuse()


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(code: bytes) -> None:
    """Put the filter ``code`` on every thread of this process, for good. Called in the jail, by the worker.

    Raises:
        SandboxError: the kernel refused.
    """
    set_mode_filter, tsync = 1, 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise SandboxError(f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(ctypes.get_errno())}")
    filters = _Program(len(code) // 8, code)
    number = machine().numbers["seccomp"]
    result = libc.syscall(number, set_mode_filter, tsync, ctypes.byref(filters))
    if result < 0:
        raise SandboxError(f"seccomp(SECCOMP_SET_MODE_FILTER): {os.strerror(ctypes.get_errno())}")
    if result > 0:
        raise SandboxError(f"seccomp: thread {result} could not take over the filter")
