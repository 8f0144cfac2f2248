"""Where a request's receipt was settled: read from the ledger and the chain, for the proofs that clients keep."""

from __future__ import annotations

import asyncio

from ncn_framework import digests, merkle
from ncn_framework.errors import ChainError, TaskEnded, UnknownTask
from ncn_framework.inclusion import Inclusion

from .batches import channel_of
from .ledger import Ledger
from .ledger_reader import BatchState
from .onchain import OnChain

__all__ = ["inclusion_of"]


async def inclusion_of(ledger: Ledger, chain: OnChain, request_id: bytes) -> Inclusion:
    """Return the way from a charged request to its batch on chain; the validators' signatures are those on chain.

    Raises:
        UnknownTask: nothing was charged for it here.
        TaskEnded: its charge is in no batch on chain yet, or somebody else made that batch.
        ChainError: the chain does not answer.
    """
    name = f"task 0x{request_id.hex()}"
    known, row = await asyncio.to_thread(ledger.charged, request_id)
    if not known:
        raise UnknownTask(f"{name} was not charged by this gateway's ledger")
    if row is None or row.state is not BatchState.SETTLED:
        raise TaskEnded(f"the receipt of {name} is in no batch on chain yet; ask again later")
    statement = await asyncio.to_thread(ledger.statement, row.gateway, row.nonce)
    if statement is None:
        raise TaskEnded(f"the receipt of {name} was settled by somebody else, in batch {row.nonce}; ask them")
    index = next(i for i, c in enumerate(statement.charges) if c.receipt.receipt.request_id == request_id)
    leaves = await asyncio.to_thread(lambda: [digests.charge_leaf(charge) for charge in statement.charges])
    transaction = bytes.fromhex(row.tx.removeprefix("0x"))
    quorum = await chain.batch_quorum(transaction, statement.batch.epoch)
    if quorum is None:
        raise ChainError(f"transaction {row.tx} of batch {row.nonce} does not show who signed it")
    members = await chain.members(statement.batch.epoch)
    path = merkle.path(leaves, leaves[index])
    return Inclusion(statement.batch, channel_of(statement.charges[index]), path, members, quorum, transaction)
