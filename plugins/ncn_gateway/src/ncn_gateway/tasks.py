"""All requests of this gateway: admission, idempotency, walking them, draining."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

from ncn_framework.errors import (
    DeadlineExpired,
    Draining,
    MalformedRequest,
    NcnError,
    ReplayConflict,
    RequestError,
    TaskCancelled,
    TaskEnded,
    UnknownTask,
)
from ncn_framework.lifecycle import Lifecycle
from ncn_framework.models import ANONYMOUS, Event, InferenceRequest, ModelManifest
from ncn_framework.payments import EXACT, VOUCHER, PaymentConfirmation, TransferAuthorization
from ncn_framework.states import State
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import request_from_pb
from ncn_framework.wire.convert_payments import authorization_from_pb
from ncn_framework.wire.json import SubmitJson, hash_bytes, request_from_json
from ncn_framework.wire.x402 import nonce_of

from .config import GatewaySettings
from .directory import Directory, Serving
from .links import Execution
from .store import Store
from .task import Task

__all__ = ["Admitted", "Task", "Tasks"]

log = logging.getLogger(__name__)


class Admitted(NamedTuple):
    """A request that may be tried.

    Attributes:
        request: complete and checked.
        manifest: of its model.
        fresh: the gateway drew its nonce a moment ago, so that it cannot have been seen before.
        timed: the client named the deadline, so that it is part of what must be the same.
        expired: the deadline has passed: the answer may be given again, but not computed.
    """

    request: InferenceRequest
    manifest: ModelManifest
    fresh: bool
    timed: bool
    expired: DeadlineExpired | None = None


class Tasks:
    """All requests of this gateway.

    Args:
        lifecycle: walks them.
        directory: of nodes and models.
        store: keeps them.
        settings: limits and defaults.
    """

    def __init__(self, lifecycle: Lifecycle, directory: Directory, store: Store, settings: GatewaySettings) -> None:
        self.lifecycle, self.directory, self.store, self.settings = lifecycle, directory, store, settings
        self.draining = False
        self._live: dict[bytes, Task] = {}
        self._recent: OrderedDict[bytes, Task] = OrderedDict()
        self._looking: dict[bytes, asyncio.Future[Task]] = {}

    # --- admission ---

    def admit(
        self, form: SubmitJson, *, idempotency_key: str | None = None, transfer: TransferAuthorization | None = None
    ) -> Admitted:
        """Return the request that ``form`` asks for, complete and checked; changes nothing.

        Args:
            form: as it came.
            idempotency_key: stands for the nonce where ``form`` has none.
            transfer: pays for it (mode ``exact``), and stands for the nonce where there is none else.

        Raises:
            RequestError: it must not be tried.
        """
        name = form.model
        manifest = self.directory.find(hash_bytes(name, "model") if name.startswith("0x") else name).manifest
        nonce = sha256(b"ncn.idempotency.v1" + idempotency_key.encode()).digest() if idempotency_key else None
        payment = self.settings.payment_modes[0]
        if transfer is not None:
            if form.voucher is not None:
                raise MalformedRequest("a voucher and a transfer came with one request; send the one that shall pay")
            payment, nonce = _mode(form.payment, EXACT), nonce or nonce_of(transfer)
        elif form.voucher is not None:
            payment = _mode(form.payment, VOUCHER)
        request = request_from_json(
            form,
            manifest,
            nonce=nonce or secrets.token_bytes(32),
            limit_units=self.settings.default_limit_units,
            deadline_ms=self.lifecycle.clock() + self.settings.default_deadline_ms,
            payment=payment,
        )
        if transfer is not None:
            request = replace(request, authorization=transfer)
        fresh = nonce is None and form.nonce is None
        return self._checked(Admitted(request, manifest, fresh, timed=form.deadline_ms is not None))

    def admit_pb(self, message: pb.InferenceRequest) -> Admitted:
        """The same for a request that came by gRPC."""
        if message.model and message.model_name:
            raise MalformedRequest("give either model or model_name, not both")
        manifest = self.directory.find(message.model or message.model_name).manifest
        authorization = authorization_from_pb(message)
        if isinstance(authorization, TransferAuthorization):
            message.payment = _mode(message.payment, EXACT)
            message.nonce = message.nonce or nonce_of(authorization)
        elif authorization is not None:
            message.payment = _mode(message.payment, VOUCHER)
        fresh, timed = not message.nonce, bool(message.deadline_ms)
        message.model = manifest.digest
        message.nonce = message.nonce or secrets.token_bytes(32)
        message.limit_units = message.limit_units or self.settings.default_limit_units
        message.deadline_ms = message.deadline_ms or self.lifecycle.clock() + self.settings.default_deadline_ms
        message.payment = message.payment or self.settings.payment_modes[0]
        return self._checked(Admitted(request_from_pb(message), manifest, fresh, timed))

    def _checked(self, admitted: Admitted) -> Admitted:
        request = admitted.request
        if request.payment not in self.settings.payment_modes:
            raise RequestError(
                f"payment mode {request.payment[:32]!r} is not accepted; this gateway accepts: "
                f"{', '.join(self.settings.payment_modes)}"
            )
        farthest = self.lifecycle.clock() + self.settings.max_deadline_ms
        if request.deadline_ms > farthest:
            raise RequestError(f"the deadline {request.deadline_ms} is too far away; the farthest is {farthest} ms")
        if request.client != ANONYMOUS and admitted.fresh:
            raise MalformedRequest("a request with a client needs that client's nonce")
        try:
            self.lifecycle.check(request, admitted.manifest)
        except DeadlineExpired as error:
            return admitted._replace(expired=error)
        return admitted

    # --- running ---

    async def submit(self, admitted: Admitted) -> Task:
        """Start an admitted request, or return the task that it already is; what a plugin refuses leaves no trace.

        Raises:
            ReplayConflict: its id was used with other content.
            DeadlineExpired: it is new, and its deadline has passed.
            Draining: it is new, and this gateway is shutting down.
            PaymentRequired: it is new, and its fee is not covered.
        """
        request_id = admitted.request.request_id
        known = self._live.get(request_id) or self._recent.get(request_id)
        if known is None and admitted.fresh:
            return await self._start(admitted)
        if known is None:
            looking = self._looking.get(request_id)
            if looking is None:  # who comes meanwhile with the same id waits for the same look
                looking = self._looking[request_id] = asyncio.ensure_future(self._look(admitted))
                looking.add_done_callback(lambda done: self._looked(request_id, done))
            known = await asyncio.shield(looking)
        if not _same(known.request, admitted):
            raise ReplayConflict(
                f"request id 0x{request_id.hex()} was used before with other content; draw a new nonce"
            )
        return known

    async def _look(self, admitted: Admitted) -> Task:
        """Return the stored task of this id, or start it."""
        stored = await self.store.get(admitted.request.request_id)
        return await self._start(admitted) if stored is None else Task.restored(*stored, self.store)

    def _looked(self, request_id: bytes, done: asyncio.Future[Task]) -> None:
        del self._looking[request_id]
        if not done.cancelled():
            done.exception()  # who asked may be gone by now, and a refusal is nobody else's

    async def _start(self, admitted: Admitted) -> Task:
        if admitted.expired is not None:
            raise admitted.expired
        self._refuse_while_draining()
        await self.lifecycle.admit(admitted.request, admitted.manifest)
        self._refuse_while_draining()  # a plugin may have taken its time
        task = self._live[admitted.request.request_id] = Task(admitted.request, admitted.manifest, self.store)
        task.created_ms = task.updated_ms = self.lifecycle.clock()
        task.walking = asyncio.create_task(self._walk(task))
        return task

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Draining("this gateway is shutting down; ask another, or this one again soon")

    async def _walk(self, task: Task) -> None:
        request = task.request
        try:
            candidates = self.directory.models.get(request.model) or Serving(task.manifest)
            task.outcome = await self.lifecycle.run(request, task.observe, candidates=candidates)
        except NcnError as error:
            task.error = error
        except asyncio.CancelledError:
            task.error = TaskCancelled("the task was cancelled")
        await task.rest(alone=len(self._live) == 1)
        del self._live[request.request_id]
        if task.leaves_no_trace:
            return
        self._recent[request.request_id] = task
        while len(self._recent) > self.settings.recent_tasks:
            self._recent.popitem(last=False)

    async def get(self, request_id: bytes) -> Task:
        """Return a task, running or ended.

        Raises:
            UnknownTask: there is none.
        """
        task = self._live.get(request_id) or self._recent.get(request_id)
        if task is not None:
            return task
        stored = await self.store.get(request_id)
        if stored is None:
            raise UnknownTask(f"no task has the id 0x{request_id.hex()}")
        return Task.restored(*stored, self.store)

    def executing(self, request_id: bytes, execution: Execution) -> None:
        """Note what the node of a running task sends."""
        if (task := self._live.get(request_id)) is not None:
            task.execution = execution

    async def confirm_payment(self, confirmation: PaymentConfirmation) -> Task:
        """Pass on a client's word that it has paid for a task, and return the task.

        Once the payment has arrived there is nothing left to say: the same word again changes nothing.

        Raises:
            UnknownTask: there is none of this id.
            TaskEnded: it awaits no payment.
            PaymentRequired: the transaction did not pay.
        """
        task = await self.get(confirmation.request_id)
        if task.due is not None:
            await self.lifecycle.confirm_payment(confirmation)
        elif not any(isinstance(update, Event) and update.state is State.PAID for update in task.updates):
            raise TaskEnded(
                f"task 0x{confirmation.request_id.hex()} (payment mode {task.request.payment!r}) is {task.state}; "
                "it awaits no payment"
            )
        return task

    def models(self) -> list[tuple[ModelManifest, int]]:
        """Return each served model and the number of nodes that serve it, by name."""
        found = [(serving.manifest, len(serving)) for serving in self.directory.models.values()]
        return sorted(found, key=lambda row: (row[0].name, row[0].digest))

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let what runs finish within ``timeout_s``, cancel the rest."""
        self.draining = True
        walks = {task.walking: task for task in self._live.values() if task.walking is not None}
        if not walks:
            return
        _, late = await asyncio.wait(walks, timeout=timeout_s)
        for walk in late:
            walks[walk].cancel()
        if late:
            log.warning("%d tasks were cancelled: they did not finish within %.0f s", len(late), timeout_s)
            await asyncio.wait(late)


def _mode(asked: str | None, signed: str) -> str:
    """Return the payment mode that was ``signed`` for; another one must not have been ``asked`` for."""
    if asked and asked != signed:
        raise MalformedRequest(f"what was signed pays in mode {signed!r}, but payment says {asked[:32]!r}")
    return signed


def _same(first: InferenceRequest, admitted: Admitted) -> bool:
    """Return whether a request asks for what the first of its id did; a deadline that the gateway drew is no matter."""
    again = admitted.request if admitted.timed else replace(admitted.request, deadline_ms=first.deadline_ms)
    return first.request_hash == again.request_hash
