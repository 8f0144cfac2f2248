"""A development network with its contracts, validators and money, brought up once and copied for each test."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ncn_framework import digests
from ncn_framework.committees import Epoch
from ncn_framework.config import Config
from ncn_framework.errors import EndorsementRefused
from ncn_framework.models import Domain
from ncn_framework.payments import Voucher
from ncn_framework.signing import Signer
from ncn_framework.statements import Evidence, Statement
from ncn_framework.testing.fakes import fake_signer, sources_of
from ncn_framework.validation import Validation
from ncn_payments.chain import Chain
from ncn_payments.committee import Committee
from ncn_payments.config import PaymentsSettings
from ncn_payments.contracts import Contracts
from ncn_payments.devkeys import CHAIN_ID, development_signer
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.ledger import Ledger
from ncn_payments.onchain import OnChain
from ncn_payments.stakes import Stakes
from ncn_payments.validator_memory import ValidatorMemory
from ncn_payments.writer import TransactionWriter

from .conftest import make_chain
from .payments import CLIENT, GATEWAY, NODE, make_voucher

__all__ = ["CLIENTS", "NODES", "Asked", "Network", "Questions", "opened_network", "prepared_folder", "settings_of"]

CLIENTS = [CLIENT, *(fake_signer(f"client {n}") for n in range(1, 4))]
NODES = [NODE, *(fake_signer(f"node {n}") for n in range(1, 5))]
VALIDATORS = [development_signer(f"validator{n}", CHAIN_ID) for n in range(1, 6)]
_FUNDED = [GATEWAY, *CLIENTS, NODE]


def settings_of(home: Path, **changes: object) -> PaymentsSettings:
    """Return the settings of payments, with ``changes``."""
    return Config(sources_of({f"payments.{name}": value for name, value in changes.items()}, home)).load(
        PaymentsSettings
    )


def prepared_folder(kind: str, folder: Path) -> Path:
    """Bring up the network in a loop of its own, in ``folder``, and return that."""

    async def prepare() -> None:
        async with make_chain(kind, folder / "chain") as chain:
            network = DevelopmentNetwork(chain, settings_of(folder), folder)
            await network.prepare(*(signer.address for signer in _FUNDED))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, prepare()).result()
    return folder


@dataclass
class Asked:
    """What other plugins answer to validators.

    Attributes:
        objection: whatever is inspected is refused with this, unless all that it wants is shown.
        kept: answers that the gateway still has.
        inspected: what was inspected, and which answers were shown with it.
    """

    objection: EndorsementRefused | None = None
    kept: dict[bytes, Evidence] = field(default_factory=dict)
    inspected: list[tuple[Statement, frozenset[bytes]]] = field(default_factory=list)


class Questions:
    """Asks a network's chain for epochs, and a test for the rest."""

    def __init__(self, chain: OnChain, asked: Asked) -> None:
        self.stakes, self.asked = Stakes(chain.contracts, chain.writer), asked

    async def epoch(self, number: int = 0) -> Epoch:
        return await self.stakes.epoch(number)

    async def inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        asked = self.asked
        asked.inspected.append((statement, frozenset(evidence)))
        if asked.objection is not None and not (asked.objection.wanted and asked.objection.wanted <= evidence.keys()):
            raise asked.objection

    async def disclose(self, request_id: bytes) -> Evidence | None:
        return self.asked.kept.get(request_id)


@dataclass
class Network:
    """A network of one test.

    Attributes:
        chain: open.
        contracts: on it.
        home: folder of journals and ledgers.
        domain: that everything is signed for.
        token: that transfers are signed for.
        stack: what is opened here is closed with the test.
    """

    chain: Chain
    contracts: Contracts
    home: Path
    domain: Domain
    token: Domain
    stack: AsyncExitStack
    _sends: int = field(default=0)

    async def onchain(self, signer: Signer = GATEWAY) -> OnChain:
        """Return the contracts as ``signer`` uses them; what it sends is in the network's journal."""
        writer = TransactionWriter.of(settings_of(self.home), self.chain, signer, self.home)
        return await OnChain(self.contracts, self.domain, await self.stack.enter_async_context(writer)).open()

    def committee(
        self,
        chain: OnChain,
        signers: Sequence[Signer] = VALIDATORS,
        memory: str = "validators.db",
        asked: Asked | None = None,
    ) -> Committee:
        """Return validators who remember in a file of this name."""
        validation = Questions(chain, asked or Asked())
        made = Committee(
            self.domain,
            signers,
            chain,
            ValidatorMemory(self.home / memory),
            cast(Validation, validation),
            settings_of(self.home),
            inspected=True,
        )
        self.stack.callback(made.close)
        return made

    @asynccontextmanager
    async def ledger(self, name: str = "ledger.db") -> AsyncIterator[Ledger]:
        """Open a ledger of this name."""
        async with Ledger(self.home / name, "the test's network") as ledger:
            yield ledger

    async def deposit(
        self, amount_wei: int, client: Signer = CLIENT, signer: Signer | None = None, gateway: Signer = GATEWAY
    ) -> bytes:
        """Put money into a channel, and return its id."""
        self._sends += 1
        chain, key = await self.onchain(client), f"deposit:{self._sends}"
        signer = signer or client
        await chain.fund(client.address, signer.address, gateway.address, amount_wei, key)
        return digests.channel_id(client.address, signer.address, gateway.address)

    def voucher(self, cumulative_wei: int, client: Signer = CLIENT, signer: Signer | None = None) -> Voucher:
        """Return a voucher for the gateway."""
        return make_voucher(cumulative_wei, client, signer, domain=self.domain)

    async def tokens(self, address: bytes) -> int:
        """Return an address's balance, in wei."""
        return int(await self.contracts.token.read("balanceOf", address))

    async def globals(self) -> tuple[int, int]:
        """Return what is the treasury's, and the validators', in wei."""
        treasury, pool, _ = await self.contracts.payment.read("globals")
        return treasury, pool

    async def pass_time(self, seconds: int) -> None:
        """Let time pass on the chain, and mine a block."""
        await self.chain.request("evm_increaseTime", [seconds])
        await self.chain.request("evm_mine", [])

    async def now_s(self) -> int:
        """Return the chain's time."""
        block = await self.chain.request("eth_getBlockByNumber", ["latest", False])
        return max(int(block["timestamp"], 16), int(time.time()))


@asynccontextmanager
async def opened_network(kind: str, prepared: Path, folder: Path) -> AsyncIterator[Network]:
    """Open a copy of a prepared network in ``folder``."""
    await asyncio.to_thread(shutil.copytree, prepared, folder, dirs_exist_ok=True)
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(make_chain(kind, folder / "chain"))
        addresses = DevelopmentNetwork.addresses()
        domain = Domain(CHAIN_ID, addresses.payment)
        contracts = Contracts(chain, addresses)
        yield Network(chain, contracts, folder, domain, Domain(CHAIN_ID, addresses.token), stack)
