"""The commands as they are typed, against the fake gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from ncn_client import client as client_module
from ncn_client import paying
from ncn_client.commands import embed, infer, settled, verify, walkthrough
from ncn_client.plugin import Plugin
from ncn_framework import digests, hookimpl
from ncn_framework.cli import main
from ncn_framework.config import Config
from ncn_framework.errors import (
    CapacityError,
    ConfigError,
    InvalidTensor,
    ModelFailed,
    NcnError,
    NoHandlerError,
    PaymentRequired,
    VerificationError,
    WalletError,
)
from ncn_framework.manager import build_manager, loaded_plugin
from ncn_framework.payments import PaymentDue
from ncn_framework.proof import Proof
from ncn_framework.signing import Signer, address_hex
from ncn_framework.testing.funds import fake_inclusion

from .fakes import CLIENT, EMBEDDER, GATEWAY, NODE, OTHER, FakeGateway
from .wallets import make_wallet

NODE_HEX = address_hex(NODE.address)
CLIENT_KEY = b"\x33" * 32


@pytest.fixture(autouse=True)
def asked(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Send what the commands ask to the fake gateway; yield the URLs of the clients made."""
    made: list[Any] = []

    class Fake(client_module.Client):
        def __init__(self, url: str, **options: Any) -> None:
            made.append((url, options))
            super().__init__(url, transport=httpx.MockTransport(gateway), **options)

    for name in [name for name in os.environ if name.startswith("NCN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(client_module, "Client", Fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NCN_HOME", str(tmp_path / "home"))
    return iter([made])


def run(command: click.Command, *arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(command, arguments, input=stdin)


def fine(command: click.Command, *arguments: str, stdin: str | bytes | None = None) -> Result:
    result = run(command, *arguments, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def failed(command: click.Command, *arguments: str, stdin: str | bytes | None = None) -> BaseException:
    result = run(command, *arguments, stdin=stdin)
    assert result.exit_code == 1
    assert isinstance(result.exception, NcnError)
    return result.exception


# --- embed ---


def test_embed() -> None:
    lines = fine(embed, "four", "a\x1b[2J").stdout.splitlines()
    assert lines[0] == "[+4.0000 +4.1250 +4.2500 +4.3750 +4.5000 ...]  8 numbers  'four'"
    assert lines[1].endswith("'a?[2J'")
    assert lines[2].startswith("model      minilm 0x")
    assert lines[3] == f"node       {NODE_HEX}"
    assert lines[4].startswith("output     0x")
    assert lines[5].startswith("cost       5 units, 0 NCN (0 wei); ")
    assert lines[6] == "payment    free"
    assert lines[7] == "signature  ok, 1 on the receipt"


def test_embed_as_json() -> None:
    vectors = json.loads(fine(embed, "--json", "four", "x").stdout)
    assert [vector[:2] for vector in vectors] == [[4, 4.125], [1, 1.125]]


def test_embed_and_verify(tmp_path: Path) -> None:
    assert "saved answer.json" in fine(embed, "four", "--save", "answer.json").stderr
    shown = fine(verify, "answer.json").stdout
    assert [line.split(":")[0] for line in shown.splitlines()] == [
        "ok  form",
        "ok  model",
        "ok  request",
        "ok  client",
        "ok  chunks",
        "ok  receipt",
        "ok  signature",
        "ok  domain",
        "verified; any node was accepted, name the one that you trust with --node",
    ]
    data = (tmp_path / "answer.json").read_bytes()
    assert fine(verify, "-", "--node", NODE_HEX, stdin=data).stdout.endswith("as required\nverified\n")


def test_a_file_that_cannot_be_written() -> None:
    result = run(embed, "four", "--save", "nowhere/answer.json")
    assert result.exit_code == 1
    assert "nowhere/answer.json" in result.stderr
    assert "[+4.0000" in result.stdout


# --- settled ---


def test_settled_adds_the_committee(gateway: FakeGateway, tmp_path: Path) -> None:
    fine(embed, "four", "--save", "answer.json")
    path = tmp_path / "answer.json"
    assert "no batch on chain yet" in str(failed(settled, "answer.json"))
    proof = Proof.from_json(path.read_bytes())
    inputs = digests.inputs_hash(proof.request.inputs)
    gateway.inclusion = fake_inclusion(proof.domain, proof.receipt.receipt, inputs)
    assert "batch 1, signed by 3 of 5 validators of epoch 1" in fine(settled, "answer.json").stdout
    assert Proof.from_json(path.read_bytes()) == replace(proof, inclusion=gateway.inclusion)
    shown = fine(verify, "answer.json").stdout
    assert all(f"ok  validator: {address_hex(signer)}" in shown for signer in gateway.inclusion.signers)


def test_settled_waits(gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine(embed, "four", "--save", "answer.json")
    proof = Proof.from_json((tmp_path / "answer.json").read_bytes())
    inputs = digests.inputs_hash(proof.request.inputs)

    def pause(seconds: float) -> None:
        gateway.inclusion = fake_inclusion(proof.domain, proof.receipt.receipt, inputs)

    monkeypatch.setattr("time.sleep", pause)
    assert "batch 1" in fine(settled, "answer.json", "--wait", "60").stdout


def test_settled_refuses_a_lie(gateway: FakeGateway, tmp_path: Path) -> None:
    fine(embed, "four", "--save", "answer.json")
    before = (tmp_path / "answer.json").read_bytes()
    proof = Proof.from_json(before)
    gateway.inclusion = fake_inclusion(proof.domain, proof.receipt.receipt, bytes(32))
    assert "inclusion: the path does not lead" in str(failed(settled, "answer.json"))
    assert (tmp_path / "answer.json").read_bytes() == before


# --- verify ---


def test_verify_fails_with_the_place(tmp_path: Path) -> None:
    fine(embed, "four", "--save", "answer.json")
    path = tmp_path / "answer.json"
    path.write_bytes(path.read_bytes().replace(b'"units": 5', b'"units": 6', 1))
    error = failed(verify, "answer.json")
    assert isinstance(error, VerificationError)
    assert error.where == "chunks[0]"
    fine(embed, "four", "--save", "answer.json")
    assert "receipt.node: is" in str(failed(verify, "answer.json", "--node", address_hex(OTHER.address)))


def test_verify_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "answer.json").write_bytes(b"{}")
    with pytest.raises(SystemExit) as caught:
        main(["verify", "answer.json"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == "ncn: verification: file: Object missing required field `schema`\n"


@pytest.mark.parametrize("arguments", [("missing.json",), ("-", "--node", "0x12"), ("-", "--node", "zz"), ()])
def test_verify_usage(arguments: tuple[str, ...]) -> None:
    assert run(verify, *arguments).exit_code == 2


# --- infer ---


def test_infer_with_typed_inputs(gateway: FakeGateway) -> None:
    result = fine(infer, "adder", "-i", "x=[[1, 2], [3, 4]]", "--input", "n=7", "-p", "t=0.5", "-p", "s=a b")
    (line,) = result.stdout.splitlines()
    outputs = json.loads(line)["outputs"]
    assert outputs[0] == {"name": "sum", "dtype": "FP32", "shape": [2], "data": [3.0, 7.0]}
    assert "data_base64" in outputs[1]  # not UTF-8
    assert "signature  ok" in result.stderr
    assert gateway.bodies[0].parameters == {"t": 0.5, "s": "a b"}


def test_infer_with_texts_files_and_limits(gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"from a file")
    arguments = ("-i", "text=one", "-i", "text=@text", "-i", "text=three", "--limit-units", "9", "--save", "a.json")
    result = fine(infer, "minilm", *arguments)
    assert json.loads(result.stdout)["outputs"][0]["shape"] == [3, 8]
    assert gateway.bodies[0].limit_units == 9
    fine(verify, "a.json")
    (tmp_path / "x").write_bytes(bytes(16))
    assert json.loads(fine(infer, "adder", "-i", "x=@x", "-i", "n=1").stdout)["outputs"][0]["data"] == [0, 0]
    assert json.loads(fine(infer, "minilm", "-i", "text=@-", stdin=b"ab").stdout)["outputs"][0]["data"][0] == 2


def test_infer_with_json(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"x": {"data": [1, 2], "shape": [1, 2]}}')
    assert json.loads(fine(infer, "adder", "--json", "in.json", "-i", "n=1").stdout)["outputs"][0]["data"] == [3]
    assert json.loads(fine(infer, "minilm", "--json", "-", stdin='{"text": ["a"]}').stdout)


def test_infer_prints_a_line_for_each_chunk(gateway: FakeGateway) -> None:
    gateway.pieces = 3
    assert len(fine(infer, "minilm", "-i", "text=a").stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("-i", "text"), "NAME=VALUE"),
        (("-i", "=1"), "NAME=VALUE"),
        (("-i", "x=one", "-i", "n=1"), "not JSON"),
        (("-i", "n=1", "-i", "n=2"), "given twice"),
        (("-i", "x=@missing"), "missing"),
        (("--json", "-"), "not JSON"),
    ],
)
def test_infer_usage(arguments: tuple[str, ...], what: str) -> None:
    result = run(infer, "adder", *arguments)
    assert result.exit_code in (1, 2)
    assert what in result.stderr


def test_infer_with_json_that_is_no_object() -> None:
    assert "not an object" in run(infer, "minilm", "--json", "-", stdin="[]").stderr


def test_infer_with_an_unknown_input() -> None:
    assert isinstance(failed(infer, "minilm", "-i", "other=1"), InvalidTensor)


# --- settings ---


def test_settings_and_flags(asked: Iterator[list[Any]], monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway) -> None:
    made = next(asked)
    fine(embed, "a")
    assert made[-1][0] == "http://127.0.0.1:8080"
    assert made[-1][1].pop("timeout_s") == 60
    assert set(made[-1][1].values()) == {None}
    monkeypatch.setenv("NCN_CLIENT_GATEWAY", "http://elsewhere")
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "33" * 32)
    monkeypatch.setenv("NCN_CLIENT_TIMEOUT_MS", "5000")
    fine(embed, "a")
    assert made[-1][0] == "http://elsewhere"
    assert made[-1][1]["timeout_s"] == 5
    assert gateway.bodies[-1].client == address_hex(CLIENT.address)
    fine(embed, "a", "--gateway", "http://here", "--timeout", "2.5", "--node", NODE_HEX)
    assert made[-1][0] == "http://here"
    assert made[-1][1]["timeout_s"] == 2.5
    monkeypatch.setenv("NCN_CHAIN_ID", "5")
    assert isinstance(failed(embed, "a"), NcnError)


def test_a_bad_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "secret")
    error = failed(embed, "a")
    assert isinstance(error, ConfigError)
    assert "client.private_key" in str(error)
    assert "secret" not in str(error)


# --- payment ---


def test_embed_with_a_voucher(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "33" * 32)
    lines = fine(embed, "a", "--max-fee", "100").stdout.splitlines()
    assert lines[4].startswith("cost       5 units, 0.000000000000000025 NCN (25 wei); ")
    assert lines[5] == f"payment    voucher; 100 wei signed in all to {address_hex(GATEWAY.address)}"
    monkeypatch.setenv("NCN_CLIENT_MAX_FEE_WEI", "40")
    fine(infer, "minilm", "-i", "text=a")
    assert gateway.bodies[-1].limit_units == 10
    assert isinstance(failed(infer, "minilm", "-i", "text=a", "--limit-units", "11"), PaymentRequired)
    monkeypatch.setenv("NCN_CLIENT_PAYMENT", "free")
    assert "payment    free" in fine(embed, "a").stdout
    assert "payment    voucher" in fine(embed, "a", "--payment", "voucher").stdout
    assert run(embed, "a", "--payment", "gold").exit_code == 2
    assert run(embed, "a", "--max-fee", "-1").exit_code == 2


def test_a_session_key(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "22" * 32)
    monkeypatch.setenv("NCN_CLIENT_PAYER", address_hex(CLIENT.address))
    fine(embed, "a")
    assert gateway.ledger.account(CLIENT.address, OTHER.address).charged == 25
    monkeypatch.setenv("NCN_CLIENT_PAYER", "0x12")
    assert "client.payer" in str(failed(embed, "a"))


def test_the_wallet_of_a_flag_goes_first(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_wallet(tmp_path / "home", "alice", CLIENT_KEY, "secret")
    make_wallet(tmp_path / "home", "bob", b"\x22" * 32, "secret")
    monkeypatch.setenv("NCN_WALLET_PASSWORD", "secret")
    monkeypatch.setenv("NCN_CLIENT_WALLET", "bob")

    def client_of(*arguments: str) -> str | None:
        fine(embed, "a", "--payment", "free", *arguments)
        return gateway.bodies[-1].client

    assert client_of() == address_hex(OTHER.address)
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "44" * 32)
    assert client_of() == address_hex(GATEWAY.address)
    assert client_of("--wallet", "alice") == address_hex(CLIENT.address)
    (tmp_path / ".env").write_text("NCN_WALLET_PASSWORD=wrong\n")
    monkeypatch.delenv("NCN_WALLET_PASSWORD")
    error = failed(embed, "a", "--wallet", "alice")
    assert isinstance(error, WalletError)
    assert "wrong" in str(error)


def test_a_password_that_is_typed(gateway: FakeGateway, tmp_path: Path) -> None:
    make_wallet(tmp_path / "home", "alice", CLIENT_KEY, "secret")
    result = fine(embed, "a", "--wallet", "alice", stdin="secret\n")
    assert "Password of wallet 'alice'" in result.stderr
    assert gateway.bodies[-1].client == address_hex(CLIENT.address)
    assert "secret" not in result.output
    assert "NCN_WALLET_PASSWORD" in str(failed(embed, "a", "--wallet", "alice"))


def test_the_development_client_pays(gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "home" / "keys").mkdir(parents=True)
    (tmp_path / "home" / "keys" / "client.key").write_text("33" * 32 + "\n")
    assert "payment    voucher" in fine(embed, "a").stdout
    assert gateway.bodies[-1].client == address_hex(CLIENT.address)


def test_escrow_needs_a_plugin_that_pays(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paying, "find_plugins", lambda order, disabled: [])
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "33" * 32)
    error = failed(embed, "a", "--payment", "escrow")
    assert isinstance(error, NoHandlerError)
    assert "pip install ncn-payments" in str(error)
    monkeypatch.delenv("NCN_CLIENT_PRIVATE_KEY")
    assert isinstance(failed(embed, "a", "--payment", "escrow"), PaymentRequired)


def test_escrow_through_a_plugin(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_to_pay(monkeypatch, gateway)
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "33" * 32)
    lines = fine(embed, "a", "--payment", "escrow").stdout.splitlines()
    assert "payment    escrow" in lines
    assert len(gateway.desk.paid) == 1


# --- test-client ---


def test_walk(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "33" * 32)
    lines = fine(walkthrough).stdout.splitlines()
    titles = [line for line in lines if not line.startswith(" ")]
    assert len(titles) == 8
    assert titles[-1] == "all 7 steps hold"
    text = "\n".join(lines)
    for shown in (
        "payment modes: voucher, free, escrow",
        f"gateway {address_hex(GATEWAY.address)}",
        "0x" + EMBEDDER.digest.hex(),
        f"signed by {address_hex(CLIENT.address)}; payment voucher",
        "0.00000000000300001 NCN (3000010 wei) in all",
        "SETTLED",
        f"signature: {NODE_HEX}, the node",
        "5 units, 0.000000000000000025 NCN (25 wei) charged, payment voucher",
        "0.000000000000000025 NCN (25 wei) charged in all",
        "output embedding: FP32 [1, 8]",
        "changed: refused at",
    ):
        assert shown in text
    assert gateway.executed == 1


def test_walk_without_a_key_or_with_another_model(gateway: FakeGateway) -> None:
    gateway.pieces = 3
    text = fine(walkthrough, "--model", "adder").stdout
    assert "anonymous; payment free" in text
    assert "output sum: FP32 [1]" in text
    gateway.catalogue = lambda models: models.clear()
    assert "serves no model" in str(failed(walkthrough))


def test_walk_into_escrow(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_to_pay(monkeypatch, gateway)
    monkeypatch.setenv("NCN_CLIENT_PRIVATE_KEY", "33" * 32)
    text = fine(walkthrough, "--payment", "escrow", "--max-fee", "70").stdout
    assert "all 10 steps hold" in text
    assert "3 validators of epoch 7 signed" in text
    (transaction,) = gateway.desk.paid
    assert f"transaction 0x{transaction.hex()}" in text
    assert "0.000000000000000045 NCN (45 wei) go back to the client" in text
    gateway.desk.terms = lambda terms: replace(terms, gateway=OTHER.address)
    result = run(walkthrough, "--payment", "escrow")
    assert result.exit_code == 1
    assert "FAILED in step 3, validators sign price and node" in result.stdout
    assert "payment.terms.gateway" in str(result.exception)
    assert len(gateway.failed) == 1


def test_walk_says_where_it_fails(gateway: FakeGateway) -> None:
    gateway.lie = lambda form: form.chunks.clear()
    result = run(walkthrough)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "FAILED in step 4, the answer is verified"
    gateway.lie = lambda form: None
    gateway.failing = ModelFailed("the model raised")
    assert "step 4" in run(walkthrough).stdout


def asked_to_pay(monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway) -> None:
    """Install a plugin that pays on chain."""

    class Chain:
        roles = ()

        @hookimpl
        def ncn_pay(self, due: PaymentDue, signer: Signer) -> Awaitable[bytes]:
            assert signer.address == due.terms.client
            return self.pay(due)

        async def pay(self, due: PaymentDue) -> bytes:
            return gateway.desk.pay(due)

    monkeypatch.setattr(paying, "find_plugins", lambda order, disabled: [loaded_plugin("chain", Chain())])


def test_no_gateway(gateway: FakeGateway) -> None:
    gateway.broken = httpx.ConnectError("refused")
    error = failed(embed, "a")
    assert isinstance(error, CapacityError)
    assert "http://127.0.0.1:8080" in str(error)


def test_plugin_is_accepted_and_its_hooks_are_called() -> None:
    plugins = build_manager([loaded_plugin("client", Plugin)])
    assert sorted(str(command.name) for command in plugins.commands()) == [
        "embed",
        "infer",
        "settled",
        "test-client",
        "verify",
    ]
    (settings,) = plugins.settings()
    assert settings.table == "client"
    assert Config().load(settings)


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys, ncn_client.plugin, ncn_client.commands; "
        "print([m for m in ('httpx', 'pydantic', 'msgspec', 'coincurve') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("command", [embed, infer, walkthrough, verify])
def test_help_has_examples(command: click.Command) -> None:
    assert f"ncn {command.name} " in fine(command, "--help").stdout.partition("\n\n")[2]
