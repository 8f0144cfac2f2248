"""One request through the six hooks, and undo on failure. Nothing else calls these hooks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from . import digests
from .errors import (
    ChainBroken,
    DeadlineExpired,
    InvalidTensor,
    NcnError,
    NoHandlerError,
    OutputRejected,
    ReceiptRejected,
    RequestTooLarge,
    SignatureRejected,
    TaskEnded,
    code_of,
)
from .manager import PluginSet
from .models import (
    ANONYMOUS,
    Candidates,
    Chunk,
    Domain,
    InferenceRequest,
    Lease,
    Leases,
    ModelManifest,
    Receipt,
    Record,
    Route,
    Settlement,
    Signature,
    SignedReceipt,
)
from .payments import Escrow, PaymentConfirmation
from .reservations import Reservations, finish
from .results import required, values
from .signing import check_signature
from .states import State
from .tensors import check_tensors, pack_tensors, unpack_tensors
from .walk import Observer, Walk

__all__ = ["Lifecycle", "Observer", "Outcome", "StageLimits", "now_ms"]

log = logging.getLogger(__name__)


def now_ms() -> int:
    """Return the wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class StageLimits:
    """Time limits of the stages and bounds of an answer.

    Attributes:
        route_ms, reserve_ms, execute_ms, sign_ms, settle_ms: limit of each stage.
        pay_ms: how long a client may take to pay into escrow.
        release_ms: limit of undoing each reservation.
        output_bytes: most bytes of all chunks of an answer.
        chunks: most chunks of an answer.
    """

    route_ms: int = 1_000
    reserve_ms: int = 10_000
    execute_ms: int = 120_000
    sign_ms: int = 10_000
    settle_ms: int = 30_000
    pay_ms: int = 300_000
    release_ms: int = 5_000
    output_bytes: int = 64 << 20
    chunks: int = 65_536


@dataclass(frozen=True)
class Outcome:
    """How a request ended well."""

    route: Route
    chunks: tuple[Chunk, ...]
    receipt: SignedReceipt
    settlement: Settlement


class Lifecycle:
    """Walks requests through the hooks of one node's plugins.

    Args:
        plugins: of the node.
        domain: that signatures are bound to.
        limits: of stages and answers.
        clock: milliseconds since the epoch; another one in tests.
    """

    def __init__(
        self,
        plugins: PluginSet,
        domain: Domain | None = None,
        limits: StageLimits | None = None,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.plugins = plugins
        self.domain = domain or Domain()
        self.limits = limits or StageLimits()
        self.clock = clock
        self._hook = plugins.hook

    # --- before the walk ---

    def check(self, request: InferenceRequest, manifest: ModelManifest) -> None:
        """Raise the ``RequestError`` of a request that no node should see; changes nothing.

        Raises:
            InvalidTensor: inputs are not what ``manifest`` says.
            RequestTooLarge: the unit limit is zero or passes 63 bits, or its fee passes 96 bits.
            DeadlineExpired: the deadline has passed.
            SignatureRejected: the client is not anonymous and its signature is missing or wrong.
        """
        check_tensors(request.inputs, manifest.inputs, error=InvalidTensor)
        if not 0 < request.limit_units < 2**63:
            raise RequestTooLarge(f"limit_units is {request.limit_units}; it must lie between 1 and 2^63-1")
        if manifest.fee_wei(request.limit_units, request.payment) >= 2**96:
            raise RequestTooLarge(f"the fee of {request.limit_units} units passes 96 bits; lower limit_units")
        if request.deadline_ms <= self.clock():
            raise DeadlineExpired(f"the deadline {request.deadline_ms} has passed; now is {self.clock()} ms")
        if request.client != ANONYMOUS:
            digest = digests.request_digest(self.domain, request)
            check_signature(digest, request.signature, request.client, "the request")
        elif request.signature:
            raise SignatureRejected("the request has a signature but no client; name the client that signed")

    async def admit(self, request: InferenceRequest, manifest: ModelManifest) -> None:
        """Let every plugin refuse a request that ``check`` let pass, before it is stored.

        Raises:
            PaymentRequired: its fee is not covered.
            RequestError: it must not be tried.
        """
        await values(self._hook.ncn_check(request=request, manifest=manifest))

    async def confirm_payment(self, confirmation: PaymentConfirmation) -> None:
        """Pass on a client's word that it has paid for a request.

        Raises:
            TaskEnded: the request awaits no payment.
        """
        found = self._hook.ncn_confirm_payment(confirmation=confirmation)
        if found is None:
            raise TaskEnded(f"task 0x{confirmation.request_id.hex()} awaits no payment")
        await found

    async def recall(self, request_id: bytes) -> State | None:
        """Return where a request of an earlier run came to rest; None where nobody knows of it."""
        found = self._hook.ncn_recall(request_id=request_id)
        state: State | None = None if found is None else await found
        return state

    async def register(self, record: Record) -> None:
        """Check a record and publish it through every plugin.

        Raises:
            SignatureRejected: not signed by its owner.
            DeadlineExpired: it has expired.
        """
        check_signature(
            digests.record_digest(self.domain, record), record.signature, record.owner, f"the {record.kind} record"
        )
        if record.expires_ms <= self.clock():
            raise DeadlineExpired(f"the {record.kind} record expired at {record.expires_ms} ms")
        await values(self._hook.ncn_register(record=record))

    # --- the walk ---

    async def run(
        self,
        request: InferenceRequest,
        observe: Observer,
        *,
        candidates: Candidates | None = None,
        route: Route | None = None,
    ) -> Outcome:
        """Take a checked request from RECEIVED to SETTLED.

        Args:
            request: that ``check`` let pass.
            observe: hears each move and chunk.
            candidates: for the route hook; not needed where ``route`` is given.
            route: on the executing node itself, which has nothing to choose.

        Raises:
            NcnError: why it failed; by then everything reserved has been released, and the last move
                was FAILED, EXPIRED or CANCELLED.
            asyncio.CancelledError: the caller cancelled; likewise.
        """
        walk = Walk(self, request, observe)
        walk.move(State.RECEIVED)
        try:
            return await self._walk(walk, request, observe, candidates, route)
        finally:
            if walk.escrow is not None and walk.state is not State.SETTLED:
                await self._refund(walk, walk.escrow)

    async def _walk(
        self,
        walk: Walk,
        request: InferenceRequest,
        observe: Observer,
        candidates: Candidates | None,
        route: Route | None,
    ) -> Outcome:
        try:
            async with Reservations(request.request_id, self.limits.release_ms) as reserved, walk:
                if route is None:
                    walk.stage("route", self.limits.route_ms)
                    found = self._hook.ncn_route(request=request, candidates=candidates)
                    route = await required(found, "ncn_route", f"model 0x{request.model.hex()}")
                walk.move(State.ROUTED, node=route.node)
                walk.stage("reserve", self.limits.reserve_ms)
                held = list[Lease]()
                for context in self._hook.ncn_reserve(request=request, route=route):
                    if (lease := await reserved.enter(context)) is not None:
                        held.append(lease)
                        walk.escrow = lease.escrow or walk.escrow
                walk.move(State.RESERVED)
                if walk.escrow is not None:
                    walk.stage("pay", self.limits.pay_ms)
                    walk.move(State.AWAITING_PAYMENT, payment=walk.escrow.due)
                    await walk.escrow.paid()
                    walk.move(State.PAID)
                walk.move(State.EXECUTING)
                walk.stage("execute", self.limits.execute_ms)
                chunks, signed = await self._execute(request, Leases(route, tuple(held)), observe)
                walk.move(State.EXECUTED)
                walk.stage("sign", self.limits.sign_ms)
                signed = await self._sign(signed)
                walk.move(State.VALIDATED)
                walk.stage("settle", self.limits.settle_ms)
                found = self._hook.ncn_settle(receipt=signed, request=request)
                settlement = await required(found, "ncn_settle", f"payment mode {request.payment!r}")
                walk.move(State.SETTLED)
        except asyncio.CancelledError:
            walk.end(State.CANCELLED, "cancelled: the caller cancelled")
            raise
        except DeadlineExpired as error:
            walk.end(State.EXPIRED, _detail(error))
            raise
        except NcnError as error:
            walk.end(State.FAILED, _detail(error))
            raise
        except Exception as error:
            log.exception("request 0x%s: a plugin failed", request.request_id.hex())
            walk.end(State.FAILED, "internal: a plugin failed; the log has the cause")
            raise NcnError("a plugin failed; the log has the cause") from error
        return Outcome(route, tuple(chunks), signed, settlement)

    async def repeat(self, request: InferenceRequest, manifest: ModelManifest) -> list[Chunk]:
        """Execute a request again, as a validator: nothing is reserved, signed or settled.

        Raises:
            NcnError: it could not be executed here.
        """
        async with asyncio.timeout(self.limits.execute_ms / 1000):
            leases = Leases(Route(ANONYMOUS, manifest), ())
            chunks, _ = await self._execute(request, leases, lambda moved: None)
        return chunks

    async def _execute(
        self, request: InferenceRequest, leases: Leases, observe: Observer
    ) -> tuple[list[Chunk], SignedReceipt]:
        manifest, node = leases.route.manifest, leases.route.node
        started = self.clock()
        stream = self._hook.ncn_execute(request=request, leases=leases)
        if stream is None:
            raise NoHandlerError(
                f"no plugin executes runtime {manifest.runtime!r} of model {manifest.name!r}; install its runtime"
            )
        link = digests.chain_start(request.request_hash, request.model, node)
        chunks: list[Chunk] = []
        units = size = 0
        claimed: SignedReceipt | None = None
        async with aclosing(stream):
            async for item in stream:
                if claimed is not None:
                    raise ChainBroken(f"node 0x{node.hex()} sent more behind its receipt")
                if isinstance(item, SignedReceipt):
                    claimed = item
                    continue
                size += len(item.data)
                if item.sequence != len(chunks) + 1 or not units <= item.units <= request.limit_units:
                    raise ChainBroken(
                        f"chunk {item.sequence} with {item.units} units follows chunk {len(chunks)} with {units}; "
                        f"the next is {len(chunks) + 1}, with at most {request.limit_units} units"
                    )
                if size > self.limits.output_bytes or len(chunks) >= self.limits.chunks:
                    raise OutputRejected(
                        f"the answer passes {self.limits.output_bytes} bytes or {self.limits.chunks} chunks"
                    )
                link, units = digests.chunk_link(link, item), item.units
                if item.link and item.link != link:
                    raise ChainBroken(f"chunk {item.sequence} has link 0x{item.link.hex()}, not 0x{link.hex()}")
                outputs = unpack_tensors(item.data, error=OutputRejected)
                check_tensors(outputs, manifest.outputs, error=OutputRejected)
                if pack_tensors(outputs) != item.data:  # else a client that packs them anew gets another link
                    raise OutputRejected(f"chunk {item.sequence} is not in the one encoding of its tensors")
                chunk = item if item.link else replace(item, link=link)
                chunks.append(chunk)
                observe(chunk)
        receipt = Receipt(
            request_id=request.request_id,
            request_hash=request.request_hash,
            model=request.model,
            output_hash=link,
            chunks=len(chunks),
            units=units,
            fee_wei=manifest.fee_wei(units, request.payment),
            node=node,
            started_ms=claimed.receipt.started_ms if claimed else started,
            finished_ms=claimed.receipt.finished_ms if claimed else max(started, self.clock()),
        )
        if not chunks:
            raise OutputRejected(f"node 0x{node.hex()} gave no output")
        if claimed is None:
            return chunks, SignedReceipt(receipt, ())
        self._check_receipt(claimed, receipt)
        return chunks, claimed

    def _check_receipt(self, claimed: SignedReceipt, expected: Receipt) -> None:
        """Raise ``ReceiptRejected`` unless the node signed just what this side saw."""
        if claimed.receipt != expected:
            wrong = next(n for n in vars(expected) if getattr(expected, n) != getattr(claimed.receipt, n))
            raise ReceiptRejected(f"the node's receipt is wrong about {wrong}")
        if not 0 < expected.started_ms <= expected.finished_ms:
            raise ReceiptRejected(f"the receipt ends at {expected.finished_ms}, before {expected.started_ms}")
        try:
            digest = digests.receipt_digest(self.domain, expected)
            check_signature(digest, claimed.signature_of(expected.node), expected.node, "the receipt")
        except SignatureRejected as cause:
            raise ReceiptRejected(str(cause)) from cause

    async def _refund(self, walk: Walk, escrow: Escrow) -> None:
        """Have what a request that failed has paid into escrow given back; shielded, within the limit of settling."""

        async def within() -> None:
            async with asyncio.timeout(self.limits.settle_ms / 1000):
                refunded = await escrow.refund()
            if refunded:
                walk.move(State.REFUNDED, walk.detail)

        try:
            await finish(within())
        except Exception:
            log.exception(
                "request 0x%s: not refunded; anybody may do so after its expiry", walk.request.request_id.hex()
            )

    async def _sign(self, signed: SignedReceipt) -> SignedReceipt:
        for made in await values(self._hook.ncn_sign(receipt=signed)):
            if made is not None:
                more = (made,) if isinstance(made, Signature) else tuple(made)
                signed = replace(signed, signatures=signed.signatures + more)
        if not signed.signature_of(signed.receipt.node):
            raise NoHandlerError(
                f"no plugin signed the receipt as its node 0x{signed.receipt.node.hex()}; "
                "install one whose ncn_sign holds the node's key"
            )
        return signed


def _detail(error: NcnError) -> str:
    return f"{code_of(error).code}: {error}"
