"""The hook specifications. docs/hooks.md says the same for plugin authors; a test compares the two.

Each hook is of one kind:

- decision: the first plugin that accepts answers. The implementation is a plain ``def``: it returns None at
  once to decline, or an awaitable (for ``ncn_execute`` an asynchronous generator) to accept.
- around: every plugin may return an asynchronous context manager; the kernel enters all of them, in call
  order, and leaves them in reverse on every path.
- every: every plugin is called; it returns a value, an awaitable of one, or None. One failure fails the stage.
- notify: every plugin is called; the result is ignored, a failure is logged and harms nobody else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    import click

    from .committees import Epoch
    from .config import Settings
    from .models import (
        Candidates,
        Chunk,
        Event,
        InferenceRequest,
        Lease,
        Leases,
        ModelManifest,
        Record,
        Route,
        SandboxSpec,
        Settlement,
        Signature,
        SignedReceipt,
    )
    from .node import Node
    from .payments import FeeDue, PaymentConfirmation, PaymentDue, Quorum
    from .signing import Signer
    from .statements import Contradiction, Evidence, Reputation, Statement
    from .states import State

F = TypeVar("F", bound=Callable[..., Any])

PROJECT = "ncn"
_hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's functions as hook implementations."""


def _kind(name: str) -> Callable[[F], F]:
    def mark(function: F) -> F:
        function.ncn_kind = name  # type: ignore[attr-defined]
        return _hookspec(function, firstresult=name == "decision")

    return mark


# --- the six hooks of a request's life ---


@_kind("every")
def ncn_register(record: Record) -> Awaitable[None] | None:
    """Publish a signed record to the network (not to be confused with registering a plugin).

    Called when a node starts, when its record changes and before it expires; in a gateway, for each record
    that arrives. The record's signature has been checked.
    """


@_kind("decision")
def ncn_route(request: InferenceRequest, candidates: Candidates) -> Awaitable[Route] | None:
    """Choose a node for a request.

    Args:
        request: checked against the model's specification.
        candidates: nodes that serve the model now; never empty. Indexing costs the same at any size.

    Returns:
        The route, with a reason code for each node looked at.

    Raises:
        NoCandidate: none of them will do.
    """


@_kind("around")
def ncn_reserve(request: InferenceRequest, route: Route) -> AbstractAsyncContextManager[Lease | None] | None:
    """Reserve what the request needs: capacity, a slot, funds.

    All or nothing: when one plugin refuses, what the others reserved is released. The context is left when
    the request has settled, or with the exception that ended it. One whose leaving never waits may say so by an
    attribute ``leaves_at_once = True``: that saves the task which else shields it.

    Raises:
        CapacityError: not now.
    """


@_kind("decision")
def ncn_execute(request: InferenceRequest, leases: Leases) -> AsyncGenerator[Chunk | SignedReceipt, None] | None:
    """Execute the request on ``leases.route``; the answer is what an asynchronous generator function returns.

    A runtime declines models that are not its own (``leases.route.manifest.runtime``) and yields chunks with
    empty links. Who streams from another node yields its chunks, and its signed receipt last.

    Raises:
        NodeError: the execution failed.
    """


@_kind("every")
def ncn_sign(receipt: SignedReceipt) -> Awaitable[Signature | Iterable[Signature] | None] | None:
    """Sign a receipt that this process vouches for; ``receipt.signatures`` holds those that came with it."""


@_kind("decision")
def ncn_settle(receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement] | None:
    """Settle the fee of a validated receipt; decline payment modes (``request.payment``) that are not yours."""


# --- supporting hooks ---


@_kind("every")
def ncn_check(request: InferenceRequest, manifest: ModelManifest) -> Awaitable[None] | None:
    """Refuse a request before anything of it is stored, by raising.

    Called in a gateway for each request that is new and well formed.

    Raises:
        PaymentRequired: the fee is not covered; its offers say how to pay.
        RequestError: it must not be tried.
    """


@_kind("decision")
def ncn_confirm_payment(confirmation: PaymentConfirmation) -> Awaitable[None] | None:
    """Take a client's word that it has paid for a request that awaits payment; decline a request that is not yours.

    Raises:
        PaymentRequired: the transaction did not pay.
        ChainError: the chain does not answer.
    """


@_kind("decision")
def ncn_pay(due: PaymentDue | FeeDue, signer: Signer) -> Awaitable[bytes] | None:
    """Pay what is due, into escrow or to the treasury; the answer is the hash of the transaction, once it is final.

    Called by a user's commands, with the user's key, outside of any node. Decline another chain than yours.

    Raises:
        PaymentRequired: who pays has not so much.
        ChainError: the chain does not answer.
    """


@_kind("decision")
def ncn_recall(request_id: bytes) -> Awaitable[State | None] | None:
    """Say where a request of an earlier run came to rest; the answer is None where nobody ever heard of it.

    Called after a restart by plugins that have something of the request on disk themselves.
    """


# --- validation ---


@_kind("decision")
def ncn_endorse(statement: Statement) -> Awaitable[Quorum] | None:
    """Have a quorum of validators check a statement and sign it.

    Raises:
        EndorsementRefused: too few of them agree.
    """


@_kind("decision")
def ncn_vouch(statement: Statement, evidence: Mapping[bytes, Evidence]) -> Awaitable[tuple[Signature, ...]] | None:
    """Check a statement, and sign it with the keys of the validators that this process speaks for.

    Let every plugin refuse it first (``node.validation.inspect``). What was signed once is never contradicted.

    Raises:
        EndorsementRefused: what is wrong, or which evidence is wanted.
    """


@_kind("every")
def ncn_inspect(statement: Statement, evidence: Mapping[bytes, Evidence]) -> Awaitable[None] | None:
    """Refuse a statement that a validator of this process is about to sign, by raising.

    Raises:
        EndorsementRefused: what is wrong, or which evidence is wanted.
    """


@_kind("decision")
def ncn_disclose(request_id: bytes) -> Awaitable[Evidence | None] | None:
    """Give a validator a request that this gateway served, with its whole answer; None where it has it no more."""


@_kind("decision")
def ncn_epoch(number: int) -> Awaitable[Epoch] | None:
    """Say which validators an epoch has, as pinned on chain; number 0 is the current epoch.

    Raises:
        ChainError: the chain does not answer, or has no such epoch.
    """


@_kind("decision")
def ncn_report(statement: Statement | Contradiction, quorum: Quorum | None) -> Awaitable[str] | None:
    """Put a quorum's verdict or performances on chain, or a contradiction, which needs no quorum.

    The answer is the transaction's hash.

    Raises:
        TransactionReverted: it was reported before, there is no stake, or this process has no ether for the fee.
        ChainError: the chain does not answer.
    """


@_kind("decision")
def ncn_reputation(account: bytes, period: int) -> Awaitable[Reputation] | None:
    """Say what the chain has of an account's conduct, and whether a period's performances are in it; period 0: none.

    Raises:
        ChainError: the chain does not answer.
    """


@_kind("notify")
def ncn_standing(account: bytes, out: bool, reason: str) -> None:
    """Hear that somebody may no longer be given work (``out``), or may again; must not block."""


# --- services, settings, commands ---


@_kind("around")
def ncn_serve(node: Node) -> AbstractAsyncContextManager[Any] | None:
    """Run a service for as long as the node runs; leaving the context is the order to drain and stop."""


@_kind("every")
def ncn_settings() -> type[Settings] | None:
    """Own a table of the configuration."""


@_kind("every")
def ncn_commands() -> Iterable[click.Command] | None:
    """Add commands to ``ncn``. Import what is slow inside the command, not above it."""


@_kind("every")
def ncn_http_routes(node: Node) -> Iterable[Any] | None:
    """Add Starlette routes to the gateway's HTTP application."""


@_kind("notify")
def ncn_event(event: Event) -> None:
    """Hear of each move of a request; called in the order of the moves, must not block."""


@_kind("every")
def ncn_runtimes() -> Iterable[str] | None:
    """Name the runtimes (``manifest.runtime``) that this plugin's ``ncn_execute`` accepts; nodes announce those."""


@_kind("decision")
def ncn_open_sandbox(spec: SandboxSpec, mode: str) -> AbstractAsyncContextManager[Any] | None:
    """Start a program in a jail of the given mode: ``strict``, ``permissive`` or ``disabled``.

    Returns:
        An asynchronous context manager that yields the running process (``pid``, ``wait()``, ``kill()``); None to
        decline the mode. When the context is left, the program and all that it started are gone.

    Raises:
        SandboxError: the jail cannot be made that strict.
    """
