"""What settlement costs in gas: each row of the target table, from receipts of a real chain.

Everything is as in production: charges that nodes and clients signed, a batch that the committee checked and signed,
the transaction that a gateway sends. All storage has been used before, as in daily use: channels and payees were in a
batch, the contract's ring of batches and the client's ring of escrows have gone round once.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ncn_framework import digests, hookimpl
from ncn_framework.committees import Epoch
from ncn_framework.manager import ROLES, build_manager, loaded_plugin
from ncn_framework.models import Domain, InferenceRequest, Receipt, SignedReceipt
from ncn_framework.payments import Charge, EscrowTerms, Voucher
from ncn_framework.signing import Signer
from ncn_framework.statements import CompletionStatement, TermsStatement
from ncn_framework.validation import Validation

if TYPE_CHECKING:
    from ncn_payments.committee import Committee
    from ncn_payments.devnet import DevelopmentNetwork
    from ncn_payments.onchain import OnChain
    from ncn_payments.stakes import Stakes

FEE_WEI = 10**15
DEPOSIT_WEI = 100 * 10**18
BATCHES_KEPT, ESCROWS_KEPT = 192, 16  # the contract's rings
TARGETS = {
    "one more active channel": 11_000,
    "fixed cost of a batch, 3 of 5": 95_000,
    "one more payee": 8_500,
    "1,000 requests, 10 channels, 5 nodes: each": 250,
    "10,000 requests, 20 channels, 20 nodes: each": 50,
    "escrow: initiate and complete": 130_000,
    "refund": 33_000,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--chain", choices=("embedded", "anvil"), default="embedded", help="whose receipts")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print the table."""
    asyncio.run(_run(arguments.chain))


async def _run(kind: str) -> None:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with _bench(kind, Path(folder)) as bench:
            for _ in range(BATCHES_KEPT):
                await bench.batch(1, 1, 1)
            await bench.batch(20, 20, 20)
            one = await bench.batch(1, 1, 1)
            more_channels = await bench.batch(20, 1, 20)
            more_payees = await bench.batch(1, 20, 20)
            channel, payee = (more_channels - one) / 19, (more_payees - one) / 19
            found["one more active channel"] = channel
            found["fixed cost of a batch, 3 of 5"] = one - channel - payee
            found["one more payee"] = payee
            found["1,000 requests, 10 channels, 5 nodes: each"] = await bench.batch(10, 5, 1_000) / 1_000
            found["10,000 requests, 20 channels, 20 nodes: each"] = await bench.batch(20, 20, 10_000) / 10_000
            for _ in range(ESCROWS_KEPT):
                await bench.escrow(complete=True)
            found["escrow: initiate and complete"] = await bench.escrow(complete=True)
            found["refund"] = await bench.escrow(complete=False)
    print(f"gas, from receipts of the {kind} chain\n{'':<48}{'gas':>10}{'target':>10}")
    for name, target in TARGETS.items():
        print(f"{name:<48}{found[name]:>10,.0f}{target:>10,}{'' if found[name] <= target else '  MISSED'}")


class _Bench:
    """A gateway with its clients and nodes on one chain."""

    def __init__(
        self, network: DevelopmentNetwork, gateway: OnChain, client: OnChain, committee: Committee, domain: Domain
    ) -> None:
        self.network, self.gateway, self.client, self.committee, self.domain = (
            network,
            gateway,
            client,
            committee,
            domain,
        )
        self.clients = [Signer(secrets.token_bytes(32)) for _ in range(20)]
        self.nodes = [Signer(secrets.token_bytes(32)) for _ in range(20)]
        self.nonce = 0
        self.charged: dict[bytes, int] = {}

    async def fund(self) -> None:
        """Give every client a channel, and the escrow client an account."""
        async with self.network.writer("deployer") as writer:
            from ncn_payments.onchain import OnChain

            payer = OnChain(self.gateway.contracts, self.domain, writer)
            for client in self.clients:
                own = client.address
                await payer.fund(own, own, self.gateway.writer.address, DEPOSIT_WEI, f"bench:{own.hex()}")
        await self.client.fund_account(DEPOSIT_WEI, "bench:account")

    async def epoch(self) -> int:
        """Return the number of the current epoch."""
        return (await self.committee.validation.epoch()).number

    async def batch(self, channels: int, payees: int, count: int) -> int:
        """Settle a batch of ``count`` requests; return its gas."""
        from ncn_payments import batches

        charges = [self._charge(i, self.clients[i % channels], self.nodes[i % payees]) for i in range(count)]
        ids = sorted({batches.channel_of(charge) for charge in charges})
        spent = {channel: (await self.gateway.deposit(channel)).spent_wei for channel in ids}
        self.nonce += 1
        gateway = self.gateway.writer.address
        statement = batches.build(gateway, self.nonce, await self.epoch(), charges, spent)
        quorum = await self.committee.endorse(statement)
        _, gas = await self.gateway.settle_batch(statement, quorum, f"bench:{self.nonce}")
        return gas

    def _charge(self, number: int, client: Signer, node: Signer) -> Charge:
        own, gateway = client.address, self.gateway.writer.address
        channel = digests.channel_id(own, own, gateway)
        total = self.charged[own] = self.charged.get(own, 0) + FEE_WEI
        voucher = Voucher(own, own, gateway, total)
        signature = client.sign(digests.voucher_digest(self.domain, channel, total)).value
        voucher = Voucher(own, own, gateway, total, signature)
        request = self._request(client, "voucher")
        receipt = self._receipt(request, node)
        return Charge(voucher, receipt, digests.inputs_hash(()), own, request.signature)

    def _request(self, client: Signer, payment: str) -> InferenceRequest:
        request = InferenceRequest(
            model=bytes(32),
            inputs=(),
            nonce=secrets.token_bytes(32),
            limit_units=1,
            deadline_ms=2**62,
            client=client.address,
            payment=payment,
        )
        return replace(request, signature=client.sign(digests.request_digest(self.domain, request)).value)

    def _receipt(self, request: InferenceRequest, node: Signer) -> SignedReceipt:
        receipt = Receipt(
            request_id=request.request_id,
            request_hash=request.request_hash,
            model=request.model,
            output_hash=secrets.token_bytes(32),
            chunks=1,
            units=1,
            fee_wei=FEE_WEI,
            node=node.address,
            started_ms=1,
            finished_ms=2,
        )
        return SignedReceipt(receipt, (node.sign(digests.receipt_digest(self.domain, receipt)),))

    async def escrow(self, *, complete: bool) -> int:
        """Pay for one request in escrow; return the gas of paying and completing it, or of its refund alone."""
        from ncn_payments import devkeys

        client, node = devkeys.development_signer("client", self.domain.chain_id), self.nodes[0]
        request = self._request(client, "escrow")
        account = await self.client.account(client.address)
        expiry = int(time.time()) + 600
        terms = EscrowTerms(
            client.address,
            account.request_nonce,
            self.gateway.writer.address,
            node.address,
            FEE_WEI,
            await self.epoch(),
            expiry,
            request.request_hash,
        )
        identity = digests.escrow_id(self.domain, terms.client, terms.nonce)
        quorum = await self.committee.endorse(TermsStatement(terms, identity, request, FEE_WEI, 0))
        paid = await self.client.pay_escrow(terms, quorum, f"bench:pay:{terms.nonce}")
        if complete:
            receipt = self._receipt(request, node)
            quorum = await self.committee.endorse(CompletionStatement(terms, identity, receipt))
            tx = await self.gateway.complete_escrow(
                terms, receipt.receipt.output_hash, FEE_WEI, quorum, f"bench:complete:{terms.nonce}"
            )
            return paid.gas_used + await self._gas(tx)
        await self.gateway.contracts.chain.request("evm_increaseTime", [3_600])
        await self.gateway.contracts.chain.request("evm_mine")
        return await self._gas(await self.gateway.expire_escrow(terms, f"bench:expire:{terms.nonce}"))

    async def _gas(self, tx: str) -> int:
        return int((await self.gateway.receipt(bytes.fromhex(tx[2:])))["gasUsed"], 16)


class _Epochs:
    """The plugin that knows the chain, as far as a committee asks for it."""

    roles = ROLES

    def __init__(self, stakes: Stakes) -> None:
        self.stakes = stakes

    @hookimpl
    def ncn_epoch(self, number: int) -> Awaitable[Epoch]:
        return self.stakes.epoch(number)


@asynccontextmanager
async def _bench(kind: str, folder: Path) -> AsyncIterator[_Bench]:
    from ncn_framework.config import Config
    from ncn_framework.sources import Sources
    from ncn_payments import devkeys
    from ncn_payments.chain import open_chain
    from ncn_payments.committee import Committee
    from ncn_payments.config import PaymentsSettings
    from ncn_payments.devnet import DevelopmentNetwork
    from ncn_payments.onchain import OnChain
    from ncn_payments.stakes import Stakes
    from ncn_payments.validator_memory import ValidatorMemory

    environment = {"NCN_HOME": str(folder), "NCN_PAYMENTS_CHAIN": kind, "NCN_PAYMENTS_ANVIL_PORT": "0"}
    settings = Config(Sources(environment=environment, folder=folder)).load(PaymentsSettings)
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(open_chain(settings, home=folder, chain_id=devkeys.CHAIN_ID, host=True))
        network = DevelopmentNetwork(chain, settings, folder)
        contracts = await network.prepare()
        domain = Domain(devkeys.CHAIN_ID, contracts.addresses.payment)
        sides = [
            await OnChain(contracts, domain, await stack.enter_async_context(network.writer(name))).open()
            for name in ("gateway", "client")
        ]
        signers = [devkeys.development_signer(f"validator{n}", devkeys.CHAIN_ID) for n in range(1, 6)]
        epochs = _Epochs(Stakes(contracts, sides[0].writer))
        validation = Validation(build_manager([loaded_plugin("epochs", epochs)]))
        memory = ValidatorMemory(folder / "validators.db")
        committee = Committee(domain, signers, sides[0], memory, validation, settings)
        stack.callback(committee.close)
        bench = _Bench(network, sides[0], sides[1], committee, domain)
        await bench.fund()
        yield bench
