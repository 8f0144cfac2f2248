"""Whether a deployment is what it should be, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ncn_framework.errors import NcnError
from ncn_framework.signing import address_hex

from .abi import interface
from .contracts import CONTRACTS, Contracts
from .deployment import ADMIN_ROLE, has_code_of
from .stakes import STATES

__all__ = ["Inspection", "inspect"]

_REGISTRY = ("minStake", "minBond", "epochLength", "snapshotLifetime", "disputeWindow", "unbondingPeriod")
_PAYMENT = ("WITHDRAWAL_DELAY", "WITHDRAWAL_WINDOW", "MAX_REQUEST_TIME")


@dataclass
class Inspection:
    """What was found. Amounts in base units of the token, times in seconds.

    Attributes:
        chain_id: EIP-155 chain id.
        block: newest block.
        contracts: address, and whether the code is that of this installation, by name.
        parameters: settled at deployment.
        epoch: number, when it began, until when its members may sign, its quorum, and who they are with their stake.
        funds: treasury, validator pool, paused; in base units.
        problems: what is missing or wrong; empty where all is well.
    """

    chain_id: int
    block: int
    contracts: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    epoch: dict[str, Any] = field(default_factory=dict)
    funds: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


async def inspect(contracts: Contracts) -> Inspection:
    """Look at everything.

    Args:
        contracts: bound to an open chain.

    Raises:
        ChainError: the chain cannot be reached.
    """
    chain = contracts.chain
    found = Inspection(contracts.addresses.chain_id, await chain.block_number())
    for name, contract in CONTRACTS.items():
        address = getattr(contracts.addresses, name)
        code = await chain.code(address)
        matches = has_code_of(interface(contract), code)
        found.contracts[contract] = {"address": address_hex(address), "bytes": len(code), "matches": matches}
        if not code:
            found.problems.append(f"{contract}: there is no contract at {address_hex(address)}")
        elif not matches:
            found.problems.append(f"{contract}: the code at {address_hex(address)} is not this installation's")
    if all(row["bytes"] for row in found.contracts.values()):
        for look in (_wiring, _parameters, _epoch, _funds):
            try:
                await look(contracts, found)
            except NcnError as error:  # another contract answers there; its code is a problem already
                found.problems.append(str(error))
    return found


async def _wiring(contracts: Contracts, found: Inspection) -> None:
    addresses, registry, payment = contracts.addresses, contracts.registry, contracts.payment
    slasher = await registry.read("DISPUTES_ROLE")
    expected = {
        "the timelock is not the registry's admin": registry.read("hasRole", ADMIN_ROLE, addresses.timelock),
        "the timelock is not the payment contract's admin": payment.read("hasRole", ADMIN_ROLE, addresses.timelock),
        "the dispute manager is not the slasher": registry.read("hasRole", slasher, addresses.disputes),
    }
    for problem, answer in expected.items():
        if not await answer:
            found.problems.append(problem)
    parts = {
        "the payment contract has another token": (await payment.read("token"), addresses.token),
        "the registry has another token": (await registry.read("token"), addresses.token),
        "the payment contract has another registry": (await payment.read("registry"), addresses.registry),
        "the dispute manager judges another contract": (await contracts.disputes.read("payment"), addresses.payment),
    }
    found.problems += [problem for problem, (actual, wanted) in parts.items() if actual != wanted]


async def _parameters(contracts: Contracts, found: Inspection) -> None:
    for contract, names in ((contracts.registry, _REGISTRY), (contracts.payment, _PAYMENT)):
        for name in names:
            found.parameters[name] = int(await contract.read(name))
    found.parameters["threshold"] = int(await contracts.registry.read("threshold"))
    found.parameters["timelockDelay"] = int(await contracts.timelock.read("getMinDelay"))
    found.parameters["totalSupply"] = int(await contracts.token.read("totalSupply"))


async def _epoch(contracts: Contracts, found: Inspection) -> None:
    registry = contracts.registry
    number = int(await registry.read("currentEpoch"))
    found.epoch = {"number": number, "validators": []}
    if not number:
        found.problems.append("no epoch has begun: nobody can sign; call advanceEpoch()")
        return
    found.epoch["started_at"] = int(await registry.read("epochStartedAt"))
    found.epoch["valid_until"] = int(await registry.read("validUntil", number))
    head = await contracts.chain.request("eth_getBlockByNumber", ["latest", False])
    if found.epoch["valid_until"] < int(head["timestamp"], 16):
        found.problems.append(f"the members of epoch {number} may not sign any more; call advanceEpoch()")
    members = await registry.read("members", number)
    for member in members:
        state, stake, exit_at, reputation, rewards = await registry.read("validators", member)
        found.epoch["validators"].append(
            {
                "address": address_hex(member),
                "state": STATES[state],
                "stake": stake,
                "exit_at": exit_at,
                "reputation": reputation,
                "rewards": rewards,
            }
        )
    quorum = int(await registry.read("quorumSize", number))
    found.epoch["quorum"] = quorum
    if len(members) < quorum:
        found.problems.append(f"epoch {number} has {len(members)} members, fewer than the {quorum} of a quorum")


async def _funds(contracts: Contracts, found: Inspection) -> None:
    treasury, pool, paused = await contracts.payment.read("globals")
    held = await contracts.token.read("balanceOf", contracts.addresses.payment)
    found.funds = {
        "treasury": treasury,
        "validator_pool": pool,
        "paused": paused,
        "held": held,
    }
