"""Sends transactions of one key, each exactly once, whatever dies in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ncn_framework.errors import ChainError, NcnError, ReplayConflict, TransactionReverted
from ncn_framework.signing import Signer, address_hex

from .chain import Chain
from .chain.interface import quantity
from .contracts import reverted
from .errors import RpcError
from .fees import Price, market_price
from .journal import Attempt, Entry, Journal, identity_of
from .receipts import Receipt, kept, receipt_of, revert_data
from .refusals import FUNDS, KNOWN, LATER, PASSED, says
from .transactions import Call, Transaction

if TYPE_CHECKING:
    from .config import PaymentsSettings

__all__ = ["Receipt", "TransactionWriter"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_MOST_GAS = 1 << 24
"""Most gas of one transaction (EIP-7825)."""
_TRANSFER_GAS = 21_000
_AGAIN_S = 15.0
_LONGEST_PAUSE_S = 10.0


class TransactionWriter:
    """The one who sends for a key on a chain, entered as an asynchronous context manager.

    Every transaction is written to the journal, signed and with its nonce, before it is sent. It is watched by its
    nonce: signed again with higher fees where it is not included in time, sent again where the chain forgot it, and
    found again after a crash. Several writers for one key, in one process or several, may share a journal.

    Args:
        chain: an open chain.
        signer: of the key.
        journal: path of the database.
        confirmations: blocks, its own included, that make a transaction final.
        replace_after_s: time without inclusion until the fees are raised.
        max_fee_wei: most that a unit of gas may cost.
    """

    def __init__(
        self,
        chain: Chain,
        signer: Signer,
        journal: Path,
        *,
        confirmations: int = 1,
        replace_after_s: float = 60.0,
        max_fee_wei: int = 500 * 10**9,
    ) -> None:
        self._chain, self._signer, self._path = chain, signer, journal
        self._confirmations, self._replace_after_s, self._max_fee_wei = confirmations, replace_after_s, max_fee_wei
        self._sending = asyncio.Lock()
        self._news = asyncio.Event()
        self._pending: dict[str, Entry] = {}
        self._waiting: dict[str, list[asyncio.Future[Entry]]] = {}
        self._sent_at: dict[int, float] = {}
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: PaymentsSettings, chain: Chain, signer: Signer, home: Path) -> TransactionWriter:
        """Return the writer that the settings ask for; its journal is ``home/transactions.db``."""
        return cls(
            chain,
            signer,
            home / "transactions.db",
            confirmations=settings.confirmations,
            replace_after_s=settings.replace_after_ms / 1000,
            max_fee_wei=settings.max_fee_gwei * 10**9,
        )

    @property
    def address(self) -> bytes:
        """Who sends."""
        return self._signer.address

    async def __aenter__(self) -> Self:
        identity = await identity_of(self._chain)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ncn-journal")
        try:
            self._journal = await self._stored(Journal, self._path, identity, self.address)
            for entry in await self._stored(self._journal.pending):
                self._pending[entry.key] = entry
            self._left = tuple(self._pending)
        except BaseException:
            self._thread.shutdown()
            raise
        if self._pending:
            log.info("%s: %d transactions of an earlier run are taken up", self, len(self._pending))
            self._news.set()
        self._watch = asyncio.create_task(self._watch_all(), name=f"{self}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))
            self._watch = None
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(ChainError(f"{self} was closed; the transaction goes on at its next start"))
                    future.exception()  # whoever waits sees it; nobody has to
        self._thread.submit(self._journal.close)
        await asyncio.to_thread(self._thread.shutdown)

    def __repr__(self) -> str:
        return f"writer of {address_hex(self.address)}"

    async def send(self, call: Call, *, key: str, value_wei: int = 0) -> Receipt:
        """Send a transaction and wait until it is final. Cancelling the wait does not stop the transaction.

        Args:
            call: what it shall do.
            key: the caller's name for it, such as ``batch:<digest>``. Asked again with the same key, also after a
                crash, there is no second transaction: the first one's result is returned.
            value_wei: ether that goes with it.

        Raises:
            TransactionReverted: it would revert (then nothing was sent, and the key may be used again), or it did
                (then it will always be this); or the account has too little ether (``InsufficientFunds``).
            ReplayConflict: the key was used for something else.
            ChainError: the chain cannot be reached, or refused it. Where it was sent already, it is still watched.
            StoreError: the journal refused; nothing was sent.
        """
        entry = await self._stored(self._journal.find, key)
        if entry is None or entry.void:
            draft, price = await self._draft(call, key, value_wei)
            async with self._sending:
                entry = await self._record_and_send(draft, price)
        elif (entry.call.to, entry.call.data, entry.value_wei) != (call.to, call.data, value_wei):
            raise ReplayConflict(f"transaction {key!r} was made before, with other content")
        if entry.pending:
            entry = await self._until_settled(entry)
        return receipt_of(entry)

    async def take_up(self, prefix: str) -> Receipt | None:
        """Wait for a transaction that an earlier run did not see the end of, and return its receipt.

        Args:
            prefix: with which its key begins.

        Returns:
            None where there was none; then a new one may be sent.

        Raises:
            TransactionReverted, ChainError: as ``send``.
        """
        for key in self._left:
            if key.startswith(prefix):
                entry = await self._stored(self._journal.find, key)
                if entry is not None and entry.pending:
                    entry = await self._until_settled(entry)
                return None if entry is None or entry.void else receipt_of(entry)
        return None

    # --- making ---

    async def _draft(self, call: Call, key: str, value_wei: int) -> tuple[Entry, Price]:
        """Return the transaction without a nonce, and its fees; nothing is kept yet."""
        message = {"from": _hex(self.address), "data": _hex(call.data), "value": hex(value_wei)}
        if call.to is not None:
            message["to"] = _hex(call.to)
        try:
            estimate = quantity(await self._chain.request("eth_estimateGas", [message]))
        except RpcError as error:
            if says(error, FUNDS):
                raise self._too_poor(call, error.reason) from error
            raise reverted(error, call.what) from error
        gas = max(estimate, min(estimate * 5 // 4, _MOST_GAS))
        price = await market_price(self._chain, self._max_fee_wei)
        balance = await self._chain.balance(self.address)
        if balance < value_wei + gas * price.max_fee_wei:
            raise self._too_poor(call, f"it has {balance} wei and may need {value_wei + gas * price.max_fee_wei}")
        nonce = quantity(await self._chain.request("eth_getTransactionCount", [_hex(self.address), "latest"]))
        return Entry(key, nonce, call, value_wei, gas, await self._chain.block_number()), price

    def _too_poor(self, call: Call, how: str) -> TransactionReverted:
        return TransactionReverted(
            f"{call.what}: {address_hex(self.address)} has too little ether for the fee: {how}", "InsufficientFunds"
        )

    def _sign(self, entry: Entry, price: Price, *, filler: bool = False) -> Attempt:
        call = Call(self.address) if filler else entry.call
        transaction = Transaction(
            chain_id=self._chain.chain_id,
            nonce=entry.nonce,
            priority_fee_wei=price.priority_fee_wei,
            max_fee_wei=price.max_fee_wei,
            gas=_TRANSFER_GAS if filler else entry.gas,
            to=call.to,
            value=0 if filler else entry.value_wei,
            data=call.data,
        )
        raw, transaction_hash = transaction.signed(self._signer)
        return Attempt(
            transaction_hash, raw, price.max_fee_wei, price.priority_fee_wei, int(time.time() * 1000), filler
        )

    async def _record_and_send(self, draft: Entry, price: Price) -> Entry:
        entry, is_new = await self._stored(self._journal.record, draft, lambda numbered: self._sign(numbered, price))
        if entry.pending:
            self._sent_at[entry.nonce] = time.monotonic()
            self._pending[entry.key] = entry
        if is_new:
            await self._broadcast(entry)
        self._news.set()
        return entry

    async def _broadcast(self, entry: Entry) -> None:
        """Send the newest form of a transaction.

        Raises:
            TransactionReverted, ChainError: the chain will not have it. It stays in the journal until it is settled.
        """
        attempt = (await self._stored(self._journal.attempts, entry.nonce))[-1]
        self._sent_at[entry.nonce] = time.monotonic()
        try:
            await self._chain.request("eth_sendRawTransaction", [_hex(attempt.raw)])
        except RpcError as error:
            if says(error, (*KNOWN, *PASSED)):
                return
            if says(error, LATER):
                log.info("%s: %s waits: %s", self, entry.key, error.reason)
                return
            if says(error, FUNDS):
                raise self._too_poor(entry.call, error.reason) from error
            if not attempt.filler:
                log.error("%s: the chain refuses %s for good (%s); its nonce is filled", self, entry.key, error.reason)
                await self._resign(entry, filler=True)
            raise
        except asyncio.CancelledError:  # of whoever waited, not of the transaction: the watch sends it
            del self._sent_at[entry.nonce]
            self._news.set()
            raise
        except ChainError as error:  # unreachable: the watch sends it again
            log.warning("%s: %s could not be sent yet: %s", self, entry.key, error)

    async def _resign(self, entry: Entry, *, filler: bool = False) -> None:
        """Sign a transaction again for the same nonce, with fees that pools take for a replacement, and send it."""
        attempts = await self._stored(self._journal.attempts, entry.nonce)
        newest = attempts[-1]
        market = await market_price(self._chain, self._max_fee_wei)
        price = market.replacing(Price(newest.max_fee_wei, newest.priority_fee_wei))
        filler = filler or newest.filler
        if price.max_fee_wei > self._max_fee_wei and not filler:
            log.warning("%s: %s waits: payments.max_fee_gwei forbids a higher fee", self, entry.key)
            self._sent_at[entry.nonce] = time.monotonic()
            return
        attempt = self._sign(entry, price, filler=filler)
        await self._stored(self._journal.add, entry.nonce, attempt)
        if not filler:
            log.info("%s: %s (nonce %d) is signed again with higher fees: %s", self, entry.key, entry.nonce, price)
        await self._broadcast(entry)

    # --- watching ---

    async def _until_settled(self, entry: Entry) -> Entry:
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(entry.key, []).append(future)
        self._pending.setdefault(entry.key, entry)
        self._news.set()
        return await future

    async def _watch_all(self) -> None:
        pause = 0.0
        while True:
            if not self._pending:
                await self._news.wait()
            self._news.clear()
            try:
                await self._look()
                pause = self._chain.poll_s
            except NcnError as error:
                pause = min(max(2 * pause, 0.1), _LONGEST_PAUSE_S)
                log.warning("%s: %d transactions wait: %s", self, len(self._pending), error)
            except Exception:
                pause = _LONGEST_PAUSE_S
                log.exception("%s: a defect while watching; trying again", self)
            if self._pending:
                try:
                    async with asyncio.timeout(pause):
                        await self._news.wait()
                except TimeoutError:
                    pass

    async def _look(self) -> None:
        """Look once how every pending transaction stands."""
        nonce = quantity(await self._chain.request("eth_getTransactionCount", [_hex(self.address), "latest"]))
        entries = sorted(self._pending.values(), key=lambda entry: entry.nonce)
        for entry in entries:
            if entry.nonce < nonce:
                await self._conclude(entry)
        for entry in entries:
            if entry.nonce >= nonce:
                await self._push(entry, first=entry.nonce == nonce)

    async def _push(self, entry: Entry, *, first: bool) -> None:
        """Send what is not included once more, when it is time; the ``first`` of all for a higher fee."""
        sent_at = self._sent_at.get(entry.nonce)
        try:
            if sent_at is None:  # by an earlier run, if at all
                await self._broadcast(entry)
            elif time.monotonic() - sent_at >= min(_AGAIN_S, self._replace_after_s):
                made_ms = (await self._stored(self._journal.attempts, entry.nonce))[-1].made_ms
                late = first and time.time() - made_ms / 1000 >= self._replace_after_s
                await (self._resign(entry) if late else self._broadcast(entry))
        except (TransactionReverted, RpcError) as error:
            log.warning("%s: %s is not taken: %s", self, entry.key, error)

    async def _conclude(self, entry: Entry) -> None:
        """Find out what became of a nonce that the chain has passed."""
        for attempt in await self._stored(self._journal.attempts, entry.nonce):
            receipt = await self._chain.request("eth_getTransactionReceipt", [_hex(attempt.hash)])
            if isinstance(receipt, dict) and receipt.get("blockNumber"):
                if await self._chain.block_number() - quantity(receipt["blockNumber"]) + 1 >= self._confirmations:
                    await self._settle(entry, attempt, receipt)
                return
        if await self._was_taken(entry):
            await self._renumber(entry)

    async def _settle(self, entry: Entry, attempt: Attempt, receipt: dict[str, Any]) -> None:
        if attempt.filler:
            settled = await self._stored(self._journal.settle, entry, None)
        else:
            failed = quantity(receipt.get("status", "0x1")) == 0
            data = await revert_data(self._chain, self.address, entry, receipt) if failed else None
            settled = await self._stored(self._journal.settle, entry, kept(receipt), data)
        self._pending.pop(entry.key, None)
        self._sent_at.pop(entry.nonce, None)
        for future in self._waiting.pop(entry.key, []):
            if not future.done():
                future.set_result(settled)

    async def _was_taken(self, entry: Entry) -> bool:
        """Return whether another program that has the key used the nonce, which only the block itself can prove.

        A receipt that is missing proves nothing: the node that answers may lag behind the one that counted.
        """
        low, high = entry.block, await self._chain.block_number()
        while low < high:  # the first block after which the count has passed the nonce
            middle = (low + high) // 2
            count = quantity(await self._chain.request("eth_getTransactionCount", [_hex(self.address), hex(middle)]))
            low, high = (low, middle) if count > entry.nonce else (middle + 1, high)
        if await self._chain.block_number() - low + 1 < self._confirmations:
            return False
        block = await self._chain.request("eth_getBlockByNumber", [hex(low), True])
        own = {attempt.hash for attempt in await self._stored(self._journal.attempts, entry.nonce)}
        for transaction in block["transactions"] if isinstance(block, dict) else ():
            by_us = str(transaction["from"]).lower() == _hex(self.address)
            if by_us and quantity(transaction["nonce"]) == entry.nonce:
                return bytes.fromhex(transaction["hash"][2:]) not in own
        return False

    async def _renumber(self, entry: Entry) -> None:
        log.warning(
            "%s: another program that has this key used nonce %d; %s gets a new one", self, entry.nonce, entry.key
        )
        price = await market_price(self._chain, self._max_fee_wei)
        nonce = quantity(await self._chain.request("eth_getTransactionCount", [_hex(self.address), "latest"]))
        async with self._sending:
            moved = await self._stored(
                self._journal.renumber,
                entry,
                nonce,
                await self._chain.block_number(),
                lambda numbered: self._sign(numbered, price),
            )
            self._sent_at.pop(entry.nonce, None)
            if moved.pending:
                self._pending[entry.key] = moved
                await self._broadcast(moved)

    async def _stored(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function of the journal on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
