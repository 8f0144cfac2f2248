"""The interpreter: what of this Python a jailed program must see, and how to start it there."""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

__all__ = ["command", "readable"]

_OURS = ("ncn_compute", "ncn_framework")
_SHARED = (Path("/usr"), Path("/usr/local"))


@cache
def readable() -> tuple[Path, ...]:
    """Return the directories of the interpreter, its packages and this project's own two packages.

    A package that is run from its source tree is shown alone, never the tree around it.
    """
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent}
    paths: set[Path] = set()
    for prefix in prefixes:
        if prefix in _SHARED:
            paths |= {prefix / "bin", prefix / "lib"}
        else:
            paths |= {prefix, prefix.resolve()}
    paths |= set(map(Path, (*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else []))))
    paths |= {_package(name) for name in _OURS}
    return tuple(sorted(path for path in paths if os.access(path, os.R_OK)))


@cache
def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"package {name!r} is not installed")
    return Path(spec.submodule_search_locations[0])


def command(module: str, *arguments: str) -> Sequence[str]:
    """Return the command that runs ``main(arguments)`` of ``module``, isolated from environment and user site."""
    extra = [str(_package(name).parent) for name in _OURS]
    if site.ENABLE_USER_SITE:
        extra.append(site.getusersitepackages())
    start = f"import sys; sys.path += {extra!r}; from {module} import main; main(sys.argv[1:])"
    return (sys.executable, "-I", "-B", "-c", start, *arguments)
