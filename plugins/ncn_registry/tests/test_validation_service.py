"""Gateways that have statements signed through a registry, by validators of this and of other registries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from ncn_framework import hookimpl
from ncn_framework.committees import Epoch, Member
from ncn_framework.errors import CapacityError, ChainError, EndorsementRefused, NoHandlerError
from ncn_framework.models import Signature
from ncn_framework.node import Node
from ncn_framework.payments import Quorum
from ncn_framework.quorums import check_quorum
from ncn_framework.signing import Signer
from ncn_framework.statements import Evidence, Statement
from ncn_framework.testing.fakes import fake_signer
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert_batches import batch_to_pb
from ncn_framework.wire.convert_statements import statement_to_pb
from ncn_registry.limits import MOST_BYTES

from .committee import (
    GATEWAY,
    REQUEST,
    VALIDATORS,
    a_batch,
    a_chain,
    a_completion,
    a_failure,
    an_epoch,
    registries,
    shown,
    sign_all,
    signed_by,
    some_evidence,
    some_terms,
)
from .network import DOMAIN, RunningRegistry, Sea, a_node, a_record, a_registry, running, until


@asynccontextmanager
async def a_gateway(
    folder: Path, at: RunningRegistry, shown: Mapping[bytes, Evidence] | None = None, epoch: Epoch | None = None
) -> AsyncIterator[Node]:
    """Run a gateway that uses the registry ``at``."""
    home = folder / "gateway"
    await asyncio.to_thread(home.mkdir, exist_ok=True)
    chain = a_chain(epoch or an_epoch(), shown=shown)
    async with running(a_node("gateway", home, others=[chain], grpc_addr=at.target)) as node:
        yield node


def alone() -> list[list[Signer]]:
    """Each of the five validators in a registry of its own."""
    return [[signer] for signer in VALIDATORS]


def good(statement: Statement, quorum: Quorum) -> None:
    assert quorum.bitmap.bit_count() == 3
    check_quorum(DOMAIN, statement, quorum, an_epoch())


async def test_validators_of_five_registries_sign_all_that_a_gateway_needs(tmp_path: Path) -> None:
    async with registries(tmp_path, alone()) as (sea, found, _), a_gateway(tmp_path, found[2]) as gateway:
        for statement in (some_terms(), a_completion(), a_failure(), a_batch(3)):
            good(statement, await gateway.validation.endorse(statement))
        asked = {other for asker, other, _ in sea.questions}
        assert len(asked) == 4, "its own validator it asks itself"
        assert {asker for asker, _, _ in sea.questions} == {sea.swarms[2].peer_id}


async def test_two_registries_may_be_gone_and_not_three(tmp_path: Path) -> None:
    async with registries(tmp_path, alone()) as (_, found, stacks), a_gateway(tmp_path, found[0]) as gateway:
        for number in (3, 4):
            await stacks[number].aclose()
        good(a_failure(), await gateway.validation.endorse(a_failure()))
        await stacks[2].aclose()
        with pytest.raises(EndorsementRefused, match="2 of the 5 validators of epoch 7 signed; 3 are needed") as caught:
            await gateway.validation.endorse(a_failure())
        assert "it is not known which registry speaks for it" in str(caught.value)
        await stacks[0].aclose()
        with pytest.raises(CapacityError, match=f"registry {found[0].target} cannot be reached"):
            await gateway.validation.endorse(a_failure())


async def test_one_registry_speaks_for_all_five(tmp_path: Path) -> None:
    async with registries(tmp_path, [VALIDATORS]) as (sea, found, _), a_gateway(tmp_path, found[0]) as gateway:
        good(a_batch(), await gateway.validation.endorse(a_batch()))
        assert sea.questions == []


async def test_one_that_signs_anything_makes_no_quorum(tmp_path: Path) -> None:
    async def honest_but_one(
        node: Node, statement: Statement, evidence: Mapping[bytes, Evidence]
    ) -> tuple[Signature, ...]:
        if VALIDATORS[3] in node.validators:
            return signed_by(statement, *node.validators)
        raise EndorsementRefused("the price is another")

    async with registries(tmp_path, alone(), honest_but_one) as (_, found, _), a_gateway(tmp_path, found[3]) as gateway:
        with pytest.raises(EndorsementRefused, match=r"1 of the 5 .* 3 are needed; .*: the price is another"):
            await gateway.validation.endorse(some_terms())


async def test_a_refusal_says_why_and_what_is_settled(tmp_path: Path) -> None:
    settled = {REQUEST.request_id: 12}

    async def refuse(node: Node, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        raise EndorsementRefused("1 receipt is settled already", settled, 13, invalid={b"\1" * 32})

    async with registries(tmp_path, alone(), refuse) as (_, found, _), a_gateway(tmp_path, found[0]) as gateway:
        with pytest.raises(EndorsementRefused, match=r"0 of the 5 .* 1 receipt is settled already") as caught:
            await gateway.validation.endorse(a_batch())
    assert (caught.value.settled, caught.value.next_nonce) == (settled, 13)
    assert caught.value.invalid == {b"\1" * 32}


@pytest.mark.parametrize("statement", [a_completion(), a_batch(3)], ids=["completion", "batch"])
async def test_who_wants_to_see_an_answer_is_shown_it(tmp_path: Path, statement: Statement) -> None:
    seen = list[Evidence]()

    async def one_wants(node: Node, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        if node.validators[0] is VALIDATORS[1]:
            if REQUEST.request_id not in evidence:
                raise EndorsementRefused("show me", wanted={REQUEST.request_id})
            seen.append(evidence[REQUEST.request_id])
        return await sign_all(node, statement, evidence)

    evidence = some_evidence(1 << 20)
    async with registries(tmp_path, alone(), one_wants) as (_, found, _):
        async with a_gateway(tmp_path, found[0], {REQUEST.request_id: evidence}) as gateway:
            good(statement, await gateway.validation.endorse(statement))
        assert seen == [evidence]
        async with a_gateway(tmp_path, found[0]) as gateway:
            with pytest.raises(EndorsementRefused, match="show me") as caught:
                await gateway.validation.endorse(statement)
        assert caught.value.wanted == {REQUEST.request_id}


async def test_what_is_too_large_to_be_shown_is_left_out(tmp_path: Path) -> None:
    async def all_want(node: Node, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        raise EndorsementRefused("show me", wanted={REQUEST.request_id})

    shown = {REQUEST.request_id: some_evidence(MOST_BYTES)}
    async with (
        registries(tmp_path, [VALIDATORS], all_want) as (_, found, _),
        a_gateway(tmp_path, found[0], shown) as gateway,
    ):
        with pytest.raises(EndorsementRefused, match="show me") as caught:
            await gateway.validation.endorse(a_batch())
    assert caught.value.wanted == {REQUEST.request_id}


async def test_a_registry_learns_nothing_that_the_statement_does_not_name(tmp_path: Path) -> None:
    """A registry that wants the answer of a request of somebody else's does not get it."""
    seen = list[Mapping[bytes, Evidence]]()
    other = b"\x77" * 32

    async def curious(node: Node, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        seen.append(evidence)
        raise EndorsementRefused("show me", wanted={other})

    async with (
        registries(tmp_path, [VALIDATORS], curious) as (_, found, _),
        a_gateway(tmp_path, found[0], {other: some_evidence()}) as gateway,
    ):
        with pytest.raises(EndorsementRefused):
            await gateway.validation.endorse(a_batch())
    assert seen == [{}]


async def test_a_committee_of_friends_is_refused_by_registry_and_gateway(tmp_path: Path) -> None:
    """Validators whom the chain does not know sign anything: neither an honest registry nor the gateway counts them."""
    friends = [fake_signer(f"friend {number}") for number in range(5)]

    async def anything(node: Node, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        return signed_by(statement, *node.validators)

    async with registries(tmp_path, [friends], anything) as (_, found, _), a_gateway(tmp_path, found[0]) as gateway:
        with pytest.raises(EndorsementRefused, match="0 of the 5"):
            await gateway.validation.endorse(a_failure())
    theirs = replace(an_epoch(), members=tuple(Member(friend.address, 1) for friend in friends))
    async with (
        registries(tmp_path / "two", [friends], anything, theirs) as (_, found, _),
        a_gateway(tmp_path, found[0]) as gateway,
    ):
        with pytest.raises(EndorsementRefused, match=r"gave 0 good signatures of validators of epoch 7; 3 are"):
            await gateway.validation.endorse(a_failure())


async def test_a_gateway_without_a_registry_asks_who_is_at_hand(tmp_path: Path) -> None:
    class Here:
        roles = ("gateway",)

        def __init__(self, node: Node) -> None:
            """Nothing to keep."""

        @hookimpl(trylast=True)
        def ncn_endorse(self, statement: Statement) -> Awaitable[Quorum]:
            async def found() -> Quorum:
                return Quorum(1, 1, (bytes(65),))

            return found()

    node = a_node("gateway", tmp_path, others=[Here])
    assert (await node.validation.endorse(a_failure())).epoch == 1
    node = a_node("gateway", tmp_path)
    with pytest.raises(NoHandlerError):
        await node.validation.endorse(a_failure())
    node = a_node("gateway", tmp_path, others=[Here, a_chain(an_epoch())], grpc_addr="127.0.0.1:1")
    with pytest.raises(CapacityError, match=r"127\.0\.0\.1:1 cannot be reached"):
        await node.validation.endorse(a_failure())


@pytest.mark.parametrize("role", ["gateway", "compute"])
async def test_a_command_that_settles_alone_has_its_batch_signed_as_well(tmp_path: Path, role: str) -> None:
    """No service runs there: the connection is made for the call."""
    async with registries(tmp_path, [VALIDATORS]) as (_, found, _):
        node = a_node(role, tmp_path, others=[a_chain(an_epoch())], grpc_addr=found[0].target)
        good(a_batch(), await node.validation.endorse(a_batch()))


async def refusal_of(call: Awaitable[Any]) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    codes = dict(caught.value.trailing_metadata() or ())
    return caught.value.code().name, str(codes.get("ncn-error", ""))


async def test_what_is_malformed_or_of_an_unknown_epoch_is_an_error(tmp_path: Path) -> None:
    async with registries(tmp_path, [VALIDATORS]) as (_, (one,), _):
        for call, message in (
            (one.stub.RequestBatchValidation, mpb.BatchStatement()),
            (one.stub.RequestCompletionValidation, mpb.ComputeCompletion(escrow_id=b"x")),
            (one.stub.RequestPreprocessingValidation, mpb.InferenceRequest()),
            (one.stub.RequestFailureValidation, mpb.EscrowFailure()),
        ):
            assert (await refusal_of(call(message)))[0] == "INVALID_ARGUMENT"
        unknown = batch_to_pb(a_batch(epoch=9))
        assert await refusal_of(one.stub.RequestBatchValidation(unknown)) == ("UNAVAILABLE", "chain")


async def test_sizes_are_bounded_by_what_each_method_is_for(tmp_path: Path) -> None:
    async with registries(tmp_path, [VALIDATORS]) as (_, (one,), _):
        large = batch_to_pb(a_batch())
        large.evidence.add().chunks.add(data=bytes(MOST_BYTES))
        code, _ = await refusal_of(one.stub.RequestBatchValidation(large))
        assert code == "RESOURCE_EXHAUSTED"
        padded = statement_to_pb(a_failure()).failure
        padded.reason = "x" * (1 << 20)
        assert await refusal_of(one.stub.RequestFailureValidation(padded)) == ("RESOURCE_EXHAUSTED", "too-large")
        record = mpb.Record(kind="node", payload=bytes(1 << 20))
        assert await refusal_of(one.stub.RegisterNode(mpb.NodeInfo(record=record))) == (
            "RESOURCE_EXHAUSTED",
            "too-large",
        )
        watch = one.stub.Watch(pb.WatchRequest(kinds=["x" * (1 << 20)]))
        assert await refusal_of(watch.read()) == ("RESOURCE_EXHAUSTED", "too-large")
        batch = await one.stub.RequestBatchValidation(batch_to_pb(a_batch(200)))
        assert len(batch.signatures) == 5


async def test_answers_of_the_service_name_what_was_signed(tmp_path: Path) -> None:
    async with registries(tmp_path, [VALIDATORS]) as (_, (one,), _):
        asked = statement_to_pb(some_terms())
        terms = await one.stub.RequestPreprocessingValidation(asked.preprocessing)
        assert (terms.request_id, terms.fee_wei, len(terms.commitment)) == (REQUEST.request_id, "1000", 32)
        tree = terms.payment_tree
        assert (tree.compute_bps, tree.gateway_bps, tree.validators_bps, tree.treasury_bps) == (8000, 1000, 500, 500)
        done = await one.stub.RequestCompletionValidation(statement_to_pb(a_completion()).completion)
        assert (done.request_id, done.result_hash) == (REQUEST.request_id, b"\x0a" * 32)
        signers = {one.validator for one in done.signatures}
        assert signers == {signer.address for signer in VALIDATORS}


async def test_validators_are_listed_with_who_speaks_for_them(tmp_path: Path) -> None:
    async with registries(tmp_path, [VALIDATORS[:2], VALIDATORS[2:4]]) as (sea, found, _):
        listed = [one async for one in found[0].stub.ListValidators(pb.ListRequest())]
        assert [one.validator for one in listed] == sorted(signer.address for signer in VALIDATORS)
        by_address = {one.validator: one for one in listed}
        assert by_address[VALIDATORS[3].address].multiaddrs == sea.swarms[1].addresses
        assert by_address[VALIDATORS[3].address].state == "active"
        assert by_address[VALIDATORS[4].address].state == "silent"
        assert not by_address[VALIDATORS[4].address].multiaddrs
        assert (listed[0].epoch, listed[0].stake_wei) == (7, str(10**18))
        page = [one async for one in found[0].stub.ListValidators(pb.ListRequest(limit=2))]
        assert page == listed[:2]
        after = "0x" + page[-1].validator.hex()
        rest = [one async for one in found[0].stub.ListValidators(pb.ListRequest(after=after))]
        assert rest == listed[2:]
        one = await found[1].stub.GetValidator(mpb.WalletAddress(address=VALIDATORS[0].address))
        assert one == by_address[VALIDATORS[0].address]
        stranger = mpb.WalletAddress(address=GATEWAY.address)
        assert await refusal_of(found[0].stub.GetValidator(stranger)) == ("NOT_FOUND", "unknown-node")


async def test_without_a_chain_all_else_is_served(tmp_path: Path) -> None:
    class Away:
        roles = ("registry",)

        def __init__(self, node: Node) -> None:
            """Nothing to keep."""

        @hookimpl
        def ncn_epoch(self, number: int) -> Awaitable[Epoch]:
            async def found() -> Epoch:
                raise ChainError("the chain does not answer yet")

            return found()

    async with a_registry(tmp_path / "one", Sea(), [Away], VALIDATORS) as one:
        await one.stub.RegisterNode(mpb.NodeInfo(record=_pb(a_record())))
        failure = statement_to_pb(a_failure()).failure
        assert await refusal_of(one.stub.RequestFailureValidation(failure)) == ("UNAVAILABLE", "chain")
        assert await refusal_of(one.stub.ListValidators(pb.ListRequest()).read()) == ("UNAVAILABLE", "chain")
        await until(lambda: len(shown(one)) == 5)


def _pb(record: Any) -> mpb.Record:
    from ncn_framework.wire.convert import record_to_pb

    return record_to_pb(record)


async def test_a_validator_that_moves_is_found_where_it_is(tmp_path: Path) -> None:
    """Its newest record counts; a registry that stops withdraws what it said."""
    async with registries(tmp_path, [VALIDATORS[:1], VALIDATORS[1:]]) as (_, found, stacks):
        await stacks[0].aclose()
        await until(lambda: len(shown(found[1])) == 4)
        assert found[1].registry.collector is not None
        sea = Sea()
        async with a_registry(tmp_path / "three", sea, [a_chain(an_epoch())], VALIDATORS[:1]) as third:
            assert len(shown(third)) == 1
