"""A node that lies in a tenth of its answers, among real processes: caught by samples, slashed on chain, given no work.

Which requests are executed again is drawn at random, as it is for everybody, so that the figures differ from run to
run. A lie is shown with a chance of the registry's sample rate; at 2% and one lie in ten answers, 500 answers are
expected until then, and 2,300 suffice in 99 runs of 100.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from bench.network import Network
from bench.payer import Payer, asked
from ncn_framework.signing import Signer, address_hex
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import request_to_pb
from ncn_framework.wire.convert_payments import payment_due_from_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceStub
from tests.test_paid_end_to_end import client_signer, escrow_request, pay_escrow

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

LIAR = '''
"""Answers like the compute node that it sits in, but for a share of lies."""
import os, random, struct
from dataclasses import replace
from ncn_framework import hookimpl
from ncn_framework.tensors import pack_tensors, unpack_tensors

class Liar:
    roles = ("compute",)

    def __init__(self, node):
        self.node = node

    @hookimpl(tryfirst=True)
    def ncn_execute(self, request, leases):
        honest = self.node.plugins.instances["compute"].ncn_execute(request, leases)
        return lied(honest, request) if random.random() < float(os.environ["LIES"]) else honest

async def lied(honest, request):
    async for chunk in honest:
        first, *rest = unpack_tensors(chunk.data)
        (value,) = struct.unpack_from("<f", first.data)
        altered = replace(first, data=struct.pack("<f", value + 1.0) + first.data[4:])
        yield replace(chunk, data=pack_tensors([altered, *rest]))
    with open(os.environ["LIES_TOLD"], "a") as told:
        told.write(request.request_id.hex() + "\\n")
'''

BOND = 1_000
CLIENTS = 8
PRICE_WEI = 10**15
MLP = json.dumps({"model": "mlp", "inputs": [{"name": "x", "data": [0.01 * n for n in range(256)], "shape": [1, 256]}]})


@dataclass
class World:
    """Gateway, registry and an honest node at one home; the liar at another.

    Attributes:
        told: file with the ids of the requests that were answered with a lie.
    """

    network: Network
    liar_home: Path
    told: Path

    def ncn(self, *arguments: str, **environment: str) -> str:
        """Run a command as a person would; return what it prints."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, f"ncn {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        command = [self.network.python, "-m", "ncn_framework.cli", *arguments]
        env = self.network.environment | environment
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    def validates(self) -> bool:
        """Return whether the registry knows the validators of the chain by now."""
        return self.run("registry", "validators").returncode == 0

    def start_liar(self, share: float) -> None:
        """Start the node that lies, by a plugin that is installed for its process alone."""
        package = self.liar_home / "plugins"
        information = package / "liar-1.dist-info"
        information.mkdir(parents=True)
        (package / "liar.py").write_text(LIAR)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: liar\nVersion: 1\n")
        (information / "entry_points.txt").write_text("[ncn]\nliar = liar:Liar\n")
        self.network.start(
            "compute",
            NCN_HOME=str(self.liar_home),
            PYTHONPATH=os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])]),
            LIES=str(share),
            LIES_TOLD=str(self.told),
        )

    def address(self, home: Path) -> str:
        """Return the address of the compute node at a home."""
        return address_hex(Signer.from_hex((home / "keys" / "compute.key").read_text()).address)

    def stake(self, address: str) -> dict[str, Any]:
        """Return how an account stands on chain."""
        (row,) = json.loads(self.ncn("stake", "show", address, "--json"))
        found: dict[str, Any] = row
        return found

    def models(self) -> list[dict[str, Any]]:
        """Return the models that the gateway serves."""
        found: list[dict[str, Any]] = asked(f"{self.network.url}/api/v1/models")["models"]
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that the gateway has heard of from its registry."""
        found: list[dict[str, Any]] = asked(f"{self.network.url}/api/v1/nodes")
        return found

    def channel(self) -> dict[str, Any]:
        """Return the client's channel as the gateway has it."""
        own = address_hex(client_signer(self.network).address)
        found: dict[str, Any] = asked(f"{self.network.url}/api/v1/channels/{own}/{own}")
        return found

    def lies(self) -> list[str]:
        """Return the ids of the requests that were answered with a lie so far."""
        return self.told.read_text().split() if self.told.exists() else []


@contextmanager
def a_world(tmp_path: Path, models: Path, *, rate: float, honest: bool, lies: float) -> Iterator[World]:
    """Run a network with a node that lies in a share of its answers, beside an honest one or alone.

    Args:
        tmp_path: where its homes are.
        models: its models.
        rate: share of the requests that validators execute again.
        honest: whether there is an honest node, too.
        lies: share of lies.
    """
    running = Network(tmp_path / "home", models)
    running.environment |= {
        "NCN_PAYMENTS_CHAIN": "embedded",
        "NCN_GATEWAY_PAYMENT_MODES": "voucher,escrow,exact",
        "REGISTRY_GRPC_ADDR": f"127.0.0.1:{running.registry_port}",
        "NCN_REGISTRY_SAMPLE_RATE": str(rate),
        "NCN_PAYMENTS_BATCH_COUNT": "50",
        "NCN_PAYMENTS_BATCH_AGE_MS": "2000",
        "NCN_PAYMENTS_BATCH_POLL_MS": "250",
    }
    world = World(running, tmp_path / "liar", tmp_path / "told")
    try:
        running.start("gateway")
        running.start("registry")
        if honest:
            running.start("compute")
        world.start_liar(lies)
        running.wait_ready()
        until(
            lambda: all(len(world.nodes()) == 1 + honest and model["nodes"] == 1 + honest for model in world.models())
        )
        until(world.validates)
        yield world
    finally:
        running.close()


async def ask_until_out(world: World, payer: Payer, liar: str) -> Counter[str]:
    """Ask from several connections until the liar has had no work for a while; return the answers of each node."""
    answers: Counter[str] = Counter()
    since = 0  # answers of others since the liar's last one

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal since
        while since < 200:  # while both are in service, the chance of that is next to nothing
            headers = {"content-type": "application/json"}
            response = await http.post(f"{world.network.url}/api/v1/inference", content=payer.body(), headers=headers)
            if response.status_code == 503 and "may be given no work" in response.text:
                continue  # it was put out between being chosen and being asked
            assert response.status_code == 200, response.text
            node = response.json()["receipt"]["node"]
            answers[node] += 1
            since = 0 if node == liar else since + 1

    async with httpx.AsyncClient(timeout=60) as http, asyncio.timeout(150):
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    return answers


def until(condition: Callable[[], Any], within_s: float = 30) -> None:
    """Wait for a state that nothing announces."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def slashed(times: int) -> set[int]:
    """Return what is left of a bond, in wei, after 1 to ``times`` wrong results: each takes 30% of what is there."""
    left, found = BOND * 10**18, set()
    for _ in range(times):
        left -= left * 3_000 // 10_000
        found.add(left)
    return found


def test_a_node_that_lies_in_a_tenth_of_its_answers_is_caught(tmp_path: Path, models: Path) -> None:
    """By a sample of 2%: slashed on chain, out of routing, its lie not paid for; the honest node is untouched."""
    with a_world(tmp_path, models, rate=0.02, honest=True, lies=0.1) as world:
        liar, honest = world.address(world.liar_home), world.address(world.network.home)
        for home in (world.liar_home, world.network.home):
            world.ncn("stake", "bond", str(BOND), NCN_HOME=str(home))
        payer = Payer.of(world.network.url, world.network.home / "keys" / "client.key", MLP, "voucher")
        began = time.monotonic()
        answers = asyncio.run(ask_until_out(world, payer, liar))
        took_s, told = time.monotonic() - began, len(world.lies())
        until(lambda: world.stake(liar)["state"] == "jailed")
        print(
            f"caught after {answers[liar]} answers of its own, {told} of them lies, in {took_s:.1f} s; "
            f"the honest node gave {answers[honest]}"
        )
        assert answers.keys() == {liar, honest}
        assert told > 0
        assert int(world.stake(liar)["stake_wei"]) in slashed(told), "30% for each wrong result"
        assert world.stake(honest)["state"] == "bonded"
        assert int(world.stake(honest)["stake_wei"]) == BOND * 10**18
        world.ncn("payments", "settle", "--json")
        unpaid = PRICE_WEI * answers.total() - int(world.channel()["spent_wei"])
        assert PRICE_WEI <= unpaid <= PRICE_WEI * told, "what was found wrong, and nothing else"
        assert unpaid % PRICE_WEI == 0


async def test_an_escrow_request_that_is_answered_with_a_lie_is_refunded(tmp_path: Path, models: Path) -> None:
    """No quorum signs its completion, so that the client has its money again; and the node is slashed."""
    with a_world(tmp_path, models, rate=1.0, honest=False, lies=1.0) as world:
        liar = world.address(world.liar_home)
        world.ncn("stake", "bond", str(BOND), NCN_HOME=str(world.liar_home))
        signer = client_signer(world.network)
        world.ncn("payments", "deposit", "1", "--account")
        request = escrow_request(world.network, signer, MLP)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{world.network.grpc_port}") as channel:
            stub = GatewayClientServiceStub(channel)
            status = await stub.SubmitInferenceTask(request_to_pb(request))
            states = []
            async for update in stub.SubscribeToTaskUpdates(pb.TaskID(id=status.request_id)):
                if update.state:
                    states.append(update.state)
                if update.state == "AWAITING_PAYMENT":
                    tx = await pay_escrow(world.network, signer, payment_due_from_pb(update.payment))
                    await stub.ConfirmPayment(
                        pb.TransactionConfirmation(request_id=status.request_id, transaction_hash=tx)
                    )
            final = await stub.GetTaskStatus(pb.TaskID(id=status.request_id))
        assert final.error.code == "endorsement-refused", final.error.message
        assert states[-4:] == ["EXECUTED", "VALIDATED", "FAILED", "REFUNDED"]
        assert "answers are wrong" in final.error.message
        until(lambda: world.stake(liar)["state"] == "jailed")
        assert int(world.stake(liar)["stake_wei"]) == BOND * 10**18 * 7 // 10
        # from the chain, to gateway and registry alike: it is offered no more
        until(lambda: httpx.get(f"{world.network.url}/ready").status_code == 503)
        until(lambda: json.loads(world.ncn("node", "list", "--json")) == [])
