"""Subnets as one registry knows them: shown once a quorum's signatures were checked against the chain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache

from ncn_framework import digests
from ncn_framework.committees import Epoch
from ncn_framework.errors import (
    CapacityError,
    ChainError,
    DeadlineExpired,
    EndorsementRefused,
    MalformedRequest,
    NcnError,
    NoCapacity,
    NoHandlerError,
    ReplayConflict,
    UnknownSubnet,
)
from ncn_framework.models import Record
from ncn_framework.payments import Quorum
from ncn_framework.quorums import check_quorum
from ncn_framework.signing import address_from_hex, address_hex, check_signature
from ncn_framework.statements import SubnetStatement
from ncn_framework.wire.convert_subnets import (
    ENDORSED_SUBNET,
    EndorsedSubnet,
    Subnet,
    endorsed_from_record,
    subnet_from_record,
)

from .records import KINDS, NODE
from .roll import Roll

__all__ = ["Subnets"]

log = logging.getLogger(__name__)

_MOST_WAITING = 256
_MOST_EPOCHS = 64
_EPOCH_S = 10.0
"""Limit of one question to the chain."""
_CURRENT_S = 10.0
"""How long it is believed which epoch is the current one, where one beyond it is named."""
_AGAIN_S = 2.0
"""How soon what could not be checked is checked again, because the chain was away."""

_read = lru_cache(1_024)(endorsed_from_record)

Find = Callable[[str, bytes], Awaitable[Record | None]]
Epochs = Callable[[int], Awaitable[Epoch]]
Endorse = Callable[[SubnetStatement], Awaitable[Quorum]]


@dataclass(frozen=True)
class _Waiting:
    record: Record
    direct: bool
    done: asyncio.Future[None]

    def fail(self, error: NcnError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Subnets:
    """Entered as an asynchronous context manager, in which quorums are checked.

    Args:
        roll: whose records they are.
        find: looks for a record in the DHT: kind, owner.
        epochs: returns an epoch's validators as the chain has them; 0: the current one's.
        endorse: has a quorum sign a statement.
    """

    def __init__(self, roll: Roll, find: Find, epochs: Epochs, endorse: Endorse) -> None:
        self.roll, self.domain = roll, roll.judge.domain
        self._find, self._epochs, self._endorse = find, epochs, endorse
        self._waiting: dict[bytes, _Waiting] = {}
        self._more = asyncio.Event()
        self._known: dict[int, Epoch] = {}
        self._current = (0, 0.0)  # number of the newest epoch that is known, and when it was asked for
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Subnets:
        self.roll.endorsed = self.take
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for one in self._waiting.values():
            one.done.cancel()

    # --- what is known ---

    def all(self) -> list[EndorsedSubnet]:
        """Return the subnets that are shown, by id."""
        return [_read(record) for record in sorted(self.roll.shown((ENDORSED_SUBNET,)), key=lambda r: r.owner)]

    def get(self, owner: bytes) -> EndorsedSubnet | None:
        """Return the subnet of an owner; None where none is shown."""
        record = self.roll.get(ENDORSED_SUBNET, owner)
        return None if record is None else _read(record)

    async def find(self, name: str) -> EndorsedSubnet:
        """Return a subnet by its name or its owner's address; by the latter, from the DHT where need be.

        Raises:
            UnknownSubnet: none that a quorum has signed is known.
            MalformedRequest: a mistyped address, or a name that two subnets have.
        """
        if name.startswith("0x"):
            try:
                owner = address_from_hex(name)
            except ValueError as cause:
                raise MalformedRequest(f"subnet {name[:64]!r}: {cause}") from cause
            found = self.get(owner)
            if found is None and (record := await self._find(ENDORSED_SUBNET, owner)) is not None:
                found = _read(record)
        else:
            named = [one for one in self.all() if one.subnet.name == name]
            if len(named) > 1:
                ids = " and ".join(address_hex(one.subnet.owner) for one in named)
                raise MalformedRequest(f"{name!r} is the name of subnets {ids}; give the address of the one you mean")
            found = named[0] if named else None
        if found is None:
            raise UnknownSubnet(f"no subnet {name[:64]!r} is known here; `ncn subnet list` shows those that are")
        return found

    def members(self, owner: bytes) -> int:
        """Return how many compute nodes that are alive have joined a subnet."""
        return sum(1 for _ in self.roll.nodes(subnet=owner))

    def belongs(self, subnet: bytes, address: bytes) -> bool:
        """Return whether an address is a subnet's owner, one of its gateways, or a node that has joined it."""
        if address == subnet or self.roll.is_member(address, subnet):
            return True
        known = self.get(subnet)
        return known is not None and address in known.subnet.gateways

    # --- having a quorum sign ---

    async def endorse(self, record: Record, fee_transaction: bytes = b"") -> EndorsedSubnet:
        """Have a quorum sign a configuration.

        Args:
            record: of kind ``subnet``, from anybody.
            fee_transaction: that paid for the subnet.

        Raises:
            RequestError: it does not count.
            EndorsementRefused: too few validators agree.
            ChainError: the chain does not answer.
        """
        subnet = self.check(record)
        statement = SubnetStatement((await self._asked(0)).number, record, fee_transaction)
        quorum = await self._endorse(statement)
        check_quorum(self.domain, statement, quorum, await self._epoch(statement.epoch))
        return EndorsedSubnet(record, subnet, quorum, fee_transaction)

    async def inspect(self, statement: SubnetStatement) -> None:
        """Refuse a configuration that a validator of this process is about to sign.

        Raises:
            EndorsementRefused: what is wrong.
        """
        try:
            self.check(statement.record)
        except NcnError as cause:
            raise EndorsementRefused(str(cause)) from cause

    def check(self, record: Record) -> Subnet:
        """Return what a configuration says, if it may be the next one of its subnet.

        Raises:
            RequestError: it is malformed, expires too late or has done so, is not newer than the one known, bears
                the name of another subnet, or is not signed by its owner.
        """
        judge = self.roll.judge
        subnet, now = subnet_from_record(record), judge.clock()
        what = f"version {record.sequence} of subnet {address_hex(record.owner)}"
        if not 0 < record.sequence < 2**63:
            raise MalformedRequest(f"{what}: a version is a positive 63-bit int")
        if record.expires_ms <= now:
            raise DeadlineExpired(f"{what} expired at {record.expires_ms} ms; now is {now} ms: sign a fresh one")
        if record.expires_ms > now + KINDS[ENDORSED_SUBNET].lifetime_ms + judge.bounds.skew_ms:
            raise MalformedRequest(f"{what} expires at {record.expires_ms} ms; a subnet counts for a year at most")
        known = self.roll.store.get(ENDORSED_SUBNET, record.owner)
        if known is not None and record.sequence <= known.record.sequence:
            raise ReplayConflict(f"{what} is not newer than {known.record.sequence}, which was published")
        for other in self.all():
            if other.subnet.name == subnet.name and other.subnet.owner != subnet.owner:
                raise ReplayConflict(
                    f"{subnet.name!r} is the name of subnet {address_hex(other.subnet.owner)} already; choose another"
                )
        check_signature(digests.record_digest(self.domain, record), record.signature, record.owner, what)
        return subnet

    # --- checking quorums ---

    def take(self, record: Record, direct: bool) -> asyncio.Future[None]:
        """Check the quorum of a record that counts otherwise, then have the roll keep it.

        Returns:
            Done once it is durable, or with what is wrong. Where the chain does not answer, it fails with that, and
            the record is checked again later all the same.

        Raises:
            ReplayConflict: a newer one is being checked.
            NoCapacity: too many are.
        """
        known = self._waiting.get(record.owner)
        if known is not None and known.record.sequence >= record.sequence:
            raise ReplayConflict(
                f"version {known.record.sequence} of subnet {address_hex(record.owner)} is being checked"
            )
        if known is None and len(self._waiting) >= _MOST_WAITING:
            raise NoCapacity(f"{_MOST_WAITING} subnets wait to be checked; try again soon")
        if known is not None:
            known.fail(ReplayConflict(f"version {record.sequence} came meanwhile"))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._waiting[record.owner] = _Waiting(record, direct, done)
        self._more.set()
        return done

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            self._more.clear()
            for one in list(self._waiting.values()):
                await self._settle(one)
            if self._waiting:  # the chain is away, or more came
                try:
                    await asyncio.wait_for(self._more.wait(), _AGAIN_S)
                except TimeoutError:
                    continue

    async def _settle(self, one: _Waiting) -> None:
        record = one.record
        try:
            await self._verify(record)
        except (ChainError, NoHandlerError, CapacityError) as error:
            if record.expires_ms > self.roll.judge.clock():
                one.fail(ChainError(f"the quorum of subnet {address_hex(record.owner)} is not checked yet: {error}"))
                return
        except Exception as error:  # whatever a stranger's bytes bring about, others are to be checked
            refused = error if isinstance(error, NcnError) else EndorsementRefused("it could not be checked")
            log.warning("subnet %s is not taken: %s", address_hex(record.owner), error)
            one.fail(refused)
        else:
            try:
                written = self.roll.put(record, direct=one.direct, alive=False, checked=True)
            except NcnError as error:
                one.fail(error)
            else:
                written.add_done_callback(lambda future: _pass_on(future, one.done))
        if self._waiting.get(record.owner) is one:
            del self._waiting[record.owner]

    async def _verify(self, record: Record) -> None:
        endorsed = _read(record)
        inner = endorsed.record
        what = f"the configuration of subnet {address_hex(record.owner)}"
        check_signature(digests.record_digest(self.domain, inner), inner.signature, record.owner, what)
        epoch = await self._epoch(endorsed.quorum.epoch)
        check_quorum(self.domain, SubnetStatement(epoch.number, inner), endorsed.quorum, epoch)

    async def _epoch(self, number: int) -> Epoch:
        """Return an epoch; the chain is not asked again and again for one that it does not have."""
        if (known := self._known.get(number)) is not None:
            return known
        newest, asked = self._current
        now = asyncio.get_running_loop().time()
        if number > newest and (newest == 0 or number == newest + 1 or now - asked >= _CURRENT_S):
            newest = (await self._asked(0)).number
        if not 0 < number <= newest:
            raise EndorsementRefused(f"the chain has no epoch {number}; the current one is {newest}")
        return await self._asked(number)

    async def _asked(self, number: int) -> Epoch:
        try:
            async with asyncio.timeout(_EPOCH_S):
                epoch = await self._epochs(number)
        except TimeoutError as cause:
            raise ChainError(f"the chain did not say within {_EPOCH_S:.0f} s who the validators are") from cause
        if number == 0:
            self._current = (epoch.number, asyncio.get_running_loop().time())
        if len(self._known) >= _MOST_EPOCHS:
            self._known.clear()
        self._known[epoch.number] = epoch
        return epoch

    def nodes(self, subnet: bytes) -> list[Record]:
        """Return the records of the nodes that are alive and have joined a subnet."""
        return [record for record in self.roll.nodes(subnet=subnet) if record.kind == NODE]


def _pass_on(written: asyncio.Future[None], done: asyncio.Future[None]) -> None:
    if done.done():
        return
    if written.cancelled():
        done.cancel()
    elif (error := written.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(None)
