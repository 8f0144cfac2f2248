"""Paying into escrow from the command line: by whichever installed plugin knows the chain."""

from __future__ import annotations

import asyncio

from ncn_framework.config import Config
from ncn_framework.manager import build_manager, find_plugins
from ncn_framework.payments import PaymentDue
from ncn_framework.signing import Signer

from .exchange import Pay

__all__ = ["chain_payer"]


def chain_payer(config: Config, signer: Signer) -> Pay:
    """Return a function that pays what is due from ``signer``'s account, through the hook ``ncn_pay``."""
    sources = config.sources
    plugins = build_manager(find_plugins(sources.names("plugins"), sources.names("disabled_plugins")))

    def pay(due: PaymentDue) -> bytes:
        return asyncio.run(plugins.pay(due, signer))

    return pay
