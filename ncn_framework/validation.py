"""What is asked of validators and of the chain that pins them; each question is a hook, and nothing else calls it."""

from __future__ import annotations

from collections.abc import Mapping

from .committees import Epoch
from .manager import PluginSet
from .models import Signature
from .payments import Quorum
from .results import required, values
from .statements import Contradiction, Evidence, Reputation, Statement

__all__ = ["Validation"]


class Validation:
    """Asks one node's plugins.

    Args:
        plugins: of the node.
    """

    def __init__(self, plugins: PluginSet) -> None:
        self._hook = plugins.hook

    async def endorse(self, statement: Statement) -> Quorum:
        """Return a quorum's signatures over a statement.

        Raises:
            EndorsementRefused: too few of them agree.
            NoHandlerError: no plugin reaches validators.
        """
        found = self._hook.ncn_endorse(statement=statement)
        return await required(found, "ncn_endorse", type(statement).__name__)  # type: ignore[no-any-return]

    async def vouch(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> tuple[Signature, ...]:
        """Return the signatures of those validators whose keys this process holds, after they have checked.

        Args:
            statement: from anybody.
            evidence: by request id, as far as it was asked for.

        Raises:
            EndorsementRefused: what is wrong, or which evidence is wanted.
            NoHandlerError: this process speaks for no validator.
        """
        found = self._hook.ncn_vouch(statement=statement, evidence=evidence)
        return await required(found, "ncn_vouch", type(statement).__name__)  # type: ignore[no-any-return]

    async def inspect(self, statement: Statement, evidence: Mapping[bytes, Evidence]) -> None:
        """Let every plugin refuse a statement that a validator of this process is about to sign.

        Raises:
            EndorsementRefused: what is wrong, or which evidence is wanted.
        """
        await values(self._hook.ncn_inspect(statement=statement, evidence=evidence))

    async def disclose(self, request_id: bytes) -> Evidence | None:
        """Return a request that this gateway served, with its whole answer; None where it has it no more."""
        found = self._hook.ncn_disclose(request_id=request_id)
        evidence: Evidence | None = None if found is None else await found
        return evidence

    async def epoch(self, number: int = 0) -> Epoch:
        """Return an epoch's validators; 0: the current one's.

        Raises:
            ChainError: the chain does not answer, or has no such epoch.
            NoHandlerError: no plugin knows a chain.
        """
        found = self._hook.ncn_epoch(number=number)
        return await required(found, "ncn_epoch", f"epoch {number}")  # type: ignore[no-any-return]

    async def report(self, statement: Statement | Contradiction, quorum: Quorum | None) -> str:
        """Put what proves somebody's conduct on chain; return the transaction's hash.

        Args:
            statement: a verdict or performances, or a contradiction.
            quorum: over the statement; None for a contradiction, which proves itself.

        Raises:
            TransactionReverted: the contract refused it: it was reported before, or there is no stake; or this
                process has no ether for the fee (reason ``InsufficientFunds``).
            ChainError: the chain does not answer.
            NoHandlerError: no plugin reports such statements.
        """
        found = self._hook.ncn_report(statement=statement, quorum=quorum)
        return await required(found, "ncn_report", type(statement).__name__)  # type: ignore[no-any-return]

    async def reputation(self, account: bytes, period: int = 0) -> Reputation:
        """Return what the chain has of an account's conduct, and whether what validators did in a period is in it.

        Args:
            account: of a validator or a compute node.
            period: an epoch that is over; 0: none.

        Raises:
            ChainError: the chain does not answer.
            NoHandlerError: no plugin knows a chain.
        """
        found = self._hook.ncn_reputation(account=account, period=period)
        return await required(found, "ncn_reputation", f"account 0x{account.hex()}")  # type: ignore[no-any-return]
