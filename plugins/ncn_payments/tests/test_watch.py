"""Registries and gateways follow the chain, and validators judge: on real contracts, with a bond that is slashed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ncn_framework import hookimpl
from ncn_framework.committees import Epoch
from ncn_framework.errors import ChainError, EndorsementRefused, NoHandlerError, TransactionReverted
from ncn_framework.node import Node
from ncn_framework.payments import Quorum
from ncn_framework.signing import Signer
from ncn_framework.statements import (
    Evidence,
    Performance,
    PerformancesStatement,
    Statement,
    TermsStatement,
    VerdictStatement,
)
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.contracts import Contracts
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.onchain import OnChain
from ncn_payments.service import Payments
from ncn_payments.stakes import Stakes
from ncn_payments.watch import Watch
from ncn_payments.writer import TransactionWriter

from .network import VALIDATORS, Network, settings_of
from .payments import NODE, make_receipt, make_request, priced
from .test_service import MakeNode, plugin_of

NOWHERE = {"payments.embedded_url": "http://127.0.0.1:9/chain", "payments.batch_poll_ms": 20}
"""No chain but that of this process is asked."""

MANIFEST = priced()


class Others:
    """The rest of a node: hears who is out, shows answers, and executes them again (it is told with which result).

    Attributes:
        heard: account, whether it is out, why; in the order in which it was heard.
        shown: by request.
        doubt: what is inspected is refused with it.
    """

    roles = ("registry", "gateway")
    name = "others"

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, bool, str]] = []
        self.shown: dict[bytes, Evidence] = {}
        self.doubt: EndorsementRefused | None = None

    @hookimpl
    def ncn_standing(self, account: bytes, out: bool, reason: str) -> None:
        self.heard.append((account, out, reason))

    @hookimpl
    def ncn_disclose(self, request_id: bytes) -> Awaitable[Evidence | None]:
        return self._disclose(request_id)

    async def _disclose(self, request_id: bytes) -> Evidence | None:
        return self.shown.get(request_id)

    @hookimpl
    def ncn_inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> Awaitable[None]:
        return self._inspect()

    async def _inspect(self) -> None:
        if self.doubt is not None:
            raise self.doubt


async def until(found: Callable[[], Any]) -> None:
    """Return once ``found()`` is true."""
    async with asyncio.timeout(60):
        while not found():
            await asyncio.sleep(0.005)


@pytest.fixture
async def home(prepared_networks: Callable[[str], Path], tmp_path: Path) -> Path:
    """The home folder of the test's nodes, with a network that is up."""
    prepared = await asyncio.to_thread(prepared_networks, "embedded")
    await asyncio.to_thread(shutil.copytree, prepared, tmp_path / "home")
    return tmp_path / "home"


# --- who starts first ---


async def test_a_registry_waits_for_the_gateway_that_hosts_the_chain(home: Path, make_node: MakeNode) -> None:
    registry, payments = plugin_of(make_node, "registry", Others(), **NOWHERE)
    gateway, host = plugin_of(make_node, "gateway", Others(), **NOWHERE)
    statement = VerdictStatement(bytes(20), 1, make_receipt(make_request(1), 5), "")
    async with payments.serve():
        assert [one.address for one in registry.validators] == [one.address for one in VALIDATORS]
        assert registry.domain.contract == DevelopmentNetwork.addresses().payment
        for asked in (registry.validation.vouch(statement, {}), registry.validation.epoch()):
            with pytest.raises(ChainError, match=r"not open yet|did not answer"):
                await asked
        with pytest.raises(NoHandlerError):
            await registry.validation.endorse(statement)
        async with host.serve():
            await until(lambda: payments.validators)
            epoch = await registry.validation.epoch()
            assert epoch == await gateway.validation.epoch(epoch.number)
            assert {member.address for member in epoch.members} == {one.address for one in VALIDATORS}
            assert len(epoch.members) == 5
            assert epoch.quorum == 3
            assert epoch.disputes == DevelopmentNetwork.addresses().disputes
            with pytest.raises(EndorsementRefused, match="this network's DisputeManager is"):
                await registry.validation.vouch(replace(statement, epoch=epoch.number), {})
    assert payments.validators is None


async def test_a_registry_waits_for_the_contracts(tmp_path: Path, make_node: MakeNode) -> None:
    _, payments = plugin_of(make_node, "registry", **NOWHERE)
    async with EmbeddedChain(tmp_path / "home" / "chain"), payments.serve():
        await until(lambda: "has no InferencePayment at 0x" in payments.away)
        with pytest.raises(ChainError, match="has no InferencePayment"):
            await payments.node.validation.epoch()


async def test_a_registry_that_can_never_validate_ends(
    tmp_path: Path, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is damaged: it must not sign without it."""
    node, payments = plugin_of(make_node, "registry", **NOWHERE)
    failures: list[BaseException] = []
    monkeypatch.setattr(node, "fail", failures.append)
    await asyncio.to_thread((tmp_path / "home").mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread((tmp_path / "home" / "validators.db").write_bytes, b"no database" * 100)
    prepared = EmbeddedChain(tmp_path / "home" / "chain")
    async with prepared, payments.serve():
        settings = settings_of(tmp_path / "home")
        await DevelopmentNetwork(prepared, settings, tmp_path / "home").prepare()
        await until(lambda: failures)
    assert "the validators' memory" in str(failures[0])
    assert payments.validators is None


async def test_a_registry_without_keys_signs_nothing_and_sees_all(
    home: Path, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has no keys on a network that is none for development."""
    others = Others()
    node, payments = plugin_of(make_node, "registry", others, **NOWHERE)
    monkeypatch.setattr("ncn_payments.service.validator_signers", lambda settings, chain_id: [])
    async with EmbeddedChain(home / "chain"), payments.serve():
        await until(lambda: payments.stakes)
        assert node.validators == ()
        assert payments.validators is None
        assert (await node.validation.epoch()).quorum == 3
        with pytest.raises(NoHandlerError):
            await node.validation.vouch(None, {})  # type: ignore[arg-type]


# --- judgement ---


class Judged:
    """A network in one process: a registry with all validators, a gateway that hosts the chain, a bonded node."""

    def __init__(self, registry: Node, seen: Others, gateway: Node, routed: Others, host: Payments) -> None:
        self.registry, self.seen, self.gateway, self.routed, self.host = registry, seen, gateway, routed, host
        assert host.desk is not None
        self.contracts: Contracts = host.desk.chain.contracts

    async def lie(self, number: int = 1) -> VerdictStatement:
        """Return what is to be said of a result of the node's; it is shown, too."""
        epoch = await self.registry.validation.epoch()
        request = make_request(number, domain=self.registry.domain)
        receipt = make_receipt(request, 5, domain=self.registry.domain)
        self.seen.shown[request.request_id] = Evidence(request, (), receipt, MANIFEST)
        return VerdictStatement(epoch.disputes, epoch.number, receipt, "chunk 1 differs")


@asynccontextmanager
async def stakes_of_node(judged: Judged, home: Path) -> AsyncIterator[Stakes]:
    contracts = judged.contracts
    async with TransactionWriter.of(settings_of(home), contracts.chain, NODE, home) as writer:
        yield Stakes(contracts, writer)


@pytest.fixture
async def judged(home: Path, make_node: MakeNode) -> AsyncIterator[Judged]:
    seen, routed = Others(), Others()
    registry, payments = plugin_of(make_node, "registry", seen, **NOWHERE)
    gateway, host = plugin_of(make_node, "gateway", routed, **NOWHERE)
    async with payments.serve(), host.serve():
        await until(lambda: payments.validators)
        yield Judged(registry, seen, gateway, routed, host)


async def test_a_lie_costs_the_node_its_place(judged: Judged, home: Path) -> None:
    """Verdict, slash, out of both processes; and in again once it has added to its stake."""
    async with stakes_of_node(judged, home) as own:
        bond = (await own.minimums()).bond_wei
        await own.bond(bond, "bond")
        statement = await judged.lie()
        quorum = await judged.registry.validation.endorse(statement)
        assert len(quorum.signatures) == 3
        transaction = await judged.registry.validation.report(statement, quorum)
        assert len(transaction) == 66
        assert await judged.registry.validation.report(statement, quorum) == transaction
        with pytest.raises(TransactionReverted) as refused:  # by whoever else
            await judged.gateway.validation.report(statement, quorum)
        assert refused.value.reason == "ValidatorRegistry__EvidenceUsed"
        await until(lambda: judged.seen.heard and judged.routed.heard)
        for heard in (judged.seen.heard, judged.routed.heard):
            assert heard == [(NODE.address, True, "invalid result")]
        standing = await own.standing(NODE.address)
        assert (standing.state, standing.stake_wei) == ("jailed", bond - bond * 3 // 10)
        await own.add(bond, "more")
        await until(lambda: len(judged.seen.heard) > 1 and len(judged.routed.heard) > 1)
        assert judged.routed.heard[1] == (NODE.address, False, "stake was added")


async def test_without_a_bond_there_is_nothing_to_take(judged: Judged) -> None:
    statement = await judged.lie()
    quorum = await judged.registry.validation.endorse(statement)
    with pytest.raises(TransactionReverted) as refused:
        await judged.registry.validation.report(statement, quorum)
    assert refused.value.reason == "ValidatorRegistry__WrongState"


async def test_a_gateway_alone_judges_nobody(judged: Judged) -> None:
    """Its plugins may object to statements; but it executes nothing again."""
    statement = await judged.lie()
    judged.routed.shown = judged.seen.shown
    with pytest.raises(EndorsementRefused, match="this process executes nothing again"):
        await judged.gateway.validation.endorse(statement)
    with pytest.raises(EndorsementRefused, match="this process executes nothing again"):
        await judged.gateway.validation.vouch(statement, judged.seen.shown)


async def test_what_a_registry_does_not_confirm_nobody_signs(judged: Judged) -> None:
    statement = await judged.lie()
    judged.seen.doubt = EndorsementRefused("the result is right")
    with pytest.raises(EndorsementRefused, match="the result is right"):
        await judged.registry.validation.endorse(statement)


async def test_what_is_not_about_conduct_is_not_reported(judged: Judged) -> None:
    statement = TermsStatement(None, b"", None, 0, 0)  # type: ignore[arg-type]
    for node in (judged.registry, judged.gateway):
        with pytest.raises(NoHandlerError):
            await node.validation.report(statement, Quorum(1, 0, ()))
    with pytest.raises(NoHandlerError):
        await judged.registry.validation.report(await judged.lie(), None)


async def test_performances_are_booked(judged: Judged) -> None:
    """Of the epoch that is over, on the word of the next one's members."""
    chain, contracts = judged.contracts.chain, judged.contracts
    before = await judged.registry.validation.epoch()
    await chain.request("evm_increaseTime", [int(await contracts.registry.read("snapshotLifetime")) // 2 + 1])
    await chain.request("evm_mine", [])
    now = before

    async def begun() -> Epoch:
        return await judged.registry.validation.epoch()

    async with asyncio.timeout(60):
        while now.number == before.number:  # whoever speaks for validators begins it
            await asyncio.sleep(0.005)
            now = await begun()
    members = sorted(member.address for member in before.members)
    performances = tuple(Performance(member, 3, 1, 0) for member in members)
    statement = PerformancesStatement(now.disputes, now.number, before.number, performances)
    quorum = await judged.registry.validation.endorse(statement)
    await judged.registry.validation.report(statement, quorum)
    stakes = Stakes(contracts)
    assert [(await stakes.standing(member)).reputation for member in members] == [1] * 5


# --- the watch itself ---


async def test_what_cannot_be_looked_at_is_looked_at_again(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    class Moody(Stakes):
        looks = 0

        async def changes(self, from_block: int) -> tuple[list[Any], int]:
            self.looks += 1
            if self.looks <= 3:
                raise ChainError("no answer")
            return await super().changes(from_block)

    chain: OnChain = await network.onchain()
    stakes = Moody(network.contracts, chain.writer)
    watch = Watch(chain, stakes, lambda account, out, reason: None, validators=(), poll_s=0)
    running = asyncio.create_task(watch.run())
    await until(lambda: stakes.looks > 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [record.getMessage() for record in caplog.records].count(
        "the network's validators were not looked at: no answer"
    ) == 1


async def test_no_epoch_begins_before_its_own_validators_have_staked(network: Network) -> None:
    chain: OnChain = await network.onchain()
    stakes = Stakes(network.contracts, chain.writer)
    begun: list[bool] = []
    stranger = Signer(b"\x51" * 32).address

    async def advanced(*_: Any) -> None:
        begun.append(True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ncn_payments.watch.advance_epoch", advanced)
        validators = [one.address for one in VALIDATORS]
        await Watch(
            chain, stakes, lambda account, out, reason: None, validators=[*validators, stranger], poll_s=0
        ).look()
        assert not begun
        await Watch(chain, stakes, lambda account, out, reason: None, validators=validators, poll_s=0).look()
    assert begun
