"""The plugin as a whole: a gateway that brings up its network, a compute node with its books."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ncn_framework.errors import ConfigError, NoHandlerError, PaymentRequired
from ncn_framework.lifecycle import Outcome
from ncn_framework.models import Domain, InferenceRequest, Route
from ncn_framework.node import Node
from ncn_framework.payments import ESCROW, EXACT, VOUCHER, Voucher
from ncn_framework.signing import Signer, address_hex, load_or_create_signer
from ncn_framework.statements import PerformancesStatement
from ncn_framework.testing.fakes import FakeRuntime, fake_candidates
from ncn_payments.books import BooksLease
from ncn_payments.config import PaymentsSettings
from ncn_payments.devkeys import CHAIN_ID, development_signer
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.ledger_lock import ledger_path
from ncn_payments.ledger_reader import LedgerReader
from ncn_payments.operator_token import OperatorToken
from ncn_payments.plugin import Plugin
from ncn_payments.service import Payments, bound_domain, validator_signers

from .network import Network, settings_of
from .payments import CLIENT, NODE, make_receipt, make_request, make_voucher, priced
from .test_desk import Others

MANIFEST = priced(base_wei=5, unit_wei=10**15)
LIMIT = 5 + 10 * 10**15
MakeNode = Callable[..., Node]


def plugin_of(make_node: MakeNode, role: str, *others: Any, **settings: Any) -> tuple[Node, Payments]:
    """Return a node with the plugin in it, not started."""
    made: list[Plugin] = []

    class Captured(Plugin):
        def __init__(self, node: Node) -> None:
            super().__init__(node)
            made.append(self)

    node = make_node(role, Captured, *others, settings=settings)
    return node, made[0].payments


@pytest.fixture
async def home(prepared_networks: Callable[[str], Path], tmp_path: Path) -> Path:
    """The home folder of the test's nodes, with a network that is up."""
    prepared = await asyncio.to_thread(prepared_networks, "embedded")
    await asyncio.to_thread(shutil.copytree, prepared, tmp_path / "home")
    return tmp_path / "home"


async def test_a_gateway_brings_up_its_network_and_serves_its_client(home: Path, make_node: MakeNode) -> None:
    """Nothing but the gateway is started: the client of this machine has a channel, and validators sign the batch."""
    network = Network(
        chain=None,  # type: ignore[arg-type]
        contracts=None,  # type: ignore[arg-type]
        home=home,
        domain=Domain(CHAIN_ID, DevelopmentNetwork.addresses().payment),
        token=Domain(),
        stack=None,  # type: ignore[arg-type]
    )
    others = Others(network)
    node, payments = plugin_of(make_node, "gateway", others, FakeRuntime())
    async with payments.serve():
        assert payments.desk is not None
        assert node.domain == network.domain
        assert node.lifecycle.domain == network.domain
        assert node.endpoints["chain"] == f"embedded, contract {address_hex(network.domain.contract)}"
        assert OperatorToken.load(home).fits(payments.operator_token.header if payments.operator_token else None)
        client = load_or_create_signer(home / "keys" / "client.key")
        gateway = node.signer
        voucher = make_voucher(LIMIT, client, gateway=gateway, domain=network.domain)
        request = make_request(1, client, MANIFEST, network.domain, limit_units=10, authorization=voucher)
        life = node.lifecycle
        life.check(request, MANIFEST)
        await life.admit(request, MANIFEST)
        outcome = await life.run(request, lambda _: None, candidates=fake_candidates(1, MANIFEST))
        assert isinstance(outcome, Outcome)
        assert outcome.settlement.charged_wei == 5 + 2 * 10**15
        (settled,) = await payments.desk.settler.settle(everything=True)
        assert settled.statement.batch.gateway == gateway.address
    with LedgerReader(ledger_path(home, "gateway")) as ledger:
        assert [row.nonce for row in ledger.batches()] == [1]
        assert ledger.in_doubt() == []


async def test_a_second_start_finds_what_the_first_has_left(home: Path, make_node: MakeNode) -> None:
    balances = []
    for _ in range(2):
        node, payments = plugin_of(make_node, "gateway")
        async with payments.serve():
            assert payments.desk is not None
            client = load_or_create_signer(home / "keys" / "client.key")
            balances.append(await payments.desk.chain.tokens(client.address))
            channel = await payments.desk.chain.contracts.payment.read(
                "channelId", client.address, client.address, node.signer.address
            )
            assert (await payments.desk.chain.deposit(channel)).deposited_wei == 1_000 * 10**18
    assert balances[0] == balances[1]


# --- a compute node ---


@pytest.fixture
async def compute(make_node: MakeNode) -> AsyncIterator[tuple[Node, Payments]]:
    node, payments = plugin_of(make_node, "compute", FakeRuntime())
    async with payments.serve():
        yield node, payments


def at_node(payments: Payments, voucher: Voucher | None, **changes: Any) -> InferenceRequest:
    return make_request(1, CLIENT, MANIFEST, payments.node.domain, limit_units=10, authorization=voucher, **changes)


async def test_a_node_looks_at_vouchers_and_books_what_it_is_owed(compute: tuple[Node, Payments]) -> None:
    node, payments = compute
    assert node.domain.contract == DevelopmentNetwork.addresses().payment
    assert payments.desk is None
    voucher = make_voucher(LIMIT, domain=node.domain)
    route = Route(NODE.address, MANIFEST)
    refused = payments.reserve(at_node(payments, make_voucher(LIMIT - 1, domain=node.domain)), route)
    assert refused is not None
    with pytest.raises(PaymentRequired):
        await refused.__aenter__()
    held = payments.reserve(at_node(payments, voucher), route)
    assert isinstance(held, BooksLease)
    async with held:
        pass
    receipt = make_receipt(make_request(1), 5)
    for mode in (VOUCHER, EXACT, ESCROW):
        settling = payments.settle(receipt, at_node(payments, None, payment=mode))
        assert settling is not None
        assert (await settling).mode == mode
    assert payments.settle(receipt, at_node(payments, None, payment="free")) is None
    for mode in (ESCROW, "free"):  # of an escrow, the gateway and the validators take care
        assert payments.reserve(at_node(payments, None, payment=mode), route) is None


async def test_a_node_has_nothing_to_say_about_what_is_a_gateways(compute: tuple[Node, Payments]) -> None:
    node, payments = compute
    request = at_node(payments, None)
    assert payments.check(request, MANIFEST) is None
    assert list(payments.routes()) == []
    with pytest.raises(NoHandlerError):
        await node.validation.endorse(None)  # type: ignore[arg-type]
    assert node.lifecycle._hook.ncn_confirm_payment(confirmation=None) is None


# --- settings ---


async def test_another_contract_than_the_networks_is_refused(make_node: MakeNode) -> None:
    node, payments = plugin_of(make_node, "compute", contract=address_hex(CLIENT.address))
    with pytest.raises(ConfigError, match="setting contract is"):
        bound_domain(node, payments.addresses)
    right = address_hex(DevelopmentNetwork.addresses().payment)
    node, payments = plugin_of(make_node, "compute", contract=right)
    assert address_hex(bound_domain(node, payments.addresses).contract) == right


async def test_a_public_chain_needs_its_addresses(make_node: MakeNode) -> None:
    _, payments = plugin_of(make_node, "compute", **{"payments.rpc_url": "http://127.0.0.1:1"})
    with pytest.raises(ConfigError, match="with the contracts' addresses does not exist"):
        _ = payments.addresses


def _hex(signer: Signer) -> str:
    return signer._key.secret.hex()


def test_validators_are_those_of_the_settings_or_of_the_development_network(tmp_path: Path) -> None:
    settings: PaymentsSettings = settings_of(tmp_path)
    assert [signer.address for signer in validator_signers(settings, CHAIN_ID)] == [
        development_signer(f"validator{n}", CHAIN_ID).address for n in range(1, 6)
    ]
    assert validator_signers(settings, 1) == []
    public = settings_of(tmp_path, rpc_url="http://127.0.0.1:1")
    assert validator_signers(public, CHAIN_ID) == []
    keys = ", ".join(map(_hex, (CLIENT, NODE)))
    found = validator_signers(settings_of(tmp_path, rpc_url="http://127.0.0.1:1", validator_keys=keys), 1)
    assert [signer.address for signer in found] == [CLIENT.address, NODE.address]
    with pytest.raises(ConfigError, match=r"payments\.validator_keys\[1\]") as refused:
        validator_signers(settings_of(tmp_path, validator_keys=f"{_hex(CLIENT)},abc"), 1)
    assert "abc" not in str(refused.value)


async def test_without_keys_nobody_signs(network: Network, make_node: MakeNode) -> None:
    node, payments = plugin_of(make_node, "gateway")
    chain, statement = await network.onchain(), PerformancesStatement(bytes(20), 1, 1, ())
    with payments.validating(chain):
        assert payments.validators is not None
        assert len(node.validators) == 5
    assert payments.validators is None
    chain.domain = replace(network.domain, chain_id=1)
    with payments.validating(chain):
        assert payments.validators is None
        assert node.validators == ()
        with pytest.raises(NoHandlerError):
            await node.validation.vouch(statement, {})
        with pytest.raises(NoHandlerError):
            await node.validation.endorse(statement)
        assert len((await node.validation.epoch()).members) == 5  # the chain is asked all the same
