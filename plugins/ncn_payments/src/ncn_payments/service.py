"""Payments as a service of one node: the chain, the validators, and the desk (gateway) or the books (compute node)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from ncn_framework.committees import Epoch
from ncn_framework.digests import channel_id, keccak
from ncn_framework.errors import ChainError, ConfigError, MalformedRequest, NcnError, TransactionReverted
from ncn_framework.models import (
    FREE,
    Domain,
    Event,
    InferenceRequest,
    ModelManifest,
    Route,
    Settlement,
    Signature,
    SignedReceipt,
)
from ncn_framework.payments import ESCROW, EXACT, VOUCHER, PaymentConfirmation, Quorum
from ncn_framework.signing import Signer, address_hex, load_or_create_signer
from ncn_framework.statements import (
    BatchStatement,
    CompletionStatement,
    Contradiction,
    Evidence,
    FailureStatement,
    PerformancesStatement,
    Reputation,
    Statement,
    VerdictStatement,
    digest_of,
)

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
from .stakes import Decision, Stakes
from .validator_memory import ValidatorMemory
from .watch import Watch
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

_ONE_TRY_MS = 1_000
_AGAIN_S = 0.5
"""How long a registry asks for a chain that is not there yet, and how long it pauses before it asks again."""


class Payments:
    """What the hooks of the payments plugin stand for.

    Args:
        node: whose settings, key and life cycle it uses.

    Attributes:
        validators: those whose keys this process holds, once the chain answers; None: there are none.
        stakes: the network's validators as the chain has them, once it answers.
        away: why it does not answer.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings(PaymentsSettings)
        self.desk: Desk | None = None
        self.books: Books | None = None
        self.chain: Chain | None = None
        self.operator_token: OperatorToken | None = None
        self.validators: Committee | None = None
        self.stakes: Stakes | None = None
        self.away = "the chain is not open yet; ask again"

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
        return None if self.validators is None else self.validators.endorse(statement)

    def vouch(
        self, statement: Statement, evidence: Mapping[bytes, Evidence]
    ) -> Awaitable[tuple[Signature, ...]] | None:
        """Sign a statement with every key of this process that may; decline where there is none."""
        return self._vouch(statement, evidence) if self.node.validators else None

    async def _vouch(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        if self.validators is None:
            raise ChainError(self.away)
        return await self.validators.vouch(statement, evidence)

    def epoch(self, number: int) -> Awaitable[Epoch] | None:
        """Return an epoch's validators; decline where no chain is asked."""
        return None if self.stakes is None and self.node.role == "compute" else self._open_stakes().epoch(number)

    def report(self, statement: Statement | Contradiction, quorum: Quorum | None) -> Awaitable[str] | None:
        """Put what proves somebody's conduct on chain; decline what does not, and where no chain is asked."""
        if self.node.role == "compute":
            return None
        if isinstance(statement, Contradiction):
            return self._report_contradiction(statement)
        if quorum is None or not isinstance(statement, VerdictStatement | PerformancesStatement):
            return None
        return self._report(statement, quorum)

    async def _report(self, statement: VerdictStatement | PerformancesStatement, quorum: Quorum) -> str:
        stakes, key = self._open_stakes(), f"report:{digest_of(self.node.domain, statement).hex()}"
        if isinstance(statement, VerdictStatement):
            return await stakes.report_result(statement, quorum, key)
        return await stakes.report_performances(statement, quorum, key)

    async def _report_contradiction(self, found: Contradiction) -> str:
        stakes, signatures = self._open_stakes(), (found.first_signature, found.second_signature)
        both = [digest_of(self.node.domain, statement) for statement in (found.first, found.second)]
        key = f"report:{found.validator.hex()}:{keccak(b''.join([*both, *signatures])).hex()}"
        match found.first, found.second:
            case BatchStatement(first), BatchStatement(second):
                return await stakes.report_conflicting_batches(first, second, *signatures, key)
            case (CompletionStatement() | FailureStatement()) as one, (
                CompletionStatement() | FailureStatement()
            ) as two:
                decisions = _decision(one), _decision(two)
                return await stakes.report_conflicting_decisions(one.escrow_id, *decisions, *signatures, key)
        names = " and ".join(type(one).__name__ for one in (found.first, found.second))
        raise MalformedRequest(f"two batches, or two decisions on one escrow, are a contradiction; {names} are none")

    def reputation(self, account: bytes, period: int) -> Awaitable[Reputation] | None:
        """Return what the chain has of an account's conduct; decline where no chain is asked."""
        if self.stakes is None and self.node.role == "compute":
            return None
        return self._open_stakes().reputation(account, period)

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
    def validating(self, chain: OnChain) -> Iterator[None]:
        """Let the validators of this process, where it has any, check statements and sign them meanwhile."""
        node = self.node
        node.validators = tuple(validator_signers(self.settings, chain.domain.chain_id))
        self.stakes = Stakes(chain.contracts, chain.writer, self.settings.confirmations)
        if node.validators:
            # who executes again is a registry; elsewhere nobody says that a result is wrong
            inspected = node.role == "registry" and bool(node.plugins.call_order("ncn_inspect"))
            self.validators = Committee(
                chain.domain,
                node.validators,
                chain,
                ValidatorMemory(node.home / "validators.db"),
                node.validation,
                self.settings,
                inspected=inspected,
                clock=node.lifecycle.clock,
            )
        try:
            yield
        finally:
            validators, self.validators, self.stakes = self.validators, None, None
            if validators is not None:
                validators.close()

    def _watch(self, chain: OnChain) -> Watch:
        return Watch(
            chain,
            self._open_stakes(),
            self.node.plugins.standing,
            validators=[validator.address for validator in self.node.validators],
            poll_s=self.settings.batch_poll_ms / 1000,
        )

    def _open_stakes(self) -> Stakes:
        if self.stakes is None:
            raise ChainError(self.away)
        return self.stakes

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
            stack.enter_context(self.validating(onchain))
            self.desk = Desk(node, settings, ledger, onchain)
            node.endpoints["chain"] = f"{settings.chain_kind}, contract {address_hex(addresses.payment)}"
            async with self.desk.running(), _beside(self._watch(onchain).run()):
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
        """Serve records at once; validate as soon as the chain answers: a gateway that starts later may host it."""
        domain = bound_domain(self.node, self.addresses)
        self.node.validators = tuple(validator_signers(self.settings, domain.chain_id))
        async with _beside(self._follow(domain)):
            yield

    async def _follow(self, domain: Domain) -> None:
        """Follow the chain for as long as it takes until it is there, and from then on."""
        while True:
            try:
                async with self._as_client(domain) as chain:
                    log.info("the chain answers; %d validators are spoken for here", len(self.node.validators))
                    await self._watch(chain).run()
            except (ChainError, TransactionReverted) as error:
                if self.away != str(error):
                    log.info(
                        "no validation until the chain answers: %s", error
                    )  # a gateway that starts later may host it
                self.away = str(error)
            except NcnError as error:
                return self.node.fail(error)
            await asyncio.sleep(_AGAIN_S)

    @asynccontextmanager
    async def _as_client(self, domain: Domain) -> AsyncIterator[OnChain]:
        """Open a chain that somebody else hosts; its transactions are of the first validator's key.

        Raises:
            ChainError: it does not answer, or has no contracts yet.
        """
        node, settings, chain_id = self.node, self.settings, domain.chain_id
        addresses = self.addresses
        hurried = settings.model_copy(update={"rpc_patience_ms": min(settings.rpc_patience_ms, _ONE_TRY_MS)})
        async with open_chain(hurried, home=node.home, chain_id=chain_id) as probe:
            if not await probe.code(addresses.payment):
                raise ChainError(f"chain {chain_id} has no InferencePayment at {address_hex(addresses.payment)} yet")
        async with AsyncExitStack() as stack:
            chain = await stack.enter_async_context(open_chain(settings, home=node.home, chain_id=chain_id))
            signer = node.validators[0] if node.validators else node.signer
            writer = await stack.enter_async_context(TransactionWriter.of(settings, chain, signer, node.home))
            onchain = await OnChain(Contracts(chain, addresses), domain, writer).open()
            stack.enter_context(self.validating(onchain))
            yield onchain

    @asynccontextmanager
    async def _compute(self) -> AsyncIterator[None]:
        domain = bound_domain(self.node, self.addresses)
        async with self.ledger(domain) as ledger:
            self.books = Books(domain, ledger, self.node.lifecycle.clock)
            yield


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let something run for as long as the context is entered."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


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


def _decision(statement: CompletionStatement | FailureStatement) -> Decision:
    if isinstance(statement, FailureStatement):
        return Decision(failed=True)
    receipt = statement.receipt.receipt
    return Decision(False, receipt.output_hash, receipt.fee_wei)
