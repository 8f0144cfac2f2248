"""The development network: contracts, validators with stake, an epoch, and money for whoever needs some."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from pathlib import Path

from ncn_framework.errors import TransactionReverted
from ncn_framework.signing import Signer, address_hex

from .chain import Chain
from .config import PaymentsSettings
from .contracts import Contracts
from .deployment import Addresses, Parameters, addresses_of, deploy
from .devkeys import ACCOUNTS, CHAIN_ID, accounts, development_signer, require_development
from .stakes import Stakes
from .transactions import Call
from .writer import TransactionWriter

__all__ = ["DevelopmentNetwork", "advance_epoch", "find_addresses"]

log = logging.getLogger(__name__)

_NCN = 10**18
_STAKE = 20_000 * _NCN
_PURSE = 100_000 * _NCN
_ETHER_WEI = 100 * 10**18
VALIDATORS = tuple(name for name in ACCOUNTS if name.startswith("validator"))
_FUNDED = ("treasury", "gateway", "node", "client")
_NONE = 0
_POOR = _NCN // 100
_HALF = 2
"""An epoch is replaced when half of the time in which its members may sign is over."""


def find_addresses(settings: PaymentsSettings, home: Path, chain_id: int) -> Addresses:
    """Return where the contracts of a network are: what its file says, or where a development network has them.

    Args:
        settings: of payments.
        home: the folder with the file.
        chain_id: of the chain.

    Raises:
        ConfigError: the file is missing, damaged, or for another chain.
    """
    path = settings.addresses_path(home, chain_id)
    if settings.chain_kind != "rpc" and not path.exists():
        return DevelopmentNetwork.addresses()
    return Addresses.load(path, chain_id)


class DevelopmentNetwork:
    """Brings up a development network, and hands out its money.

    Args:
        chain: an open chain with id 31337.
        settings: of payments.
        home: the folder with the journal of transactions and the addresses file.

    Raises:
        ConfigError: the chain has another id.
    """

    def __init__(self, chain: Chain, settings: PaymentsSettings, home: Path) -> None:
        require_development(chain.chain_id)
        self._chain, self._settings, self._home = chain, settings, home

    @staticmethod
    def addresses() -> Addresses:
        """Return where the contracts of a development network always are, deployed already or not."""
        return addresses_of(Parameters.development(), CHAIN_ID)

    def writer(self, name: str) -> TransactionWriter:
        """Return the writer of an account of ``devkeys.ACCOUNTS``, to be entered with ``async with``."""
        signer = development_signer(name, self._chain.chain_id)
        return TransactionWriter.of(self._settings, self._chain, signer, self._home)

    async def prepare(self, *needy: bytes) -> Contracts:
        """Make sure that everything is there: contracts, five validators with stake, a running epoch, some money.

        May be interrupted anywhere and called again; what is there is left as it is. Writes the addresses file.

        Args:
            needy: addresses that get ether and NCN where they have hardly any, beside the development accounts.

        Raises:
            ChainError: the chain cannot be reached.
        """
        path = self._settings.addresses_path(self._home, self._chain.chain_id)
        async with self.writer("deployer") as deployer:
            known = await asyncio.to_thread(_known, path, self._chain.chain_id)
            addresses = await deploy(self._chain, deployer, Parameters.development(), known)
            if addresses != known:
                await asyncio.to_thread(addresses.save, path)
            contracts = Contracts(self._chain, addresses)
            for address in (*(accounts()[name] for name in _FUNDED), *needy):
                if await contracts.token.read("balanceOf", address) < _POOR:
                    await self._give(contracts, deployer, address, 0, _PURSE)
                if await self._chain.balance(address) < _POOR:
                    await self._give(contracts, deployer, address, _ETHER_WEI, 0)
            joined = [name for name in VALIDATORS if await self._join(contracts, deployer, name)]
            await advance_epoch(contracts, deployer, anyway=bool(joined))
        return contracts

    async def _join(self, contracts: Contracts, deployer: TransactionWriter, name: str) -> bool:
        """Stake for a validator that never did; return whether it had to be done."""
        token, registry = contracts.token, contracts.registry
        address, run = accounts()[name], f"{registry.address.hex()}:{name}"
        if (await registry.read("validators", address))[0] != _NONE:
            return False
        await deployer.send(token.call("transfer", address, 2 * _STAKE), key=f"stake:{run}")
        async with self.writer(name) as validator:
            await validator.send(token.call("approve", registry.address, _STAKE), key=f"approve:{run}")
            await validator.send(registry.call("registerValidator", _STAKE), key=f"register:{run}")
        return True

    async def fund(
        self, contracts: Contracts, address: bytes, *, ether_wei: int = _ETHER_WEI, amount_wei: int = _PURSE
    ) -> None:
        """Give an address ether and NCN of the deployer's.

        Args:
            contracts: of this network.
            address: 20 bytes.
            ether_wei: how much ether.
            amount_wei: how much of the token, in its base units.

        Raises:
            TransactionReverted: the deployer has not that much.
            ChainError: the chain cannot be reached.
        """
        async with self.writer("deployer") as deployer:
            await self._give(contracts, deployer, address, ether_wei, amount_wei)

    async def bond(self, contracts: Contracts, signer: Signer) -> None:
        """Put a compute node's least bond at stake for an account that has none, with the deployer's money.

        Who left, is leaving or was jailed keeps to that: it is for the account's owner to change.

        Args:
            contracts: of this network.
            signer: of the account's key.

        Raises:
            TransactionReverted: the deployer has not that much.
            ChainError: the chain cannot be reached.
        """
        async with TransactionWriter.of(self._settings, self._chain, signer, self._home) as writer:
            stakes = Stakes(contracts, writer)
            if (await stakes.standing(signer.address)).state != "none":
                return
            amount = (await stakes.minimums()).bond_wei
            await self.endow(contracts, signer.address, amount)
            await stakes.bond(amount, f"bond:{contracts.registry.address.hex()}")

    async def endow(self, contracts: Contracts, address: bytes, amount_wei: int) -> None:
        """Give an address what it lacks to pay an amount of NCN, and the fees of some transactions.

        Args:
            contracts: of this network.
            address: 20 bytes.
            amount_wei: what it is to have of the token, in its base units.

        Raises:
            TransactionReverted: the deployer has not that much.
            ChainError: the chain cannot be reached.
        """
        lacks = max(0, amount_wei - int(await contracts.token.read("balanceOf", address)))
        poor = await self._chain.balance(address) < _POOR
        if lacks or poor:
            await self.fund(contracts, address, ether_wei=_ETHER_WEI if poor else 0, amount_wei=lacks)

    async def _give(
        self, contracts: Contracts, deployer: TransactionWriter, address: bytes, ether_wei: int, amount_wei: int
    ) -> None:
        run = secrets.token_hex(8)
        if ether_wei:
            call = Call(address, what=f"ether for {address_hex(address)}")
            await deployer.send(call, key=f"fund:{run}:ether", value_wei=ether_wei)
        if amount_wei:
            await deployer.send(contracts.token.call("transfer", address, amount_wei), key=f"fund:{run}:token")


def _known(path: Path, chain_id: int) -> Addresses | None:
    return Addresses.load(path, chain_id) if path.exists() else None


async def advance_epoch(contracts: Contracts, writer: TransactionWriter, *, anyway: bool = False) -> int:
    """Begin a new epoch where the current one is half over, so that its members can go on signing.

    Args:
        contracts: of the network.
        writer: of any account.
        anyway: because the validators have changed; the new ones sign from the next epoch on.

    Returns:
        The current epoch.
    """
    registry = contracts.registry
    epoch = int(await registry.read("currentEpoch"))
    lifetime_s = int(await registry.read("snapshotLifetime"))
    head = await contracts.chain.request("eth_getBlockByNumber", ["latest", False])
    now_s = max(int(time.time()), int(head["timestamp"], 16))  # the newest block may be old
    left_s = int(await registry.read("validUntil", epoch)) - now_s if epoch else 0
    if not anyway and left_s > lifetime_s // _HALF:
        return epoch
    try:
        await writer.send(registry.call("advanceEpoch"), key=f"epoch:{registry.address.hex()}:{epoch}:{head['number']}")
    except TransactionReverted as error:
        if error.reason != "ValidatorRegistry__EpochNotOver":
            raise
        log.info("epoch %d is not over yet, or another was first: %s", epoch, error)
    return int(await registry.read("currentEpoch"))
