"""A gateway's ledger of vouchers, honest: C charged + H held + L of the next request <= min(D deposited, V signed)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ncn_client.channel import ChannelJson
from ncn_framework import digests
from ncn_framework.errors import PaymentRequired, SignatureRejected
from ncn_framework.models import Domain
from ncn_framework.payments import Voucher
from ncn_framework.signing import check_signature
from ncn_framework.wire.json_payments import voucher_json


@dataclass
class Account:
    """One channel."""

    deposited: int
    charged: int = 0
    unlock_at_s: int = 0
    held: dict[bytes, int] = field(default_factory=dict)
    best: Voucher | None = None

    @property
    def drawn(self) -> int:
        return self.charged + sum(self.held.values())

    @property
    def signed(self) -> int:
        return self.best.cumulative_wei if self.best else 0


class Ledger:
    """The channels of one gateway.

    Attributes:
        deposit: what a channel has that nobody has used yet.
        refused: number of vouchers that fell short.
    """

    def __init__(self, domain: Domain, gateway: bytes, deposit: int = 10**24) -> None:
        self.domain, self.gateway, self.deposit = domain, gateway, deposit
        self.accounts: dict[bytes, Account] = {}
        self.refused = 0

    def account(self, client: bytes, signer: bytes) -> Account:
        """Return a channel; a new one has ``deposit``."""
        channel = digests.channel_id(client, signer, self.gateway)
        return self.accounts.setdefault(channel, Account(self.deposit))

    def admit(self, request_id: bytes, client: bytes, limit: int, voucher: Voucher | None) -> None:
        """Hold ``limit`` for a request of ``client``, or refuse its voucher."""
        if voucher is None:
            raise PaymentRequired("there is no voucher")
        if voucher.gateway != self.gateway or client not in (voucher.client, voucher.signer):
            raise PaymentRequired("the voucher is of another channel")
        channel = digests.channel_id(voucher.client, voucher.signer, voucher.gateway)
        digest = digests.voucher_digest(self.domain, channel, voucher.cumulative_wei)
        try:
            check_signature(digest, voucher.signature, voucher.signer, "the voucher")
        except SignatureRejected as cause:
            raise PaymentRequired(str(cause)) from cause
        account = self.account(voucher.client, voucher.signer)
        allowed = max(account.signed, voucher.cumulative_wei)
        if account.unlock_at_s or account.drawn + limit > min(account.deposited, allowed):
            self.refused += 1
            raise PaymentRequired(f"drawn {account.drawn}, asked {limit}, signed {allowed}, has {account.deposited}")
        if voucher.cumulative_wei > account.signed:
            account.best = voucher
        account.held[request_id] = limit

    def charge(self, request_id: bytes, fee: int) -> None:
        """Turn what is held for a request into a charge."""
        for account in self.accounts.values():
            limit = account.held.pop(request_id, None)
            if limit is not None:
                assert fee <= limit
                account.charged += fee
                assert account.charged <= min(account.deposited, account.signed)

    def free(self, request_id: bytes) -> None:
        """Let go of what is held for a request that failed."""
        for account in self.accounts.values():
            account.held.pop(request_id, None)

    def form(self, client: bytes, signer: bytes) -> ChannelJson:
        """Return how a channel stands."""
        account = self.account(client, signer)
        return ChannelJson(
            channel="0x" + digests.channel_id(client, signer, self.gateway).hex(),
            deposited_wei=str(account.deposited),
            charged_wei=str(account.charged),
            held_wei=str(sum(account.held.values())),
            unlock_at_s=account.unlock_at_s,
            voucher=voucher_json(account.best) if account.best else None,
        )
