"""Three registries that hear of each other's statements have the same numbers, report them, and keep them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from click.testing import CliRunner

from ncn_framework.config import Config
from ncn_framework.errors import UnknownNode
from ncn_framework.signing import address_hex
from ncn_framework.sources import Sources
from ncn_framework.statements import Statement
from ncn_framework.testing.fakes import fake_signer
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_registry.asking import Asked
from ncn_registry.commands import registry as registry_command
from ncn_registry.forms import ReputationForm

from .committee import VALIDATORS, a_batch, a_completion, a_failure
from .network import NODE, RunningRegistry, Sea, a_record, a_registry, until
from .periods import Ground, a_moving_chain

SPREAD = (VALIDATORS[:2], VALIDATORS[2:4], VALIDATORS[4:])


@asynccontextmanager
async def three(
    folder: Path, ground: Ground, sea: Sea, spread: Sequence[Sequence[Any]] = SPREAD
) -> AsyncIterator[list[RunningRegistry]]:
    """Run three registries that share the validators among them."""
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(
                a_registry(folder / str(number), sea, [a_moving_chain(ground)], own, heartbeat_interval_ms="100")
            )
            for number, own in enumerate(spread)
        ]
        known = {one.address for own in spread for one in own}
        for one in found:
            await until(partial(_knows, one, known))
        yield found


def _knows(one: RunningRegistry, validators: set[bytes]) -> bool:
    assert one.registry.roll is not None
    return {record.owner for record in one.registry.roll.shown(("validator",))} >= validators


async def reputations(one: RunningRegistry) -> dict[bytes, pb.Reputation]:
    return {found.account: found async for found in one.stub.ListReputations(pb.ListRequest())}


async def agreed(found: Sequence[RunningRegistry], done: int) -> dict[bytes, pb.Reputation]:
    """Wait until all registries have counted so many signatures; return what they say, which is the same."""
    for _ in range(2_000):
        said = [await reputations(one) for one in found]
        if all(sum(one.done for one in some.values()) >= done for some in said):
            assert all(some == said[0] for some in said)
            return said[0]
    raise AssertionError(f"{done} signatures were not counted everywhere")


async def test_all_have_the_same_numbers_report_them_and_keep_them_over_a_restart(tmp_path: Path) -> None:
    ground, sea = Ground(), Sea()
    async with three(tmp_path, ground, sea) as found:
        await found[1].stub.RegisterNode(mpb.NodeInfo(record=_wire(a_record())))
        statements: list[Statement] = [a_completion(), a_failure(nonce=9), a_batch(3)]
        for one, statement in zip(found, statements, strict=True):
            assert one.registry.collector is not None
            await one.registry.collector.endorse(statement)
        said = await agreed(found, 9)
        assert said[NODE.address].receipts == said[NODE.address].points == 4
        assert said[NODE.address].role == "node"
        assert {one.role for account, one in said.items() if account != NODE.address} == {"validator"}
    async with three(tmp_path, ground, sea) as found:
        assert await agreed(found, 9) == said
        ground.current = 8
        await until(lambda: ground.booked == {7}, 60)
        assert len(ground.reported) == 1
        points = {account: one.points for account, one in said.items() if one.role == "validator"}
        assert {account: ground.points.get(account, 0) for account in points} == points


async def test_who_gives_no_answer_loses_points_at_everybody(tmp_path: Path) -> None:
    async with three(tmp_path, Ground(), Sea(), (VALIDATORS[:2], VALIDATORS[2:4], ())) as found:
        assert found[0].registry.collector is not None
        assert found[1].registry.collector is not None
        await found[0].registry.collector.endorse(a_failure(nonce=1))
        await found[1].registry.collector.endorse(a_failure(nonce=2))
        said = await agreed(found, 6)
        silent = said[VALIDATORS[4].address]
        assert (silent.timeouts, silent.points) == (2, -10)


async def test_reputations_are_asked_for(tmp_path: Path) -> None:
    ground = Ground(points={NODE.address: -20, VALIDATORS[0].address: 7})
    async with three(tmp_path, ground, Sea()) as found:
        one = found[0]
        await one.stub.RegisterNode(mpb.NodeInfo(record=_wire(a_record())))
        assert one.registry.collector is not None
        await one.registry.collector.endorse(a_batch(30))
        await agreed(found, 3)
        one.node.plugins.standing(NODE.address, True, "slashed")
        slashed = await one.stub.GetReputation(mpb.WalletAddress(address=NODE.address))
        assert (slashed.points, slashed.on_chain, slashed.receipts) == (10, -20, 30)
        first = await one.stub.GetReputation(mpb.WalletAddress(address=VALIDATORS[0].address))
        assert first.points == 7 + first.done
        info = await one.stub.GetValidator(mpb.WalletAddress(address=VALIDATORS[0].address))
        assert info.reputation == first.points
        roll = found[1].registry.roll
        assert roll is not None
        await until(lambda: roll.get("node", NODE.address) and roll.reputation(NODE.address) == 30)
        shown = await found[1].stub.GetNode(mpb.WalletAddress(address=NODE.address))
        assert shown.reputation == 30
        page = [some.account async for some in one.stub.ListReputations(pb.ListRequest(limit=2))]
        after = pb.ListRequest(after=address_hex(page[-1]))
        rest = [some.account async for some in one.stub.ListReputations(after)]
        assert page + rest == sorted([NODE.address, *(some.address for some in VALIDATORS)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await one.stub.GetReputation(mpb.WalletAddress(address=fake_signer("nobody").address))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        ground.away = True
        assert await reputations(one), "what is known is told while the chain is away"
        await _by_command(one)


async def _by_command(one: RunningRegistry) -> None:
    import asyncio

    def run(*words: str) -> str:
        result = CliRunner().invoke(registry_command, ["reputation", "--at", one.target, *words])
        assert result.exit_code == 0, result.output
        return result.output

    text = await asyncio.to_thread(run)
    assert f"{address_hex(NODE.address)}  node " in text
    assert "30 receipts" in text
    assert len(text.splitlines()) == 6
    said = msgspec.json.decode(
        await asyncio.to_thread(run, address_hex(NODE.address), "--json"), type=list[ReputationForm]
    )
    assert [(form.points, form.on_chain, form.receipts) for form in said] == [(10, -20, 30)]
    asked = Asked.of(Config(Sources(environment={})), one.target)
    with pytest.raises(UnknownNode, match="nothing is known here"):
        await asyncio.to_thread(asked.reputations, fake_signer("nobody").address)
    wrong = await asyncio.to_thread(CliRunner().invoke, registry_command, ["reputation", "0x12"])
    assert wrong.exit_code == 2
    assert "is not an address" in wrong.output


def _wire(record: Any) -> mpb.Record:
    from ncn_framework.wire.convert import record_to_pb

    return record_to_pb(record)
