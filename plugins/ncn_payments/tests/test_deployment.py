"""Deployment and the development network: found again, finished after a crash, inspected."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ncn_framework.errors import ChainError, ConfigError, TransactionReverted
from ncn_framework.signing import Signer, address_hex
from ncn_payments.abi import interface
from ncn_payments.chain import Chain
from ncn_payments.config import PaymentsSettings
from ncn_payments.contracts import CONTRACTS, Contracts
from ncn_payments.deployment import ADMIN_ROLE, Addresses, Parameters, addresses_of, deploy, has_code_of
from ncn_payments.devkeys import accounts
from ncn_payments.devnet import DevelopmentNetwork, advance_epoch, find_addresses
from ncn_payments.factory import FACTORY, FACTORY_CODE
from ncn_payments.inspection import inspect
from ncn_payments.transactions import Call
from ncn_payments.writer import TransactionWriter

from .sending import send

SOMEBODY = b"\x07" * 20
ADDRESSES = Addresses(31337, b"\x01" * 20, b"\x02" * 20, b"\x03" * 20, b"\x04" * 20, b"\x05" * 20, 12)


def network(chain: Chain, home: Path, **settings: Any) -> DevelopmentNetwork:
    return DevelopmentNetwork(chain, PaymentsSettings(**settings), home)


# --- the file ---


def test_addresses_file(tmp_path: Path) -> None:
    path = tmp_path / "deployments" / "31337.json"
    ADDRESSES.save(path)
    assert Addresses.load(path, 31337) == ADDRESSES
    content = json.loads(path.read_text())
    assert content["token"] == address_hex(b"\x01" * 20)
    assert list(content) == ["chain_id", "token", "registry", "payment", "disputes", "timelock", "block"]
    assert [entry.name for entry in path.parent.iterdir()] == ["31337.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chain_id": 1}, "for chain id 1, not 31337"),
        ({"chain_id": "31337"}, "not a number"),
        ({"token": "0x12"}, "no file of contracts' addresses"),
        ({"token": "0xaB" + "ab" * 19}, "checksum"),
        ({"token": 5}, "no file of contracts' addresses"),
        ({"payment": None}, "no file of contracts' addresses"),
        ({"block": -1}, "not a number"),
    ],
)
def test_bad_addresses_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**ADDRESSES.as_json(), **change}))
    with pytest.raises(ConfigError, match=message):
        Addresses.load(path, 31337)


@pytest.mark.parametrize("content", ["", "[]", "5", "{}", "[" * 50_000, "null"])
def test_no_addresses_file(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="ncn chain deploy"):
        Addresses.load(tmp_path / "missing.json", 31337)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigError):
        Addresses.load(tmp_path / "a.json", 31337)


def test_find_addresses(tmp_path: Path) -> None:
    assert find_addresses(PaymentsSettings(), tmp_path, 31337) == DevelopmentNetwork.addresses()
    with pytest.raises(ConfigError, match=r"1\.json"):
        find_addresses(PaymentsSettings(rpc_url="http://a"), tmp_path, 1)
    ADDRESSES.save(tmp_path / "deployments" / "31337.json")
    assert find_addresses(PaymentsSettings(), tmp_path, 31337) == ADDRESSES
    ADDRESSES.save(tmp_path / "other.json")
    assert find_addresses(PaymentsSettings(addresses=tmp_path / "other.json"), tmp_path / "x", 31337) == ADDRESSES


# --- parameters ---


def test_parameters_from_the_environment() -> None:
    own, a, b = b"\x01" * 20, b"\x0a" * 20, b"\x0b" * 20
    found = Parameters.from_environment(
        {"PROPOSERS": f"{address_hex(a)}, {address_hex(b)}", "MIN_STAKE": "5", "THRESHOLD": "4", "EPOCH_LENGTH": ""},
        own,
        1,
    )
    assert found == Parameters(deployer=own, holder=own, proposers=(a, b), guardian=a, min_stake=5, threshold=4)
    development = Parameters.from_environment({"EPOCH_LENGTH": "7"}, own, 31337)
    assert development == replace(Parameters.development(own), epoch_length_s=7)
    with pytest.raises(ConfigError, match="PROPOSERS"):
        Parameters.from_environment({}, own, 1)
    for bad in ({"MIN_STAKE": "much"}, {"PROPOSERS": "0x12"}, {"GUARDIAN": "x"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Parameters.from_environment({"PROPOSERS": address_hex(a), **bad}, own, 1)


# --- the development network ---


async def test_development_network(chain: Chain, tmp_path: Path) -> None:
    contracts = await network(chain, tmp_path).prepare(SOMEBODY)
    assert contracts.addresses == replace(DevelopmentNetwork.addresses(), block=contracts.addresses.block)
    assert Addresses.load(tmp_path / "deployments" / "31337.json", 31337) == contracts.addresses
    epoch = await contracts.registry.read("currentEpoch")
    members = await contracts.registry.read("members", epoch)
    assert set(members) == {accounts()[f"validator{number}"] for number in range(1, 6)}
    for address in (SOMEBODY, accounts()["client"], accounts()["gateway"]):
        assert await contracts.token.read("balanceOf", address) >= 10**18
        assert await chain.balance(address) >= 10**18
    found = await inspect(contracts)
    assert found.problems == []
    assert [row["matches"] for row in found.contracts.values()] == [True] * 5
    assert found.parameters["epochLength"] == 1
    assert {row["state"] for row in found.epoch["validators"]} == {"active"}
    assert (found.parameters["threshold"], found.epoch["quorum"]) == (3, 3)
    assert (found.funds["paused"], found.funds["held"]) == (False, 0)


async def test_a_second_start_does_nothing(chain: Chain, tmp_path: Path) -> None:
    first = await network(chain, tmp_path).prepare()
    blocks = await chain.block_number()
    assert (await network(chain, tmp_path).prepare()).addresses == first.addresses
    assert await chain.block_number() == blocks
    again = await network(chain, tmp_path / "elsewhere").prepare()  # by what is on the chain alone
    assert await chain.block_number() == blocks
    assert again.addresses.block == first.addresses.block > 0


async def test_roles_are_the_timelocks(chain: Chain, tmp_path: Path) -> None:
    contracts = await network(chain, tmp_path).prepare()
    owner = Parameters.development().deployer
    for contract in (contracts.registry, contracts.payment):
        assert await contract.read("hasRole", ADMIN_ROLE, contracts.timelock.address)
        assert not await contract.read("hasRole", ADMIN_ROLE, owner)
    with pytest.raises(TransactionReverted) as caught:
        await contracts.registry.simulate(contracts.registry.call("setThreshold", 1), owner)
    assert caught.value.reason == "AccessControlUnauthorizedAccount"
    assert caught.value.arguments[0] == owner


async def test_reads_and_events(chain: Chain, tmp_path: Path, client: Signer) -> None:
    contracts = await network(chain, tmp_path).prepare()
    assert await contracts.token.read("symbol") == "NCN"
    async with TransactionWriter(chain, client, tmp_path / "transactions.db") as writer:
        receipt = await writer.send(contracts.token.call("transfer", SOMEBODY, 5), key="a")
    (event,) = contracts.token.events(receipt.logs, "Transfer")
    assert event.arguments == {"from": client.address, "to": SOMEBODY, "value": 5}
    topics = (None, bytes(12) + SOMEBODY)
    assert await contracts.token.past_events("Transfer", contracts.addresses.block, topics=topics) == [event]
    assert await contracts.token.past_events("Transfer", 0, receipt.block - 1, topics) == []
    with pytest.raises(TransactionReverted) as caught:
        await contracts.token.simulate(contracts.token.call("transfer", SOMEBODY, 2**200), client.address)
    assert caught.value.reason == "ERC20InsufficientBalance"
    with pytest.raises(ChainError, match="is the contract at that address"):
        await Contracts(chain, ADDRESSES).token.read("symbol")


async def test_fund(chain: Chain, tmp_path: Path) -> None:
    development = network(chain, tmp_path)
    contracts = await development.prepare()
    for _ in range(2):
        await development.fund(contracts, SOMEBODY, ether_wei=7, amount_wei=9)
    assert await chain.balance(SOMEBODY) == 14
    assert await contracts.token.read("balanceOf", SOMEBODY) == 18


async def test_epochs(chain: Chain, tmp_path: Path) -> None:
    development = network(chain, tmp_path)
    contracts = await development.prepare()
    async with development.writer("deployer") as writer:
        epoch = await advance_epoch(contracts, writer)
        assert await advance_epoch(contracts, writer) == epoch
        lifetime = await contracts.registry.read("snapshotLifetime")
        await chain.request("evm_increaseTime", [lifetime // 2 + 10])
        await chain.request("evm_mine")
        assert await advance_epoch(contracts, writer) == epoch + 1
        assert await advance_epoch(contracts, writer) == epoch + 1
    assert len(await contracts.registry.read("members", epoch + 1)) == 5


async def test_inspection_finds_what_is_wrong(chain: Chain, tmp_path: Path) -> None:
    contracts = await network(chain, tmp_path).prepare()
    swapped = replace(contracts.addresses, token=contracts.addresses.registry)
    problems = (await inspect(Contracts(chain, swapped))).problems
    assert any("NCNToken: the code at" in problem for problem in problems)
    assert "the payment contract has another token" in problems
    missing = (await inspect(Contracts(chain, ADDRESSES))).problems
    assert len(missing) == 5
    assert all("there is no contract at" in problem for problem in missing)
    lifetime = await contracts.registry.read("snapshotLifetime")
    await chain.request("evm_increaseTime", [lifetime + 10])
    await chain.request("evm_mine")
    assert any("may not sign any more" in problem for problem in (await inspect(contracts)).problems)


async def test_other_code_is_not_the_artifacts(chain: Chain, tmp_path: Path) -> None:
    contracts = await network(chain, tmp_path).prepare()
    codes = {name: await chain.code(getattr(contracts.addresses, field)) for field, name in CONTRACTS.items()}
    for name, code in codes.items():
        for other in CONTRACTS.values():
            assert has_code_of(interface(other), code) == (name == other)
        for other_code in (code[:-1], code[1:], code + b"\0", bytes(len(code)), code[:10] + b"\0" + code[11:]):
            assert not has_code_of(interface(name), other_code)
    assert not has_code_of(interface("NCNToken"), b"")


# --- deployment ---


async def test_own_parameters(chain: Chain, client: Signer, tmp_path: Path) -> None:
    parameters = replace(Parameters.development(client.address), timelock_delay_s=100, threshold=2)
    async with TransactionWriter(chain, client, tmp_path / "transactions.db") as writer:
        addresses = await deploy(chain, writer, parameters)
    assert addresses == addresses_of(parameters, 31337, addresses.block)
    assert addresses.payment != DevelopmentNetwork.addresses().payment
    contracts = Contracts(chain, addresses)
    assert await contracts.timelock.read("getMinDelay") == 100
    assert await contracts.registry.read("threshold") == 2
    assert (await inspect(contracts)).problems == ["no epoch has begun: nobody can sign; call advanceEpoch()"]


async def test_parameters_that_do_not_fit(chain: Chain, client: Signer, tmp_path: Path) -> None:
    parameters = replace(Parameters.development(client.address), unbonding_period_s=1)
    async with TransactionWriter(chain, client, tmp_path / "transactions.db") as writer:
        with pytest.raises(TransactionReverted, match="deploy ValidatorRegistry"):
            await deploy(chain, writer, parameters)
        fixed = await deploy(chain, writer, Parameters.development(client.address))
    assert await chain.code(fixed.payment)


async def test_a_chain_without_the_factory(tmp_path: Path, client: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncn_payments.chain import embedded

    monkeypatch.setattr(embedded, "FACTORY", b"\x99" * 20)
    async with (
        embedded.EmbeddedChain(tmp_path / "chain") as chain,
        TransactionWriter(chain, client, tmp_path / "transactions.db") as writer,
    ):
        with pytest.raises(ChainError, match="deterministic deployment proxy"):
            await deploy(chain, writer, Parameters.development(client.address))


async def test_the_factory_is_the_usual_one(chain: Chain, deployer: Signer) -> None:
    assert await chain.code(FACTORY) == FACTORY_CODE
    await send(chain, deployer, 0, Call(SOMEBODY))


def test_refused_on_other_chains(tmp_path: Path) -> None:
    class Elsewhere:
        chain_id = 1

    with pytest.raises(ConfigError, match="chain id 1 is no development network"):
        network(Elsewhere(), tmp_path)  # type: ignore[arg-type]


CRASHING = """
import asyncio, os, pathlib, signal, sys
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.config import PaymentsSettings
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.writer import TransactionWriter

home, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])
original = TransactionWriter._broadcast

async def broadcast(self, entry):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    await original(self, entry)

TransactionWriter._broadcast = broadcast

async def main():
    async with EmbeddedChain(home / "chain") as chain:
        await DevelopmentNetwork(chain, PaymentsSettings(), home).prepare()

asyncio.run(main())
"""


@pytest.mark.slow
async def test_killed_at_every_few_transactions(tmp_path: Path) -> None:
    """Each run dies a few transactions after the one before; the last one finishes, and nothing was done twice."""
    from ncn_payments.chain.embedded import EmbeddedChain

    for _ in range(20):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", CRASHING, str(tmp_path), "4")
        status = await process.wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0
    async with EmbeddedChain(tmp_path / "chain") as chain:
        contracts = await network(chain, tmp_path).prepare()
        assert (await inspect(contracts)).problems == []
        for number in range(1, 6):
            assert await contracts.registry.read("stakeOf", accounts()[f"validator{number}"]) == 20_000 * 10**18
            left = await contracts.token.read("balanceOf", accounts()[f"validator{number}"])
            assert left == 20_000 * 10**18
