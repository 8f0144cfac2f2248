"""NCN: the kernel of a decentralised AI inference network. Public names only; each is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config as Config
    from .config import Names as Names
    from .config import Settings as Settings
    from .config import known_as as known_as
    from .hookspecs import hookimpl as hookimpl
    from .lifecycle import Lifecycle as Lifecycle
    from .lifecycle import Outcome as Outcome
    from .node import Node as Node
    from .signing import Signer as Signer

__version__ = "0.1.0"

_HOME = {
    "Config": "config",
    "Lifecycle": "lifecycle",
    "Names": "config",
    "Node": "node",
    "Outcome": "lifecycle",
    "Settings": "config",
    "Signer": "signing",
    "hookimpl": "hookspecs",
    "known_as": "config",
}

__all__ = [
    "Config",
    "Lifecycle",
    "Names",
    "Node",
    "Outcome",
    "Settings",
    "Signer",
    "__version__",
    "hookimpl",
    "known_as",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
