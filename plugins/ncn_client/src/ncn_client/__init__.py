"""NCN client: ask the network, check what it answers. Public names only; each is imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import Answer as Answer
    from .catalogue import Model as Model
    from .channel import Standing as Standing
    from .client import AsyncClient as AsyncClient
    from .client import Client as Client
    from .requests import Options as Options
    from .requests import Prepared as Prepared
    from .requests import Task as Task

__version__ = "0.1.0"

_HOME = {
    "Answer": "answers",
    "AsyncClient": "client",
    "Client": "client",
    "Model": "catalogue",
    "Options": "requests",
    "Prepared": "requests",
    "Standing": "channel",
    "Task": "requests",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Model",
    "Options",
    "Prepared",
    "Standing",
    "Task",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
