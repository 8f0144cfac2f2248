"""ABIs: calls, answers, events and errors as bytes (Solidity's contract ABI specification)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ncn_framework.digests import keccak
from ncn_framework.errors import ChainError

from .transactions import Call

__all__ = ["Event", "Interface", "decode_values", "interface"]


@dataclass(frozen=True)
class Event:
    """A log, decoded. Addresses are 20 bytes; an indexed value of dynamic type is its hash.

    Attributes:
        name: of the event.
        arguments: by name.
        address: of the contract.
        block: number of its block.
        transaction_hash: of its transaction.
        log_index: within its block.
    """

    name: str
    arguments: Mapping[str, Any]
    address: bytes
    block: int
    transaction_hash: bytes
    log_index: int


class Interface:
    """The ABI of one contract and its code.

    Args:
        name: of the contract.
        abi: as solc writes it.
        bytecode: of its creation.
    """

    def __init__(self, name: str, abi: Sequence[Mapping[str, Any]], bytecode: bytes) -> None:
        self.name, self.bytecode = name, bytecode
        self._functions: dict[str, Mapping[str, Any]] = {}
        self._errors: dict[bytes, Mapping[str, Any]] = {}
        self._events: dict[bytes, Mapping[str, Any]] = {}
        self._constructor: Mapping[str, Any] = {"inputs": []}
        for item in abi:
            match item["type"]:
                case "function":
                    self._functions[_signature(item)] = item
                    if item["name"] in self._functions:
                        self._functions[item["name"]] = _AMBIGUOUS
                    else:
                        self._functions[item["name"]] = item
                case "error":
                    self._errors[keccak(_signature(item).encode())[:4]] = item
                case "event":
                    self._events[keccak(_signature(item).encode())] = item
                case "constructor":
                    self._constructor = item

    def encode(self, function: str, *arguments: Any) -> bytes:
        """Return the data of a call: selector and arguments. Structs are tuples, addresses 20 bytes.

        Args:
            function: name, or signature such as ``transfer(address,uint256)`` where the name is overloaded.
            arguments: in order.

        Raises:
            TypeError: the arguments do not fit.
        """
        item = self._function(function)
        return keccak(_signature(item).encode())[:4] + _encode(item["inputs"], arguments, f"{self.name}.{function}")

    def decode_call(self, function: str, data: bytes) -> tuple[Any, ...] | None:
        """Return the arguments of a call of ``function``; None where ``data`` is the call of another.

        Raises:
            ChainError: what follows the selector is not what the ABI says.
        """
        item = self._function(function)
        if data[:4] != keccak(_signature(item).encode())[:4]:
            return None
        return decode_values(item["inputs"], data[4:], f"{self.name}.{function}")

    def decode_answer(self, function: str, data: bytes) -> Any:
        """Return what a function answered: the value, or a tuple of several; structs are tuples.

        Raises:
            ChainError: it is not what the ABI says, as where no contract is at the address.
        """
        values = decode_values(self._function(function)["outputs"], data, f"{self.name}.{function}")
        return values[0] if len(values) == 1 else values

    def creation(self, *arguments: Any) -> Call:
        """Return the call that deploys the contract."""
        return Call(
            None, self.bytecode + _encode(self._constructor["inputs"], arguments, self.name), f"deploy {self.name}"
        )

    def error(self, data: bytes) -> tuple[str, tuple[Any, ...]] | None:
        """Return name and arguments of a custom error of this contract; None where it is none."""
        item = self._errors.get(data[:4])
        try:
            return None if item is None else (item["name"], decode_values(item["inputs"], data[4:], item["name"]))
        except ChainError:
            return None

    def event(self, log: Mapping[str, Any]) -> Event | None:
        """Return a log of JSON-RPC as an event of this contract; None where it is none."""
        topics = [bytes.fromhex(topic[2:]) for topic in log["topics"]]
        item = self._events.get(topics[0]) if topics else None
        if item is None:
            return None
        indexed = [entry for entry in item["inputs"] if entry["indexed"]]
        others = [entry for entry in item["inputs"] if not entry["indexed"]]
        if len(indexed) != len(topics) - 1:
            return None
        values = dict(
            zip(
                (entry["name"] for entry in others),
                decode_values(others, bytes.fromhex(log["data"][2:]), item["name"]),
                strict=True,
            )
        )
        for entry, topic in zip(indexed, topics[1:], strict=True):
            dynamic = entry["type"] in ("string", "bytes") or entry["type"].endswith("]") or entry["type"] == "tuple"
            values[entry["name"]] = topic if dynamic else decode_values([entry], topic, item["name"])[0]
        return Event(
            item["name"],
            {entry["name"]: values[entry["name"]] for entry in item["inputs"]},
            bytes.fromhex(log["address"][2:]),
            int(log["blockNumber"], 16),
            bytes.fromhex(log["transactionHash"][2:]),
            int(log["logIndex"], 16),
        )

    def topic(self, event: str) -> bytes:
        """Return the first topic of an event's logs.

        Raises:
            KeyError: the contract has no such event.
        """
        for topic, item in self._events.items():
            if item["name"] == event:
                return topic
        raise KeyError(f"{self.name} has no event {event}")

    def _function(self, name: str) -> Mapping[str, Any]:
        item = self._functions.get(name)
        if item is None:
            raise TypeError(f"{self.name} has no function {name}")
        if item is _AMBIGUOUS:
            raise TypeError(f"{self.name}.{name} is overloaded; give its whole signature")
        return item


_AMBIGUOUS: Mapping[str, Any] = {}


@cache
def interface(name: str) -> Interface:
    """Return the interface of a contract that ships with this distribution.

    Args:
        name: such as ``InferencePayment``.

    Raises:
        ChainError: the distribution has no such artifact.
    """
    try:
        artifact = json.loads((resources.files(__package__) / "artifacts" / f"{name}.json").read_text())
    except FileNotFoundError as cause:
        raise ChainError(f"the contract {name} is not part of this installation; run `make contracts`") from cause
    return Interface(name, artifact["abi"], bytes.fromhex(artifact["bytecode"].removeprefix("0x")))


def _signature(item: Mapping[str, Any]) -> str:
    return f"{item['name']}({','.join(_type(entry) for entry in item['inputs'])})"


def _type(entry: Mapping[str, Any]) -> str:
    """Return a parameter's canonical type; a struct is the list of its fields' types."""
    kind = str(entry["type"])
    if kind.startswith("tuple"):
        return f"({','.join(_type(field) for field in entry['components'])}){kind[5:]}"
    return kind


def _encode(inputs: Sequence[Mapping[str, Any]], arguments: Sequence[Any], what: str) -> bytes:
    from eth_abi.abi import encode
    from eth_abi.exceptions import EncodingError

    types = [_type(entry) for entry in inputs]
    if len(types) != len(arguments):
        raise TypeError(f"{what} takes {len(types)} arguments ({', '.join(types)}), not {len(arguments)}")
    try:
        return encode(types, list(arguments))
    except (EncodingError, ValueError) as cause:
        raise TypeError(f"{what}: an argument does not fit its type: {str(cause)[:300]}") from cause


def decode_values(outputs: Sequence[Mapping[str, Any]], data: bytes, what: str) -> tuple[Any, ...]:
    """Return values out of their encoding.

    Args:
        outputs: the parameters, as an ABI has them.
        data: the encoding.
        what: for the message.

    Raises:
        ChainError: it is not their encoding.
    """
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    try:
        values = decode([_type(entry) for entry in outputs], data)
    except (DecodingError, OverflowError, UnicodeDecodeError) as cause:
        raise ChainError(
            f"{what}: {len(data)} bytes came, which are not what its ABI says; is the contract at that address?"
        ) from cause
    return tuple(_plain(entry, value, str(entry["type"])) for entry, value in zip(outputs, values, strict=True))


def _plain(entry: Mapping[str, Any], value: Any, kind: str) -> Any:
    """Return a decoded value with addresses as bytes."""
    if kind.endswith("]"):
        return tuple(_plain(entry, one, kind[: kind.rindex("[")]) for one in value)
    if kind == "tuple":
        return tuple(_plain(field, one, field["type"]) for field, one in zip(entry["components"], value, strict=True))
    return bytes.fromhex(value[2:]) if kind == "address" else value
