"""web3.py over a chain."""

from __future__ import annotations

from typing import Any, cast

from ncn_framework.errors import PluginError

from ..errors import RpcError
from ..recursion import recursion_limit_kept
from .interface import Chain

try:
    with recursion_limit_kept():
        from web3 import AsyncWeb3
        from web3.providers.async_base import AsyncBaseProvider
        from web3.types import RPCEndpoint, RPCResponse
except ImportError as cause:
    raise PluginError("web3.py is not installed; try: pip install 'ncn-payments[web3]'") from cause

__all__ = ["web3_of"]


class _Provider(AsyncBaseProvider):
    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self._chain = chain

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        try:
            return cast(RPCResponse, {"jsonrpc": "2.0", "id": 1, "result": await self._chain.request(method, params)})
        except RpcError as error:
            body = {"code": error.code, "message": error.reason}
            if error.data is not None:
                body["data"] = error.data
            return cast(RPCResponse, {"jsonrpc": "2.0", "id": 1, "error": body})

    async def is_connected(self, show_traceback: bool = False) -> bool:
        await self._chain.request("web3_clientVersion")
        return True


def web3_of(chain: Chain) -> AsyncWeb3[Any]:
    """Return web3.py that asks ``chain``; retries and time limits are the chain's."""
    return AsyncWeb3(_Provider(chain))
