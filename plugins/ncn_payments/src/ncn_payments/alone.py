"""Settles what a role's ledger holds while its node does not run: a gateway's after it has gone, or a node's own.

A compute node keeps the vouchers behind its work, so that it is paid without any gateway: it makes the batch itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from ncn_framework.config import Config
from ncn_framework.errors import StoreError
from ncn_framework.manager import find_plugins
from ncn_framework.node import Node

from .contracts import Contracts
from .devnet import DevelopmentNetwork, advance_epoch
from .ledger_reader import BatchState
from .onchain import OnChain
from .plugin import Plugin
from .service import Payments, bound_domain
from .settlement import Settler
from .writer import TransactionWriter

__all__ = ["settler_alone"]

_POOR_WEI = 10**16


@asynccontextmanager
async def settler_alone(role: str, config: Config, contracts: Contracts) -> AsyncIterator[Settler]:
    """Yield the settler of a role's ledger, which this process writes meanwhile; transactions are of the role's key.

    Args:
        role: ``gateway`` or ``compute``.
        config: of this process.
        contracts: of the network.

    Raises:
        StoreError: there is no ledger, or the role's own process writes it.
        ChainError: the chain does not answer.
    """
    plugins = find_plugins(config.sources.names("plugins"), config.sources.names("disabled_plugins"))
    node = Node(role, config, plugins)
    payments = next(one.payments for one in node.plugins.instances.values() if isinstance(one, Plugin))
    domain = bound_domain(node, contracts.addresses)
    ledger = payments.ledger(domain)
    if not ledger.path.exists():
        raise StoreError(f"there is no ledger {ledger.path}: {role} has charged nothing here; is NCN_HOME right?")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(ledger)
        owes = bool(ledger.unsettled(1) or ledger.batches(BatchState.SIGNED))
        if owes and payments.settings.chain_kind != "rpc":
            await _endow(payments, contracts)
        writer = TransactionWriter.of(payments.settings, contracts.chain, node.signer, node.home)
        await stack.enter_async_context(writer)
        onchain = await OnChain(contracts, domain, writer).open()
        stack.enter_context(payments.validating(onchain))
        if owes:
            await advance_epoch(contracts, writer)
        # What a gateway charged before a crash may not have reached its client; that is for the gateway to find out.
        undelivered = ledger.in_doubt if role == "gateway" else tuple
        validation, settings = node.validation, payments.settings
        yield Settler(domain, ledger, onchain, validation.endorse, settings, undelivered, epoch=validation.epoch)


async def _endow(payments: Payments, contracts: Contracts) -> None:
    """Give the role's key ether for its transactions, on a development network, where it may never have had any."""
    node, chain = payments.node, contracts.chain
    if await chain.balance(node.signer.address) < _POOR_WEI:
        network = DevelopmentNetwork(chain, payments.settings, node.home)
        await network.fund(contracts, node.signer.address, amount_wei=0)
