"""Opens what a command needs: the network's contracts, on a chain that another process runs, or nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from ncn_framework.config import Config
from ncn_framework.errors import ChainError
from ncn_framework.signing import address_hex

from ..chain import Chain, open_chain
from ..config import PaymentsSettings
from ..contracts import Contracts
from ..devnet import find_addresses
from ..errors import ChainUnreachable

__all__ = ["opened", "opened_chain"]

_ONE_TRY_MS = 1_000
_PATIENCE_S = 5.0
_PAUSE_S = 0.2
_STATES = {"embedded": "embedded.db", "anvil": "anvil.json"}
"""Files of the development chains' states."""


@asynccontextmanager
async def opened(config: Config, *, deployed: bool = True) -> AsyncIterator[Contracts]:
    """Yield the contracts of the network.

    A development chain is asked where it runs; where no process runs it, its state is opened here, so that nothing
    but the chain is needed: neither gateway nor node.

    Args:
        config: of this process.
        deployed: whether the contracts must be on the chain.

    Raises:
        ConfigError: the addresses of the contracts are not known.
        ChainError: no chain, or it lacks the contracts.
    """
    settings, chain_id = config.load(PaymentsSettings), config.core.chain_id
    addresses = await asyncio.to_thread(find_addresses, settings, config.home, chain_id)
    async with opened_chain(config) as chain:
        if deployed and not await chain.code(addresses.payment):
            raise ChainError(
                f"chain {chain_id} has no InferencePayment at {address_hex(addresses.payment)}; start the network once "
                "(ncn serve), deploy (ncn chain deploy), or set NCN_PAYMENTS_ADDRESSES"
            )
        yield Contracts(chain, addresses)


@asynccontextmanager
async def opened_chain(config: Config) -> AsyncIterator[Chain]:
    """Yield the chain alone; see ``opened``."""
    async with AsyncExitStack() as stack:
        yield await _enter(stack, config, config.load(PaymentsSettings))


async def _enter(stack: AsyncExitStack, config: Config, settings: PaymentsSettings) -> Chain:
    home, chain_id, kind = config.home, config.core.chain_id, settings.chain_kind

    async def here() -> Chain:
        return await stack.enter_async_context(open_chain(settings, home=home, chain_id=chain_id, host=True))

    async def elsewhere() -> Chain:
        if kind != "rpc":  # no node of this machine may run: that shows at once
            hurried = settings.model_copy(update={"rpc_patience_ms": _ONE_TRY_MS})
            async with open_chain(hurried, home=home, chain_id=chain_id) as probe:
                await probe.block_number()
        return await stack.enter_async_context(open_chain(settings, home=home, chain_id=chain_id))

    if kind == "rpc":
        return await elsewhere()
    if not (home / "chain" / _STATES[kind]).exists():
        try:
            return await elsewhere()
        except ChainUnreachable as cause:
            raise ChainError(
                f"nobody runs the {kind} chain, and {home / 'chain'} has none: start the network (ncn serve), "
                f"or set NCN_HOME or RPC_URL; {cause}"
            ) from cause
    # The embedded chain's state has a lock; anvil's has none, and of two the one would not see what the other does.
    ways = (here, elsewhere) if kind == "embedded" else (elsewhere, here)
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        errors: dict[Callable[[], Awaitable[Chain]], ChainError] = {}
        for way in ways:
            try:
                return await way()
            except ChainError as error:
                errors[way] = error
        if asyncio.get_running_loop().time() > deadline:
            raise errors[here]
        await asyncio.sleep(_PAUSE_S)  # another command has the state, or who has it does not listen yet
