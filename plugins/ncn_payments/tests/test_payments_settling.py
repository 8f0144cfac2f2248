"""``ncn payments`` with a real gateway that serves paid requests: balance, history, settling by whoever is left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from bench.network import free_ports
from ncn_client import AsyncClient
from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.errors import CapacityError, ConfigError, EndorsementRefused, NcnError, SignatureRejected, StoreError
from ncn_framework.manager import loaded_plugin
from ncn_framework.models import Domain, SignedReceipt
from ncn_framework.node import Node
from ncn_framework.payments import PaymentDue
from ncn_framework.signing import Signer, address_hex
from ncn_framework.sources import Sources
from ncn_framework.wire.convert import request_from_pb
from ncn_gateway.plugin import Plugin as GatewayPlugin
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.commands.payments import payments
from ncn_payments.config import PaymentsSettings
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.gateway_client import GatewayClient
from ncn_payments.ledger import Ledger
from ncn_payments.ledger_lock import ledger_path, writing_process
from ncn_payments.onchain import OnChain
from ncn_payments.plugin import Plugin as PaymentsPlugin
from ncn_payments.service import Payments
from ncn_payments.writer import TransactionWriter
from tests import nodes
from tests.nodes import SIGNER, LyingNode, Reply

NCN = 10**18
CLIENT = Signer(b"\x61" * 32)
UNIT_FEE = 10**15 + 7
FEE = 2 * UNIT_FEE
"""Of a request: two units."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(payments, arguments)


def fine(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def failed(*arguments: str, kind: type[NcnError] = NcnError) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, kind), (result.output, result.exception)
    return str(result.exception)


async def typed(*arguments: str) -> str:
    """Return what a command prints, typed while the gateway of this process serves."""
    return await asyncio.to_thread(fine, *arguments)


async def typed_json(*arguments: str) -> Any:
    return json.loads(await typed(*arguments, "--json"))


@dataclass
class World:
    """A gateway with payments, a compute node that keeps its own books, and a client with a deposit."""

    home: Path
    url: str
    client: AsyncClient
    gateway: Node
    booked: list[asyncio.Task[Any]] = field(default_factory=list)

    async def ask(self, count: int = 1) -> None:
        for _ in range(count):
            await self.client.infer("double", {"x": [1.0, 2.0]}, limit_units=5)
        await asyncio.gather(*self.booked)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with a development network, made once."""
    home = tmp_path_factory.mktemp("made")
    (home / "keys").mkdir()
    (home / "keys" / "client.key").write_text("61" * 32)

    async def make() -> None:
        async with EmbeddedChain(home / "chain") as chain:
            network = DevelopmentNetwork(chain, PaymentsSettings(), home)
            await network.prepare(CLIENT.address, SIGNER.address)

    asyncio.run(make())
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    http, websocket, grpc = free_ports(3)
    settings = {
        "NCN_HOME": str(home),
        "NCN_GATEWAY_HTTP_PORT": str(http),
        "NCN_GATEWAY_WEBSOCKET_PORT": str(websocket),
        "NCN_GATEWAY_GRPC_PORT": str(grpc),
        "NCN_CLIENT_GATEWAY": f"http://127.0.0.1:{http}",
        "NCN_PAYMENTS_EMBEDDED_URL": f"http://127.0.0.1:{http}/chain",
        "NCN_COMPUTE_PRIVATE_KEY": "11" * 32,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "MANIFEST", replace(nodes.MANIFEST, unit_fee_wei=UNIT_FEE))
    return home


@asynccontextmanager
async def network(home: Path, *, books: bool = False) -> AsyncIterator[World]:
    """Run a gateway; with ``books``, the node keeps its own, by the service that a compute process runs."""
    config = Config(Sources(folder=home))
    plugins = [loaded_plugin("gateway", GatewayPlugin), loaded_plugin("payments", PaymentsPlugin)]
    gateway = Node("gateway", config, plugins)
    stop, started = asyncio.Event(), asyncio.Event()

    async def ready(_: Node) -> None:
        started.set()

    running = asyncio.create_task(gateway.run(stop, ready))
    await asyncio.wait({running, asyncio.create_task(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    url = os.environ["NCN_CLIENT_GATEWAY"]
    node = LyingNode(gateway, int(os.environ["NCN_GATEWAY_GRPC_PORT"]))
    serving = asyncio.create_task(node.run())
    try:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient(url, signer=CLIENT))
            world = World(home, url, client, gateway)
            keep = None
            if books:
                role = Payments(Node("compute", config, [loaded_plugin("payments", PaymentsPlugin)]))
                await stack.enter_async_context(role.serve())
                keep = booking(role, world)

            def priced(reply: Reply) -> None:
                reply.receipt = replace(reply.receipt, fee_wei=reply.receipt.units * UNIT_FEE)
                if keep is not None:
                    keep(reply)

            node.lie = priced
            await node.connected.wait()
            directory = gateway.plugins.instances["gateway"].gateway.directory
            while SIGNER.address not in directory.nodes:
                await asyncio.sleep(0.01)
            yield world
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        stop.set()
        await running


def booking(role: Payments, world: World) -> Callable[[Reply], None]:
    """Return what books each reply in the books of a compute node: the voucher checked, the receipt entered."""

    def book(reply: Reply) -> None:
        request = request_from_pb(reply.task.request)
        assert role.books is not None
        role.books.hold(request, 5 * UNIT_FEE)
        signature = SIGNER.sign(digests.receipt_digest(world.gateway.domain, reply.receipt))
        settled = role.settle(SignedReceipt(reply.receipt, (signature,)), request)
        assert settled is not None
        world.booked.append(asyncio.ensure_future(settled))

    return book


def shares(total: int, each: Sequence[int]) -> dict[str, Any]:
    """Return who gets what of ``total``, made of fees ``each``: 80% per receipt, 10%, 5%, the rest."""
    compute = sum(fee * 8 // 10 for fee in each)
    gateway, validators = total // 10, total // 20
    treasury = total - compute - gateway - validators
    return {
        "compute": {address_hex(SIGNER.address): str(compute)},
        "gateway": str(gateway),
        "validators": str(validators),
        "treasury": str(treasury),
    }


# --- with the gateway ---


async def test_a_deposit_by_url_pays_for_requests_and_the_balance_shows_what_they_cost(home: Path) -> None:
    async with network(home) as world:
        gateway = address_hex(world.gateway.signer.address)
        told = await typed("deposit", "12.5", "--gateway", world.url)
        assert f"gateway    {gateway}" in told
        await world.ask(2)
        (channel,) = (await typed_json("balance"))["channels"]
        assert channel["gateway"] == gateway
        assert int(channel["deposited_wei"]) == 1000 * NCN + 25 * NCN // 2
        assert channel["spent_wei"] == "0"
        says = channel["gateway_says"]
        assert (says["charged_wei"], says["held_wei"]) == (str(2 * FEE), "0")
        assert int(says["voucher_wei"]) >= 2 * FEE
        assert f"{2 * FEE / NCN:.18f}".rstrip("0")[:8] in await typed("balance")


async def test_a_gateway_of_another_network_is_refused(home: Path) -> None:
    async with network(home) as world, GatewayClient(world.url) as client:
        domain = world.gateway.domain
        assert await client.address(domain) == world.gateway.signer.address
        for other in (Domain(1, domain.contract), Domain(domain.chain_id, SIGNER.address)):
            with pytest.raises(ConfigError, match="name another gateway") as refused:
                await client.address(other)
            assert address_hex(domain.contract) in str(refused.value)


async def test_the_operator_orders_a_running_gateway_to_settle(home: Path) -> None:
    async with network(home) as world:
        await world.ask(3)
        history = await typed_json("history", "--role", "gateway")
        assert [one["fee_wei"] for one in history["charges"]] == [str(FEE)] * 3
        assert {one["batch"] for one in history["charges"]} == {None}
        (batch,) = await typed_json("settle")
        assert (batch["state"], batch["receipts"], batch["total_wei"]) == ("settled", 3, str(3 * FEE))
        assert batch["paid"] == shares(3 * FEE, [FEE] * 3)
        assert sum(map(int, batch["paid"]["compute"].values())) + sum(
            int(batch["paid"][name]) for name in ("gateway", "validators", "treasury")
        ) == int(batch["total_wei"])
        assert (await typed_json("balance"))["channels"][0]["spent_wei"] == str(3 * FEE)
        assert "nothing to settle" in await typed("settle")
        await world.ask()
        told = await typed("settle", "--gateway", world.url)
        for part in ("1 receipts", "compute node", "gateway  ", "validators", "treasury", "gas,", "a request", "0x"):
            assert part in told
        history = await typed_json("history", "--role", "gateway", "--limit", "3")
        assert [one["batch"]["state"] for one in history["charges"]] == ["settled"] * 3
        assert [(one["receipts"], one["total_wei"]) for one in history["batches"]] == [
            (1, str(FEE)),
            (3, str(3 * FEE)),
        ]
        assert "settled" in await typed("history", "--role", "gateway")


async def test_what_validators_refuse_is_shown_as_refused(home: Path) -> None:
    async with network(home) as world:
        await world.ask(2)
        desk = world.gateway.plugins.instances["payments"].payments.desk
        endorse = desk.settler.endorse
        wrong = desk.ledger.unsettled()[0].request_id

        async def object_to(statement: Any) -> Any:
            if wrong in {charge.receipt.receipt.request_id for charge in statement.charges}:
                raise EndorsementRefused("a result is wrong", invalid=[wrong])
            return await endorse(statement)

        desk.settler.endorse = object_to
        (batch,) = await typed_json("settle")
        assert batch["receipts"] == 1
        history = await typed_json("history", "--role", "gateway")
        shown = [(one["request_id"] == "0x" + wrong.hex(), one["refused"], one["batch"]) for one in history["charges"]]
        assert shown == [
            (False, None, {"nonce": 2, "state": "settled"}),
            (True, "validators found the result wrong", None),
        ]
        assert [one["nonce"] for one in history["batches"]] == [2, 1]
        assert "refused: validators found the result wrong" in await typed("history", "--role", "gateway")
        assert (await typed_json("balance"))["channels"][0]["spent_wei"] == str(FEE)


async def test_what_each_payee_is_shown_to_get_is_what_the_chain_gave(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCN_PAYMENTS_OWN_DEPOSIT_WEI", "0")  # nothing but the batch moves the gateway's tokens
    async with network(home) as world:
        await world.ask(3)
        desk = world.gateway.plugins.instances["payments"].payments.desk
        chain = desk.chain
        gateway = world.gateway.signer.address

        async def has() -> tuple[int, ...]:
            treasury, pool = (await chain.contracts.payment.read("globals"))[:2]
            return (await chain.tokens(SIGNER.address), await chain.tokens(gateway), pool, treasury)

        before = await has()
        (batch,) = await typed_json("settle")
        gained = [now - then for now, then in zip(await has(), before, strict=True)]
        paid = batch["paid"]
        assert gained == [
            int(paid["compute"][address_hex(SIGNER.address)]),
            *(int(paid[name]) for name in ("gateway", "validators", "treasury")),
        ]
        receipt = await chain.receipt(bytes.fromhex(batch["transaction"][2:]))
        assert int(receipt["gasUsed"], 16) == batch["gas"]


async def test_only_who_has_the_token_may_order_it(home: Path) -> None:
    async with network(home) as world, httpx.AsyncClient(base_url=world.url) as http:
        await world.ask()
        path = home / "keys" / "operator.token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = path.read_text().strip()
        wrong = [token, f"Basic {token}", "Bearer", "Bearer x", f"Bearer {token[:-1]}", f"Bearer {token}x"]
        for header in (None, *wrong):
            answer = await http.post("/api/v1/batches", headers={} if header is None else {"authorization": header})
            assert answer.status_code == 401, header
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert token not in answer.text
        assert (await http.get("/api/v1/batches")).json() == []
        for damaged in ("", "two words\n", "\u00e9\n"):
            path.write_text(damaged)
            assert "operator.token" in await asyncio.to_thread(failed, "settle", kind=ConfigError)
        path.write_text("another\n")
        message = await asyncio.to_thread(failed, "settle", kind=SignatureRejected)
        assert "another" not in message
        done = await http.post("/api/v1/batches", headers={"authorization": f"bearer {token}"})
        assert [batch["receipts"] for batch in done.json()] == [1]
        assert (await http.get("/api/v1/batches")).json() == done.json()


async def test_a_token_is_of_one_run_and_is_not_sent_to_other_machines_in_the_clear(home: Path) -> None:
    async with network(home):
        first = (home / "keys" / "operator.token").read_text()
    async with network(home):
        assert (home / "keys" / "operator.token").read_text() != first
    assert "is not sent" in await asyncio.to_thread(failed, "settle", "--gateway", "http://192.0.2.1:8080")


async def test_a_gateway_that_serves_elsewhere_must_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(home):
        monkeypatch.setenv("NCN_CLIENT_GATEWAY", "http://127.0.0.1:9")
        message = await asyncio.to_thread(failed, "settle", kind=CapacityError)
        assert f"Process {os.getpid()}" in message
        assert "--gateway" in message


async def test_an_escrow_is_in_the_history_of_its_client(home: Path) -> None:
    async with network(home) as world, AsyncExitStack() as stack:
        desk = world.gateway.plugins.instances["payments"].payments.desk
        await typed("deposit", "1", "--account")
        writer = TransactionWriter.of(PaymentsSettings(), desk.chain.contracts.chain, CLIENT, home)
        chain = OnChain(desk.chain.contracts, desk.chain.domain, await stack.enter_async_context(writer))

        async def pay(due: PaymentDue) -> bytes:
            return (await chain.pay_escrow(due.terms, due.quorum, f"pay:{due.escrow_id.hex()}")).hash

        await world.client.infer("double", {"x": [1.0, 2.0]}, limit_units=5, payment="escrow", pay=pay)
        found = await typed_json("history")
        assert [one["event"] for one in found] == [
            "RequestCompleted",
            "RequestInitiated",
            "AccountDeposited",
            "Deposited",
        ]
        assert (found[0]["fee"], found[1]["amount"]) == (str(FEE), str(5 * UNIT_FEE))
        assert found[0]["id"] == found[1]["id"]
        lines = (await typed("history")).splitlines()
        assert "escrow paid out" in lines[0]
        assert "paid into escrow" in lines[1]
        account = (await typed_json("balance"))["account"]
        assert account == {"free_wei": str(NCN - FEE), "requests": 1}


# --- without it ---


async def test_the_ledger_of_a_gateway_that_has_gone_is_settled_here(home: Path) -> None:
    async with network(home) as world:
        await world.ask(2)
    assert not (await typed_json("history", "--role", "gateway"))["batches"]
    (batch,) = await typed_json("settle")
    assert (batch["receipts"], batch["paid"]) == (2, shares(2 * FEE, [FEE] * 2))
    assert "nothing to settle" in await typed("settle")
    async with network(home) as world:  # which finds it settled, and goes on
        await world.ask()
        (again,) = await typed_json("settle")
        assert (again["nonce"], again["receipts"]) == (batch["nonce"] + 1, 1)


async def test_a_node_claims_alone(home: Path) -> None:
    async with network(home, books=True) as world:
        await world.ask(3)
        assert f"process {os.getpid()}" in await asyncio.to_thread(
            failed, "settle", "--role", "compute", kind=StoreError
        )
    history = await typed_json("history", "--role", "compute")
    assert [one["fee_wei"] for one in history["charges"]] == [str(FEE)] * 3
    told = await typed("settle", "--role", "compute")
    assert "3 receipts" in told
    assert address_hex(SIGNER.address) in told
    assert "nothing to settle" in await typed("settle", "--role", "compute")
    async with network(home) as world:  # the gateway comes back, and does not take it twice
        await typed("settle")
        assert (await typed_json("balance"))["channels"][0]["spent_wei"] == str(3 * FEE)


async def test_a_client_leaves_with_what_is_left(home: Path) -> None:
    async with network(home) as world:
        await world.ask()
        await typed("settle")
    before = int((await typed_json("balance"))["token_wei"])
    assert "has begun" in await typed("withdraw")
    async with EmbeddedChain(home / "chain") as chain:
        await chain.request("evm_increaseTime", [61])
        await chain.request("evm_mine")
    await typed("withdraw")
    assert int((await typed_json("balance"))["token_wei"]) == before + 1000 * NCN - FEE


# --- one writer ---


async def test_a_ledger_has_one_writer_and_any_number_of_readers(tmp_path: Path) -> None:
    path = ledger_path(tmp_path, "gateway")
    assert writing_process(path) is None
    async with Ledger(path, "here"):
        assert writing_process(path) == str(os.getpid())
        with pytest.raises(StoreError, match=f"process {os.getpid()} writes the ledger .* stop it, or set another"):
            await Ledger(path, "here").__aenter__()
    assert writing_process(path) is None
    async with Ledger(path, "here"):
        pass


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    path = ledger_path(tmp_path, "gateway")
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom ncn_payments.ledger import Ledger\n"
        "async def hold():\n    async with Ledger(Path(sys.argv[1]), 'here'):\n"
        "        print('open', flush=True)\n        await asyncio.Event().wait()\nasyncio.run(hold())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert writing_process(path) == str(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert writing_process(path) is None
