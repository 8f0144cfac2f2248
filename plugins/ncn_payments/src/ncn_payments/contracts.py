"""The contracts of a network on a chain, and what they say when they refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ncn_framework.digests import keccak
from ncn_framework.errors import ChainError, TransactionReverted
from ncn_framework.signing import address_hex

from .abi import Event, Interface, decode_values, interface
from .errors import RpcError
from .transactions import Call

if TYPE_CHECKING:
    from .chain import Chain
    from .deployment import Addresses

__all__ = ["CONTRACTS", "Contract", "Contracts", "revert_of", "reverted"]

CONTRACTS = {
    "token": "NCNToken",
    "registry": "ValidatorRegistry",
    "payment": "InferencePayment",
    "disputes": "DisputeManager",
    "timelock": "TimelockController",
}
"""Names of the contracts, by the field of ``Addresses``."""

_PANICS = {
    0x01: "an assertion failed",
    0x11: "an arithmetic operation overflowed",
    0x12: "a division by zero",
    0x21: "a value is none of an enumeration's",
    0x22: "a byte array is badly encoded",
    0x31: "an element was removed from an empty array",
    0x32: "an index lies outside an array",
    0x41: "too much memory was asked for",
    0x51: "an uninitialised function was called",
}
"""Codes of ``Panic(uint256)``, from the documentation of Solidity."""

_ERROR, _PANIC = keccak(b"Error(string)")[:4], keccak(b"Panic(uint256)")[:4]


class Contract:
    """One contract at its address on a chain.

    Attributes:
        interface: its ABI.
        address: 20 bytes.
    """

    def __init__(self, chain: Chain, interface: Interface, address: bytes) -> None:
        self._chain = chain
        self.interface, self.address = interface, address

    def __repr__(self) -> str:
        return f"{self.interface.name}({address_hex(self.address)})"

    def call(self, function: str, *arguments: Any) -> Call:
        """Return the call of a function, for ``TransactionWriter.send``."""
        data = self.interface.encode(function, *arguments)
        return Call(self.address, data, f"{self.interface.name}.{function.partition('(')[0]}")

    async def read(self, function: str, *arguments: Any, sender: bytes | None = None) -> Any:
        """Return what a function answers, without a transaction.

        Args:
            function: name, or signature where the name is overloaded.
            arguments: in order.
            sender: who asks, for functions that look at it.

        Raises:
            TransactionReverted: it reverted.
            ChainError: no answer, or not what the ABI says.
        """
        data = self.interface.encode(function, *arguments)
        try:
            answer = await self._chain.call(self.address, data, sender)
        except RpcError as error:
            raise reverted(error, f"{self.interface.name}.{function}") from error
        return self.interface.decode_answer(function, answer)

    async def simulate(self, call: Call, sender: bytes) -> None:
        """Try a transaction without sending it.

        Raises:
            TransactionReverted: it would revert.
        """
        try:
            await self._chain.call(self.address, call.data, sender)
        except RpcError as error:
            raise reverted(error, call.what) from error

    def events(self, logs: Iterable[Mapping[str, Any]], name: str) -> list[Event]:
        """Return the events ``name`` of this contract among ``logs``, as receipts and eth_getLogs have them."""
        own = (log for log in logs if bytes.fromhex(log["address"][2:]) == self.address)
        return [event for log in own if (event := self.interface.event(log)) is not None and event.name == name]

    async def past_events(
        self, name: str, first_block: int, last_block: int | None = None, topics: Sequence[bytes | None] = ()
    ) -> list[Event]:
        """Return the events ``name`` of a range of blocks.

        Args:
            name: of the event.
            first_block: of the range.
            last_block: of the range, by default the newest.
            topics: values of the indexed arguments, as 32 bytes; None for any.
        """
        return self.events(await self.past_logs((self.interface.topic(name), *topics), first_block, last_block), name)

    async def past_logs(
        self, topics: Sequence[bytes | Sequence[bytes] | None], first_block: int, last_block: int | None = None
    ) -> list[Mapping[str, Any]]:
        """Return this contract's logs of a range of blocks, oldest first.

        A range that the chain refuses, as most public ones do with what is too wide for them, is asked for in halves.

        Args:
            topics: by position: a value of 32 bytes, several of them, or None for any.
            first_block, last_block: the range; its end is by default the newest block.

        Raises:
            RpcError: the chain refuses even a single block.
        """
        last = await self._chain.block_number() if last_block is None else last_block
        wanted = {"address": "0x" + self.address.hex(), "topics": [_topic(topic) for topic in topics]}
        found: list[Mapping[str, Any]] = []
        ranges = [(first_block, last)]
        while ranges:
            low, high = ranges.pop()
            try:
                end = "latest" if high == last and last_block is None else hex(high)
                found += await self._chain.request("eth_getLogs", [{**wanted, "fromBlock": hex(low), "toBlock": end}])
            except RpcError:
                if low >= high:
                    raise
                middle = (low + high) // 2
                ranges += [(middle + 1, high), (low, middle)]
        return found


def _topic(value: bytes | Sequence[bytes] | None) -> Any:
    if value is None:
        return None
    return "0x" + value.hex() if isinstance(value, bytes) else ["0x" + one.hex() for one in value]


@dataclass(frozen=True)
class Contracts:
    """The contracts of a network, bound to their addresses on a chain."""

    chain: Chain
    addresses: Addresses

    @cached_property
    def token(self) -> Contract:
        """NCNToken."""
        return self._bound("token")

    @cached_property
    def registry(self) -> Contract:
        """ValidatorRegistry."""
        return self._bound("registry")

    @cached_property
    def payment(self) -> Contract:
        """InferencePayment."""
        return self._bound("payment")

    @cached_property
    def disputes(self) -> Contract:
        """DisputeManager."""
        return self._bound("disputes")

    @cached_property
    def timelock(self) -> Contract:
        """The timelock that owns the admin roles."""
        return self._bound("timelock")

    def _bound(self, field: str) -> Contract:
        return Contract(self.chain, interface(CONTRACTS[field]), getattr(self.addresses, field))


def reverted(error: RpcError, what: str) -> TransactionReverted | RpcError:
    """Return a refusal of the chain as what it is: the contract's own error where it was one, else ``error``.

    Args:
        error: the chain's answer.
        what: contract and function, for the message.
    """
    data = error.revert_data
    if data is None and "revert" not in error.reason.lower():
        return error
    return revert_of(data or b"", what)


def revert_of(data: bytes, what: str) -> TransactionReverted:
    """Return the error for what a contract returned when it reverted.

    Args:
        data: what it returned.
        what: contract and function, for the message.
    """
    reason, arguments = _explain(data)
    shown = ", ".join("0x" + value.hex() if isinstance(value, bytes) else str(value) for value in arguments)
    text = f"{reason}({shown})" if arguments else reason or "the contract gave no reason"
    return TransactionReverted(f"{what} reverted: {text}", reason, arguments)


def _explain(data: bytes) -> tuple[str, tuple[Any, ...]]:
    for name in CONTRACTS.values():
        try:
            found = interface(name).error(data)
        except ChainError:
            continue
        if found is not None:
            return found
    try:
        if data[:4] == _ERROR:
            return str(decode_values([{"type": "string"}], data[4:], "Error")[0])[:500], ()
        if data[:4] == _PANIC:
            (code,) = decode_values([{"type": "uint256"}], data[4:], "Panic")
            return _PANICS.get(code, f"panic {code:#x}"), ()
    except ChainError:
        pass
    return ("unknown error 0x" + data[:4].hex() if data else ""), ()
