"""The client's answers to the hooks: its commands and its settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ncn_framework import hookimpl

if TYPE_CHECKING:
    import click

    from ncn_framework.node import Node

    from .config import ClientSettings


class Plugin:
    """Adds ``ncn infer``, ``embed``, ``verify`` and ``test-client``; takes no part in a request's life."""

    roles = ()

    def __init__(self, node: Node) -> None:
        self.node = node

    @hookimpl
    def ncn_commands(self) -> Iterable[click.Command]:
        from .commands import embed, infer, settled, verify, walkthrough

        return (infer, embed, verify, settled, walkthrough)

    @hookimpl
    def ncn_settings(self) -> type[ClientSettings]:
        from .config import ClientSettings

        return ClientSettings
