"""The collector of one registry: what strangers ask of it, and what it keeps of those that contradict themselves."""

from __future__ import annotations

from pathlib import Path

from ncn_framework.models import Signature
from ncn_framework.node import Node
from ncn_framework.statements import Statement, digest_of
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert_statements import statement_to_pb
from ncn_registry.contradiction_store import kept_contradictions

from .committee import VALIDATORS, a_batch, registries, signed_by
from .network import DOMAIN, RunningRegistry, until


async def test_questions_of_strangers_are_answered_or_refused_and_harm_nobody(tmp_path: Path) -> None:
    async with registries(tmp_path, [VALIDATORS]) as (_, (one,), _):
        collector = one.registry.collector
        assert collector is not None
        for garbage in (b"", b"\xff" * 100, mpb.StatementRequest(batch=mpb.BatchStatement()).SerializeToString()):
            answer = mpb.StatementResponse.FromString(await collector.answer(garbage, "a peer"))
            assert answer.refusal.message.startswith("malformed: ")
            assert not answer.signatures
        question = statement_to_pb(a_batch(300)).SerializeToString()
        answer = mpb.StatementResponse.FromString(await collector.answer(question, "a peer"))
        assert {one.validator for one in answer.signatures} == {signer.address for signer in VALIDATORS}
        one.node.validators = ()
        answer = mpb.StatementResponse.FromString(await collector.answer(question, "a peer"))
        assert answer.refusal.message.startswith("no-handler: ")


def contradicting(one: RunningRegistry) -> set[bytes]:
    """Return the validators that a registry has found to contradict themselves."""
    return {found.proof.validator for found in kept_contradictions(one.node.home / "contradictions.db")}


async def test_validators_that_contradict_themselves_are_found(tmp_path: Path) -> None:
    """What one of them is said to have signed, and has not, is no signature of its own."""
    liars, honest = VALIDATORS[:4], VALIDATORS[4]

    async def vouch(node: Node, statement: Statement, evidence: object) -> tuple[Signature, ...]:
        forged = Signature(honest.address, liars[0].sign(digest_of(DOMAIN, statement)).value)
        return (*signed_by(statement, *liars), forged)

    async with registries(tmp_path, [VALIDATORS], vouch) as (_, (one,), _):
        collector = one.registry.collector
        assert collector is not None
        first, second = a_batch(1), a_batch(2)
        assert first.batch.nonce == second.batch.nonce
        await collector.endorse(first)
        await collector.endorse(first)
        assert contradicting(one) == set()
        await collector.endorse(second)
        await until(lambda: contradicting(one) == {liar.address for liar in liars})


async def test_what_another_registry_tells_of_is_compared_where_the_statement_is_known(tmp_path: Path) -> None:
    """Each of two collects one batch; the second's validators were asked about the first, and so know what it says."""
    async with registries(tmp_path, [VALIDATORS[:3], VALIDATORS[3:]]) as (_, (first, second), _):
        assert first.registry.collector is not None
        assert second.registry.collector is not None
        await first.registry.collector.endorse(a_batch(1))
        await second.registry.collector.endorse(a_batch(2))
        everybody = {signer.address for signer in VALIDATORS}
        for one in (first, second):
            await until(lambda one=one: len(contradicting(one) & everybody) >= 3)  # type: ignore[misc]
