"""How long three of five validators take to sign, each in the process of another registry."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.lifecycle import now_ms
from ncn_framework.manager import find_plugins
from ncn_framework.models import Domain, InferenceRequest, ModelManifest
from ncn_framework.node import Node
from ncn_framework.payments import ESCROW, EscrowTerms
from ncn_framework.signing import Signer
from ncn_framework.sources import Sources
from ncn_framework.statements import TermsStatement
from ncn_framework.tensors import Tensor
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert_statements import signatures_to_pb, statement_to_pb
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceStub
from ncn_registry.swarm import Swarm

from .network import free_ports
from .registry_fleet import Percentiles, timed

__all__ = ["all_active", "quorum"]

_UNITS = 1_000
_AGAIN_S = 0.1


async def quorum(
    home: Path, environment: Mapping[str, str], stub: Any, manifest: ModelManifest, served_by: bytes, rounds: int
) -> None:
    """Run a registry with a validator of its own in this process, measure there, and print the table.

    Args:
        home: of that registry.
        environment: of that registry, which names the validator's key; the other four are up elsewhere.
        stub: of another registry, which is asked as a gateway asks it.
        manifest: of a model.
        served_by: address of a node that serves it and is registered.
        rounds: statements of each kind, in turns.
    """
    async with _running(home, environment) as node:
        async with grpc.aio.insecure_channel(node.endpoints["grpc"]) as channel:
            for one in (P2PRegistryServiceStub(channel), stub):
                await all_active(one)
        epoch = await node.validation.epoch()

        def terms() -> TermsStatement:
            return _terms(node.domain, manifest, served_by, epoch.number)

        sample = terms()
        question = statement_to_pb(sample).SerializeToString()
        signatures = await node.validation.vouch(sample, {})
        answer = mpb.StatementResponse(signatures=signatures_to_pb(signatures)).ByteSize()
        rows: dict[str, list[float]] = {name: [] for name in ("alone", "stream", "quorum", "gateway")}
        async with _stream(answer) as (swarm, peer, address):
            for number in range(rounds + 1):
                first, second, third = terms(), terms(), terms()
                found = {
                    "alone": await timed(lambda: node.validation.vouch(first, {})),  # noqa: B023 - awaited at once
                    "stream": await timed(lambda: swarm.ask(peer, (address,), question, 10)),
                    "quorum": await timed(lambda: node.validation.endorse(second)),  # noqa: B023
                    "gateway": await timed(lambda: _by_grpc(stub, third)),  # noqa: B023
                }
                if number:  # the first ones made connections
                    for name, took in found.items():
                        rows[name].append(took)
    print(
        f"quorum: {epoch.quorum} of {len(epoch.members)} validators, each at another registry, sign escrow terms "
        f"({len(question):,} bytes, answered with {answer}); {rounds} statements each"
    )
    _print({name: Percentiles.of(took) for name, took in rows.items()})


def _print(rows: Mapping[str, Percentiles]) -> None:
    print(f"{'':<44} {'p50 ms':>8} {'p99 ms':>8} {'to alone':>9} {'to stream':>10}")
    names = {
        "alone": "one validator alone, in process",
        "stream": "the same bytes over a bare libp2p stream",
        "quorum": "a quorum, as a registry collects it",
        "gateway": "the same, as a gateway asks for it (gRPC)",
    }
    for name, text in names.items():
        row = rows[name]
        ratios = [row.p50_ms / rows[base].p50_ms for base in ("alone", "stream")]
        print(f"{text:<44} {row.p50_ms:>8.2f} {row.p99_ms:>8.2f} {ratios[0]:>9.1f} {ratios[1]:>10.1f}")
    print(flush=True)


async def all_active(stub: Any) -> None:
    """Wait until a registry knows who speaks for each of the five validators."""
    async with asyncio.timeout(120):
        while True:
            try:
                states = [one.state async for one in stub.ListValidators(pb.ListRequest(), wait_for_ready=True)]
            except grpc.aio.AioRpcError:  # it does not know the chain yet
                states = []
            if states == ["active"] * 5:
                return
            await asyncio.sleep(_AGAIN_S)


@asynccontextmanager
async def _running(home: Path, environment: Mapping[str, str]) -> AsyncIterator[Node]:
    """Run a registry in this process, with a libp2p thread of its own."""
    sources = Sources(environment={**environment, "NCN_HOME": str(home)}, folder=home.parent)
    found = find_plugins(sources.names("plugins"), sources.names("disabled_plugins"))
    node = Node("registry", Config(sources), found)
    stop, ready = asyncio.Event(), asyncio.Event()

    async def started(_: Node) -> None:
        ready.set()

    running = asyncio.create_task(node.run(stop, started))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if ready.is_set():
            yield node
    finally:
        stop.set()
        await running


@asynccontextmanager
async def _stream(answer_bytes: int) -> AsyncIterator[tuple[Swarm, str, str]]:
    """Return a libp2p host of this process, and peer id and address of one in another that answers at once."""
    swarm = Swarm(
        secrets.token_bytes(32),
        [f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}"],
        heard=lambda topic, data, peer: None,
        validate=lambda key, value: None,
    )
    echo = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.registry_echo", str(answer_bytes)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if echo.stdout is None or echo.stdin is None:
        raise RuntimeError("a pipe to the peer that answers is missing")
    try:
        peer, address = (await echo.stdout.readline()).decode().split()
        async with swarm:
            yield swarm, peer, address
    finally:
        echo.stdin.close()
        await echo.wait()


async def _by_grpc(stub: Any, statement: TermsStatement) -> None:
    answer = await stub.RequestPreprocessingValidation(statement_to_pb(statement).preprocessing, timeout=20)
    if answer.HasField("refusal"):
        raise RuntimeError(f"validators refuse the benchmark's terms: {answer.refusal.message}")


def _terms(domain: Domain, manifest: ModelManifest, served_by: bytes, epoch: int) -> TermsStatement:
    """Return the terms of a new request of a new client, as a gateway has them signed before the client pays."""
    client, gateway = Signer(secrets.token_bytes(32)), secrets.token_bytes(20)
    request = InferenceRequest(
        model=manifest.digest,
        inputs=(Tensor("x", "FP32", (1, 256), bytes(1_024)),),
        nonce=secrets.token_bytes(32),
        limit_units=_UNITS,
        deadline_ms=now_ms() + 60_000,
        client=client.address,
        payment=ESCROW,
    )
    signature = client.sign(digests.request_digest(domain, request)).value
    amount = manifest.base_fee_wei + _UNITS * manifest.unit_fee_wei
    expiry_s = now_ms() // 1_000 + 600
    agreed = EscrowTerms(client.address, 1, gateway, served_by, amount, epoch, expiry_s, request.request_hash)
    return TermsStatement(
        agreed,
        digests.escrow_id(domain, client.address, 1),
        replace(request, signature=signature),
        manifest.base_fee_wei,
        manifest.unit_fee_wei,
    )
