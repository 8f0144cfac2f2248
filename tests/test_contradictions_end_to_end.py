"""A validator that signs two batches with one nonce, among real processes: found, and slashed on chain by half."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.network import Network
from ncn_framework.payments import Batch
from ncn_framework.signing import address_hex
from ncn_framework.statements import BatchStatement
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.convert_batches import batch_to_pb
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceStub
from tests.test_committee_end_to_end import VALIDATORS
from tests.test_paid_end_to_end import client_signer, ncn
from tests.test_registry_end_to_end import until

pytestmark = pytest.mark.e2e

CHEAT = '''
"""Speaks for the first validator of its process, which signs whatever it is asked; and pretends the second does."""
from ncn_framework import hookimpl
from ncn_framework.models import Signature
from ncn_framework.statements import digest_of

class Cheat:
    roles = ("registry",)

    def __init__(self, node):
        self.node = node

    @hookimpl(tryfirst=True)
    def ncn_vouch(self, statement, evidence):
        return self.sign(statement)

    async def sign(self, statement):
        cheat, victim, *_ = self.node.validators
        signature = cheat.sign(digest_of(self.node.domain, statement))
        return signature, Signature(victim.address, signature.value)
'''


def plugin_folder(folder: Path) -> Path:
    """Return a folder with the cheat as an installed plugin."""
    information = folder / "cheat-1.dist-info"
    information.mkdir(parents=True)
    (folder / "cheat.py").write_text(CHEAT)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: cheat\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[ncn]\ncheat = cheat:Cheat\n")
    return folder


def validates(running: Network) -> bool:
    """Return whether the registry knows the validators of the chain by now."""
    command = [running.python, "-m", "ncn_framework.cli", "registry", "validators"]
    done = subprocess.run(command, env=running.environment, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def found(running: Network) -> list[dict[str, Any]]:
    """Return what the registry has found."""
    rows: list[dict[str, Any]] = json.loads(ncn(running, "registry", "contradictions", "--json"))
    return rows


def stake(running: Network, account: str) -> tuple[str, int, int]:
    """Return state, stake in wei and reputation of an account on chain."""
    (row,) = json.loads(ncn(running, "stake", "show", account, "--json"))
    return row["state"], int(row["stake_wei"]), row["reputation"]


def ask(running: Network, batch: Batch) -> None:
    """Ask for a quorum's signatures under a batch, which one validator alone does not make."""
    with grpc.insecure_channel(f"127.0.0.1:{running.registry_port}") as channel:
        stub = P2PRegistryServiceStub(channel)
        message = batch_to_pb(BatchStatement(batch, (), (), ()))
        answer: pb.BatchValidation = stub.RequestBatchValidation(message, timeout=60)
    assert "1 of the 5 validators of epoch 1 signed; 3 are needed" in answer.refusal.message


def test_a_validator_that_signs_two_batches_of_one_nonce_is_slashed_once(models: Path, tmp_path: Path) -> None:
    running = Network(tmp_path / "home", models)
    cheating = {"PYTHONPATH": str(plugin_folder(tmp_path / "plugins"))}
    try:
        running.start("gateway")
        registry = running.start("registry", **cheating)
        until(lambda: validates(running), running)
        gateway = client_signer(running).address
        first = Batch(gateway, 1, 1, 1, *(bytes([number]) * 32 for number in range(1, 5)))
        second = replace(first, count=2)
        ask(running, first)
        running.stop(registry)  # what it has seen outlives it
        registry = running.start("registry", **cheating)
        until(lambda: validates(running), running)
        assert found(running) == []
        ask(running, second)
        until(lambda: [row["state"] for row in found(running)] == ["reported"], running)
        (row,) = found(running)
        cheat, victim = VALIDATORS["validator1"], VALIDATORS["validator2"]
        assert row["validator"] == cheat
        assert row["about"] == f"batch 1 of gateway {address_hex(gateway)}"
        assert len(row["detail"]) == 66
        for again in (first, second, replace(first, count=3)):
            ask(running, again)
        running.stop(registry)
        running.start("registry", **cheating)
        until(lambda: validates(running), running)
        ask(running, second)
        assert found(running) == [row]
        assert stake(running, cheat) == ("active", 10_000 * 10**18, -20)
        assert stake(running, victim) == ("active", 20_000 * 10**18, 0)
    finally:
        running.close()
