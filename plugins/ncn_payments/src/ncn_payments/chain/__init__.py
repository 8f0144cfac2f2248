"""Chains: one interface, three kinds. ``open_chain`` chooses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .interface import Chain

if TYPE_CHECKING:
    from ..config import PaymentsSettings

__all__ = ["Chain", "open_chain"]


def open_chain(settings: PaymentsSettings, *, home: Path, chain_id: int, host: bool = False) -> Chain:
    """Return the chain of ``settings``, to be entered with ``async with``.

    Args:
        settings: of payments.
        home: the folder of keys, databases and models; the state of a development chain is kept in its ``chain``.
        chain_id: EIP-155 chain id that the chain must have.
        host: run the development chain in this process (embedded) or as its child (anvil). Elsewhere a role asks
            whoever hosts it: in the same process directly, otherwise over loopback.

    Raises:
        ConfigError: ``rpc`` without a URL, or a development chain under another chain id than 31337.
    """
    from ncn_framework.errors import ConfigError

    from .rpc import RpcChain

    kind = settings.chain_kind
    timeout_s, patience_s = settings.rpc_timeout_ms / 1000, settings.rpc_patience_ms / 1000

    def remote(*urls: str) -> Chain:
        return RpcChain(urls, chain_id, timeout_s=timeout_s, patience_s=patience_s)

    if kind == "rpc":
        if not settings.rpc_urls:
            raise ConfigError("payments.chain is rpc, which needs payments.rpc_url: set RPC_URL")
        return remote(*settings.rpc_urls)
    from ..devkeys import require_development

    require_development(chain_id)
    if kind == "anvil":
        from .anvil import AnvilChain

        if host:
            return AnvilChain(home / "chain", settings.anvil_port, timeout_s=timeout_s, patience_s=patience_s)
        return remote(f"http://127.0.0.1:{settings.anvil_port}")
    from .embedded import EmbeddedChain, NearbyChain

    if host:
        return EmbeddedChain(home / "chain")
    return NearbyChain(home / "chain", remote(settings.embedded_url))
