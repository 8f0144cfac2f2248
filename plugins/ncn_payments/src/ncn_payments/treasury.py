"""Fees to the network's treasury, such as that of a new subnet, found on chain by who has to know: they are plain
transfers of the token."""

from __future__ import annotations

from ncn_framework.errors import EndorsementRefused
from ncn_framework.signing import address_hex

from .chain.interface import quantity
from .contracts import Contracts

__all__ = ["check_fee"]


async def check_fee(
    contracts: Contracts, transaction: bytes, payer: bytes, amount_wei: int, confirmations: int
) -> None:
    """Refuse a fee that was not paid.

    Args:
        contracts: of the network.
        transaction: hash of the one that is said to have paid.
        payer: whose tokens it must have been.
        amount_wei: least amount.
        confirmations: blocks, its own included, that make a transaction final.

    Raises:
        EndorsementRefused: it is not on chain, not final yet, failed, or paid too little or somebody else.
        ChainError: the chain does not answer.
    """
    name = f"transaction 0x{transaction.hex()}"
    chain, registry, token = contracts.chain, contracts.registry, contracts.token
    receipt = await chain.request("eth_getTransactionReceipt", ["0x" + transaction.hex()])
    if receipt is None:
        raise EndorsementRefused(f"{name} is not on chain; ask again once it is")
    if quantity(receipt["status"]) != 1:
        raise EndorsementRefused(f"{name} failed: it has paid nothing")
    depth = await chain.block_number() - quantity(receipt["blockNumber"]) + 1
    if depth < confirmations:
        raise EndorsementRefused(f"{name} has {depth} confirmations; ask again once it has {confirmations}")
    treasury = await registry.read("treasury")
    paid = sum(
        int(event.arguments["value"])
        for event in token.events(receipt["logs"], "Transfer")
        if (event.arguments["from"], event.arguments["to"]) == (payer, treasury)
    )
    if paid < amount_wei:
        raise EndorsementRefused(
            f"{name} brought {paid} wei from {address_hex(payer)} to the treasury {address_hex(treasury)}; "
            f"the fee is {amount_wei} wei"
        )
