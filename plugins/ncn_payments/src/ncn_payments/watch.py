"""What a process follows on chain: who was jailed or freed, and whether the validators' epoch is nearly over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from ncn_framework.errors import NcnError
from ncn_framework.signing import address_hex

from .devnet import advance_epoch
from .onchain import OnChain
from .stakes import Stakes

__all__ = ["Watch"]

log = logging.getLogger(__name__)


class Watch:
    """Follows one network.

    Args:
        chain: the contracts; transactions are sent with its writer.
        stakes: tells who was jailed or freed.
        standing: hears of each account: whether it is out, and why.
        validators: that this process speaks for. Whoever speaks for some begins new epochs, and of several the first
            wins; but not before all of its own have staked, lest an epoch begin without them.
        poll_s: seconds between two looks.
    """

    def __init__(
        self,
        chain: OnChain,
        stakes: Stakes,
        standing: Callable[[bytes, bool, str], None],
        *,
        validators: Iterable[bytes],
        poll_s: float,
    ) -> None:
        self.chain, self.stakes, self.standing = chain, stakes, standing
        self.validators, self.poll_s = frozenset(validators), poll_s
        self._unstaked = set(self.validators)
        self._next_block = chain.addresses.block

    async def run(self) -> None:
        """Look again and again, until cancelled; what fails is logged, once for each reason, and tried again."""
        why = ""
        while True:
            try:
                await self.look()
                why = ""
            except NcnError as error:
                if why != str(error):
                    log.warning("the network's validators were not looked at: %s", error)
                why = str(error)
            await asyncio.sleep(self.poll_s)

    async def look(self) -> None:
        """Tell who was jailed or freed since the last look (at first: ever), and begin an epoch where it is time.

        Raises:
            ChainError: the chain does not answer.
            TransactionReverted: the key of this process has no ether to begin an epoch with.
        """
        changes, self._next_block = await self.stakes.changes(self._next_block)
        latest = {change.account: change for change in changes}  # the last one counts
        for change in latest.values():
            log.info("%s is %s: %s", address_hex(change.account), "out" if change.jailed else "in again", change.reason)
            self.standing(change.account, change.jailed, change.reason)
        for validator in list(self._unstaked):
            if (await self.stakes.standing(validator)).state != "none":
                self._unstaked.discard(validator)
        if self.validators and not self._unstaked:
            await advance_epoch(self.chain.contracts, self.chain.writer)
