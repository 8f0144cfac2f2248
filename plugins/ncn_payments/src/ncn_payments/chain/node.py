"""The embedded chain's JSON-RPC: the methods of execution-apis that this program and wallets use. One thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ncn_framework.errors import NcnError

from ..errors import RpcError
from . import encoding
from .encoding import data_of, hex_of, quantity_of
from .evm import BLOCK_GAS, Evm, Message
from .pool import Pool, PoolError
from .pyevm import Revert

__all__ = ["Node"]

_INVALID, _UNKNOWN_METHOD, _SERVER, _REVERTED = -32602, -32601, -32000, 3
_PRIORITY_FEE_WEI = 10**9
_MOST_LOGS = 10_000
_MOST_BLOCKS = 100_000
_CALL_STIPEND = 2_300
_TYPES = (0, 1, 2, 4)


class Node:
    """Answers requests out of an ``Evm``; ``flush`` mines what waits.

    ``evm_increaseTime``, ``evm_mine`` and ``evm_setAutomine``, as anvil and Hardhat have them, are for tests: they can
    be asked in this process alone (``chain_rpc`` lets none of them through).
    """

    def __init__(self, evm: Evm) -> None:
        self._evm = evm
        self._pool = Pool()
        self._automine = True
        self._methods: dict[str, Callable[..., Any]] = {
            "eth_accounts": lambda: [],
            "eth_blockNumber": lambda: hex(evm.head.block_number),
            "eth_call": self._call,
            "eth_chainId": lambda: hex(evm.chain_id),
            "eth_estimateGas": self._estimate_gas,
            "eth_gasPrice": lambda: hex(evm.base_fee() + _PRIORITY_FEE_WEI),
            "eth_getBalance": lambda address, at="latest": hex(self._state(at).get_balance(data_of(address, 20))),
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getCode": lambda address, at="latest": hex_of(self._state(at).get_code(data_of(address, 20))),
            "eth_getLogs": self._logs,
            "eth_getStorageAt": self._storage_at,
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionCount": self._transaction_count,
            "eth_getTransactionReceipt": self._receipt,
            "eth_maxPriorityFeePerGas": lambda: hex(_PRIORITY_FEE_WEI),
            "eth_sendRawTransaction": self._send,
            "eth_syncing": lambda: False,
            "evm_increaseTime": self._increase_time,
            "evm_mine": self._mine,
            "evm_setAutomine": self._set_automine,
            "net_version": lambda: str(evm.chain_id),
            "web3_clientVersion": lambda: "ncn-embedded/py-evm",
        }

    def request(self, method: str, params: Sequence[Any]) -> Any:
        """Return the result of one request.

        Raises:
            RpcError: as JSON-RPC has it.
            ChainError: the disk refused.
        """
        answer = self._methods.get(method)
        if answer is None:
            raise RpcError(_UNKNOWN_METHOD, f"the method {str(method)[:64]} does not exist/is not available")
        try:
            return answer(*params)
        except NcnError:
            raise
        except PoolError as error:
            raise RpcError(_SERVER, str(error), method=method) from error
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise RpcError(_INVALID, f"invalid argument: {error}", method=method) from error

    @property
    def waiting(self) -> int:
        """Transactions that are not in a block yet."""
        return len(self._pool)

    def flush(self) -> None:
        """Mine what waits, block after block, unless automatic mining is off."""
        while self._automine and self._mine_one():
            pass

    # --- transactions ---

    def _send(self, raw: str) -> str:
        try:
            transaction: Any = self._evm.transaction_builder.decode(data_of(raw))
            if transaction.type_id not in (*_TYPES, None):
                raise ValueError(f"transaction type {transaction.type_id} not supported")
            transaction.validate()  # the signature and its low s among others
            sender = transaction.sender
        except RecursionError:
            raise
        except Exception as error:  # py-evm, rlp and eth_keys each raise their own for bytes that are no transaction
            raise RpcError(_SERVER, f"transaction could not be decoded: {str(error)[:200]}") from error
        if encoding.chain_id_of(transaction) != self._evm.chain_id:
            raise RpcError(_SERVER, f"invalid chain id for signer: have {encoding.chain_id_of(transaction)}")
        if transaction.gas > BLOCK_GAS:
            raise PoolError("exceeds block gas limit")
        if transaction.gas < transaction.intrinsic_gas:
            raise PoolError(f"intrinsic gas too low: have {transaction.gas}, want {transaction.intrinsic_gas}")
        state: Any = self._evm.state()
        self._pool.add(
            transaction,
            nonce=state.get_nonce(sender),
            balance=state.get_balance(sender),
            base_fee=self._evm.base_fee(),
        )
        return hex_of(transaction.hash)

    def _mine_one(self, even_if_empty: bool = False) -> bool:
        """Mine one block; return whether there was anything to put into it."""
        state: Any = self._evm.state()
        offered = [
            transaction
            for sender in self._pool.senders()
            for transaction in self._pool.ready(sender, state.get_nonce(sender))
        ]
        if not offered and not even_if_empty:
            return False
        mined = self._evm.mine(offered, even_if_empty=even_if_empty)
        for done in (*mined.included, *(one for one, _ in mined.refused)):
            self._pool.remove(done.hash)
        return bool(mined.included or mined.refused)

    def _mine(self) -> str:
        self._mine_one(even_if_empty=True)
        return "0x0"

    def _set_automine(self, on: bool) -> None:
        self._automine = bool(on)

    def _increase_time(self, seconds: int | str) -> int:
        self._evm.offset_s += quantity_of(seconds) if isinstance(seconds, str) else int(seconds)
        return self._evm.offset_s

    def _transaction(self, transaction_hash: str) -> dict[str, Any] | None:
        key = data_of(transaction_hash, 32)
        waiting = self._pool.get(key)
        if waiting is not None:
            return encoding.transaction(waiting, None, 0)
        place = self._evm.place(key)
        if place is None:
            return None
        header, index = place
        return encoding.transaction(self._evm.block(header).transactions[index], header, index)

    def _receipt(self, transaction_hash: str) -> dict[str, Any] | None:
        place = self._evm.place(data_of(transaction_hash, 32))
        if place is None:
            return None
        header, index = place
        return encoding.receipt(header, index, self._evm.block(header).transactions[index], self._evm.receipts(header))

    # --- calls ---

    def _message(self, call: dict[str, Any]) -> Message:
        _require_object(call)
        return Message(
            sender=data_of(call.get("from") or "0x" + bytes(20).hex(), 20),
            to=data_of(call["to"], 20) if call.get("to") else b"",
            data=data_of(call.get("input") or call.get("data") or "0x"),
            value=quantity_of(call.get("value", "0x0")),
            gas=quantity_of(call.get("gas", hex(BLOCK_GAS))),
        )

    def _call(self, call: dict[str, Any], at: Any = "latest", *ignored: Any) -> str:
        message, header = self._message(call), self._header(at)
        now = header.block_number == self._evm.head.block_number
        try:
            computation, _ = self._evm.run(message, None if now else header)
        except ValueError as error:
            raise RpcError(_SERVER, str(error), method="eth_call") from error
        if computation.is_error:
            raise _failure(computation, "eth_call")
        return hex_of(computation.output)

    def _estimate_gas(self, call: dict[str, Any], *ignored: Any) -> str:
        """Return the least gas that will do, or up to 1.5 % more, with one execution or two in most cases.

        A transaction is first given all the gas there is. What it used then is not enough where a call inside keeps a
        64th back (EIP-150) or a stipend is not used up, hence the second try, and a search where that fails (as geth's
        ``eth/gasestimator`` does it).
        """
        message = self._message(call)

        def attempt(gas: int) -> tuple[Any, int]:
            try:
                computation, floor = self._evm.run(
                    Message(message.sender, message.to, message.data, message.value, gas)
                )
            except ValueError as error:
                raise RpcError(_SERVER, str(error), method="eth_estimateGas") from error
            return computation, max(gas - computation.get_gas_remaining(), floor)

        most = message.gas
        computation, used = attempt(most)
        if computation.is_error:
            raise _failure(computation, "eth_estimateGas")
        low, high = used - 1, min(most, (used + _CALL_STIPEND) * 64 // 63)
        if used > 21_000 or message.data:
            if attempt(high)[0].is_error:
                low, high = high, most
                while (high - low) * 1000 > high * 15:
                    middle = (low + high) // 2
                    low, high = (middle, high) if attempt(middle)[0].is_error else (low, middle)
        else:
            high = used
        return hex(high)

    # --- what is there ---

    def _header(self, at: Any) -> Any:
        if isinstance(at, dict):  # EIP-1898
            header = (
                self._evm.header_by_hash(data_of(at["blockHash"], 32))
                if "blockHash" in at
                else self._evm.header(quantity_of(at["blockNumber"]))
            )
        elif at in ("latest", "pending", "safe", "finalized"):
            header = self._evm.head
        else:
            header = self._evm.header(0 if at == "earliest" else quantity_of(at))
        if header is None:
            raise RpcError(_SERVER, f"header not found: {str(at)[:80]}")
        return header

    def _state(self, at: Any) -> Any:
        return self._evm.state(self._header(at))

    def _storage_at(self, address: str, slot: str, at: Any = "latest") -> str:
        return hex_of(self._state(at).get_storage(data_of(address, 20), int(slot, 16)).to_bytes(32, "big"))

    def _transaction_count(self, address: str, at: Any = "latest") -> str:
        account = data_of(address, 20)
        nonce = self._state(at).get_nonce(account)
        return hex(nonce + len(self._pool.ready(account, nonce)) if at == "pending" else nonce)

    def _block_by_number(self, number: Any, full: bool = False) -> dict[str, Any] | None:
        try:
            return encoding.block(self._evm.block(self._header(number)), full)
        except RpcError:
            return None

    def _block_by_hash(self, block_hash: str, full: bool = False) -> dict[str, Any] | None:
        header = self._evm.header_by_hash(data_of(block_hash, 32))
        return None if header is None else encoding.block(self._evm.block(header), full)

    def _logs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        _require_object(wanted)
        if "blockHash" in wanted:
            headers = [self._header({"blockHash": wanted["blockHash"]})]
        else:
            first = self._header(wanted.get("fromBlock", "latest")).block_number
            last_at = wanted.get("toBlock", "latest")
            try:
                last = self._header(last_at).block_number
            except RpcError:  # a range may end in the future
                last = self._evm.head.block_number
            if last - first >= _MOST_BLOCKS:
                raise RpcError(_SERVER, f"query exceeds max block range {_MOST_BLOCKS}")
            headers = [header for n in range(first, last + 1) if (header := self._evm.header(n)) is not None]
        match = encoding.LogFilter(wanted)
        found: list[dict[str, Any]] = []
        for header in headers:
            if not match.may_be_in(header.bloom):
                continue
            block = self._evm.block(header)
            found += match.logs(header, block.transactions, self._evm.receipts(header))
            if len(found) > _MOST_LOGS:
                raise RpcError(_SERVER, f"query returned more than {_MOST_LOGS} results")
        return found


def _require_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:80]!r} is no object")


def _failure(computation: Any, method: str) -> RpcError:
    if isinstance(computation.error, Revert):
        return RpcError(_REVERTED, "execution reverted", hex_of(computation.output), method)
    return RpcError(_SERVER, f"{type(computation.error).__name__}: {str(computation.error)[:200]}", method=method)
