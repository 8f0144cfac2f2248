"""Five registries with a validator each, as real processes: money moves on three of their signatures, not on fewer."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from eth_account import Account

from bench.network import Network, Process, descendants, free_ports
from ncn_client import Client
from ncn_framework.signing import address_hex
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert import request_to_pb
from ncn_framework.wire.convert_payments import payment_due_from_pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceStub
from ncn_payments.devkeys import ACCOUNTS, MNEMONIC, accounts
from tests.test_paid_end_to_end import PRICE_WEI, SENTENCE, client_signer, escrow_request, ncn, pay_escrow, settle
from tests.test_registry_end_to_end import until

pytestmark = pytest.mark.e2e

NAMES = [f"validator{number}" for number in range(1, 6)]
VALIDATORS = {name: address_hex(address) for name, address in accounts().items() if name in NAMES}


def key_of(name: str) -> str:
    """Return the private key of an account of development networks."""
    Account.enable_unaudited_hdwallet_features()
    found: str = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{ACCOUNTS.index(name)}").key.hex()
    return found


@dataclass
class Committee:
    """A gateway with its chain, a compute node, and five registries in processes and homes of their own.

    Attributes:
        running: of the gateway and the node, which use the first registry.
        registries: the processes.
    """

    running: Network
    registries: list[Process]

    def states(self) -> dict[str, str]:
        """Return what the first registry says of each validator."""
        command = [self.running.python, "-m", "ncn_framework.cli", "registry", "validators", "--json"]
        done = subprocess.run(
            command, env=self.running.environment, capture_output=True, text=True, timeout=60, check=False
        )
        rows = json.loads(done.stdout) if done.returncode == 0 else []
        return {row["validator"]: row["state"] for row in rows}

    def kill(self, *numbers: int) -> None:
        """End registries at once, by their numbers from 1."""
        for number in numbers:
            self.running.stop(self.registries[number - 1], signal.SIGKILL)


@pytest.fixture
def committee(models: Path, tmp_path: Path) -> Iterator[Committee]:
    """The five registries start first, without a chain; the second one wants to see every answer."""
    running = Network(tmp_path / "home", models)
    registry = f"127.0.0.1:{running.registry_port}"
    running.environment["REGISTRY_GRPC_ADDR"] = registry
    found = Committee(running, [])
    try:
        bootstrap = ""
        for number, name in enumerate(NAMES, 1):
            home = tmp_path / name
            p2p, grpc_port = free_ports(2)
            found.registries.append(
                running.start(
                    "registry",
                    NCN_HOME=str(home),
                    NCN_PAYMENTS_VALIDATOR_KEYS=key_of(name),
                    NCN_REGISTRY_P2P_LISTEN_ADDR=f"127.0.0.1:{p2p}",
                    NCN_REGISTRY_GRPC_LISTEN_ADDR=registry if number == 1 else f"127.0.0.1:{grpc_port}",
                    NCN_REGISTRY_BOOTSTRAP=bootstrap,
                    NCN_REGISTRY_SAMPLE_RATE="1" if number == 2 else "0",
                )
            )
            if number == 1:
                bootstrap = until(lambda: p2p_of(running), running)
        running.start("gateway")
        running.start("compute")
        running.wait_ready()
        until(lambda: set(found.states().items()) == {(one, "active") for one in VALIDATORS.values()}, running)
        ncn(running, "payments", "deposit", "1", "--account")
        yield found
    finally:
        running.close()


def p2p_of(running: Network) -> str:
    """Return the multiaddress of the first registry."""
    words = (running.home / "registry.log").read_text().split()
    return next((word for word in words if word.startswith("/ip4/") and "/p2p/" in word), "")


async def escrow(running: Network) -> pb.InferenceTaskStatus:
    """Ask for an answer that is paid into escrow, pay as soon as the terms are signed, and return how it ended."""
    signer = client_signer(running)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        stub: Any = GatewayClientServiceStub(channel)
        status = await stub.SubmitInferenceTask(request_to_pb(escrow_request(running, signer)))
        async for update in stub.SubscribeToTaskUpdates(pb.TaskID(id=status.request_id)):
            if update.state == "AWAITING_PAYMENT":
                due = payment_due_from_pb(update.payment)
                assert due.quorum.bitmap.bit_count() == len(due.quorum.signatures) == 3
                tx = await pay_escrow(running, signer, due)
                await stub.ConfirmPayment(pb.TransactionConfirmation(request_id=status.request_id, transaction_hash=tx))
        final: pb.InferenceTaskStatus = await stub.GetTaskStatus(pb.TaskID(id=status.request_id))
        return final


async def test_money_moves_on_three_of_five_signatures_and_on_no_fewer(committee: Committee) -> None:
    running = committee.running

    async def both_ways() -> None:
        final = await escrow(running)
        assert final.state == "SETTLED", final.error
        assert final.payment.charged_wei == str(PRICE_WEI)
        with Client(running.url, signer=client_signer(running), payment="voucher") as client:
            client.embed([SENTENCE])
        (batch,) = settle(running)
        assert int(batch["total_wei"]) == PRICE_WEI

    await both_ways()
    executing = [bool(descendants(registry.popen.pid)) for registry in committee.registries]
    assert all(executing), "what one of them wants to see, all execute again"
    committee.kill(4)
    committee.registries[4].popen.send_signal(signal.SIGSTOP)  # it takes connections, and says nothing
    await both_ways()
    committee.kill(5, 3)
    final = await escrow(running)
    assert final.state == "FAILED"
    assert final.error.code == "endorsement-refused"
    assert "2 of the 5 validators of epoch 1 signed; 3 are needed" in final.error.message
    assert VALIDATORS["validator3"] in final.error.message
