"""Who holds a key pays what is due: into escrow, from its own account there; or a fee, to the treasury."""

from __future__ import annotations

from ncn_framework.config import Config
from ncn_framework.errors import PaymentRequired, TransactionReverted, VerificationError
from ncn_framework.models import Domain
from ncn_framework.payments import FeeDue, PaymentDue
from ncn_framework.signing import Signer, address_hex

from .commands.opening import opened
from .config import PaymentsSettings
from .onchain import OnChain
from .writer import TransactionWriter

__all__ = ["pay"]


async def pay(config: Config, due: PaymentDue | FeeDue, signer: Signer) -> bytes:
    """Pay what is due with ``signer``'s key; return the transaction's hash once it is final.

    Raises:
        PaymentRequired: who pays has not so much.
        VerificationError: another contract is to be paid than that of this network.
        ChainError: the chain does not answer.
    """
    return await (_escrow(config, due, signer) if isinstance(due, PaymentDue) else _fee(config, due, signer))


async def _escrow(config: Config, due: PaymentDue, signer: Signer) -> bytes:
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


async def _fee(config: Config, due: FeeDue, signer: Signer) -> bytes:
    """Pay a fee with ``signer``'s key; return the transaction's hash once it is final.

    Paid once: asked again for the same purpose, it returns the same transaction.

    Raises:
        PaymentRequired: the wallet has not so much.
        ReplayConflict: another amount was paid for this purpose.
        ChainError: the chain does not answer.
    """
    async with opened(config) as contracts:
        settings = config.load(PaymentsSettings)
        async with TransactionWriter.of(settings, contracts.chain, signer, config.home) as writer:
            treasury = await contracts.registry.read("treasury")
            call = contracts.token.call("transfer", treasury, due.amount_wei)
            try:
                return (await writer.send(call, key=f"fee:{due.purpose}")).hash
            except TransactionReverted as cause:
                if cause.reason != "ERC20InsufficientBalance":
                    raise
                has = await contracts.token.read("balanceOf", signer.address)
                raise PaymentRequired(
                    f"{due.purpose} costs {due.amount_wei} wei of the token; wallet {address_hex(signer.address)} has "
                    f"{has}: send it some"
                ) from cause
