"""The commands ``ncn stake`` as they are typed, on the real embedded chain."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ncn_framework.errors import CapacityError, ConfigError, NcnError, PaymentRequired
from ncn_framework.models import Domain
from ncn_framework.payments import Quorum
from ncn_framework.signing import Signer, address_hex
from ncn_framework.statements import VerdictStatement, digest_of
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.commands.staking import stake
from ncn_payments.config import PaymentsSettings
from ncn_payments.contracts import Contracts
from ncn_payments.devkeys import CHAIN_ID, accounts
from ncn_payments.devnet import DevelopmentNetwork, find_addresses
from ncn_payments.stakes import Stakes
from ncn_payments.wallet import Wallets
from ncn_payments.writer import TransactionWriter

from .network import VALIDATORS
from .payments import make_receipt, make_request
from .staking import NCN

NODE, WORKER = Signer(b"\x6e" * 32), Signer(b"\x77" * 32)
VALIDATOR2 = bytes.fromhex("5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a")
"""The key of the mnemonic's third account, which everybody knows."""
NOBODY = "http://127.0.0.1:9"  # the discard port: nobody listens


@dataclass(frozen=True)
class Home:
    """A home folder with a development network's chain in it, which no process runs, and a compute node's key."""

    path: Path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(stake, arguments)

    def fine(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def shown(self, *arguments: str) -> Any:
        return json.loads(self.fine("show", *arguments, "--json"))

    def failed(self, *arguments: str, kind: type[NcnError] = NcnError) -> str:
        result = self.run(*arguments)
        assert isinstance(result.exception, kind), (result.output, result.exception)
        return str(result.exception)

    def misused(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 2, (result.output, result.exception)
        return result.stderr

    def wallet(self, name: str, secret: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep a key in a wallet, and its password in the environment."""
        Wallets(self.path).create(name, "long enough", secret)
        monkeypatch.setenv("NCN_WALLET_PASSWORD", "long enough")

    def on_chain(self, work: Callable[[Contracts], Awaitable[None]]) -> None:
        """Do something on the chain in this process."""

        async def done() -> None:
            async with EmbeddedChain(self.path / "chain") as chain:
                await work(Contracts(chain, find_addresses(PaymentsSettings(), self.path, CHAIN_ID)))

        asyncio.run(done())

    def later(self, seconds: int) -> None:
        """Let time pass on the chain."""

        async def pass_(contracts: Contracts) -> None:
            await contracts.chain.request("evm_increaseTime", [seconds])
            await contracts.chain.request("evm_mine")

        self.on_chain(pass_)

    def slash(self, node: Signer) -> None:
        """Let a quorum find that the node signed a wrong result."""

        async def report(contracts: Contracts) -> None:
            domain = Domain(CHAIN_ID, contracts.addresses.payment)
            receipt = make_receipt(make_request(1, domain=domain), 5_000, node, domain)
            async with TransactionWriter.of(PaymentsSettings(), contracts.chain, VALIDATORS[0], self.path) as writer:
                stakes = Stakes(contracts, writer)
                number = (await stakes.epoch()).number
                statement = VerdictStatement(contracts.addresses.disputes, number, receipt, "")
                digest = digest_of(domain, statement)
                signatures = tuple(signer.sign(digest).value for signer in VALIDATORS[:3])
                await stakes.report_result(statement, Quorum(number, 7, signatures), "report")

        self.on_chain(report)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home of a development network, made once; tests work on copies."""
    home = tmp_path_factory.mktemp("network")

    async def make() -> None:
        async with EmbeddedChain(home / "chain") as chain:
            await DevelopmentNetwork(chain, PaymentsSettings(), home).prepare()

    asyncio.run(make())
    return home


@pytest.fixture
def home(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    path = tmp_path / "home"
    shutil.copytree(network, path)
    (path / "keys").mkdir(exist_ok=True)
    (path / "keys" / "compute.key").write_text("6e" * 32)
    monkeypatch.setenv("NCN_HOME", str(path))
    monkeypatch.setenv("NCN_PAYMENTS_EMBEDDED_URL", NOBODY + "/chain")
    monkeypatch.chdir(tmp_path)
    return Home(path)


# --- a compute node ---


def test_a_compute_node_bonds_with_its_own_key(home: Home) -> None:
    assert home.shown()[0]["state"] == "none"
    told = home.fine("bond", "1000")
    assert "put 1000 NCN at stake; transaction 0x" in told
    assert "state       bonded: a compute node" in told
    (row,) = home.shown()
    assert row == {
        "address": address_hex(NODE.address),
        "state": "bonded",
        "is_bond": True,
        "stake_wei": str(1_000 * NCN),
        "exit_at_s": 0,
        "reputation": 0,
        "rewards_wei": "0",
    }
    assert home.shown("--role", "compute") == home.shown(address_hex(NODE.address)) == [row]


def test_a_jailed_node_is_told_what_frees_it(home: Home) -> None:
    home.fine("bond", "1000")
    home.slash(NODE)
    told = home.fine("show")
    assert "state       jailed: a compute node's bond" in told
    assert "stake       700 NCN" in told
    assert "to be free  add 300 NCN or more (ncn stake add)" in told
    home.fine("add", "300 wei")
    assert home.shown()[0]["state"] == "jailed"
    assert "state       bonded: a compute node" in home.fine("add", "300")
    assert home.shown()[0]["stake_wei"] == str(1_000 * NCN + 300)


def test_a_node_leaves(home: Home) -> None:
    home.fine("bond", "1000")
    assert "begin with `ncn stake exit`" in home.failed("finish", kind=PaymentRequired)
    told = home.fine("exit")
    assert "the exit of 1000 NCN has begun" in told
    assert "type `ncn stake finish` from 20" in told
    assert "may be taken out from 20" in home.failed("exit", kind=CapacityError)
    assert "may be taken out from 20" in home.failed("finish", kind=CapacityError)
    assert "there is nothing to add to" in home.failed("add", "1", kind=PaymentRequired)
    assert "taken out   from 20" in home.fine("show")
    home.later(30 * 86_400 + 600 + 3_600)
    assert "took 1000 NCN out" in home.fine("finish")
    assert home.shown()[0]["state"] == "exited"
    assert "nothing at stake" in home.failed("exit", kind=PaymentRequired)
    home.fine("bond", "1500")
    assert home.shown()[0]["stake_wei"] == str(1_500 * NCN)


def test_too_little_and_twice_are_refused_with_what_to_do(home: Home) -> None:
    assert "at least 1000 NCN" in home.failed("bond", "999.999", kind=PaymentRequired)
    assert home.shown()[0]["state"] == "none"
    home.fine("bond", "1000")
    message = home.failed("bond", "1000", kind=PaymentRequired)
    assert "1000 NCN at stake already (bonded: a compute node)" in message
    assert "ncn stake add" in message
    assert home.shown()[0]["stake_wei"] == str(1_000 * NCN)


# --- a validator ---


def test_a_validator_registers_with_the_key_of_its_setting(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_PAYMENTS_VALIDATOR_KEYS", "77" * 32)
    assert "at least 10000 NCN" in home.failed("validator", "1000", kind=PaymentRequired)
    assert "state       active: a validator" in home.fine("validator", "10000")
    rows = {row["address"]: row["state"] for row in home.shown()}
    assert rows == {address_hex(WORKER.address): "active", address_hex(NODE.address): "none"}
    home.fine("add", "5")
    assert home.shown("--role", "validator")[0]["stake_wei"] == str(10_005 * NCN)
    home.fine("bond", "1000")
    message = home.misused("add", "5")
    assert address_hex(WORKER.address) in message
    assert address_hex(NODE.address) in message
    home.fine("add", "5", "--role", "compute")


def test_several_validators_are_not_guessed_among(home: Home) -> None:
    assert "5 keys here, not one" in home.failed("validator", "10000", kind=ConfigError)


def test_rewards_are_taken(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def distribute(contracts: Contracts) -> None:
        network = DevelopmentNetwork(contracts.chain, PaymentsSettings(), home.path)
        async with network.writer("deployer") as writer:
            registry = contracts.registry
            await writer.send(contracts.token.call("approve", registry.address, 5 * NCN), key="approve rewards")
            await writer.send(registry.call("distribute", 5 * NCN), key="rewards")

    home.wallet("v", VALIDATOR2, monkeypatch)
    assert "no rewards" in home.failed("rewards", "--wallet", "v", kind=PaymentRequired)
    home.on_chain(distribute)
    assert home.shown("--wallet", "v")[0]["rewards_wei"] == str(NCN)
    assert "took 1 NCN of rewards" in home.fine("rewards", "--wallet", "v")
    assert home.shown("--wallet", "v")[0]["rewards_wei"] == "0"


# --- whose ---


def test_a_wallet_bonds(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.wallet("w", b"\x77" * 32, monkeypatch)
    home.fine("bond", "1000", "--wallet", "w")
    assert home.shown("--wallet", "w")[0]["state"] == "bonded"
    assert home.shown()[0]["state"] == "none"  # the node's own key has nothing to do with it


def test_without_any_stake_the_error_says_how_to_get_one(home: Home) -> None:
    assert "ncn stake bond" in home.failed("exit", kind=PaymentRequired)
    (home.path / "keys" / "compute.key").unlink()
    assert "at least 1000 NCN" in home.fine("show")
    assert home.shown() == []


def test_anybody_can_be_looked_up(home: Home) -> None:
    (row,) = home.shown(address_hex(accounts()["validator3"]))
    assert (row["state"], row["stake_wei"]) == ("active", str(20_000 * NCN))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bond", "0"), "0"),
        (("bond", "x"), "x"),
        (("show", "0x12"), "0x12"),
        (("show", "0x" + "12" * 20, "--role", "compute"), "ADDRESS"),
        (("bond", "1000", "--wallet", "w", "--role", "compute"), "--role"),
    ],
)
def test_what_makes_no_sense_is_refused(home: Home, arguments: tuple[str, ...], message: str) -> None:
    assert message in home.misused(*arguments)


def test_every_command_explains_itself() -> None:
    for name, command in stake.commands.items():
        text = CliRunner().invoke(stake, [name, "--help"]).stdout
        assert f"ncn stake {name}" in text, name
        assert isinstance(command, click.Command)
