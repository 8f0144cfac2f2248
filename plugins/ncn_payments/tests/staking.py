"""Stakes on a test's network: accounts that bond, and validators who find one of them guilty."""

from __future__ import annotations

from collections.abc import Sequence

from ncn_framework.committees import Epoch
from ncn_framework.models import SignedReceipt
from ncn_framework.payments import Quorum
from ncn_framework.signing import Signer
from ncn_framework.statements import Statement, VerdictStatement, digest_of
from ncn_payments.devnet import DevelopmentNetwork
from ncn_payments.stakes import Stakes
from ncn_payments.writer import TransactionWriter

from .network import VALIDATORS, Network, settings_of
from .payments import NODE, make_receipt, make_request

__all__ = ["NCN", "advance", "bonded", "signed_by", "stakes_of", "verdict_on", "wrong_receipt"]

NCN = 10**18


async def stakes_of(network: Network, signer: Signer) -> Stakes:
    """Return the stakes as ``signer`` tells them."""
    writer = TransactionWriter.of(settings_of(network.home), network.chain, signer, network.home)
    return Stakes(network.contracts, await network.stack.enter_async_context(writer))


async def bonded(network: Network, signer: Signer = NODE) -> Stakes:
    """Put a development network's bond at stake for ``signer``, and return the stakes as it tells them."""
    await DevelopmentNetwork(network.chain, settings_of(network.home), network.home).bond(network.contracts, signer)
    return await stakes_of(network, signer)


def signed_by(network: Network, statement: Statement, epoch: Epoch, signers: Sequence[Signer]) -> Quorum:
    """Return the signatures of these validators under a statement, as a quorum of the epoch."""
    places = {member.address: place for place, member in enumerate(epoch.members)}
    digest, found = digest_of(network.domain, statement), sorted(signers, key=lambda one: places[one.address])
    bitmap = sum(1 << places[one.address] for one in found)
    return Quorum(epoch.number, bitmap, tuple(one.sign(digest).value for one in found))


def wrong_receipt(network: Network, number: int = 1, node: Signer = NODE) -> SignedReceipt:
    """Return the receipt that the node signed for a request of this number."""
    return make_receipt(make_request(number, domain=network.domain), 5_000, node, network.domain)


async def verdict_on(
    network: Network, receipt: SignedReceipt, stakes: Stakes, judges: int = 3
) -> tuple[VerdictStatement, Quorum]:
    """Return the current epoch's verdict that a receipt is wrong, as so many judges sign it."""
    epoch = await stakes.epoch()
    statement = VerdictStatement(epoch.disputes, epoch.number, receipt, "another output")
    members = {member.address for member in epoch.members} - {receipt.receipt.node}
    signers = [signer for signer in VALIDATORS if signer.address in members]
    return statement, signed_by(network, statement, epoch, signers[:judges])


async def advance(network: Network, stakes: Stakes, key: str) -> None:
    """Begin a new epoch."""
    await network.pass_time(2)
    await stakes.sender.send(network.contracts.registry.call("advanceEpoch"), key=key)
