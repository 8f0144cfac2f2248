"""One round of asking validators to sign one statement."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from ncn_framework.committees import COMMITTEE, Epoch, draw
from ncn_framework.errors import EndorsementRefused, NcnError, SignatureRejected
from ncn_framework.models import Domain, Signature
from ncn_framework.statements import Statement, excluded_from, subject_of

from .outcomes import Answered, Outcome
from .refusals import merged, requests_of
from .signatures import Signatures

__all__ = ["Ask", "Question", "Round"]

log = logging.getLogger(__name__)

Question: TypeAlias = Callable[[], Awaitable[tuple[Signature, ...]]]
Ask: TypeAlias = Callable[[bytes], Awaitable[tuple[str, Question]]]


class Round:
    """Asks the drawn committee at once, and who was drawn next in place of each that fails or is late.

    It ends when a quorum has signed. Those of the committee that have not answered then have until the first hedge to
    do so, since one of them may want to see an answer, which is honoured: else whoever checks most would be whom
    nobody waits for. Where answers are shown already, a quorum ends it at once.

    Args:
        domain: of InferencePayment.
        epoch: of the statement.
        statement: to be signed.
        shown: the requests whose answers are shown beside it. Where there are some, a quorum is not held up by who
            wants to see more.
        ask: returns, for a validator, the name of whoever speaks for it and how that one is asked; who speaks for
            several is asked once.
        hedge_s: after which one more validator is asked, and again.

    Attributes:
        signatures: that came in and count.
    """

    def __init__(
        self, domain: Domain, epoch: Epoch, statement: Statement, shown: frozenset[bytes], ask: Ask, hedge_s: float
    ) -> None:
        self.signatures = Signatures(domain, epoch, statement)
        self._epoch, self._shown, self._ask, self._hedge_s = epoch, shown, ask, hedge_s
        self._showable = requests_of(statement)
        order = draw(epoch, subject_of(statement), excluded_from(statement))
        self._next = deque(epoch.members[place].address for place in order)
        self._asked: dict[bytes, float] = {}
        self._pending: dict[asyncio.Task[tuple[Signature, ...]], bytes] = {}
        self._questions: dict[str, asyncio.Future[tuple[Signature, ...]]] = {}
        self._reasons: dict[bytes, NcnError] = {}
        self._wanting: set[bytes] = set()
        self._wanted: set[bytes] = set()
        self._ended = 0.0

    async def run(self) -> None:
        """Ask until it is decided; may be cancelled where time is up, and what came in stays."""
        loop = asyncio.get_running_loop()
        began = hedged = loop.time()
        for _ in range(max(COMMITTEE, self._epoch.quorum)):
            self._ask_next()
        try:
            while self._pending:
                wait_s = max(0.0, hedged + self._hedge_s - loop.time())
                done, _ = await asyncio.wait(self._pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._take(self._pending.pop(task), task)
                heard_out = not self._pending or loop.time() - began >= self._hedge_s
                if self._decided and (heard_out or (self._shown and self.signatures.enough)):
                    break
                if loop.time() - hedged >= self._hedge_s:
                    hedged += self._hedge_s
                    self._ask_next()
        finally:
            self._ended = loop.time()
            left = [*self._pending, *self._questions.values()]
            for one in left:
                one.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def result(self) -> Signatures:
        """Return the signatures, which make a quorum.

        Raises:
            EndorsementRefused: too few signed, or one of them wants to see more first.
        """
        if self.signatures.enough and (self._shown or not self._wanted):
            return self.signatures
        silent = NcnError("it gave no answer in time")
        reasons = {v: self._reasons.get(v, silent) for v in self._asked if v not in self.signatures}
        count, able = len(self.signatures), self.signatures.able
        raise merged(reasons, count, self._epoch.quorum, able, self._epoch.number, self._wanted)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield what each validator did; of one that had no time to answer, or wants to see more, nothing."""
        for validator, since in self._asked.items():
            reason = self._reasons.get(validator)
            if validator in self.signatures:
                answered = Answered.SIGNED
            elif isinstance(reason, EndorsementRefused | SignatureRejected):
                answered = Answered.REFUSED
            elif reason is not None or self._ended - since >= self._hedge_s:
                answered = Answered.SILENT
            else:
                continue
            if validator not in self._wanting:
                digest, agreed = self.signatures.digest, self.signatures.enough
                yield Outcome(validator, self._epoch.number, digest, answered, agreed)

    @property
    def _decided(self) -> bool:
        """Whether nothing that is still to come would make it better."""
        possible = len(self.signatures) + len(self._pending) + len(self._next)
        wants = bool(self._wanted) and not self._shown
        return self.signatures.enough or wants or possible < self._epoch.quorum

    def _ask_next(self) -> None:
        while self._next:
            validator = self._next.popleft()
            if validator not in self.signatures:  # else who speaks for several gave it already
                self._asked[validator] = asyncio.get_running_loop().time()
                self._pending[asyncio.create_task(self._answer_of(validator))] = validator
                return

    async def _answer_of(self, validator: bytes) -> tuple[Signature, ...]:
        speaker, question = await self._ask(validator)
        if speaker not in self._questions:
            self._questions[speaker] = asyncio.ensure_future(question())
        return await asyncio.shield(self._questions[speaker])

    def _take(self, validator: bytes, task: asyncio.Task[tuple[Signature, ...]]) -> None:
        try:
            for signature in task.result():
                self.signatures.add(signature)
            if validator not in self.signatures:
                raise SignatureRejected("what it gave is not its signature under this statement")
        except EndorsementRefused as refusal:
            self._reasons[validator] = refusal
            if wanted := (refusal.wanted & self._showable) - self._shown:
                self._wanted |= wanted
                self._wanting.add(validator)
                if not self._shown:
                    return  # it will sign once it has seen them
        except NcnError as error:
            self._reasons[validator] = error
        except Exception as error:
            log.exception("asking validator 0x%s failed", validator.hex())
            self._reasons[validator] = NcnError(f"asking it failed: {type(error).__name__}")
        else:
            return
        self._ask_next()
