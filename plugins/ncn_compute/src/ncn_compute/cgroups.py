"""Control groups: a memory and a process limit for each jail, of version 1 or 2 of the interface.

A group is made beneath the group that this process is in, or beside it where version 2 forbids that, or at the
top of the hierarchy where its own is not visible. Its name carries this process's id, so that groups left by a
process that was killed are found and removed by the next one. Source: the kernel's ``cgroup-v1/memory.rst`` and
``cgroup-v2.rst``.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CONTROLLERS", "ControlGroup", "Hierarchy", "create", "hierarchies"]

logger = logging.getLogger(__name__)

CONTROLLERS = ("memory", "pids")
"""The controllers that a jail wants."""

_PREFIX = "ncn-"
_counter = itertools.count(1)


@dataclass(frozen=True)
class Hierarchy:
    """A place where groups can be made.

    Attributes:
        version: 1 or 2.
        parent: directory in which a group is a new directory.
        controllers: those of ``CONTROLLERS`` that a group here has.
    """

    version: int
    parent: Path
    controllers: frozenset[str]


@dataclass
class ControlGroup:
    """A made group: one directory in each hierarchy that it needs.

    Attributes:
        directories: of the group; empty where nothing could be made.
        limits: controller to the directory that holds its limit.
        missing: why a controller of ``CONTROLLERS`` has no limit, by its name.
    """

    directories: list[Path] = field(default_factory=list)
    limits: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, pid: int) -> None:
        """Move a process, and what it starts from now on, into the group; ``OSError`` if it is gone."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(str(pid))

    def out_of_memory(self) -> bool:
        """Return whether the kernel ended a process of the group for its use of memory."""
        directory = self.limits.get("memory")
        if directory is None:
            return False
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                return any(
                    line.startswith("oom_kill ") and int(line.split()[1]) > 0
                    for line in (directory / name).read_text().splitlines()
                )
        return False

    def remove(self, timeout_s: float = 2.0) -> None:
        """Remove the group; its processes must have ended, and the kernel gets a moment to let go of them."""
        deadline = time.monotonic() + timeout_s
        for directory in self.directories:
            while not _remove(directory):
                if time.monotonic() > deadline:
                    logger.warning("control group %s could not be removed: a process is still in it", directory)
                    break
                time.sleep(0.002)
        self.directories.clear()


def _remove(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _unescape(field_text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field_text)


def hierarchies(proc: Path = Path("/proc/self")) -> list[Hierarchy]:
    """Return where groups with a limit can be made by this process, best first.

    Args:
        proc: directory with this process's ``mountinfo`` and ``cgroup``.
    """
    own: dict[str, str] = {}
    found: list[Hierarchy] = []
    try:
        for line in (proc / "cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            own.update(dict.fromkeys(names.split(","), path))
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    for line in mounts:
        head, _, tail = line.partition(" - ")
        root, mount_point = (Path(_unescape(text)) for text in head.split()[3:5])
        filesystem, _, options = tail.split(" ", 2)
        if filesystem == "cgroup":
            controllers = frozenset(options.split(",")) & frozenset(CONTROLLERS)
            if controllers:
                here = _own_directory(mount_point, root, own.get(min(controllers), "/"))
                found.extend(_writable(1, [here, mount_point], controllers))
        elif filesystem == "cgroup2":
            here = _own_directory(mount_point, root, own.get("", "/"))
            found.extend(_version_2(here, mount_point))
    return found


def _own_directory(mount_point: Path, root: Path, path: str) -> Path:
    try:
        return mount_point / Path(path).relative_to(root)
    except ValueError:
        return mount_point


def _writable(version: int, places: Iterable[Path], names: frozenset[str]) -> Iterable[Hierarchy]:
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK):
            yield Hierarchy(version, place, names)
            return


def _version_2(here: Path, mount_point: Path) -> Iterable[Hierarchy]:
    """Yield ``here`` or, where a group with processes may have no limited groups beneath it, its parent."""
    places = [here] if here == mount_point else [here, here.parent]
    for place in places:
        with suppress(OSError):
            names = frozenset((place / "cgroup.controllers").read_text().split()) & frozenset(CONTROLLERS)
            enabled = frozenset((place / "cgroup.subtree_control").read_text().split())
            if names - enabled:
                (place / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(names - enabled)))
            if names and os.access(place, os.W_OK):
                yield Hierarchy(2, place, names)
                return


def create(label: str, memory_bytes: int, pids: int, places: Iterable[Hierarchy] | None = None) -> ControlGroup:
    """Make a group with as many of the limits as can be had here; ``missing`` says which could not.

    Args:
        label: for the group's name.
        memory_bytes: most resident memory, page cache included; swap is not given.
        pids: most threads and processes.
        places: where to make it; by default what ``hierarchies`` finds.
    """
    group = ControlGroup()
    name = f"{_PREFIX}{os.getpid()}-{next(_counter)}-{re.sub(r'[^A-Za-z0-9_.-]', '_', label)[:64]}"
    for place in hierarchies() if places is None else places:
        wanted = place.controllers - set(group.limits)
        if not wanted:
            continue
        _sweep(place.parent)
        directory = place.parent / name
        try:
            directory.mkdir()
        except OSError as error:
            group.missing.update(dict.fromkeys(wanted, f"{directory}: {error.strerror}"))
            continue
        group.directories.append(directory)
        for controller in sorted(wanted):
            try:
                _limit(place.version, directory, controller, memory_bytes, pids)
            except OSError as error:
                group.missing[controller] = f"{directory}: {error.strerror}"
            else:
                group.limits[controller] = directory
                group.missing.pop(controller, None)
    for controller in CONTROLLERS:
        if controller not in group.limits:
            group.missing.setdefault(controller, "no control group hierarchy that this user may write")
    return group


def _limit(version: int, directory: Path, controller: str, memory_bytes: int, pids: int) -> None:
    if controller == "pids":
        (directory / "pids.max").write_text(str(pids))
    elif version == 1:
        (directory / "memory.limit_in_bytes").write_text(str(memory_bytes))
        with suppress(OSError):  # absent where the kernel does not account swap
            (directory / "memory.memsw.limit_in_bytes").write_text(str(memory_bytes))
    else:
        (directory / "memory.max").write_text(str(memory_bytes))
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with suppress(OSError):
                (directory / name).write_text(value)


def _sweep(parent: Path) -> None:
    """Remove groups whose maker has ended; one that still holds a process cannot be removed and stays."""
    for directory in parent.glob(f"{_PREFIX}[0-9]*-*"):
        pid = directory.name.split("-")[1]
        if not Path("/proc", pid).exists() and _remove(directory):
            logger.info("removed control group %s of a process that has ended", directory)
