"""The fee of a subnet: paid once, found on chain, and good for one subnet."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.errors import EndorsementRefused, PaymentRequired, ReplayConflict
from ncn_framework.manager import build_manager
from ncn_framework.models import Record
from ncn_framework.payments import FeeDue
from ncn_framework.signing import Signer
from ncn_framework.statements import SubnetStatement
from ncn_framework.testing.fakes import as_plugins, fake_signer, sources_of
from ncn_payments.devkeys import CHAIN_ID
from ncn_payments.paying import pay
from ncn_payments.plugin import Plugin
from ncn_payments.treasury import check_fee

from .network import Asked, Network
from .payments import CLIENT, GATEWAY, NODE

FEE = 100 * 10**18
DUE = FeeDue(CHAIN_ID, FEE, "subnet of the test")


@pytest.fixture
async def config(prepared_networks: Callable[[str], Path], tmp_path: Path) -> Config:
    """Of a command, where nobody runs the chain."""
    prepared = await asyncio.to_thread(prepared_networks, "embedded")
    await asyncio.to_thread(shutil.copytree, prepared, tmp_path / "home")
    return Config(sources_of({}, tmp_path / "home"))


async def test_a_fee_is_paid_once(config: Config) -> None:
    transaction = await pay(config, DUE, CLIENT)
    assert len(transaction) == 32
    assert await pay(config, DUE, CLIENT) == transaction
    assert await pay(config, replace(DUE, purpose="another subnet"), CLIENT) != transaction
    with pytest.raises(ReplayConflict):
        await pay(config, replace(DUE, amount_wei=FEE + 1), CLIENT)


async def test_who_has_not_so_much_hears_it(config: Config) -> None:
    with pytest.raises(PaymentRequired, match=r"subnet of the test costs 1000000\d+ wei of the token; wallet 0x"):
        await pay(config, replace(DUE, amount_wei=10**6 * 10**18), CLIENT)


async def test_the_hook_pays_on_its_own_chain(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCN_HOME", str(config.home))
    plugins = build_manager(as_plugins(Plugin))
    assert plugins.hook.ncn_pay(due=replace(DUE, chain_id=1), signer=CLIENT) is None
    assert await plugins.pay(DUE, CLIENT) == await pay(config, DUE, CLIENT)


async def paid(network: Network, payer: Signer, amount_wei: int, to: bytes | None = None) -> bytes:
    """Transfer tokens, and return the transaction's hash."""
    chain = await network.onchain(payer)
    treasury = to or await network.contracts.registry.read("treasury")
    key = f"fee:{payer.address.hex()}:{amount_wei}:{treasury.hex()}"
    return (await chain.writer.send(network.contracts.token.call("transfer", treasury, amount_wei), key=key)).hash


async def test_a_fee_is_found(network: Network) -> None:
    transaction = await paid(network, CLIENT, FEE)
    await check_fee(network.contracts, transaction, CLIENT.address, FEE, 1)
    await check_fee(network.contracts, transaction, CLIENT.address, FEE - 1, 1)
    for payer, amount, confirmations, why in (
        (GATEWAY.address, FEE, 1, f"brought 0 wei from 0x{GATEWAY.address.hex()[:4]}"),
        (CLIENT.address, FEE + 1, 1, "the fee is 100000000000000000001 wei"),
        (CLIENT.address, FEE, 2, "has 1 confirmations; ask again once it has 2"),
    ):
        with pytest.raises(EndorsementRefused, match=f"(?i){why}"):
            await check_fee(network.contracts, transaction, payer, amount, confirmations)
    with pytest.raises(EndorsementRefused, match="is not on chain"):
        await check_fee(network.contracts, bytes(32), CLIENT.address, FEE, 1)
    elsewhere = await paid(network, CLIENT, FEE, NODE.address)
    with pytest.raises(EndorsementRefused, match="brought 0 wei"):
        await check_fee(network.contracts, elsewhere, CLIENT.address, FEE, 1)


# --- the validators of a subnet ---


async def subnet(
    network: Network, fee: bytes, sequence: int = 1, owner: Signer = CLIENT, **changes: object
) -> SubnetStatement:
    """Return a version of a subnet, signed by its owner."""
    record = replace(Record("subnet", owner.address, sequence, 2**42, b"models"), **changes)  # type: ignore[arg-type]
    signature = owner.sign(digests.record_digest(network.domain, record)).value
    epoch = int(await network.contracts.registry.read("currentEpoch"))
    return SubnetStatement(epoch, replace(record, signature=signature), fee)


async def test_a_subnet_is_signed_for_its_fee(network: Network) -> None:
    asked = Asked()
    committee = network.committee(await network.onchain(), asked=asked)
    fee = await paid(network, CLIENT, FEE)
    statement = await subnet(network, fee)
    assert len((await committee.endorse(statement)).signatures) == 3
    assert await committee.endorse(statement) == await committee.endorse(statement)
    assert asked.inspected
    await committee.endorse(await subnet(network, b"", 2))
    await committee.endorse(await subnet(network, fee, 2**63 - 1))  # with the fee in it once more


async def test_an_earlier_version_does_not_come_back(network: Network) -> None:
    committee = network.committee(await network.onchain())
    fee = await paid(network, CLIENT, FEE)
    await committee.endorse(await subnet(network, fee, 5))
    for sequence, payload in ((4, b"models"), (5, b"others")):
        with pytest.raises(EndorsementRefused, match="version 5 of this subnet was signed already"):
            await committee.endorse(await subnet(network, fee, sequence, payload=payload))
    await committee.endorse(await subnet(network, b"", 6, payload=b"others"))


async def test_a_fee_is_good_for_one_subnet(network: Network) -> None:
    """Whoever paid cannot give it to somebody else, and of one owner there is one subnet."""
    committee = network.committee(await network.onchain())
    fee = await paid(network, CLIENT, FEE)
    await committee.endorse(await subnet(network, fee))
    with pytest.raises(EndorsementRefused, match="brought 0 wei"):
        await committee.endorse(await subnet(network, fee, owner=GATEWAY))


async def test_without_a_fee_there_is_no_subnet(network: Network) -> None:
    committee = network.committee(await network.onchain())
    with pytest.raises(EndorsementRefused, match="no earlier version of this subnet was signed here"):
        await committee.endorse(await subnet(network, b""))
    with pytest.raises(EndorsementRefused, match="the fee is"):
        await committee.endorse(await subnet(network, await paid(network, CLIENT, FEE - 1)))


async def test_what_is_no_subnet_is_not_signed(network: Network) -> None:
    asked = Asked()
    committee = network.committee(await network.onchain(), asked=asked)
    fee = await paid(network, CLIENT, FEE)
    right = await subnet(network, fee)
    for wrong, why in (
        (await subnet(network, fee, kind="node"), "this one is of kind 'node'"),
        (await subnet(network, fee, expires_ms=1), "expired at 1 ms"),
        (replace(right, record=replace(right.record, payload=b"mine")), "the subnet's record is signed by"),
        (replace(right, record=replace(right.record, signature=b"")), "a signature of 0 bytes"),
        (replace(right, record=replace(right.record, owner=fake_signer("x").address)), "the subnet's record is signed"),
    ):
        with pytest.raises(EndorsementRefused, match=why):
            await committee.endorse(wrong)
    assert asked.inspected == []
    asked.objection = EndorsementRefused("its name is taken")
    with pytest.raises(EndorsementRefused, match="its name is taken"):
        await committee.endorse(right)
    asked.objection = None
    await committee.endorse(right)
