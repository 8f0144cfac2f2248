"""What a registry and five validators at five registries add to a request, in the modes ``voucher`` and ``escrow``."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc

from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.models import Domain, InferenceRequest
from ncn_framework.payments import ESCROW, PaymentDue
from ncn_framework.signing import Signer
from ncn_framework.sources import Sources
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire.convert import request_to_pb
from ncn_framework.wire.convert_payments import payment_due_from_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceStub

from .load import Load, drive
from .network import Network
from .payer import Payer

__all__ = ["requests"]

_WAYS = ("the gateway's own validators", "a registry, five validators")


async def requests(alone: Network, registered: Network, body: str, seconds: float, rounds: int) -> None:
    """Send requests to both networks in turns, and print the tables.

    Args:
        alone: gateway and node, without a registry; the gateway's process holds the validators' keys.
        registered: gateway and node with a registry; five registries hold a key each.
        body: JSON of an unsigned request.
        seconds: of each turn of voucher mode.
        rounds: turns; in escrow mode, requests.
    """
    networks = dict(zip(_WAYS, (alone, registered), strict=True))
    await asyncio.to_thread(_vouchers, networks, body, seconds, rounds)
    async with AsyncExitStack() as stack:
        payers = {way: await stack.enter_async_context(_escrow(net, body)) for way, net in networks.items()}
        found: dict[str, list[_Escrowed]] = {way: [] for way in _WAYS}
        for number in range(rounds + 1):
            for way, pay in payers.items():
                took = await pay()
                if number:  # the first one makes connections
                    found[way].append(took)
    _print_escrows(found)


def _vouchers(networks: dict[str, Network], body: str, seconds: float, rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in _WAYS}
    for _ in range(rounds):
        for way, network in networks.items():
            key = str(network.home / "keys" / "client.key")
            result = drive(Load("http", network.http_port, body, 1, seconds, key=key, payment="voucher"))
            found[way].append((result.p50_ms, result.p99_ms))
    print(f"a request paid by voucher, one at a time: median of {rounds} turns of {seconds:g} s each")
    print(f"{'':<32} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>7}")
    middles = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in found.items()}
    for way, (p50, p99) in middles.items():
        print(f"{way:<32} {p50:>8.2f} {p99:>8.2f} {p50 / middles[_WAYS[0]][0]:>7.2f}")
    print(flush=True)


@dataclass(frozen=True)
class _Escrowed:
    """Seconds of one request: until its terms are signed, and from the client's payment to its end."""

    terms_s: float
    rest_s: float


def _print_escrows(found: dict[str, list[_Escrowed]]) -> None:
    print(
        f"a request paid by escrow, one at a time: median of {len(found[_WAYS[0]])}, without the client's transaction"
    )
    print(f"{'':<32} {'terms ms':>9} {'rest ms':>9} {'together':>9} {'ratio':>7}")
    first = 0.0
    for way, rows in found.items():
        terms, rest, both = (
            statistics.median(column) * 1000
            for column in zip(*((row.terms_s, row.rest_s, row.terms_s + row.rest_s) for row in rows), strict=True)
        )
        first = first or both
        print(f"{way:<32} {terms:>9.1f} {rest:>9.1f} {both:>9.1f} {both / first:>7.2f}")
    print(flush=True)


@asynccontextmanager
async def _escrow(network: Network, body: str) -> AsyncIterator[Callable[[], Awaitable[_Escrowed]]]:
    """Return what asks one request of a network's gateway and pays for it into escrow."""
    from ncn_payments.chain import open_chain
    from ncn_payments.config import PaymentsSettings
    from ncn_payments.contracts import Contracts
    from ncn_payments.deployment import Addresses
    from ncn_payments.onchain import OnChain
    from ncn_payments.writer import TransactionWriter

    key = network.home / "keys" / "client.key"
    signer = Signer.from_hex(key.read_text())
    payer = await asyncio.to_thread(Payer.of, network.url, key, body, "free")
    command = [network.python, "-m", "ncn_framework.cli", "payments", "deposit", "1", "--account"]
    done = await asyncio.to_thread(
        subprocess.run, command, env=network.environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the client's deposit failed: {done.stderr}")
    settings = Config(Sources(environment=network.environment, folder=network.home)).load(PaymentsSettings)
    chain_id = payer.domain.chain_id
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(open_chain(settings, home=network.home, chain_id=chain_id))
        addresses = Addresses.load(settings.addresses_path(network.home, chain_id), chain_id)
        writer = await stack.enter_async_context(TransactionWriter.of(settings, chain, signer, network.home))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{network.grpc_port}"))
        onchain = OnChain(Contracts(chain, addresses), Domain(chain_id, addresses.payment), writer)
        stub: Any = GatewayClientServiceStub(channel)

        async def pay(due: PaymentDue) -> bytes:
            return (await onchain.pay_escrow(due.terms, due.quorum, secrets.token_hex(8))).hash

        yield lambda: _ask(stub, _request(payer), pay)


async def _ask(stub: Any, request: InferenceRequest, pay: Callable[[PaymentDue], Awaitable[bytes]]) -> _Escrowed:
    began = time.perf_counter()
    status = await stub.SubmitInferenceTask(request_to_pb(request))
    signed, paid, final = 0.0, 0.0, ""
    async for update in stub.SubscribeToTaskUpdates(mpb.TaskID(id=status.request_id)):
        final = update.state or final
        if update.state == "AWAITING_PAYMENT":
            signed = time.perf_counter()
            transaction = await pay(payment_due_from_pb(update.payment))
            paid = time.perf_counter()
            confirmation = mpb.TransactionConfirmation(request_id=status.request_id, transaction_hash=transaction)
            await stub.ConfirmPayment(confirmation)
    ended = time.perf_counter()
    if final != "SETTLED":
        task = await stub.GetTaskStatus(mpb.TaskID(id=status.request_id))
        raise RuntimeError(f"an escrow request ended in {final}: {task.error.message}")
    return _Escrowed(signed - began, ended - paid)


def _request(payer: Payer) -> InferenceRequest:
    """Return a new signed request, to be paid by escrow."""
    request = InferenceRequest(
        model=payer.manifest.digest,
        inputs=payer.inputs,
        nonce=secrets.token_bytes(32),
        limit_units=1_000,
        deadline_ms=time.time_ns() // 1_000_000 + 60_000,
        client=payer.signer.address,
        payment=ESCROW,
    )
    return replace(request, signature=payer.signer.sign(digests.request_digest(payer.domain, request)).value)
