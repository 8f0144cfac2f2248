"""The sandbox: opens a jail in one of three modes, and says whether this machine can hold the strictest.

- ``strict``: all layers, and a refusal where one of them cannot hold.
- ``permissive``: without the second system call filter, for programs that need more than a model does.
- ``disabled``: a plain process. For machines without namespaces, and models that one wrote oneself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ncn_framework.errors import SandboxError
from ncn_framework.models import SandboxSpec

from . import interpreter, landlock
from .jail import Exit, JailedProcess

__all__ = ["MODES", "REQUIRED", "Exit", "JailedProcess", "Layer", "open_sandbox", "probe_layers", "require"]

logger = logging.getLogger(__name__)

MODES = ("strict", "permissive", "disabled")

REQUIRED = ("user", "mount", "net", "pid", "ipc", "seccomp", "plain-uid", "memory-limit", "pid-limit")
"""Layers without which ``strict`` refuses; ``landlock`` is used where the kernel has it."""

_NAMESPACES = {"user": "user", "mount": "mnt", "net": "net", "pid": "pid", "ipc": "ipc"}
_PROBE_MEMORY_BYTES = 96 << 20
_PROBE_PIDS = 16
_PROBE_TIMEOUT_S = 20.0
_REMEDIES = {
    "seccomp": "use a kernel built with CONFIG_SECCOMP_FILTER",
    "memory-limit": "run as root, or give this user a delegated control group",
    "pid-limit": "run as root, or give this user a delegated control group",
}


class Layer(NamedTuple):
    """One wall of the jail, and what its probe found.

    Attributes:
        name: one of ``REQUIRED``, or ``landlock``.
        ok: whether it holds.
        detail: what was seen, for a person to read.
    """

    name: str
    ok: bool
    detail: str


@asynccontextmanager
async def open_sandbox(spec: SandboxSpec, mode: str = "strict") -> AsyncIterator[JailedProcess]:
    """Start ``spec``'s program in the jail; at the end of the block all of it is gone.

    Args:
        spec: what to run, what it may read, and its limits. In mode ``disabled`` only ``argv`` and ``pass_fds`` count.
        mode: one of ``MODES``. What tells ``strict`` from ``permissive`` is done by the program itself (``worker``).

    Raises:
        SandboxError: the mode is unknown, or the jail cannot be made.
    """
    _check_mode(mode)
    if mode == "disabled":
        logger.warning("sandbox is DISABLED: %s runs with all rights of this user", spec.label)
    elif mode == "permissive":
        logger.warning("sandbox is permissive: %s runs without the second system call filter", spec.label)
    process = JailedProcess(spec, jailed=mode != "disabled")
    try:
        await process.start()
        yield process
    finally:
        process.kill()
        await process.wait()


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise SandboxError(f"sandbox mode {mode!r} is unknown; known: {', '.join(MODES)}")


async def probe_layers(mode: str = "strict") -> list[Layer]:
    """Try each layer in a real jail, by doing what it must refuse, and return what happened.

    Takes about a fifth of a second. In mode ``disabled`` nothing is tried and nothing holds.

    Args:
        mode: one of ``MODES``.
    """
    _check_mode(mode)
    names = (*REQUIRED, "landlock")
    if mode == "disabled":
        return [Layer(name, False, "the sandbox is disabled") for name in names]
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        spec = SandboxSpec(
            argv=interpreter.command("ncn_compute.worker.probe", str(theirs.fileno())),
            readable=interpreter.readable(),
            pass_fds=(theirs.fileno(),),
            memory_bytes=_PROBE_MEMORY_BYTES,
            pids=_PROBE_PIDS,
            label="probe",
        )
        process = JailedProcess(spec, jailed=True)
        try:
            try:
                await process.start()
            except SandboxError as error:
                return [Layer(name, False, str(error)) for name in names]
            finally:
                theirs.close()
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                seen = await _read_line(ours)
                outside = _seen_from_outside(process.pid)
                with suppress(OSError):
                    ours.send(b"bomb\n")
                survived = await _read_line(ours)
                ended = await process.wait()
        except TimeoutError:
            return [Layer(name, False, f"the probe gave no answer in {_PROBE_TIMEOUT_S:.0f} s") for name in names]
        finally:
            process.kill()
            await process.wait()
    if not seen:
        return [Layer(name, False, f"the probe failed: {ended}; {ended.stderr}") for name in names]
    return _judge(mode, seen, outside, survived, ended, process.limits)


async def _read_line(sock: socket.socket) -> dict[str, Any]:
    """Return the JSON object in the next line; empty where the probe's end is closed."""
    loop = asyncio.get_running_loop()
    text = b""
    while not text.endswith(b"\n"):
        part = await loop.sock_recv(sock, 65536)
        if not part:
            return {}
        text += part
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _seen_from_outside(pid: int) -> dict[str, Any]:
    """Return the jail's namespaces that are not ours, and its user on the host."""
    apart: dict[str, bool] = {}
    for name, entry in _NAMESPACES.items():
        try:
            apart[name] = os.readlink(f"/proc/{pid}/ns/{entry}") != os.readlink(f"/proc/self/ns/{entry}")
        except OSError:
            apart[name] = False
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("Uid:"):
                return {"namespaces": apart, "uid": int(line.split()[2])}
    return {"namespaces": apart, "uid": 0}


def _judge(
    mode: str,
    seen: dict[str, Any],
    outside: dict[str, Any],
    survived: dict[str, Any],
    ended: Exit,
    limits: dict[str, str],
) -> list[Layer]:
    layers = []
    for name in _NAMESPACES:
        inside = bool(seen.get(name, False))
        what = "its own" if outside["namespaces"][name] else "the host's"
        detail = f"{what} namespace; {seen.get(f'{name}_detail', '')}"
        layers.append(Layer(name, inside and bool(outside["namespaces"][name]), detail))
    layers.append(Layer("seccomp", bool(seen["seccomp"]), str(seen["seccomp_detail"])))
    if mode == "permissive":
        layers[-1] = Layer("seccomp", False, f"first filter only; {seen['seccomp_detail']}")
    layers.append(Layer("plain-uid", outside["uid"] != 0, f"uid {outside['uid']} on the host"))
    killed = not survived and (ended.out_of_memory or ended.status != 0)
    held = killed or survived.get("memory") == "refused"
    outcome = "a memory bomb was stopped" if held else "a memory bomb went off"
    layers.append(Layer("memory-limit", held, f"{outcome}; {limits.get('memory', 'no limit')}"))
    threads = int(seen["threads"])
    layers.append(Layer("pid-limit", threads <= _PROBE_PIDS, f"{threads} threads; {limits.get('pids', 'no limit')}"))
    version = landlock.abi()
    refused = bool(seen["landlock"])
    layers.append(Layer("landlock", refused, f"version {version}" if refused else "degraded: the kernel has none"))
    return layers


async def require(mode: str = "strict") -> list[Layer]:
    """Return the layers' state, or refuse.

    Args:
        mode: one of ``MODES``; only ``strict`` refuses, the others warn.

    Raises:
        SandboxError: ``strict``, and a layer of ``REQUIRED`` does not hold; the message names it and a remedy.
    """
    layers = await probe_layers(mode)
    broken = [layer for layer in layers if layer.name in REQUIRED and not layer.ok]
    if mode == "strict" and broken:
        first = broken[0]
        remedy = _REMEDIES.get(
            first.name, "allow unprivileged user namespaces, and run outside a container that bars them"
        )
        raise SandboxError(
            f"sandbox mode 'strict' cannot hold: layer {first.name!r}: {first.detail}; remedy: {remedy}, "
            "or set sandbox mode 'permissive' or 'disabled' and say so to your users"
        )
    for layer in broken:
        logger.warning("sandbox mode %s: layer %s does not hold: %s", mode, layer.name, layer.detail)
    for layer in layers:
        if layer.name not in REQUIRED and not layer.ok:
            logger.warning("sandbox: layer %s: %s", layer.name, layer.detail)
    return layers
