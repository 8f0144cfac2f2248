"""What a chain is to the rest of this program: JSON-RPC, whoever answers it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from web3 import AsyncWeb3

__all__ = ["Chain", "quantity"]


class Chain(ABC):
    """An Ethereum chain, entered as an asynchronous context manager in the loop that uses it.

    Attributes:
        chain_id: EIP-155 chain id.
        poll_s: seconds between two looks for news, such as a receipt.
    """

    chain_id: int
    poll_s: float = 1.0

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        """Return the ``result`` of a JSON-RPC request (execution-apis: quantities and data are hex strings).

        Raises:
            RpcError: the chain answered with an error.
            ChainUnreachable: it did not answer in time.
        """

    @cached_property
    def w3(self) -> AsyncWeb3[Any]:
        """web3.py over this chain, for plugins that like it (extra ``web3``); its import takes about a second.

        Raises:
            PluginError: web3.py is not installed.
        """
        from .provider import web3_of

        return web3_of(self)

    async def block_number(self) -> int:
        """Return the number of the newest block."""
        return quantity(await self.request("eth_blockNumber"))

    async def balance(self, address: bytes) -> int:
        """Return an account's ether, in wei."""
        return quantity(await self.request("eth_getBalance", ["0x" + address.hex(), "latest"]))

    async def code(self, address: bytes) -> bytes:
        """Return the code at an address; empty where there is no contract."""
        return bytes.fromhex(str(await self.request("eth_getCode", ["0x" + address.hex(), "latest"]))[2:])

    async def call(self, to: bytes, data: bytes, sender: bytes | None = None) -> bytes:
        """Return what a contract answers to ``data``, without a transaction."""
        message = {"to": "0x" + to.hex(), "data": "0x" + data.hex()}
        if sender is not None:
            message["from"] = "0x" + sender.hex()
        return bytes.fromhex(str(await self.request("eth_call", [message, "latest"]))[2:])


def quantity(value: Any) -> int:
    """Return a quantity of JSON-RPC, a hex string, as an int.

    Raises:
        ChainError: it is none; the chain does not speak the protocol.
    """
    from ncn_framework.errors import ChainError

    try:
        return int(value, 16)
    except (TypeError, ValueError) as cause:
        raise ChainError(f"the chain answered {str(value)[:80]!r} where a hex quantity is due") from cause
