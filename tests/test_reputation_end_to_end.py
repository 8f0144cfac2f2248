"""Five registries as real processes have the same reputations, and book them on chain when the epoch is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bench.network import Network
from ncn_client import Client
from ncn_framework.config import Config
from ncn_framework.signing import Signer
from ncn_framework.sources import Sources
from ncn_payments.chain import open_chain
from ncn_payments.config import PaymentsSettings
from ncn_payments.contracts import Contracts
from ncn_payments.deployment import Addresses
from ncn_payments.devnet import advance_epoch
from ncn_payments.writer import TransactionWriter
from tests.test_committee_end_to_end import VALIDATORS, Committee, committee, escrow
from tests.test_paid_end_to_end import SENTENCE, client_signer, ncn, settle
from tests.test_registry_end_to_end import until

__all__ = ["committee"]

pytestmark = pytest.mark.e2e


def reputations(running: Network, at: str) -> list[dict[str, Any]]:
    """Return all that the registry at HOST:PORT says."""
    found: list[dict[str, Any]] = json.loads(ncn(running, "registry", "reputation", "--at", at, "--json"))
    return found


def of(rows: list[dict[str, Any]], role: str, field: str) -> Iterator[int]:
    """Yield one number of all who have a role."""
    return (row[field] for row in rows if row["role"] == role)


async def begin_epoch(running: Network, signer: Signer) -> None:
    """Begin an epoch on chain, which anybody may."""
    config = Config(Sources(environment=running.environment, folder=running.home))
    settings = config.load(PaymentsSettings)
    async with open_chain(settings, home=running.home, chain_id=31337) as chain:
        contracts = Contracts(chain, Addresses.load(settings.addresses_path(running.home, 31337), 31337))
        async with TransactionWriter.of(settings, chain, signer, running.home) as writer:
            await advance_epoch(contracts, writer, anyway=True)


async def test_what_validators_did_is_known_to_all_and_booked_when_the_epoch_is_over(committee: Committee) -> None:
    running = committee.running
    peers = json.loads(ncn(running, "registry", "peers", "--json"))
    everywhere = [running.environment["REGISTRY_GRPC_ADDR"], *(peer["grpc_addr"] for peer in peers)]
    assert len(everywhere) == 5
    assert (await escrow(running)).state == "SETTLED"
    with Client(running.url, signer=client_signer(running), payment="voucher") as client:
        client.embed([SENTENCE])
    assert len(settle(running)) == 1

    def agreed() -> Any:
        """Terms, completion and batch: three signatures or more of each; two receipts."""
        first, *others = [reputations(running, at) for at in everywhere]
        told = sum(of(first, "validator", "done")) >= 9 and list(of(first, "node", "receipts")) == [2]
        return first if told and all(rows == first for rows in others) else None

    rows = until(agreed, running)
    assert {row["account"] for row in rows if row["role"] == "validator"} == set(VALIDATORS.values())
    assert set(of(rows, "validator", "on_chain")) == {0}
    points = {row["account"]: row["points"] for row in rows}
    await begin_epoch(running, client_signer(running))

    def booked() -> bool:
        """All is on chain; more may have been done since: the report was signed as well."""
        now = {row["account"]: row["on_chain"] for row in reputations(running, everywhere[-1])}
        return all(now[one] == points[one] for one in VALIDATORS.values())

    until(booked, running, 120)
