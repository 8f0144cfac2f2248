"""What each channel can still pay for, to the last unit: deposits, vouchers, holds and charges.

A channel has a deposit D on chain, was charged C in all, and H is held for requests in flight; V is the highest
cumulative amount of its vouchers. A request that may cost L and brings a voucher of v is let through if and only if
C + H + L <= min(D, max(V, v)). So a client may have many requests in flight, their vouchers may arrive in any order,
and what a batch takes (C, never V) is always allowed by a signature of the payer.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakValueDictionary

from ncn_framework.digests import channel_id, inputs_hash, voucher_digest
from ncn_framework.errors import MalformedRequest, PaymentRequired, SignatureRejected, StoreError
from ncn_framework.models import ANONYMOUS, Domain, InferenceRequest, Lease, SignedReceipt
from ncn_framework.payments import Charge, Voucher
from ncn_framework.signing import address_hex, check_signature

from .ledger import Ledger

__all__ = ["Account", "Accounts", "Deposit", "FundsLease"]


@dataclass(frozen=True)
class Deposit:
    """A channel on chain, in wei.

    Attributes:
        deposited_wei: all that was ever put in, less what was withdrawn.
        spent_wei: all that batches have taken.
        unlock_at_s: while its client is leaving: the time from which it may take the rest; else 0.
    """

    deposited_wei: int
    spent_wei: int
    unlock_at_s: int = 0


@dataclass(eq=False)
class Account:
    """A channel as its gateway sees it.

    Attributes:
        channel: its id.
        best: voucher with the highest amount; None before the first.
        charged_wei: sum of the fees of its receipts.
        held_wei: sum of the limits of its requests in flight.
        deposit: as the chain had it when it was last asked.
        asked_at: when it was asked, in the loop's time.
    """

    channel: bytes
    best: Voucher | None = None
    charged_wei: int = 0
    held_wei: int = 0
    deposit: Deposit = Deposit(0, 0)
    asked_at: float = float("-inf")

    def signed_wei(self, voucher: Voucher) -> int:
        """Return what the payer allows in all, given that ``voucher`` has come."""
        return max(voucher.cumulative_wei, self.best.cumulative_wei if self.best else 0)

    def missing_wei(self, voucher: Voucher, limit_wei: int) -> int:
        """Return by how much a request that may cost ``limit_wei`` does not fit; 0 or less: it fits."""
        allowed = min(self.signed_wei(voucher), self.deposit.deposited_wei)
        return self.charged_wei + self.held_wei + limit_wei - allowed


class Accounts:
    """All channels with one gateway.

    Args:
        domain: that vouchers are signed for.
        gateway: its address.
        ledger: what was charged.
        deposit_of: asks the chain for a channel.
        stale_s: age after which a deposit is asked for again, beside the requests.
    """

    def __init__(
        self,
        domain: Domain,
        gateway: bytes,
        ledger: Ledger,
        deposit_of: Callable[[bytes], Awaitable[Deposit]],
        stale_s: float,
    ) -> None:
        self.domain, self.gateway, self.ledger = domain, gateway, ledger
        self.deposit_of, self.stale_s = deposit_of, stale_s
        self._accounts: dict[bytes, Account] = {}
        self._looked_at: WeakValueDictionary[bytes, Account] = WeakValueDictionary()
        self._asking: dict[bytes, asyncio.Task[None]] = {}
        self._leases: dict[bytes, FundsLease] = {}
        self._undelivered: dict[bytes, tuple[Account, int]] = {}
        self._in_doubt = set(ledger.in_doubt())
        self.tokens = itertools.count(1)
        for channel, balance in ledger.balances().items():
            self._accounts[channel] = Account(channel, balance.voucher, balance.charged_wei)

    def account(self, channel: bytes) -> Account:
        """Return a channel's account, the same one to everybody; one without a deposit is not kept."""
        found = self._accounts.get(channel) or self._looked_at.get(channel)
        if found is None:
            found = self._looked_at[channel] = Account(channel)
        return found

    def known(self, channel: bytes) -> Account | None:
        """Return the account of a channel that has a deposit or was ever charged, as far as is known; or None."""
        return self._accounts.get(channel)

    # --- a voucher comes ---

    def voucher_of(self, request: InferenceRequest) -> Voucher:
        """Return a request's voucher, its signature checked.

        Raises:
            PaymentRequired: there is none.
            MalformedRequest: it is with another gateway, or the request is neither the client's nor the signer's.
            SignatureRejected: it is not signed by the channel's signer.
        """
        voucher = request.authorization
        if not isinstance(voucher, Voucher):
            raise PaymentRequired("payment mode voucher needs a voucher with the request")
        if voucher.gateway != self.gateway:
            raise MalformedRequest(
                f"the voucher is for gateway {address_hex(voucher.gateway)}; this one is {address_hex(self.gateway)}"
            )
        if request.client not in (voucher.client, voucher.signer) or request.client == ANONYMOUS:
            raise MalformedRequest(
                f"the request is of client {address_hex(request.client)}, but the voucher draws on the channel of "
                f"{address_hex(voucher.client)} with signer {address_hex(voucher.signer)}; one of the two must sign it"
            )
        check_voucher(self.domain, voucher)
        return voucher

    async def ask(self, account: Account, since: float) -> None:
        """Ask the chain for an account's deposit, unless it was asked at ``since`` (the loop's time) or later.

        Who comes while it is about to be asked waits for the same answer, and one that has just been asked is asked
        again after ``_PAUSE_S``: so what is refused costs the chain little.

        Raises:
            ChainError: the chain does not answer.
        """
        while account.asked_at < since:
            await asyncio.shield(self._asking.get(account.channel) or self._start_to_ask(account))

    def _start_to_ask(self, account: Account) -> asyncio.Task[None]:
        task = self._asking[account.channel] = asyncio.create_task(self._ask(account))
        return task

    async def _ask(self, account: Account) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(account.asked_at + _PAUSE_S - loop.time())
            began = loop.time()
            account.deposit = await self.deposit_of(account.channel)
            account.asked_at = began
            if account.deposit.deposited_wei:
                self._accounts[account.channel] = account
        finally:
            del self._asking[account.channel]  # at once: who comes now must not wait for what is over

    async def cover(self, voucher: Voucher, limit_wei: int) -> Account:
        """Return the account of a checked voucher that covers a request of at most ``limit_wei``; holds nothing.

        Raises:
            PaymentRequired: it does not.
            ChainError: the chain had to be asked, and does not answer.
        """
        account = self.account(channel_id(voucher.client, voucher.signer, voucher.gateway))
        await self.refresh(account, limit_wei)
        self._refuse(account, voucher, limit_wei)
        return account

    async def refresh(self, account: Account, limit_wei: int) -> None:
        """Ask the chain again where a deposit, as it is known, does not allow a request of at most ``limit_wei``.

        One that does but has not been looked at for long is asked for beside the request: a channel cannot be emptied
        before its withdrawal's delay is over.

        Raises:
            ChainError: the chain had to be asked, and does not answer.
        """
        now = asyncio.get_running_loop().time()
        needed = account.charged_wei + account.held_wei + limit_wei
        if needed > account.deposit.deposited_wei or account.deposit.unlock_at_s:
            await self.ask(account, now)
        elif now - account.asked_at > self.stale_s and account.channel not in self._asking:
            self._start_to_ask(account).add_done_callback(_heard)

    def _refuse(self, account: Account, voucher: Voucher, limit_wei: int) -> None:
        name = f"channel 0x{account.channel.hex()}"
        if account.deposit.unlock_at_s:
            raise PaymentRequired(f"{name} is being withdrawn; cancel that, or pay from another one")
        missing = account.missing_wei(voucher, limit_wei)
        if missing <= 0:
            return
        needed = f"{account.charged_wei} wei charged, {account.held_wei} wei held and {limit_wei} wei for this request"
        if account.charged_wei + account.held_wei + limit_wei <= account.deposit.deposited_wei:
            raise PaymentRequired(
                f"{name}: vouchers of {account.signed_wei(voucher)} wei do not cover {needed}; sign {missing} wei more"
            )
        raise PaymentRequired(
            f"{name}: a deposit of {account.deposit.deposited_wei} wei does not cover {needed}; "
            "deposit more: ncn payments deposit"
        )

    # --- a request is served ---

    def lease(self, request: InferenceRequest, voucher: Voucher, limit_wei: int) -> FundsLease:
        """Return the hold of a request's funds, to be entered; ``voucher`` has been checked."""
        return FundsLease(self, request, voucher, limit_wei)

    def _hold(self, lease: FundsLease, account: Account) -> None:
        """Take the hold; nobody else's comes between its check and this.

        Raises:
            PaymentRequired: another one came first, and there is too little left.
        """
        self._refuse(account, lease.voucher, lease.limit_wei)
        account.held_wei += lease.limit_wei
        if account.best is None or lease.voucher.cumulative_wei > account.best.cumulative_wei:
            account.best = lease.voucher
        lease.account = account
        self._leases[lease.request.request_id] = lease

    def _free(self, lease: FundsLease) -> None:
        if lease.account is not None:
            lease.account.held_wei -= lease.limit_wei
            lease.limit_wei = 0

    def _release(self, lease: FundsLease) -> None:
        self._free(lease)
        if self._leases.get(lease.request.request_id) is lease:
            del self._leases[lease.request.request_id]

    def holds(self, request_id: bytes) -> bool:
        """Return whether funds are held for a request."""
        return request_id in self._leases

    async def charge(self, receipt: SignedReceipt, at_ms: int) -> bytes:
        """Charge what a held request has cost, durably; return the channel's id.

        A request that is in the ledger already, because a crash kept its answer from the client, costs nothing again.

        Raises:
            StoreError: it could not be written; then nothing is charged.
        """
        request_id, fee = receipt.receipt.request_id, receipt.receipt.fee_wei
        lease = self._leases[request_id]
        account, limit = lease.account, lease.limit_wei
        if account is None or account.best is None or not 0 <= fee <= limit:
            raise PaymentRequired(f"a fee of {fee} wei is not covered by the {limit} wei held for the request")
        self._free(lease)
        if fee == 0 or request_id in self._in_doubt:
            return account.channel
        request = lease.request
        charge = Charge(account.best, receipt, inputs_hash(request.inputs), request.client, request.signature)
        account.charged_wei += fee
        self._undelivered[request_id] = (account, fee)
        try:
            await self.ledger.enter(charge, at_ms, alone=len(self._leases) == 1)
        except StoreError:
            del self._undelivered[request_id]
            account.charged_wei -= fee
            raise
        return account.channel

    def delivered(self, request_id: bytes) -> None:
        """Take note that a charged request has settled: from now on it may enter a batch."""
        if self._undelivered.pop(request_id, None) is not None or request_id in self._in_doubt:
            self._in_doubt.discard(request_id)
            self.ledger.deliver(request_id)

    def undelivered(self) -> Set[bytes]:
        """Return the requests that are charged, and have not settled yet as far as is known."""
        return self._in_doubt.union(self._undelivered)

    def in_doubt(self) -> frozenset[bytes]:
        """Return the requests that an earlier run charged and of which it is not known how they ended."""
        return frozenset(self._in_doubt)

    def refuse(self, charge: Charge) -> None:
        """Give the money of a charge back to its channel: no validator signs it, so that it is never settled.

        The ledger keeps the charge, marked as refused.
        """
        voucher = charge.voucher
        account = self.known(channel_id(voucher.client, voucher.signer, voucher.gateway))
        if account is not None:
            account.charged_wei -= charge.receipt.receipt.fee_wei

    def void(self, request_id: bytes) -> None:
        """Take back the charge of a request that came to nothing after all: cancelled, or cut off by a crash.

        Nobody pays for what did not arrive. Nothing is done where there is no charge, or the request has settled.
        """
        if request_id in self._undelivered:
            account, fee = self._undelivered.pop(request_id)
        elif request_id in self._in_doubt:
            self._in_doubt.remove(request_id)
            charge = self.ledger.open_charge(request_id)
            if charge is None:
                return
            voucher, fee = charge.voucher, charge.receipt.receipt.fee_wei
            account = self._accounts[channel_id(voucher.client, voucher.signer, voucher.gateway)]
        else:
            return
        account.charged_wei -= fee
        self.ledger.void(request_id)


_PAUSE_S = 0.5
"""A channel is looked up again no sooner than this."""


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # the next request asks again


class FundsLease:
    """Funds of a channel, held for one request while the context is entered.

    The node is shown the channel's best voucher: the request's own may cover less than what is charged and held by now.

    Raises:
        PaymentRequired: they do not suffice.
    """

    leaves_at_once = True

    def __init__(self, accounts: Accounts, request: InferenceRequest, voucher: Voucher, limit_wei: int) -> None:
        self.accounts, self.request, self.voucher, self.limit_wei = accounts, request, voucher, limit_wei
        self.account: Account | None = None

    async def __aenter__(self) -> Lease:
        return self.hold(await self.accounts.cover(self.voucher, self.limit_wei))

    def hold(self, account: Account) -> Lease:
        """Take the hold on an account; entering does this once the account covers it."""
        self.accounts._hold(self, account)
        return Lease("funds", next(self.accounts.tokens), self.request.deadline_ms, account.best)

    async def __aexit__(self, *_: object) -> None:
        self.accounts._release(self)


@lru_cache(maxsize=8_192)  # a voucher is looked at when its request comes, and again when funds are held for it
def check_voucher(domain: Domain, voucher: Voucher) -> None:
    """Raise ``SignatureRejected`` unless a voucher is signed by its channel's signer."""
    if voucher.signer == ANONYMOUS:
        raise SignatureRejected("the voucher names no signer")
    channel = channel_id(voucher.client, voucher.signer, voucher.gateway)
    digest = voucher_digest(domain, channel, voucher.cumulative_wei)
    check_signature(digest, voucher.signature, voucher.signer, "the voucher")
