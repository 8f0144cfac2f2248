"""Validators in this process that sign whatever they are asked to, and the chain that pins them; for subnets."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from ncn_framework import hookimpl
from ncn_framework.committees import Epoch, Member
from ncn_framework.errors import ChainError, EndorsementRefused
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain, Record, Signature
from ncn_framework.payments import FeeDue, Quorum
from ncn_framework.signing import Signer
from ncn_framework.statements import Evidence, Statement, SubnetStatement, digest_of, epoch_of
from ncn_framework.testing.fakes import fake_signer
from ncn_framework.wire.convert_subnets import ListedModel, Subnet, endorsed_record, subnet_record

from .network import DOMAIN, signed

VALIDATORS = tuple(fake_signer(f"validator {number}") for number in range(5))
OPERATOR = fake_signer("an operator")
FEE = b"\x0f" * 32


def quorum_of(statement: Statement, signers: tuple[Signer, ...] = VALIDATORS[:3], domain: Domain = DOMAIN) -> Quorum:
    """Return the signatures of ``signers``, which are the first members of the epoch."""
    digest = digest_of(domain, statement)
    return Quorum(epoch_of(statement), 2 ** len(signers) - 1, tuple(one.sign(digest).value for one in signers))


class FakeValidators:
    """Answers as validators and chain do; what they were asked is kept."""

    roles = ("registry", "gateway", "compute")

    def __init__(self) -> None:
        self.away = False
        self.refusal = ""
        self.asked: list[SubnetStatement] = []
        self.epochs: list[int] = []
        self.paid: list[FeeDue] = []

    def __call__(self, node: Any) -> FakeValidators:
        return self

    @hookimpl
    def ncn_epoch(self, number: int) -> Awaitable[Epoch] | None:
        return self.epoch(number)

    async def epoch(self, number: int = 0) -> Epoch:
        self.epochs.append(number)
        if self.away:
            raise ChainError("the chain does not answer")
        members = tuple(Member(signer.address, 1) for signer in VALIDATORS)
        return Epoch(number or 2, members, 3, 2**40, bytes(32), bytes(20))

    @hookimpl
    def ncn_vouch(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> Awaitable[Any] | None:
        return self._vouch(statement)

    async def _vouch(self, statement: Statement) -> tuple[Signature, ...]:
        assert isinstance(statement, SubnetStatement)
        self.asked.append(statement)
        if self.refusal:
            raise EndorsementRefused(self.refusal)
        return tuple(signer.sign(digest_of(DOMAIN, statement)) for signer in VALIDATORS)

    @hookimpl
    def ncn_pay(self, due: FeeDue, signer: Signer) -> Awaitable[bytes] | None:
        return self._pay(due)

    async def _pay(self, due: FeeDue) -> bytes:
        self.paid.append(due)
        return FEE


def a_model(number: int = 1, *sources: str) -> ListedModel:
    """Return a listed model."""
    return ListedModel(bytes([number]) * 32, f"model-{number}", "safetensors", 1_000, sources)


def a_configuration(
    name: str = "first", sequence: int = 1, owner: Signer = OPERATOR, expires_ms: int = 0, **changes: Any
) -> Record:
    """Return a signed configuration of kind ``subnet``."""
    parts = {"models": (a_model(),), "gateways": (owner.address,), **changes}
    subnet = Subnet(owner.address, name, **parts)
    return signed(subnet_record(subnet, sequence, expires_ms or now_ms() + 60_000), owner)


def a_published(configuration: Record, quorum: Quorum | None = None, owner: Signer = OPERATOR) -> Record:
    """Return the signed record that publishes a configuration."""
    quorum = quorum or quorum_of(SubnetStatement(2, configuration))
    return signed(endorsed_record(configuration, quorum, FEE), owner)
