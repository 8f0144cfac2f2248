"""The commands ``ncn payments`` as they are typed, on the real embedded chain."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ncn_framework.errors import CapacityError, ChainError, ConfigError, NcnError, PaymentRequired, WalletError
from ncn_framework.signing import Signer, address_hex
from ncn_payments.activity import ChannelKey
from ncn_payments.chain import Chain
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.commands.payments import payments
from ncn_payments.config import PaymentsSettings
from ncn_payments.contracts import Contracts
from ncn_payments.devkeys import CHAIN_ID, accounts
from ncn_payments.devnet import DevelopmentNetwork, find_addresses
from ncn_payments.onchain import OnChain
from ncn_payments.wallet import Wallets
from ncn_payments.writer import TransactionWriter

NCN = 10**18
CLIENT = Signer(b"\x61" * 32)
GATEWAY_KEY = b"\xab" * 20
GATEWAY = address_hex(GATEWAY_KEY)
OTHER_GATEWAY = address_hex(b"\x68" * 20)
SESSION = address_hex(b"\x73" * 20)
NOBODY = "http://127.0.0.1:9"  # the discard port: nobody listens


@dataclass(frozen=True)
class Home:
    """A home folder with a development network's chain in it, which no process runs."""

    path: Path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(payments, arguments)

    def fine(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.fine(*arguments, "--json"))

    def failed(self, *arguments: str, kind: type[NcnError] = NcnError) -> str:
        result = self.run(*arguments)
        assert isinstance(result.exception, kind), (result.output, result.exception)
        return str(result.exception)

    def misused(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 2, (result.output, result.exception)
        return result.stderr

    @asynccontextmanager
    async def chain(self) -> AsyncIterator[tuple[Chain, Contracts]]:
        """Run the chain in this process; commands of the same process find it there."""
        async with EmbeddedChain(self.path / "chain") as chain:
            yield chain, Contracts(chain, find_addresses(PaymentsSettings(), self.path, CHAIN_ID))

    def later(self, seconds: int) -> None:
        """Let time pass on the chain."""

        async def pass_() -> None:
            async with self.chain() as (chain, _):
                head = await chain.request("eth_getBlockByNumber", ["latest", False])
                await chain.request("evm_increaseTime", [seconds])
                await chain.request("evm_mine")
                now = await chain.request("eth_getBlockByNumber", ["latest", False])
                assert int(now["timestamp"], 16) >= int(head["timestamp"], 16) + seconds

        asyncio.run(pass_())


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home of a development network, made once; tests work on copies."""
    home = tmp_path_factory.mktemp("network")

    async def make() -> None:
        async with EmbeddedChain(home / "chain") as chain:
            await DevelopmentNetwork(chain, PaymentsSettings(), home).prepare(CLIENT.address)

    asyncio.run(make())
    return home


@pytest.fixture
def home(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    path = tmp_path / "home"
    shutil.copytree(network, path)
    keys = path / "keys"
    keys.mkdir(exist_ok=True)
    (keys / "client.key").write_text("61" * 32)
    monkeypatch.setenv("NCN_HOME", str(path))
    monkeypatch.setenv("NCN_CLIENT_GATEWAY", NOBODY)
    monkeypatch.setenv("NCN_PAYMENTS_EMBEDDED_URL", NOBODY + "/chain")
    monkeypatch.chdir(tmp_path)
    return Home(path)


# --- deposit ---


def test_a_deposit_needs_no_running_gateway_and_is_exact(home: Home) -> None:
    told = home.fine("deposit", "0.100000000000000001", "--gateway", GATEWAY)
    assert "deposited  0.100000000000000001 NCN" in told
    assert "transaction 0x" in told
    home.fine("deposit", "250 wei", "--gateway", GATEWAY)
    (channel,) = home.json("balance")["channels"]
    assert channel["deposited_wei"] == str(10**17 + 1 + 250)
    assert (channel["gateway"], channel["signer"]) == (GATEWAY, address_hex(CLIENT.address))
    assert channel["channel"] == "0x" + ChannelKey(CLIENT.address, CLIENT.address, GATEWAY_KEY).id.hex()


def test_the_same_amount_twice_is_paid_twice(home: Home) -> None:
    home.fine("deposit", "3", "--gateway", GATEWAY)
    home.fine("deposit", "3", "--gateway", GATEWAY)
    assert home.json("balance")["channels"][0]["deposited_wei"] == str(6 * NCN)


def test_a_deposit_for_a_session_key(home: Home) -> None:
    home.fine("deposit", "2", "--gateway", GATEWAY, "--signer", SESSION)
    (channel,) = home.json("balance")["channels"]
    assert channel["signer"] == SESSION
    assert "session key " + SESSION in home.fine("balance")


def test_a_deposit_into_the_account_and_back(home: Home) -> None:
    before = int(home.json("balance")["token_wei"])
    home.fine("deposit", "4", "--account")
    found = home.json("balance")
    assert found["account"] == {"free_wei": str(4 * NCN), "requests": 0}
    assert int(found["token_wei"]) == before - 4 * NCN
    assert "has 4 NCN, not 5 NCN" in home.failed("withdraw", "--account", "5", kind=PaymentRequired)
    assert "account    2.5 NCN" in home.fine("withdraw", "--account", "1.5")
    assert int(home.json("balance")["token_wei"]) == before - 4 * NCN + 3 * NCN // 2


@pytest.mark.parametrize("amount", ["0", "1e3", "-1", "1.0000000000000000001", "1.5 wei", "79228162515", "x", "0.0"])
def test_what_is_no_amount_is_refused_before_anything_else(home: Home, amount: str) -> None:
    assert amount in home.misused("deposit", "--gateway", GATEWAY, "--", amount)


def test_more_than_the_wallet_has_is_refused_and_nothing_is_sent(home: Home) -> None:
    ether = home.json("balance")["ether_wei"]
    assert "this wallet has" in home.failed("deposit", "1000000", "--gateway", GATEWAY, kind=PaymentRequired)
    assert home.json("balance")["ether_wei"] == ether


def test_a_mistyped_address_is_refused(home: Home) -> None:
    assert "checksum" in home.misused("deposit", "1", "--gateway", GATEWAY.swapcase().replace("0X", "0x"))
    assert "http://HOST:PORT" in home.misused("deposit", "1", "--gateway", "gateway.example")
    assert "leave --gateway" in home.misused("deposit", "1", "--account", "--gateway", GATEWAY)


def test_a_silent_gateway_is_named(home: Home) -> None:
    assert NOBODY in home.failed("deposit", "1", kind=CapacityError)


def test_an_interrupted_deposit_is_taken_up_and_paid_once(home: Home) -> None:
    """The transaction was sent and not seen to be final: typed again, the command waits for it."""

    async def interrupted() -> None:
        async with home.chain() as (chain, contracts):
            domain_free = TransactionWriter.of(PaymentsSettings(), chain, CLIENT, home.path)
            async with domain_free as writer:
                call = contracts.token.call("approve", contracts.payment.address, 2**96 - 1)
                await writer.send(call, key="approve-all")
                await chain.request("evm_setAutomine", [False])
                key = ChannelKey(CLIENT.address, CLIENT.address, GATEWAY_KEY)
                pay = contracts.payment.call("deposit", key.client, key.signer, key.gateway, 7 * NCN)
                name = f"deposit:{key.id.hex()}:{7 * NCN}:{contracts.payment.address.hex()}:one"
                sending = asyncio.create_task(writer.send(pay, key=name))
                while await chain.request("eth_getTransactionCount", [address_hex(CLIENT.address), "pending"]) == (
                    await chain.request("eth_getTransactionCount", [address_hex(CLIENT.address), "latest"])
                ):
                    await asyncio.sleep(0)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(interrupted())
    result = home.run("deposit", "7", "--gateway", GATEWAY)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "nothing is sent twice" in result.stderr
    assert home.json("balance")["channels"][0]["deposited_wei"] == str(7 * NCN)
    home.fine("deposit", "7", "--gateway", GATEWAY)
    assert home.json("balance")["channels"][0]["deposited_wei"] == str(14 * NCN)


# --- keys ---


def test_without_any_key_the_error_says_how_to_get_one(home: Home) -> None:
    (home.path / "keys" / "client.key").unlink()
    assert "ncn wallet create" in home.failed("deposit", "1", "--gateway", GATEWAY, kind=WalletError)
    assert "ncn wallet create" in home.failed("balance", kind=WalletError)


def test_a_wallet_pays_with_its_password_and_shows_its_balance_without(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Wallets(home.path).create("alice", "long enough", b"\x61" * 32)
    (home.path / "keys" / "client.key").unlink()
    password = tmp_path / "password"
    password.write_text("long enough\n")
    home.fine("deposit", "1", "--gateway", GATEWAY, "--wallet", "alice", "--password-file", str(password))
    password.write_text("wrong wrong\n")
    options = ("--wallet", "alice", "--password-file", str(password))
    assert "password is wrong" in home.failed("deposit", "1", "--gateway", GATEWAY, *options, kind=WalletError)
    assert home.json("balance", "--wallet", "alice")["channels"][0]["deposited_wei"] == str(NCN)


def test_the_setting_of_the_client_goes_before_the_key_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "62" * 32)
    assert home.json("balance")["address"] == address_hex(Signer(b"\x62" * 32).address)


def test_the_payer_of_a_session_key_is_shown_and_does_not_sign(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.fine("deposit", "1", "--gateway", GATEWAY)
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "62" * 32)
    monkeypatch.setenv("NCN_CLIENT_PAYER", address_hex(CLIENT.address))
    assert home.json("balance")["channels"][0]["deposited_wei"] == str(NCN)
    message = home.failed("withdraw", kind=ConfigError)
    assert address_hex(CLIENT.address) in message
    assert "--wallet" in message


def test_the_wallet_of_the_settings(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    Wallets(home.path).create("bob", "long enough", b"\x62" * 32)
    monkeypatch.setenv("NCN_CLIENT_WALLET", "bob")
    monkeypatch.setenv("NCN_WALLET_PASSWORD", "long enough")
    assert home.json("balance")["address"] == address_hex(Signer(b"\x62" * 32).address)
    assert "this wallet has 0" in home.failed("deposit", "1", "--gateway", GATEWAY, kind=PaymentRequired)


# --- withdraw ---


def test_a_withdrawal_begins_waits_and_finishes_with_the_gateway_gone(home: Home) -> None:
    home.fine("deposit", "5", "--gateway", GATEWAY)
    before = int(home.json("balance")["token_wei"])
    told = home.fine("withdraw")
    assert "the withdrawal of 5 NCN has begun" in told
    assert "type the same again from 20" in told
    (channel,) = home.json("balance")["channels"]
    assert channel["unlock_at_s"] > 0
    assert channel["lapse_at_s"] == channel["unlock_at_s"] + 7 * 86_400
    assert "leaving  5 NCN" in home.fine("balance")
    assert "may be finished from 20" in home.failed("withdraw", kind=CapacityError)
    home.later(61)
    assert "withdrew 5 NCN" in home.fine("withdraw")
    found = home.json("balance")
    assert int(found["token_wei"]) == before + 5 * NCN
    assert found["channels"][0]["deposited_wei"] == "0"
    assert "no channel with anything left" in home.failed("withdraw", kind=PaymentRequired)


def test_a_withdrawal_is_taken_back(home: Home) -> None:
    assert "no channel that is being withdrawn" in home.failed("withdraw", "--cancel", kind=PaymentRequired)
    home.fine("deposit", "5", "--gateway", GATEWAY)
    home.fine("withdraw")
    result = home.run("deposit", "1", "--gateway", GATEWAY)
    assert "being withdrawn" in result.stderr
    assert "the channel is kept" in home.fine("withdraw", "--cancel")
    assert home.json("balance")["channels"][0]["unlock_at_s"] == 0


def test_a_withdrawal_that_was_let_lapse_begins_anew(home: Home) -> None:
    home.fine("deposit", "5", "--gateway", GATEWAY)
    home.fine("withdraw")
    home.later(61 + 7 * 86_400)
    assert home.json("balance")["channels"][0]["unlock_at_s"] == 0
    assert "has begun" in home.fine("withdraw")


def test_of_several_channels_one_must_be_named(home: Home) -> None:
    home.fine("deposit", "1", "--gateway", GATEWAY)
    home.fine("deposit", "2", "--gateway", OTHER_GATEWAY)
    home.fine("deposit", "3", "--gateway", OTHER_GATEWAY, "--signer", SESSION)
    choices = home.misused("withdraw")
    for line in (GATEWAY, OTHER_GATEWAY, SESSION, "1 NCN left", "2 NCN left", "3 NCN left"):
        assert line in choices
    assert "2 channels" in home.misused("withdraw", "--gateway", OTHER_GATEWAY)
    assert "withdrawal of 3 NCN" in home.fine("withdraw", "--gateway", OTHER_GATEWAY, "--signer", SESSION)
    assert "withdrawal of 1 NCN" in home.fine("withdraw", "--gateway", GATEWAY)
    assert "of those that you named" in home.failed("withdraw", "--gateway", SESSION, kind=PaymentRequired)
    home.fine("withdraw", "--cancel", "--gateway", GATEWAY)


def test_options_that_exclude_each_other(home: Home) -> None:
    assert "--account goes with neither" in home.misused("withdraw", "--account", "1", "--cancel")
    assert "needs a URL" in home.misused("balance", "--gateway", GATEWAY)
    assert "one of the two" in home.misused("history", "--role", "gateway", "--wallet", "alice")
    assert "without one" in home.misused("settle", "--role", "compute", "--gateway", NOBODY)


# --- balance and history ---


def test_the_balance_of_a_wallet_without_channels(home: Home) -> None:
    result = home.run("balance")
    assert f"wallet     {address_hex(CLIENT.address)}" in result.stdout
    assert "token      100000 NCN" in result.stdout
    assert "ether      100 ETH" in result.stdout
    assert "no channels yet" in result.stderr


def test_the_history_of_a_wallet_is_read_from_the_chain(home: Home) -> None:
    assert home.json("history") == []
    home.fine("deposit", "5", "--gateway", GATEWAY)
    home.fine("deposit", "4", "--account")
    home.fine("withdraw")
    home.fine("withdraw", "--cancel")
    home.fine("withdraw", "--account", "1")
    found = home.json("history")
    assert [one["event"] for one in found] == [
        "AccountWithdrawn",
        "WithdrawalCancelled",
        "WithdrawalRequested",
        "AccountDeposited",
        "Deposited",
    ]
    assert found[-1]["gateway"] == GATEWAY
    assert found[-1]["amount"] == str(5 * NCN)
    assert found[0]["at_s"] >= found[-1]["at_s"] > 1_600_000_000
    assert [one["event"] for one in home.json("history", "--limit", "1")] == ["AccountWithdrawn"]
    lines = home.fine("history").splitlines()
    assert len(lines) == 5
    assert "withdrawn from the account" in lines[0]
    assert "5 NCN" in lines[4]
    assert GATEWAY in lines[4]


def test_somebody_elses_events_are_not_shown(home: Home) -> None:
    async def others() -> None:
        async with home.chain() as (chain, contracts):
            network = DevelopmentNetwork(chain, PaymentsSettings(), home.path)
            async with network.writer("client") as writer:
                from ncn_framework.models import Domain

                onchain = OnChain(contracts, Domain(CHAIN_ID, contracts.payment.address), writer)
                own = accounts()["client"]
                await onchain.fund(own, own, GATEWAY_KEY, NCN, "others")

    asyncio.run(others())
    assert home.json("history") == []
    assert home.json("balance")["channels"] == []


def test_a_chain_that_answers_few_blocks_at_a_time_is_asked_in_parts(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for amount in ("1", "2", "3"):
        home.fine("deposit", amount, "--gateway", GATEWAY)
    home.fine("deposit", "4", "--account")
    whole = home.json("history")
    assert len(whole) == 4
    monkeypatch.setattr("ncn_payments.chain.node._MOST_BLOCKS", 3)
    assert home.json("history") == whole
    assert len(home.json("balance")["channels"]) == 1
    monkeypatch.setattr("ncn_payments.chain.node._MOST_BLOCKS", 0)  # not even one
    assert "block range" in home.failed("history", kind=ChainError)


# --- the chain ---


def test_commands_find_the_chain_that_this_process_runs(home: Home) -> None:
    async def with_chain() -> str:
        async with home.chain():
            return await asyncio.to_thread(home.fine, "deposit", "1", "--gateway", GATEWAY)

    assert "deposited  1 NCN" in asyncio.run(with_chain())


def test_a_chain_that_another_process_holds_and_does_not_serve(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import os

    from ncn_payments.commands import opening

    monkeypatch.setattr(opening, "_PATIENCE_S", 0.0)
    with (home.path / "chain" / "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(str(os.getpid()))
        held.flush()
        message = home.failed("balance", kind=ChainError)
    assert f"process {os.getpid()}" in message
    assert "open; stop it" in message


def test_a_home_without_a_chain(home: Home) -> None:
    shutil.rmtree(home.path / "chain")
    assert "ncn serve" in home.failed("balance", kind=ChainError)
    assert not (home.path / "chain" / "embedded.db").exists()


def test_a_chain_without_the_contracts(home: Home) -> None:
    shutil.rmtree(home.path / "chain")

    async def empty() -> None:
        async with EmbeddedChain(home.path / "chain"):
            pass

    asyncio.run(empty())
    assert "no InferencePayment at 0x" in home.failed("balance", kind=ChainError)


# --- ledgers ---


def test_a_role_without_a_ledger(home: Home) -> None:
    assert "payments-compute.db" in home.failed("history", "--role", "compute")
    assert "payments-compute.db" in home.failed("settle", "--role", "compute")
    assert not (home.path / "keys" / "compute.key").exists()
    assert not (home.path / "payments-compute.db").exists()


@pytest.mark.parametrize("name", ["", *payments.commands])
def test_help_teaches_with_examples(name: str) -> None:
    command: click.Command = payments.commands[name] if name else payments
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert f"ncn payments {name}".strip() in result.output
