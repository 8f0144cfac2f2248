"""The embedded chain's blocks: py-evm under Prague's rules, kept in one file. Used by one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ncn_framework.errors import ChainError, ConfigError

from .database import SqliteDatabase
from .pyevm import (
    Address,
    BlockAPI,
    BlockHeaderAPI,
    ComputationAPI,
    EthChain,
    HeaderNotFound,
    PragueVM,
    PyEVMError,
    ReceiptAPI,
    SignedTransactionAPI,
    SpoofTransaction,
    StateAPI,
    TransactionNotFound,
    ValidationError,
)

__all__ = ["BLOCK_GAS", "Evm", "Message", "Mined"]

BLOCK_GAS = 30_000_000
"""Gas limit of every block, about what Ethereum's had when EIP-1559 came."""

_CHAIN_ID_KEY = b"ncn:chain-id"


@dataclass(frozen=True)
class Message:
    """A call that no key signed: of eth_call and eth_estimateGas. ``to`` empty creates a contract."""

    sender: bytes
    to: bytes = b""
    data: bytes = b""
    value: int = 0
    gas: int = BLOCK_GAS


@dataclass
class Mined:
    """What became of the transactions offered for a block.

    Attributes:
        included: in the block, in order; none: there is no new block.
        postponed: did not fit into the block's gas.
        refused: the state does not allow them, with the reason.
    """

    included: list[SignedTransactionAPI] = field(default_factory=list)
    postponed: list[SignedTransactionAPI] = field(default_factory=list)
    refused: list[tuple[SignedTransactionAPI, str]] = field(default_factory=list)


class Evm:
    """A chain of blocks that goes on from the file where it was left.

    Blocks follow each other within a second, so a timestamp may equal its parent's: it is the wall clock's, never
    behind the parent. Consensus rules that need several parties (validation of headers, randomness, withdrawals)
    have no use here and are left out; what contracts can see is complete.

    Args:
        path: the file.
        chain_id: EIP-155 chain id.
        balances: wei of the accounts in the first block of a new chain.
        codes: of the contracts in the first block.
        clock: seconds since the epoch.

    Raises:
        ChainError: the file cannot be read.
        ConfigError: the file holds a chain with another id.
    """

    def __init__(
        self,
        path: Path,
        chain_id: int,
        balances: Mapping[bytes, int],
        codes: Mapping[bytes, bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = SqliteDatabase(path)
        self._clock = clock
        self.offset_s = 0
        kind: type[Any] = EthChain.configure("NcnChain", vm_configuration=((0, PragueVM),), chain_id=chain_id)
        try:
            if _CHAIN_ID_KEY in self._database:
                found = int.from_bytes(self._database[_CHAIN_ID_KEY], "big")
                if found != chain_id:
                    raise ConfigError(f"{path} holds a chain with id {found}, not {chain_id}; set another NCN_HOME")
                self._chain = kind(self._database)
            else:
                self._database[_CHAIN_ID_KEY] = chain_id.to_bytes(32, "big")
                self._chain = kind.from_genesis(self._database, self._first(), _accounts(balances, codes))
                self._database.commit()
            self.head: BlockHeaderAPI = self._chain.get_canonical_head()
        except (PyEVMError, KeyError, ValidationError) as cause:
            self._database.close()
            raise ChainError(f"the embedded chain in {path} is damaged; move the file away to begin anew") from cause
        except BaseException:
            self._database.close()
            raise
        self.chain_id = chain_id
        self.transaction_builder = PragueVM.get_transaction_builder()
        self._receipt_builder = PragueVM.get_receipt_builder()

    def _first(self) -> dict[str, Any]:
        return {
            "difficulty": 0,
            "gas_limit": BLOCK_GAS,
            "timestamp": int(self._clock()),
            "coinbase": bytes(20),
            "nonce": bytes(8),
            "mix_hash": bytes(32),
            "extra_data": b"",
        }

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # --- blocks ---

    def next_header(self) -> BlockHeaderAPI:
        """Return the header of a block that would follow now, before its transactions."""
        now = max(int(self._clock()) + self.offset_s, self.head.timestamp)
        return PragueVM.create_header_from_parent(self.head, timestamp=now, gas_limit=BLOCK_GAS)  # type: ignore[no-any-return]

    def base_fee(self) -> int:
        """Return what a unit of gas costs at least in a block that would follow now, in wei (EIP-1559)."""
        return int(self.next_header().base_fee_per_gas or 0)

    def mine(self, offered: Sequence[SignedTransactionAPI], *, even_if_empty: bool = False) -> Mined:
        """Put what is ``offered`` into a new block, in that order, durable when this returns.

        Args:
            offered: of one sender in the order of their nonces.
            even_if_empty: make a block of no transactions as well.

        Raises:
            ChainError: the disk refused; the chain is as before.
        """
        mined = Mined()
        waiting = list(offered)
        try:
            while True:
                block, failed = self._build(waiting, mined)
                if failed is None:
                    break
                # What it left behind in the state goes with the block. What its sender sent later has a gap before it.
                waiting = [
                    transaction
                    for transaction in waiting
                    if transaction.sender != failed.sender or (transaction.nonce < failed.nonce)
                ]
            if mined.included or even_if_empty:
                self._chain.chaindb.persist_block(block)
                self._database.commit()
                self.head = block.header
        finally:
            self._database.rollback()
        return mined

    def _build(
        self, waiting: Sequence[SignedTransactionAPI], mined: Mined
    ) -> tuple[BlockAPI, SignedTransactionAPI | None]:
        """Return a finished block, and the transaction at which it had to be given up."""
        header = self.next_header()
        vm = self._chain.get_vm(header)
        receipts: list[ReceiptAPI] = []
        mined.included, mined.postponed = [], []
        late: set[bytes] = set()
        for transaction in waiting:
            if transaction.sender in late or header.gas_used + transaction.gas > header.gas_limit:
                late.add(transaction.sender)  # nonces come in order
                mined.postponed.append(transaction)
                continue
            try:
                receipt, _ = vm.apply_transaction(header, transaction)
            except (ValidationError, RecursionError) as error:
                mined.refused.append((transaction, _reason(error)))
                return vm.get_block(), transaction
            header = vm.add_receipt_to_header(header, receipt)
            receipts.append(receipt)
            mined.included.append(transaction)
        block = vm.set_block_transactions_and_withdrawals(vm.get_block(), header, mined.included, receipts)
        return vm.finalize_block(block).block, None

    def header(self, number: int) -> BlockHeaderAPI | None:
        """Return the header of block ``number``; None where there is none yet."""
        try:
            return self._chain.get_canonical_block_header_by_number(number)  # type: ignore[no-any-return]
        except HeaderNotFound:
            return None

    def header_by_hash(self, block_hash: bytes) -> BlockHeaderAPI | None:
        """Return the header with this hash, if there is one."""
        try:
            return self._chain.get_block_header_by_hash(block_hash)  # type: ignore[no-any-return]
        except HeaderNotFound:
            return None

    def block(self, header: BlockHeaderAPI) -> BlockAPI:
        """Return the block of a header."""
        return self._chain.get_block_by_header(header)  # type: ignore[no-any-return]

    def receipts(self, header: BlockHeaderAPI) -> Sequence[ReceiptAPI]:
        """Return the receipts of a block, in order."""
        return self._chain.chaindb.get_receipts(header, self._receipt_builder)  # type: ignore[no-any-return]

    def place(self, transaction_hash: bytes) -> tuple[BlockHeaderAPI, int] | None:
        """Return block and index of a mined transaction."""
        try:
            number, index = self._chain.get_canonical_transaction_index(transaction_hash)
        except TransactionNotFound:
            return None
        return self._chain.get_canonical_block_header_by_number(number), index

    # --- state ---

    def state(self, header: BlockHeaderAPI | None = None) -> StateAPI:
        """Return the state after a block, by default the newest; what is done to it is forgotten."""
        return self._chain.get_vm(header or self.head).state  # type: ignore[no-any-return]

    def run(self, message: Message, header: BlockHeaderAPI | None = None) -> tuple[ComputationAPI, int]:
        """Execute a message on the state after ``header``, by default in a block that would follow now; then forget it.

        Returns:
            The computation, and the gas that a transaction would have to be given at least for its data (EIP-7623).

        Raises:
            ValueError: the message cannot even begin: not enough ether for ``value``, or too little gas.
        """
        context = (header or self.next_header()).copy(base_fee_per_gas=0)
        state: Any = self._chain.get_vm(context).state
        unsigned = self.transaction_builder.create_unsigned_transaction(
            nonce=state.get_nonce(message.sender),
            gas_price=0,
            gas=min(message.gas, BLOCK_GAS),
            to=Address(message.to),
            value=message.value,
            data=message.data,
        )
        transaction: Any = SpoofTransaction(unsigned, from_=message.sender)
        if message.value > (balance := state.get_balance(message.sender)):
            raise ValueError(f"insufficient funds for gas * price + value: have {balance} want {message.value}")
        if unsigned.intrinsic_gas > unsigned.gas:
            raise ValueError(f"intrinsic gas too low: have {unsigned.gas}, want {unsigned.intrinsic_gas}")
        try:
            floor = state.get_transaction_executor().calc_data_floor_gas(transaction, 0, 0)
            return state.apply_transaction(transaction), floor
        except (ValidationError, RecursionError) as error:
            raise ValueError(_reason(error)) from error
        finally:
            self._database.rollback()


def _accounts(balances: Mapping[bytes, int], codes: Mapping[bytes, bytes]) -> dict[bytes, dict[str, Any]]:
    return {
        address: {
            "balance": balances.get(address, 0),
            "nonce": 1 if address in codes else 0,  # EIP-161
            "code": codes.get(address, b""),
            "storage": {},
        }
        for address in (*balances, *codes)
    }


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its calls nest deeper than the embedded chain can follow"
    return str(error)
