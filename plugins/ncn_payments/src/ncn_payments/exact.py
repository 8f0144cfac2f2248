"""Payment mode ``exact``: one request paid by one signed transfer of the token (x402's scheme ``exact``, EIP-3009).

The gateway takes the transfer only when the answer is there, and pays the network out of a channel of its own, by a
voucher to itself: so the fee is split, batched and proved like any other, and the node holds a voucher for it.
It is offered for models that cost the same whatever the request: the transfer cannot be for less than was signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ncn_framework.digests import channel_id, transfer_digest, voucher_digest
from ncn_framework.errors import ChainError, MalformedRequest, NoCapacity, PaymentRequired, TransactionReverted
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain, InferenceRequest, Lease, ModelManifest, Settlement, SignedReceipt
from ncn_framework.payments import EXACT, Offer, TransferAuthorization, Voucher
from ncn_framework.signing import Signer, address_hex, check_signature

from .accounts import Account, Accounts, FundsLease
from .onchain import OnChain

__all__ = ["ExactDesk"]

_TIMEOUT_S = 300
"""How long an offer holds."""

_MARGIN_S = 30
"""How much of that may be over when the transfer arrives."""


class ExactDesk:
    """One-off payments to one gateway.

    Args:
        domain: of InferencePayment.
        signer: the gateway's key.
        accounts: in which the gateway has a channel with itself.
        chain: the contracts.
        clock: milliseconds since the epoch.
    """

    def __init__(
        self,
        domain: Domain,
        signer: Signer,
        accounts: Accounts,
        chain: OnChain,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.domain, self.signer, self.accounts, self.chain, self.clock = domain, signer, accounts, chain, clock
        self.channel = channel_id(signer.address, signer.address, signer.address)
        self._using: dict[tuple[bytes, bytes], bytes] = {}  # payer and nonce of a transfer, to the request

    def offers(self, request: InferenceRequest, manifest: ModelManifest) -> tuple[Offer, ...]:
        """Return the offers for a request that has not been paid."""
        if manifest.unit_fee_wei or not manifest.base_fee_wei:
            return ()
        return (
            Offer(
                mode=EXACT,
                amount_wei=manifest.base_fee_wei,
                token=self.chain.addresses.token,
                pay_to=self.signer.address,
                chain_id=self.domain.chain_id,
                timeout_s=_TIMEOUT_S,
                extra={"name": self.chain.token_name, "version": "1"},
            ),
        )

    async def check(self, request: InferenceRequest, manifest: ModelManifest) -> None:
        """Raise unless a request brings a transfer that pays for it, and would succeed now.

        Raises:
            PaymentRequired: it does not; with offers.
            SignatureRejected: it is not signed by its payer.
            MalformedRequest: the transfer pays for another request.
            NoCapacity: the gateway's own channel is empty.
            ChainError: the chain does not answer.
        """
        offers = self.offers(request, manifest)
        if not offers:
            raise PaymentRequired(f"model {manifest.name!r} has no fixed price; pay for it by voucher or escrow")
        transfer = request.authorization
        if not isinstance(transfer, TransferAuthorization):
            raise PaymentRequired("payment mode exact needs a signed transfer with the request", offers)
        offer = offers[0]
        if transfer.payee != offer.pay_to or transfer.value_wei != offer.amount_wei:
            raise PaymentRequired(
                f"the transfer is of {transfer.value_wei} wei to {address_hex(transfer.payee)}; due are "
                f"{offer.amount_wei} wei to {address_hex(offer.pay_to)}",
                offers,
            )
        now_ms = self.clock()
        until_ms = min(request.deadline_ms, now_ms + (_TIMEOUT_S - _MARGIN_S) * 1000)
        if not (transfer.valid_after_s * 1000 < now_ms and until_ms < transfer.valid_before_s * 1000):
            raise PaymentRequired(
                f"the transfer holds from {transfer.valid_after_s} to {transfer.valid_before_s}; it must hold from now "
                f"to the request's deadline, or for {_TIMEOUT_S - _MARGIN_S} s",
                offers,
            )
        token = Domain(self.domain.chain_id, self.chain.addresses.token)
        digest = transfer_digest(token, self.chain.token_name, transfer)
        check_signature(digest, transfer.signature, transfer.payer, "the transfer")
        self.refuse_second_use(transfer, request)
        try:
            await self.chain.simulate_transfer(transfer)
        except TransactionReverted as cause:
            raise PaymentRequired(f"the transfer would fail: {cause}", offers) from cause
        await self.account(manifest.base_fee_wei)

    def refuse_second_use(self, transfer: TransferAuthorization, request: InferenceRequest) -> None:
        """Raise ``MalformedRequest`` where a transfer pays for another request that is in flight."""
        if self._using.get((transfer.payer, transfer.nonce), request.request_id) != request.request_id:
            raise MalformedRequest("the transfer pays for another request already; sign one for each")

    def lease(self, request: InferenceRequest, manifest: ModelManifest) -> _Lease:
        """Return the gateway's own hold for the request, to be entered; ``check`` has let it pass."""
        return _Lease(self, request, manifest)

    # --- the gateway's own channel ---

    async def account(self, fee_wei: int) -> Account:
        """Return the account of the gateway's channel with itself, which covers ``fee_wei`` more.

        Raises:
            NoCapacity: it does not.
        """
        account = self.accounts.account(self.channel)
        await self.accounts.refresh(account, fee_wei)
        if account.deposit.unlock_at_s or _left(account) < fee_wei:
            raise NoCapacity(
                f"the gateway's own channel has {_left(account)} wei left, and {fee_wei} wei are due out of it: no "
                "one-off payments for now; pay by voucher, or try again later"
            )
        return account

    def voucher(self, account: Account, fee_wei: int) -> Voucher:
        """Return the gateway's voucher to itself that covers what is charged and held, and ``fee_wei`` more."""
        cumulative, own = account.charged_wei + account.held_wei + fee_wei, self.signer.address
        signature = self.signer.sign(voucher_digest(self.domain, self.channel, cumulative)).value
        return Voucher(own, own, own, cumulative, signature)

    async def top_up(self, wanted_wei: int) -> None:
        """Bring what is left in the gateway's channel up to ``wanted_wei``, once less than half of that is left.

        Raises:
            ChainError, TransactionReverted, PaymentRequired: that could not be done.
        """
        account, own = self.accounts.account(self.channel), self.signer.address
        if _left(account) * 2 >= wanted_wei:
            return
        await self.accounts.ask(account, asyncio.get_running_loop().time())
        missing = min(wanted_wei - _left(account), await self.chain.tokens(own))
        if _left(account) * 2 < wanted_wei and missing > 0:
            await self.chain.fund(own, own, own, missing, f"own-channel:{account.deposit.deposited_wei}:{missing}")
            await self.accounts.ask(account, asyncio.get_running_loop().time())

    # --- the answer is there ---

    async def settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Settlement:
        """Charge the gateway's channel, and take the transfer; where that fails, the charge is void with the request.

        Raises:
            PaymentRequired: the transfer fails now.
            ChainError: it is not known to have succeeded.
            StoreError: the charge could not be written; nothing is taken.
        """
        transfer = _transfer(request)
        await self.accounts.charge(receipt, self.clock())
        try:
            tx = await self.chain.take_transfer(transfer, f"exact:{transfer.payer.hex()}:{transfer.nonce.hex()}")
        except TransactionReverted as cause:
            if cause.reason == "InsufficientFunds":  # not the payer's: the gateway's ether for the transaction's fee
                raise ChainError(f"the transfer cannot be taken now: {cause}") from cause
            raise PaymentRequired(f"the transfer failed: {cause}") from cause
        return Settlement(EXACT, transfer.value_wei, tx)


def _left(account: Account) -> int:
    return account.deposit.deposited_wei - account.charged_wei - account.held_wei


def _transfer(request: InferenceRequest) -> TransferAuthorization:
    if not isinstance(request.authorization, TransferAuthorization):
        raise PaymentRequired("payment mode exact needs a signed transfer with the request")
    return request.authorization


class _Lease:
    """The gateway's own funds, held for a request; and the transfer, for no other one meanwhile."""

    leaves_at_once = True

    def __init__(self, desk: ExactDesk, request: InferenceRequest, manifest: ModelManifest) -> None:
        self.desk, self.request, self.fee_wei = desk, request, manifest.base_fee_wei
        self.transfer = _transfer(request)
        self._funds: FundsLease | None = None

    async def __aenter__(self) -> Lease:
        desk, key = self.desk, (self.transfer.payer, self.transfer.nonce)
        desk.refuse_second_use(self.transfer, self.request)
        desk._using[key] = self.request.request_id
        try:
            account = await desk.account(self.fee_wei)
            # nobody else holds anything between the voucher, which covers just what is held, and this hold
            funds = desk.accounts.lease(self.request, desk.voucher(account, self.fee_wei), self.fee_wei)
            lease = funds.hold(account)
        except BaseException:
            del desk._using[key]
            raise
        self._funds = funds
        return lease

    async def __aexit__(self, *error: object) -> None:
        self.desk._using.pop((self.transfer.payer, self.transfer.nonce), None)
        if self._funds is not None:
            await self._funds.__aexit__(*error)
