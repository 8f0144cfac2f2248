"""Money through real processes and real chains: paid, settled, split, refused, taken back; on both kinds of chain."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402_httpx_transport
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.exact import ExactEvmScheme

from bench.network import Network, free_ports
from bench.payer import Payer, asked
from ncn_framework import digests
from ncn_framework.models import Domain, InferenceRequest
from ncn_framework.payments import Quorum
from ncn_framework.signing import Signer, address_from_hex, address_hex
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import request_to_pb
from ncn_framework.wire.convert_payments import payment_due_from_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceStub

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
SENTENCE = "The quick brown fox jumps over the lazy dog."
PRICE_WEI = 10**15
MINILM = json.dumps({"model": "minilm", "inputs": [{"name": "text", "data": [SENTENCE]}]})


def anvil_is_there() -> bool:
    """Return whether the second kind of chain can be started here."""
    return shutil.which("anvil") is not None or (ROOT / "contracts/node_modules/.bin/anvil").exists()


@pytest.fixture(params=["embedded", "anvil"])
def chain(request: pytest.FixtureRequest) -> str:
    """Each kind of development chain."""
    if request.param == "anvil" and not anvil_is_there():
        pytest.skip("there is no anvil here; tests/prepare.py says why")
    return str(request.param)


@pytest.fixture
def paying(chain: str, tmp_path: Path, models: Path) -> Iterator[Network]:
    """A gateway and a compute node, two processes, that want to be paid, on each kind of chain."""
    running = network_on(chain, tmp_path, models)
    try:
        running.start("gateway")
        running.start("compute")
        running.wait_ready()
        yield running
    finally:
        running.close()


def network_on(chain: str, folder: Path, models: Path, **extra: str) -> Network:
    """Return a network that has not been started, with the defaults of payments."""
    settings = {
        "NCN_PAYMENTS_CHAIN": chain,
        "NCN_PAYMENTS_ANVIL_PORT": str(free_ports(1)[0]),
        "NCN_GATEWAY_PAYMENT_MODES": "voucher,escrow,exact",
        **extra,
    }
    return Network(folder / "home", models, extra=settings)


def ncn(running: Network, *arguments: str, status: int = 0) -> str:
    """Run a command as a person would, against ``running``; return what it prints."""
    command = [running.python, "-m", "ncn_framework.cli", *arguments]
    done = subprocess.run(command, env=running.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, f"ncn {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + (done.stderr if status else "")


def client_signer(running: Network) -> Signer:
    """Return the key of the development network's client."""
    return Signer.from_hex((running.home / "keys" / "client.key").read_text())


def channel(running: Network) -> dict[str, Any]:
    """Return the client's channel as the gateway has it."""
    own = address_hex(client_signer(running).address)
    found: dict[str, Any] = asked(f"{running.url}/api/v1/channels/{own}/{own}")
    return found


def settle(running: Network) -> list[dict[str, Any]]:
    """Have everything settled that is charged, and return the batches."""
    found: list[dict[str, Any]] = json.loads(ncn(running, "payments", "settle", "--json"))
    return found


def test_a_request_is_paid_settled_and_split(paying: Network, tmp_path: Path) -> None:
    """Deposit, voucher, answer, proof, batch: each payee gets its share, on the chain itself."""
    before = channel(paying)
    ncn(paying, "payments", "deposit", "2.5")
    deposited = int(channel(paying)["deposited_wei"]) - int(before["deposited_wei"])
    assert deposited == 25 * 10**17
    for _ in range(3):
        said = ncn(paying, "embed", SENTENCE, "--save", str(tmp_path / "answer.json"))
        assert str(PRICE_WEI) in said
    assert "verified" in ncn(paying, "verify", str(tmp_path / "answer.json"))
    assert int(channel(paying)["charged_wei"]) == 3 * PRICE_WEI
    (batch,) = settle(paying)
    assert (batch["receipts"], int(batch["total_wei"])) == (3, 3 * PRICE_WEI)
    node = json.loads((tmp_path / "answer.json").read_text())["receipt"]["node"]
    assert batch["paid"] == {
        "compute": {node: str(3 * PRICE_WEI * 8 // 10)},
        "gateway": str(3 * PRICE_WEI // 10),
        "validators": str(3 * PRICE_WEI // 20),
        "treasury": str(3 * PRICE_WEI // 20),
    }
    assert int(channel(paying)["spent_wei"]) == 3 * PRICE_WEI
    assert settle(paying) == []


def test_nobody_pays_for_nothing(paying: Network) -> None:
    """Without payment: 402, with the ways to pay; with a voucher that does not cover it: 402; nothing is stored."""
    response = httpx.post(
        f"{paying.url}/api/v1/inference", content=MINILM, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (402, "payment-required")
    assert "payment-required" in response.headers
    payer = Payer.of(paying.url, paying.home / "keys" / "client.key", MINILM, "voucher")
    payer.cumulative_wei -= 1
    response = httpx.post(
        f"{paying.url}/api/v1/inference", content=payer.body(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 402
    assert "sign 1 wei more" in response.json()["detail"]
    assert int(channel(paying)["charged_wei"]) == 0


def test_x402s_own_client_pays_for_one_request(paying: Network) -> None:
    """An account with tokens and no channel pays by one signed transfer; the fee is split like any other."""
    account = Account.create()
    ncn(paying, "wallet", "fund", address_hex(bytes.fromhex(account.address[2:])))

    async def pay() -> httpx.Response:
        client = x402Client().set_spend_controls(False).register("eip155:*", ExactEvmScheme(account))
        transport = x402_httpx_transport(client, httpx.AsyncHTTPTransport())
        async with httpx.AsyncClient(transport=transport, timeout=60) as http:
            headers = {"content-type": "application/json"}
            return await http.post(f"{paying.url}/api/v1/inference", content=MINILM, headers=headers)

    response = asyncio.run(pay())
    assert response.status_code == 200, response.text
    told = decode_payment_response_header(response.headers["payment-response"])
    assert told.success
    assert told.payer == account.address
    assert response.json()["settlement"] == {
        "mode": "exact",
        "charged_wei": str(PRICE_WEI),
        "reference": told.transaction,
    }
    (batch,) = settle(paying)
    assert int(batch["total_wei"]) == PRICE_WEI


async def test_escrow_over_grpc(paying: Network) -> None:
    """The reference's eight steps: terms signed by validators, paid on chain, confirmed, executed, completed, split."""
    signer = client_signer(paying)
    ncn(paying, "payments", "deposit", "1", "--account")
    request = escrow_request(paying, signer)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{paying.grpc_port}") as stub_channel:
        stub = GatewayClientServiceStub(stub_channel)
        status = await stub.SubmitInferenceTask(request_to_pb(request))
        updates = stub.SubscribeToTaskUpdates(pb.TaskID(id=status.request_id))
        states = []
        async for update in updates:
            states.append(update.state)
            if update.state == "AWAITING_PAYMENT":
                due = payment_due_from_pb(update.payment)
                assert due.terms.amount_wei == PRICE_WEI
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.ConfirmPayment(
                        pb.TransactionConfirmation(request_id=status.request_id, transaction_hash=bytes(32))
                    )
                assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                tx = await pay_escrow(paying, signer, due)
                await stub.ConfirmPayment(pb.TransactionConfirmation(request_id=status.request_id, transaction_hash=tx))
        assert [state for state in states if state][-3:] == ["EXECUTED", "VALIDATED", "SETTLED"]
        final = await stub.GetTaskStatus(pb.TaskID(id=status.request_id))
    assert final.payment.charged_wei == str(PRICE_WEI)
    assert len(final.payment.reference) == 66, "the transaction that paid it out"


def escrow_request(running: Network, signer: Signer, body: str = MINILM) -> InferenceRequest:
    """Return a signed request, that asks for what ``body`` does, to be paid by escrow."""
    payer = Payer.of(running.url, running.home / "keys" / "client.key", body, "free")
    request = InferenceRequest(
        model=payer.manifest.digest,
        inputs=payer.inputs,
        nonce=secrets.token_bytes(32),
        limit_units=1_000,
        deadline_ms=time.time_ns() // 1_000_000 + 60_000,
        client=signer.address,
        payment="escrow",
    )
    signature = signer.sign(digests.request_digest(payer.domain, request)).value
    return replace(request, signature=signature)


async def pay_escrow(running: Network, signer: Signer, due: Any) -> bytes:
    """Pay into escrow with the client's key; return the transaction's hash."""
    from ncn_framework.config import Config
    from ncn_framework.sources import Sources
    from ncn_payments.chain import open_chain
    from ncn_payments.config import PaymentsSettings
    from ncn_payments.contracts import Contracts
    from ncn_payments.deployment import Addresses
    from ncn_payments.onchain import OnChain
    from ncn_payments.writer import TransactionWriter

    config = Config(Sources(environment=running.environment, folder=running.home))
    settings = config.load(PaymentsSettings)
    async with open_chain(settings, home=running.home, chain_id=31337) as chain:
        addresses = Addresses.load(settings.addresses_path(running.home, 31337), 31337)
        async with TransactionWriter.of(settings, chain, signer, running.home) as writer:
            onchain = OnChain(Contracts(chain, addresses), Domain(31337, addresses.payment), writer)
            quorum: Quorum = due.quorum
            return (await onchain.pay_escrow(due.terms, quorum, secrets.token_hex(8))).hash


def test_a_gateway_killed_while_it_charges_owes_nobody_anything(tmp_path: Path, models: Path) -> None:
    """SIGKILL under load, restarted: what clients were answered is charged, to the last unit, and then settled once."""
    running = network_on("embedded", tmp_path, models)
    try:
        gateway = running.start("gateway")
        running.start("compute")
        running.wait_ready()
        payer = Payer.of(running.url, running.home / "keys" / "client.key", MINILM, "voucher")
        answered = asyncio.run(ask_until_killed(running, payer, gateway.popen.pid))
        running.processes.remove(gateway)
        gateway.popen.wait(10)
        assert answered > 0
        running.start("gateway")
        running.wait_ready()
        charged = int(channel(running)["charged_wei"])
        assert charged % PRICE_WEI == 0
        # an answer that left is charged; one that was durable and did not arrive can be asked for again, by its id
        assert answered <= charged // PRICE_WEI <= answered + CONCURRENCY
        (batch,) = settle(running)
        assert int(batch["total_wei"]) == charged == int(channel(running)["spent_wei"])
    finally:
        running.close()


CONCURRENCY = 4


async def ask_until_killed(running: Network, payer: Payer, pid: int) -> int:
    """Ask from several connections, kill the gateway in the middle, and return how many answers came."""
    answers = 0
    enough = asyncio.Event()

    async def client() -> None:
        nonlocal answers
        async with httpx.AsyncClient(timeout=30) as http:
            while True:
                try:
                    response = await http.post(
                        f"{running.url}/api/v1/inference",
                        content=payer.body(),
                        headers={"content-type": "application/json"},
                    )
                except httpx.TransportError:
                    return
                assert response.status_code == 200, response.text
                answers += 1
                if answers >= 20:
                    enough.set()

    async def kill() -> None:
        await enough.wait()
        os.kill(pid, signal.SIGKILL)

    await asyncio.gather(kill(), *(client() for _ in range(CONCURRENCY)))
    return answers


def test_the_client_withdraws_with_the_gateway_gone(tmp_path: Path, models: Path) -> None:
    """And the node claims with the client gone: each with its own files and the chain alone."""
    running = network_on("embedded", tmp_path, models)
    try:
        gateway, compute = running.start("gateway"), running.start("compute")
        running.wait_ready()
        ncn(running, "embed", SENTENCE)
        assert running.stop(gateway) == 0
        assert running.stop(compute) == 0
        (running.home / "keys" / "client.key").rename(tmp_path / "client.key")
        (batch,) = json.loads(ncn(running, "payments", "settle", "--role", "compute", "--json"))
        assert int(batch["total_wei"]) == PRICE_WEI
        (tmp_path / "client.key").rename(running.home / "keys" / "client.key")
        assert "has begun" in ncn(running, "payments", "withdraw")
        running.start("gateway")
        running.start("compute")
        running.wait_ready()
        assert settle(running) == [], "the gateway has learnt that the node settled it"
        refused = ncn(running, "embed", SENTENCE, status=1)
        assert "withdrawn" in refused
        ncn(running, "payments", "withdraw", "--cancel")
        ncn(running, "embed", SENTENCE)
    finally:
        running.close()


def test_addresses_of_the_network_are_the_files(paying: Network) -> None:
    """Every role reads one addresses file; `ncn chain status` compares it with the chain."""
    told = asked(f"{paying.url}/api/v1/payments")
    addresses = json.loads((paying.home / "deployments" / "31337.json").read_text())
    assert (told["contract"], told["token"]) == (addresses["payment"], addresses["token"])
    assert address_from_hex(told["gateway"])
    assert addresses["payment"] in ncn(paying, "chain", "status")
