"""Epochs with the stakes that their members had, counted from logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ncn_framework.errors import ChainError
from ncn_payments import epochs as module
from ncn_payments.contracts import Contracts
from ncn_payments.epochs import Epochs

from .conftest import KINDS
from .network import VALIDATORS, Network
from .payments import NODE
from .staking import NCN, advance, bonded, stakes_of, verdict_on, wrong_receipt

STAKE = 20_000 * NCN


class Forgetful:
    """A chain that asks another, counts, and leaves out logs with a topic where it is told to."""

    def __init__(self, network: Network) -> None:
        self.network, self.hidden = network, ""
        self.asked: list[tuple[str, Sequence[Any]]] = []
        self.chain_id = network.chain.chain_id

    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        self.asked.append((method, params))
        answer = await self.network.chain.request(method, params)
        if method == "eth_getLogs" and self.hidden:
            return [log for log in answer if self.hidden not in log["topics"]]
        return answer

    async def block_number(self) -> int:
        return await self.network.chain.block_number()

    async def call(self, to: bytes, data: bytes, sender: bytes | None = None) -> bytes:
        return await self.network.chain.call(to, data, sender)

    def contracts(self) -> Contracts:
        return Contracts(self, self.network.contracts.addresses)  # type: ignore[arg-type]

    @property
    def ranges(self) -> list[tuple[int, str]]:
        """The ranges of blocks whose logs were asked for."""
        found = [params[0] for method, params in self.asked if method == "eth_getLogs"]
        return [(int(one["fromBlock"], 16), one["toBlock"]) for one in found]


def topic(network: Network, event: str) -> str:
    return "0x" + network.contracts.registry.interface.topic(event).hex()


@pytest.mark.parametrize("network", KINDS, indirect=True)
async def test_an_epoch_is_what_the_contract_and_its_block_say(network: Network) -> None:
    epoch, registry = await Epochs(network.contracts).epoch(), network.contracts.registry
    assert epoch.number == await registry.read("currentEpoch")
    assert tuple(member.address for member in epoch.members) == await registry.read("members", epoch.number)
    assert {member.stake_wei for member in epoch.members} == {STAKE}
    assert epoch.quorum == await registry.read("quorumSize", epoch.number) == 3
    assert epoch.valid_until_s == await registry.read("validUntil", epoch.number)
    assert epoch.disputes == network.contracts.addresses.disputes
    (began,) = await registry.past_logs((registry.interface.topic("EpochAdvanced"),), 0)
    block = await network.chain.request("eth_getBlockByNumber", [began["blockNumber"], False])
    assert "0x" + epoch.seed.hex() == block["hash"]
    assert await Epochs(network.contracts).epoch(epoch.number) == epoch


async def test_stakes_are_those_at_the_epochs_beginning_whenever_it_is_asked_for(network: Network) -> None:
    """Added, slashed, gone and bonded in between: each epoch keeps its own, for who was there and who comes later."""
    early = Epochs(network.contracts)
    first = await early.epoch()
    node = await bonded(network)
    validator = await stakes_of(network, VALIDATORS[0])
    await validator.add(700 * NCN, "add")
    leaver = await stakes_of(network, VALIDATORS[1])
    await leaver.exit("leave")
    await advance(network, node, "second")
    receipt = wrong_receipt(network, node=VALIDATORS[4])
    await node.report_result(*await verdict_on(network, receipt, node), "slash")  # 14,000 left: still active
    await node.add(NCN, "node adds")
    await advance(network, node, "third")
    second, third = await early.epoch(first.number + 1), await early.epoch()
    assert third.number == first.number + 2
    stakes = [{one.address: one.stake_wei // NCN for one in epoch.members} for epoch in (first, second, third)]
    addresses = [one.address for one in VALIDATORS]
    assert [stakes[0].get(one) for one in addresses] == [20_000] * 5
    assert [stakes[1].get(one) for one in addresses] == [20_700, None, 20_000, 20_000, 20_000]
    assert [stakes[2].get(one) for one in addresses] == [20_700, None, 20_000, 20_000, 14_000]
    assert all(NODE.address not in one for one in stakes)
    assert len({first.seed, second.seed, third.seed}) == 3
    late = Epochs(network.contracts)
    assert [await late.epoch(first.number + n) for n in range(3)] == [first, second, third]
    for address, stake in stakes[2].items():
        assert await network.contracts.registry.read("stakeOf", address) == stake * NCN


async def test_logs_are_read_once_and_known_epochs_not_at_all(network: Network) -> None:
    chain = Forgetful(network)
    epochs = Epochs(chain.contracts())
    first = await epochs.epoch()
    ((start, _),) = chain.ranges
    assert start == network.contracts.addresses.block
    newest = await network.chain.block_number()
    await epochs.epoch()
    assert len(chain.ranges) == 1
    asked = len(chain.asked)
    assert await epochs.epoch(first.number) == first
    assert len(chain.asked) == asked
    await advance(network, await stakes_of(network, VALIDATORS[0]), "next")
    assert (await epochs.epoch()).number == first.number + 1
    assert [start for start, _ in chain.ranges] == [start, newest + 1]


async def test_an_old_epoch_is_counted_anew(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 1)
    stakes = await stakes_of(network, VALIDATORS[0])
    first = await Epochs(network.contracts).epoch()
    await stakes.add(NCN, "add")
    await advance(network, stakes, "second")
    await advance(network, stakes, "third")
    epochs = Epochs(network.contracts)
    assert (await epochs.epoch()).number == first.number + 2
    assert await epochs.epoch(first.number) == first
    assert (await epochs.epoch(first.number + 1)).members != first.members


async def test_an_epoch_is_known_once_its_block_is_final(network: Network) -> None:
    patient, stakes = Epochs(network.contracts, confirmations=3), await stakes_of(network, VALIDATORS[0])
    for _ in range(3):
        await network.pass_time(1)
    first = await patient.epoch()
    await advance(network, stakes, "next")
    await network.pass_time(1)
    assert await patient.epoch() == first
    with pytest.raises(ChainError, match=f"no epoch {first.number + 1}; the newest that is final is {first.number}"):
        await patient.epoch(first.number + 1)
    await network.pass_time(1)
    assert (await patient.epoch()).number == first.number + 1


@pytest.mark.parametrize("number", [-1, 99])
async def test_an_epoch_that_is_not(network: Network, number: int) -> None:
    with pytest.raises(ChainError, match=f"there is no epoch {number}"):
        await Epochs(network.contracts).epoch(number)


@pytest.mark.parametrize("event", ["ValidatorRegistered", "ValidatorSlashed", "Bonded"])
async def test_logs_that_were_left_out_are_noticed_and_read_again(network: Network, event: str) -> None:
    """A node behind a balancer may lag: stakes that nobody else has would draw a committee that nobody else draws."""
    node = await bonded(network)
    await node.report_result(*await verdict_on(network, wrong_receipt(network), node), "slash")
    await node.add(300 * NCN, "add")
    await advance(network, node, "next")
    chain = Forgetful(network)
    epochs, chain.hidden = Epochs(chain.contracts()), topic(network, event)
    with pytest.raises(ChainError, match="left out logs of ValidatorRegistry"):
        await epochs.epoch()
    chain.hidden = ""
    assert await epochs.epoch() == await Epochs(network.contracts).epoch()


async def test_no_epoch_at_all(network: Network) -> None:
    chain = Forgetful(network)
    chain.hidden = topic(network, "EpochAdvanced")
    with pytest.raises(ChainError, match="no epoch has begun"):
        await Epochs(chain.contracts()).epoch()
