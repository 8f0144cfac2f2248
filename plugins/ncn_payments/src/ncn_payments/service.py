"""Payments as a service of one node: the chain, the ledger, and the desk (gateway) or the books (compute node)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from ncn_framework.digests import channel_id
from ncn_framework.errors import ConfigError
from ncn_framework.models import FREE, Domain, Event, InferenceRequest, ModelManifest, Route, Settlement, SignedReceipt
from ncn_framework.payments import ESCROW, EXACT, VOUCHER, PaymentConfirmation, Quorum, Statement
from ncn_framework.signing import Signer, address_hex, load_or_create_signer

from . import devkeys
from .books import Books
from .chain import Chain, open_chain
from .committee import Committee
from .config import PaymentsSettings
from .contracts import Contracts
from .deployment import Addresses
from .desk import Desk
from .devnet import DevelopmentNetwork, find_addresses
from .ledger import Ledger
from .ledger_lock import ledger_path
from .onchain import OnChain
from .operator_token import OperatorToken
from .validator_memory import ValidatorMemory
from .writer import TransactionWriter

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ncn_framework.node import Node

__all__ = ["Payments", "bound_domain", "validator_signers"]

log = logging.getLogger(__name__)

_LINGER_S = 0.05
"""How long a node's books may lie behind its answers; the gateway's ledger has each charge before its answer leaves."""

_FIRST_DEPOSIT_WEI = 1_000 * 10**18
"""What the client of a development network has in its channel at first."""


class Payments:
    """What the hooks of the payments plugin stand for.

    Args:
        node: whose settings, key and life cycle it uses.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings(PaymentsSettings)
        self.desk: Desk | None = None
        self.books: Books | None = None
        self.chain: Chain | None = None
        self.operator_token: OperatorToken | None = None

    @property
    def addresses(self) -> Addresses:
        """Where the contracts are: the addresses file, or on a development chain those that it always has.

        Raises:
            ConfigError: there is no file.
        """
        return find_addresses(self.settings, self.node.home, self.node.config.core.chain_id)

    # --- hooks ---

    def check(self, request: InferenceRequest, manifest: ModelManifest) -> Awaitable[None] | None:
        """Refuse a request whose fee is not covered; what is free is not looked at."""
        return None if self.desk is None or request.payment == FREE else self.desk.check(request, manifest)

    def reserve(self, request: InferenceRequest, route: Route) -> AbstractAsyncContextManager[Any] | None:
        """Return the hold of a request's funds; in a node, the check of its voucher."""
        if self.desk is not None:
            return self.desk.reserve(request, route)
        limit_wei = route.manifest.fee_wei(request.limit_units, request.payment)
        by_voucher = request.payment in (VOUCHER, EXACT) and limit_wei > 0
        return self.books.lease(request, limit_wei) if self.books is not None and by_voucher else None

    def settle(self, receipt: SignedReceipt, request: InferenceRequest) -> Awaitable[Settlement] | None:
        """Charge what a request has cost; in a node, book it. What is free is somebody else's."""
        if self.desk is not None:
            return self.desk.settle(receipt, request)
        mine = self.books is not None and request.payment in (VOUCHER, EXACT, ESCROW)
        return self.books.settle(receipt, request) if mine and self.books is not None else None

    def confirm(self, confirmation: PaymentConfirmation) -> Awaitable[None] | None:
        """Take a client's word that it has paid into escrow."""
        return None if self.desk is None else self.desk.confirm(confirmation)

    def endorse(self, statement: Statement) -> Awaitable[Quorum] | None:
        """Have the validators of this process sign a statement; decline where there are none."""
        return None if self.desk is None else self.desk.endorse(statement)

    def event(self, event: Event) -> None:
        """Hear of a request's move."""
        if self.desk is not None:
            self.desk.event(event)

    def routes(self) -> Sequence[BaseRoute]:
        """Return what a gateway serves about payments."""
        from .routes import payment_routes

        return payment_routes(self) if self.node.role == "gateway" else ()

    # --- the service ---

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Take payments until the context is left."""
        opened = {"registry": self._registry, "gateway": self._gateway, "compute": self._compute}[self.node.role]
        async with opened():
            yield

    def ledger(self, domain: Domain) -> Ledger:
        """Return the ledger of this node's role, to be entered."""
        identity = f"chain {domain.chain_id}, contract {address_hex(domain.contract)}"
        linger_s = 0.0 if self.node.role == "gateway" else _LINGER_S
        return Ledger(ledger_path(self.node.home, self.node.role), identity, linger_s=linger_s)

    @contextmanager
    def committee(self, chain: OnChain) -> Iterator[Committee | None]:
        """Yield the validators whose keys this process holds; None where it holds none."""
        signers = validator_signers(self.settings, chain.domain.chain_id)
        if not signers:
            yield None
            return
        memory = ValidatorMemory(self.node.home / "validators.db")
        committee = Committee(chain.domain, signers, chain, memory, self.node.lifecycle.clock)
        try:
            yield committee
        finally:
            committee.close()

    @asynccontextmanager
    async def _gateway(self) -> AsyncIterator[None]:
        node, settings = self.node, self.settings
        chain_id = node.config.core.chain_id
        async with AsyncExitStack() as stack:
            chain = open_chain(settings, home=node.home, chain_id=chain_id, host=True)
            self.chain = await stack.enter_async_context(chain)
            if settings.chain_kind != "rpc":
                await self._start_development(chain)
            addresses = self.addresses
            domain = bound_domain(node, addresses)
            writer = await stack.enter_async_context(TransactionWriter.of(settings, chain, node.signer, node.home))
            onchain = await OnChain(Contracts(chain, addresses), domain, writer).open()
            ledger = await stack.enter_async_context(self.ledger(domain))
            self.operator_token = OperatorToken.renew(node.home)
            committee = stack.enter_context(self.committee(onchain))
            self.desk = Desk(node, settings, ledger, onchain, committee)
            node.endpoints["chain"] = f"{settings.chain_kind}, contract {address_hex(addresses.payment)}"
            async with self.desk.running():
                yield

    async def _start_development(self, chain: Chain) -> None:
        """Bring up the development network: contracts, validators, money for this gateway and for one client."""
        node, network = self.node, DevelopmentNetwork(chain, self.settings, self.node.home)
        client = load_or_create_signer(node.home / "keys" / "client.key")
        contracts = await network.prepare(node.signer.address, client.address)
        channel = channel_id(client.address, client.address, node.signer.address)
        deposited, _, _ = await contracts.payment.read("channels", channel)
        if not deposited:
            async with network.writer("deployer") as writer:
                onchain = OnChain(contracts, node.domain, writer)
                key = f"first-deposit:{channel.hex()}:{contracts.payment.address.hex()}"
                await onchain.fund(client.address, client.address, node.signer.address, _FIRST_DEPOSIT_WEI, key)

    @asynccontextmanager
    async def _registry(self) -> AsyncIterator[None]:
        bound_domain(self.node, self.addresses)
        yield

    @asynccontextmanager
    async def _compute(self) -> AsyncIterator[None]:
        domain = bound_domain(self.node, self.addresses)
        async with self.ledger(domain) as ledger:
            self.books = Books(domain, ledger, self.node.lifecycle.clock)
            yield


def bound_domain(node: Node, addresses: Addresses) -> Domain:
    """Bind a node's signatures to the contract, and return the domain.

    Raises:
        ConfigError: the settings name another contract.
    """
    named = node.config.core.domain
    domain = Domain(named.chain_id, addresses.payment)
    if named not in (domain, Domain(named.chain_id)):
        raise ConfigError(
            f"setting contract is {address_hex(named.contract)}; the addresses file has {address_hex(domain.contract)}"
        )
    node.bind(domain)
    return domain


def validator_signers(settings: PaymentsSettings, chain_id: int) -> Sequence[Signer]:
    """Return the keys of the validators that this process speaks for: those of the settings, or else the five of a
    development network."""
    keys = [key.strip() for key in settings.validator_keys.get_secret_value().split(",") if key.strip()]
    if keys:
        return [Signer.from_hex(key, f"payments.validator_keys[{index}]") for index, key in enumerate(keys)]
    if settings.chain_kind == "rpc" or chain_id != devkeys.CHAIN_ID:
        return []
    return [devkeys.development_signer(f"validator{number}", chain_id) for number in range(1, 6)]
