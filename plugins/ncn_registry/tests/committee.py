"""Validators without a chain: an epoch, statements for it, and a plugin that answers as each test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ncn_framework import digests, hookimpl
from ncn_framework.committees import Epoch, Member
from ncn_framework.errors import ChainError
from ncn_framework.models import Chunk, Receipt, Signature, SignedReceipt
from ncn_framework.node import Node
from ncn_framework.payments import Batch, Charge, Credit, EscrowTerms, Voucher
from ncn_framework.signing import Signer
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Evidence,
    FailureStatement,
    Statement,
    TermsStatement,
    digest_of,
    excluded_from,
)
from ncn_framework.testing.fakes import fake_manifest, fake_request, fake_signer

from .network import DOMAIN, NODE, RunningRegistry, Sea, a_registry, until

VALIDATORS = [fake_signer(f"validator {number}") for number in range(5)]
GATEWAY = fake_signer("a gateway")
CLIENT = fake_signer("a client")
REQUEST = fake_request(client=CLIENT)

Vouching = Callable[[Node, Statement, Mapping[bytes, Evidence]], Awaitable[tuple[Signature, ...]]]


def an_epoch(members: int = 5, quorum: int = 3, number: int = 7) -> Epoch:
    """Return an epoch of validators with equal stakes."""
    signers = (VALIDATORS + [fake_signer(f"validator {n}") for n in range(5, members)])[:members]
    return Epoch(number, tuple(Member(s.address, 10**18) for s in signers), quorum, 2**40, b"\x5e" * 32, b"\xd1" * 20)


def terms(**changes: Any) -> EscrowTerms:
    """Return terms of ``REQUEST``."""
    fields: dict[str, Any] = {
        "client": CLIENT.address,
        "nonce": 4,
        "gateway": GATEWAY.address,
        "node": NODE.address,
        "amount_wei": 1_000,
        "epoch": 7,
        "expiry_s": 2**40,
        "request_hash": REQUEST.request_hash,
    }
    return EscrowTerms(**fields | changes)


def a_failure(**changes: Any) -> FailureStatement:
    """Return the statement that an escrow came to nothing; ``changes`` are fields of its terms."""
    agreed = terms(**changes)
    return FailureStatement(agreed, digests.escrow_id(DOMAIN, agreed.client, agreed.nonce), "it failed", bytes(65))


def some_terms() -> TermsStatement:
    """Return the statement of an escrow's terms."""
    agreed = terms()
    return TermsStatement(agreed, digests.escrow_id(DOMAIN, agreed.client, agreed.nonce), REQUEST, 1_000, 0)


def a_receipt(number: int = 0) -> SignedReceipt:
    """Return a node's receipt; of ``REQUEST`` where no number is given."""
    request_id = REQUEST.request_id if number == 0 else number.to_bytes(32, "big")
    receipt = Receipt(request_id, REQUEST.request_hash, REQUEST.model, b"\x0a" * 32, 1, 1, 900, NODE.address, 1, 2)
    return SignedReceipt(receipt, (NODE.sign(digests.receipt_digest(DOMAIN, receipt)),))


def a_completion() -> CompletionStatement:
    """Return the statement of an escrow's result."""
    agreed = terms()
    return CompletionStatement(agreed, digests.escrow_id(DOMAIN, agreed.client, agreed.nonce), a_receipt())


def a_batch(count: int = 1, nonce: int = 1, payees: tuple[bytes, ...] = (), epoch: int = 7) -> BatchStatement:
    """Return a batch of so many charges, the first of them of ``REQUEST``."""
    head = Batch(GATEWAY.address, nonce, epoch, count, b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32)
    voucher = Voucher(CLIENT.address, CLIENT.address, GATEWAY.address, 10**6, bytes(65))
    charges = tuple(
        Charge(voucher, a_receipt(number), b"\x11" * 32, CLIENT.address, bytes(65)) for number in range(count)
    )
    return BatchStatement(head, (), tuple(Credit(payee, 1) for payee in payees), charges)


def some_evidence(size: int = 4) -> Evidence:
    """Return ``REQUEST`` with an answer."""
    return Evidence(REQUEST, (Chunk(1, 1, bytes(size), b"\x0a" * 32),), a_receipt(), fake_manifest())


def signed_by(statement: Statement, *signers: Signer) -> tuple[Signature, ...]:
    """Return the signatures of ``signers`` over a statement."""
    digest = digest_of(DOMAIN, statement)
    return tuple(signer.sign(digest) for signer in signers)


async def sign_all(node: Node, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
    """Sign anything with every key that may."""
    return signed_by(statement, *(v for v in node.validators if v.address not in excluded_from(statement)))


def a_chain(epoch: Epoch, vouching: Vouching = sign_all, shown: Mapping[bytes, Evidence] | None = None) -> Any:
    """Return a plugin that knows one epoch, vouches for the validators of its process, and discloses what is given."""

    class Chain:
        roles = ("registry", "gateway", "compute")
        vouched: ClassVar[list[tuple[Statement, Mapping[bytes, Evidence]]]] = []

        def __init__(self, node: Node) -> None:
            self.node = node

        @hookimpl
        def ncn_epoch(self, number: int) -> Awaitable[Epoch]:
            async def found() -> Epoch:
                if number not in (0, epoch.number):
                    raise ChainError(f"the chain has no epoch {number}")
                return epoch

            return found()

        @hookimpl
        def ncn_vouch(
            self, statement: Statement, evidence: Mapping[bytes, Evidence]
        ) -> Awaitable[tuple[Signature, ...]] | None:
            if not self.node.validators:
                return None
            self.vouched.append((statement, evidence))
            return vouching(self.node, statement, evidence)

        @hookimpl
        def ncn_disclose(self, request_id: bytes) -> Awaitable[Evidence | None]:
            async def found() -> Evidence | None:
                return (shown or {}).get(request_id)

            return found()

    return Chain


@asynccontextmanager
async def registries(
    folder: Path, validators: Sequence[Sequence[Signer]], vouching: Vouching = sign_all, epoch: Epoch | None = None
) -> AsyncIterator[tuple[Sea, list[RunningRegistry], list[AsyncExitStack]]]:
    """Run registries that know of each other, each with some validators; the stacks stop one each."""
    sea, found, stacks = Sea(), list[RunningRegistry](), list[AsyncExitStack]()
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    async with AsyncExitStack() as outer:
        for number, own in enumerate(validators):
            stack = AsyncExitStack()
            outer.push_async_callback(stack.aclose)
            chain = a_chain(epoch or an_epoch(), vouching)
            made = a_registry(folder / f"registry{number}", sea, [chain], own)
            found.append(await stack.enter_async_context(made))
            stacks.append(stack)
        names = {signer.address for own in validators for signer in own}
        for one in found:
            await until(partial(_knows, one, names))
        yield sea, found, stacks


def _knows(one: RunningRegistry, validators: set[bytes]) -> bool:
    return {record.owner for record in shown(one)} >= validators


def shown(one: RunningRegistry) -> list[Any]:
    assert one.registry.roll is not None
    return one.registry.roll.shown(("validator",))
