"""Notices between registries: told when a quorum has signed something here, heard of what others say, and checked."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from ncn_framework.committees import Epoch
from ncn_framework.errors import (
    ChainError,
    EndorsementRefused,
    NcnError,
    NoHandlerError,
    StoreError,
)
from ncn_framework.models import Record, Signature
from ncn_framework.signing import check_signature
from ncn_framework.statements import Statement, epoch_of
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb, record_to_pb

from .database import noticed
from .notices import Notice, notice_from_record, notice_record, receipts_of
from .outcomes import Answered, Outcome
from .signatures import Signatures
from .tallies import Proven, Tallies

if TYPE_CHECKING:
    from ncn_framework.node import Node

    from .swarm import Swarm

__all__ = ["NOTICES", "Noticeboard", "proven_by"]

log = logging.getLogger(__name__)

NOTICES = "ncn/notices/1"

_MOST_BYTES = 28 << 10
"""Of notices in one message, where gossip takes 32 KiB."""
_MOST_AT_ONCE = 64
"""Notices in one message."""
_PAUSE_S = 0.5
"""Between messages; authors are held to 20 of all topics a second."""
_BACKLOG, _LATER = 4_096, 4_096
_EPOCHS = 16


class Noticeboard:
    """Entered as an asynchronous context manager, in which its tasks run.

    Args:
        node: the registry of this process; knows epochs.
        swarm: its libp2p.
        tallies: where what is proven goes.
        skew_ms: by how much clocks may differ.
        retry_s: after which what could not be checked, because the chain was away, is tried again.
        signed: called with a digest and validators' signatures under it, checked.
    """

    def __init__(
        self,
        node: Node,
        swarm: Swarm,
        tallies: Tallies,
        skew_ms: int,
        retry_s: float = 5.0,
        signed: Callable[[bytes, Sequence[Signature]], object] = lambda digest, signatures: None,
    ) -> None:
        self._node, self._swarm, self._tallies, self._signed = node, swarm, tallies, signed
        self._skew_ms, self._retry_s = skew_ms, retry_s
        self._inbox = asyncio.Queue[Notice](_BACKLOG)
        self._later: deque[Notice] = deque(maxlen=_LATER)
        self._outbox: deque[Record] = deque(maxlen=_BACKLOG)
        self._more = asyncio.Event()
        self._epochs: dict[int, Epoch] = {}
        self._away_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Noticeboard:
        await self._swarm.subscribe(NOTICES)
        self._tasks = [asyncio.create_task(part) for part in (self._read(), self._again(), self._tell())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- told ---

    def told(self, statement: Statement, signatures: Signatures, outcomes: Sequence[Outcome]) -> None:
        """Tell everybody of a statement that a quorum signed here, this registry as well.

        Nobody speaks against itself: what validators of this process did not sign, others may tell.
        """
        own = {signer.address for signer in self._node.validators}
        against = [outcome for outcome in outcomes if outcome.validator not in own]
        signer = next((one for one in self._node.validators if one.address in signatures), self._node.signer)
        notice = Notice(
            signer.address,
            self._node.lifecycle.clock(),
            signatures.digest,
            epoch_of(statement),
            tuple(signatures.all()),
            tuple(one.validator for one in against if one.answered is Answered.REFUSED),
            tuple(one.validator for one in against if one.answered is Answered.SILENT),
            receipts_of(statement),
        )
        self._take(notice)
        if len(self._outbox) == _BACKLOG:
            log.warning("%d notices wait already; the oldest is not told", _BACKLOG)
        self._outbox.append(notice_record(notice, signer, self._node.domain))
        self._more.set()

    async def flush(self) -> None:
        """Tell what is still to be told, as far as one message holds it."""
        message, size = pb.Records(), 0
        while self._outbox and len(message.records) < _MOST_AT_ONCE:
            encoded = record_to_pb(self._outbox[0])
            size += encoded.ByteSize() + 8
            if message.records and size > _MOST_BYTES:
                break
            message.records.append(encoded)
            self._outbox.popleft()
        if message.records:
            try:
                await self._swarm.publish(NOTICES, message.SerializeToString(deterministic=True))
            except (TimeoutError, NcnError, OSError, RuntimeError) as error:
                log.warning("%d notices were not told: %s", len(message.records), error)

    async def _tell(self) -> None:
        while True:
            while not self._outbox:
                self._more.clear()
                await self._more.wait()
            await self.flush()
            await asyncio.sleep(_PAUSE_S)

    # --- heard ---

    def admit(self, data: bytes) -> bool:
        """Return whether a message is worth passing on; called in the thread of libp2p."""
        try:
            message = pb.Records.FromString(data)
        except DecodeError:
            return False
        return 0 < len(message.records) <= _MOST_AT_ONCE and bool(self._notices(message))

    def heard(self, data: bytes, peer: str) -> None:
        """Take a message of another registry."""
        try:
            message = pb.Records.FromString(data)
        except DecodeError:
            log.debug("a message of peer %s has no notices", peer)
            return
        if len(message.records) <= _MOST_AT_ONCE:
            for notice in self._notices(message):
                self._take(notice)

    def _notices(self, message: pb.Records) -> list[Notice]:
        """Return the notices of a message; all of them count, as far as can be seen without the chain, or none."""
        found, now = [], self._node.lifecycle.clock()
        for one in message.records:
            try:
                found.append(notice_from_record(record_from_pb(one), self._node.domain, now, self._skew_ms))
            except NcnError as error:
                log.debug("a message with notices does not count: %s", error)
                return []
        return found

    def _take(self, notice: Notice) -> None:
        if self._inbox.full():
            log.warning("a notice of 0x%s is not counted: %d wait already", notice.teller.hex(), _BACKLOG)
            return
        self._inbox.put_nowait(notice)

    async def _read(self) -> None:
        while True:
            await self._count(await self._inbox.get())

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(self._retry_s)
            for _ in range(len(self._later)):
                await self._count(self._later.popleft())

    async def _count(self, notice: Notice) -> None:
        try:
            epoch = await self._epoch(notice.epoch)
            proven = await asyncio.to_thread(proven_by, notice, epoch)
            self._signed(notice.digest, notice.signatures)
            self._tallies.put(proven).add_done_callback(noticed)
        except (ChainError, NoHandlerError) as error:
            log.debug("a notice of epoch %d waits: %s", notice.epoch, error)
            self._later.append(notice)
        except StoreError as error:
            log.warning("a notice is not counted: %s", error)
        except NcnError as error:
            log.info("a notice of 0x%s does not count: %s", notice.teller.hex(), error)
        except Exception:  # a stranger's notice must not end this task
            log.exception("a notice of 0x%s could not be checked", notice.teller.hex())

    async def _epoch(self, number: int) -> Epoch:
        """Return an epoch, which never changes.

        Raises:
            ChainError: the chain does not answer, or has not begun it, as far as this registry sees.
            EndorsementRefused: it is too old, or far from having begun.
        """
        if number < self._tallies.oldest:
            raise EndorsementRefused(f"epoch {number} counts no more; the first that does is {self._tallies.oldest}")
        if (known := self._epochs.get(number)) is not None:
            return known
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until:
            raise ChainError("the chain did not answer a moment ago")
        try:
            current = await self._node.validation.epoch()
            if number == current.number + 1:
                raise ChainError(f"epoch {number} has not begun here yet")
            if number > current.number:
                raise EndorsementRefused(f"epoch {number} has not begun; the current one is {current.number}")
            epoch = current if number == current.number else await self._node.validation.epoch(number)
        except (ChainError, NoHandlerError):
            self._away_until = loop.time() + self._retry_s / 2
            raise
        while len(self._epochs) >= _EPOCHS:
            del self._epochs[min(self._epochs)]
        self._epochs[number] = epoch
        return epoch


def proven_by(notice: Notice, epoch: Epoch) -> Proven:
    """Return what a notice proves about the members of its epoch.

    What it says of those that did not sign, and of nodes, counts where its teller is a member, and of nobody but
    others.

    Raises:
        SignatureRejected: a signature is not its signer's.
        EndorsementRefused: a signer is no member, or they are no quorum.
    """
    members = {member.address for member in epoch.members}
    signers = frozenset(one.signer for one in notice.signatures)
    if strangers := signers - members:
        raise EndorsementRefused(f"0x{min(strangers).hex()} is no member of epoch {epoch.number}")
    if len(signers) < epoch.quorum:
        raise EndorsementRefused(f"{len(signers)} members of epoch {epoch.number} signed, not {epoch.quorum}")
    for one in notice.signatures:
        check_signature(notice.digest, one.value, one.signer, "the statement of a notice")
    if notice.teller not in members:
        return Proven(notice.digest, epoch.number, signers)
    others = frozenset(members - {notice.teller} - signers)
    return Proven(
        notice.digest,
        epoch.number,
        signers,
        notice.teller,
        others.intersection(notice.refused),
        others.intersection(notice.silent),
        notice.receipts,
    )
