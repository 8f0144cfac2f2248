"""A client pays into escrow: what its gateway says is due, from its own account."""

from __future__ import annotations

from ncn_framework.config import Config
from ncn_framework.errors import PaymentRequired, VerificationError
from ncn_framework.models import Domain
from ncn_framework.payments import PaymentDue
from ncn_framework.signing import Signer, address_hex

from .commands.opening import opened
from .config import PaymentsSettings
from .onchain import OnChain
from .writer import TransactionWriter

__all__ = ["pay_due"]


async def pay_due(config: Config, due: PaymentDue, signer: Signer) -> bytes:
    """Pay what is due with ``signer``'s key; return the transaction's hash once it is final.

    Paid once: asked again for the same request, it returns the same transaction.

    Raises:
        PaymentRequired: the client's account has not so much.
        VerificationError: another contract is to be paid than that of this network.
        ChainError: the chain does not answer.
    """
    terms = due.terms
    async with opened(config) as contracts:
        if due.contract != contracts.addresses.payment:
            raise VerificationError(
                "contract",
                f"is {address_hex(due.contract)}; this network's is {address_hex(contracts.addresses.payment)}",
            )
        settings = config.load(PaymentsSettings)
        async with TransactionWriter.of(settings, contracts.chain, signer, config.home) as writer:
            chain = OnChain(contracts, Domain(due.chain_id, due.contract), writer)
            free_wei = (await chain.account(signer.address)).free_wei
            if free_wei < terms.amount_wei and not await chain.is_escrowed(terms):
                raise PaymentRequired(
                    f"{terms.amount_wei} wei are due; the escrow account of {address_hex(signer.address)} has "
                    f"{free_wei} wei: ncn payments deposit AMOUNT --account"
                )
            key = f"escrow:{due.escrow_id.hex()}:{terms.request_hash.hex()}"
            return (await chain.pay_escrow(terms, due.quorum, key)).hash
