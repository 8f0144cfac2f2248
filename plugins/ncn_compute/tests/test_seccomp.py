"""The filters, run by a small interpreter of classic BPF: for both machines, whatever this one is."""

from __future__ import annotations

import errno
import struct

import pytest

from ncn_compute import seccomp
from ncn_compute.seccomp import MACHINES, Stage
from ncn_framework.errors import SandboxError

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
THREAD = 0x10900 | 0x200 | 0x400
NEVER = (
    "ptrace keyctl add_key request_key io_uring_setup io_uring_enter io_uring_register userfaultfd unshare setns mount "
    "umount2 pivot_root bpf perf_event_open socket connect bind process_vm_readv process_vm_writev kexec_load "
    "init_module open_by_handle_at personality setuid setresuid chroot"
)
NOT_IN_WORKER = "execve execveat kill wait4 seccomp memfd_create unlinkat mkdirat renameat setsid pwrite64"


def run(code: bytes, number: int, arguments: tuple[int, ...] = (), audit: int = 0) -> int:
    """Return what the filter answers to a system call."""
    padded = (*arguments, *([0] * (6 - len(arguments))))
    data = struct.pack("<iIQ6Q", number if number < 1 << 31 else number - (1 << 32), audit, 0, *padded)
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("<HBBI", code, 8 * position)
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x06:
            return int(value)
        else:
            met = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            position += if_true if met else if_false


@pytest.fixture(params=sorted(MACHINES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("stage", list(Stage))
def test_allows_the_listed_calls_and_no_other(name: str, stage: Stage) -> None:
    machine = MACHINES[name]
    code = seccomp.program(stage, name)
    for call, number in machine.numbers.items():
        if call in ("clone", "clone3", "ioctl") or (stage is Stage.WORKER and call in ("prctl", "prlimit64")):
            continue
        expected = ALLOW if call in seccomp.allowed(stage) else ERRNO | errno.EPERM
        assert run(code, number, audit=machine.audit) == expected, call


@pytest.mark.parametrize("stage", list(Stage))
def test_refuses_what_no_stage_needs(name: str, stage: Stage) -> None:
    machine = MACHINES[name]
    for call in NEVER.split():
        assert run(seccomp.program(stage, name), machine.numbers[call], audit=machine.audit) == ERRNO | errno.EPERM, (
            call
        )


def test_worker_stage_refuses_new_programs_and_processes(name: str) -> None:
    assert not set(NOT_IN_WORKER.split()) & seccomp.allowed(Stage.WORKER)
    assert not {"fork", "vfork", "execve"} & seccomp.allowed(Stage.WORKER)


def test_kills_a_call_of_another_architecture(name: str) -> None:
    assert run(seccomp.program(Stage.START, name), 0, audit=0x40000003) == KILL


def test_refuses_the_x32_interface() -> None:
    machine = MACHINES["x86_64"]
    number = 0x40000000 + machine.numbers["getpid"]
    assert run(seccomp.program(Stage.START, "x86_64"), number, audit=machine.audit) == ERRNO | errno.EPERM


@pytest.mark.parametrize("stage", list(Stage))
def test_clone3_does_not_exist(name: str, stage: Stage) -> None:
    machine = MACHINES[name]
    assert run(seccomp.program(stage, name), 435, audit=machine.audit) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize(
    ("stage", "flags", "expected"),
    [
        (Stage.WORKER, THREAD, ALLOW),
        (Stage.WORKER, 17, ERRNO | errno.EPERM),  # SIGCHLD alone: fork
        (Stage.WORKER, 0x4111, ERRNO | errno.EPERM),  # CLONE_VFORK and CLONE_VM: posix_spawn
        (Stage.WORKER, THREAD | 0x10000000, ERRNO | errno.EPERM),
        (Stage.START, 17, ALLOW),
        (Stage.START, 17 | 0x10000000, ERRNO | errno.EPERM),  # a user namespace
        (Stage.START, 17 | 0x00020000, ERRNO | errno.EPERM),  # a mount namespace
    ],
)
def test_clone_by_its_flags(name: str, stage: Stage, flags: int, expected: int) -> None:
    machine = MACHINES[name]
    assert run(seccomp.program(stage, name), machine.numbers["clone"], (flags,), machine.audit) == expected


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("ioctl", (0, 0x541B), ALLOW),
        ("ioctl", (0, 0x5412), ERRNO | errno.EPERM),  # TIOCSTI
        ("ioctl", (0, 0x1_0000_5412), ERRNO | errno.EPERM),
        ("prctl", (15,), ALLOW),
        ("prctl", (22,), ERRNO | errno.EPERM),  # PR_SET_SECCOMP
        ("prlimit64", (0, 7, 0), ALLOW),
        ("prlimit64", (0, 7, 4096), ERRNO | errno.EPERM),
        ("prlimit64", (0, 7, 1 << 32), ERRNO | errno.EPERM),
        ("prlimit64", (1, 7, 0), ERRNO | errno.EPERM),
    ],
)
def test_calls_by_their_arguments(name: str, call: str, arguments: tuple[int, ...], expected: int) -> None:
    machine = MACHINES[name]
    code = seccomp.program(Stage.WORKER, name)
    assert run(code, machine.numbers[call], arguments, machine.audit) == expected


def test_fits_the_kernel(name: str) -> None:
    for stage in Stage:
        code = seccomp.program(stage, name)
        assert len(code) % 8 == 0
        assert len(code) // 8 <= 4096  # BPF_MAXINSNS


def test_an_unknown_machine_is_refused_by_name() -> None:
    with pytest.raises(SandboxError, match="riscv64"):
        seccomp.program(Stage.START, "riscv64")
