"""What registries cost: finding nodes, a quorum's signatures, records and memory, and their part of a request.

Every registry, gateway and compute node is a process of its own on loopback. Each figure stands beside a baseline of
the same run, and the ratio is what counts: twenty registries share the processors of one machine here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ncn_framework.models import ModelManifest
from ncn_framework.signing import address_from_hex

from .network import Network
from .overhead import workloads

_PARTS = ("discovery", "records", "committee")
_UNSETTLED = {"NCN_PAYMENTS_BATCH_AGE_MS": "3600000", "NCN_PAYMENTS_BATCH_COUNT": "100000"}
"""Nothing is settled while requests are measured."""
_VALIDATORS = [f"validator{number}" for number in range(1, 6)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--part", choices=_PARTS, action="append", help="only this one; may be given again")
    parser.add_argument("--quick", action="store_true", help="few of everything: shows that it works, no figures")


@dataclass(frozen=True)
class _Counts:
    """How much of everything.

    Attributes:
        sizes: numbers of registries, in which nodes are found.
        nodes: that are found in each way.
        records: that a registry is given.
        statements: that a quorum signs.
        seconds: of one turn of requests.
        rounds: turns of requests.
    """

    sizes: tuple[int, ...] = (3, 10, 20)
    nodes: int = 20
    records: int = 100_000
    statements: int = 200
    seconds: float = 3.0
    rounds: int = 5


_QUICK = _Counts(sizes=(3,), nodes=2, records=200, statements=3, seconds=0.2, rounds=1)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print the tables."""
    from ncn_compute.bundled import materialise
    from ncn_compute.manifest import load

    counts, parts = _QUICK if arguments.quick else _Counts(), arguments.part or _PARTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = folder / "models"
        models.mkdir(mode=0o755)
        folder.chmod(0o755)
        materialise("mlp", models)
        asyncio.run(_measure(folder, load(models / "mlp"), parts, counts))


async def _measure(folder: Path, manifest: ModelManifest, parts: Sequence[str], counts: _Counts) -> None:
    from .registry_discovery import discovery
    from .registry_records import records

    if "discovery" in parts:
        await discovery(folder, manifest, counts.sizes, counts.nodes)
    if "records" in parts:
        await records(folder, manifest, counts.records)
    if "committee" in parts:
        await _committee(folder, manifest, counts)


async def _committee(folder: Path, manifest: ModelManifest, counts: _Counts) -> None:
    """Measure what validators take: first with one of five in this process, then each in a process of its own."""
    from .registry_fleet import fleet
    from .registry_quorum import all_active, quorum
    from .registry_requests import requests

    network = Network(folder / "registered", folder / "models", extra=_UNSETTLED)
    async with fleet(network, {}) as running:
        await running.grow(*map(_speaking_for, _VALIDATORS[1:]))
        first = running.members[0]
        network.environment["REGISTRY_GRPC_ADDR"] = first.target
        await asyncio.to_thread(_serve, network)
        node = await asyncio.to_thread(_node_of, network)
        environment = network.environment | _speaking_for(_VALIDATORS[0]) | {"NCN_DISABLED_PLUGINS": "compute"}
        environment["NCN_REGISTRY_BOOTSTRAP"] = ",".join(member.address for member in running.members)
        await quorum(folder / "own", environment, first.stub, manifest, node, counts.statements)
        await running.grow(_speaking_for(_VALIDATORS[0]))
        for member in running.members:
            await all_active(member.stub)
        alone = Network(folder / "alone", folder / "models", extra=_UNSETTLED | {"REGISTRY_GRPC_ADDR": ""})
        try:
            await asyncio.to_thread(_serve, alone)
            body = next(workload for workload in workloads() if workload.name == "W1").body
            await requests(alone, network, body, counts.seconds, counts.rounds)
        finally:
            await asyncio.to_thread(alone.close)


def _speaking_for(name: str) -> dict[str, str]:
    """Return the environment of a registry that holds the key of a development network's validator."""
    from eth_account import Account

    from ncn_payments.devkeys import ACCOUNTS, MNEMONIC

    Account.enable_unaudited_hdwallet_features()
    account = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{ACCOUNTS.index(name)}")
    return {"NCN_PAYMENTS_VALIDATOR_KEYS": account.key.hex()}


def _serve(network: Network) -> None:
    network.start("gateway")
    network.start("compute")
    network.wait_ready()


def _node_of(network: Network) -> bytes:
    """Return the address of the compute node, once the gateway's registry has told of it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{network.url}/api/v1/nodes", timeout=10) as answer:
            if nodes := json.load(answer):
                return address_from_hex(nodes[0]["node"])
        time.sleep(0.05)
    raise TimeoutError(f"the registry told the gateway of no node; the logs are in {network.home}")
