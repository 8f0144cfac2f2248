"""Errors of the chain's side, in the kernel's tree.

ChainError
├── RpcError          the chain answered a request with an error
└── ChainUnreachable  no URL answered in time
"""

from __future__ import annotations

from typing import Any

from ncn_framework.errors import ChainError

__all__ = ["ChainUnreachable", "RpcError"]


class RpcError(ChainError):
    """The chain answered a request with an error (JSON-RPC 2.0, section 5.1).

    Attributes:
        code: of JSON-RPC, or of the chain.
        reason: what the chain said.
        data: what came with it; of a revert, what the contract returned, as hex.
    """

    def __init__(self, code: int, reason: str, data: Any = None, method: str = "") -> None:
        super().__init__(f"the chain refused {method or 'a request'}: {reason} (code {code})")
        self.code, self.reason, self.data = code, reason, data

    @property
    def revert_data(self) -> bytes | None:
        """What the contract returned when it reverted; None where this is no revert that says so.

        Nodes differ: geth, anvil and the embedded chain put hex into ``data``, others an object, or text before it.
        """
        data = self.data.get("data") if isinstance(self.data, dict) else self.data
        if not isinstance(data, str) or "0x" not in data:
            return None
        try:
            return bytes.fromhex(data[data.index("0x") + 2 :])
        except ValueError:
            return None


class ChainUnreachable(ChainError):
    """No URL of the chain answered in time."""
