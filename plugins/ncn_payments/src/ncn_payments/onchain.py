"""What payments need of the contracts, in the words of ``ncn_framework.payments``."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ncn_framework.digests import channel_id, compact_signature, full_signature, preprocess_commitment
from ncn_framework.errors import ChainError, PaymentRequired, TransactionReverted
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Domain
from ncn_framework.payments import EscrowTerms, Quorum, TransferAuthorization, Voucher
from ncn_framework.statements import BatchStatement

from .accounts import Deposit
from .contracts import Contracts
from .deployment import Addresses
from .transactions import Call
from .writer import Receipt, TransactionWriter

__all__ = ["EscrowAccount", "OnChain"]

_KEPT_BATCHES = 192
"""``InferencePayment.MAX_BATCHES``: of how many of a gateway's nonces the contract still has the commitment."""

_AT_ONCE = 32
"""Requests to the chain at the same time."""


@dataclass(frozen=True)
class EscrowAccount:
    """A client's account for escrows: what it may use, in wei, and the nonce of its next request."""

    free_wei: int
    request_nonce: int


class OnChain:
    """The contracts of a network, asked and told.

    Args:
        contracts: bound to their addresses.
        domain: of InferencePayment.
        writer: sends transactions with this process's key.
    """

    def __init__(self, contracts: Contracts, domain: Domain, writer: TransactionWriter) -> None:
        self.contracts, self.domain, self.writer = contracts, domain, writer
        self.token_name = ""
        self.withdrawal_window_s = self.max_request_time_s = 0
        self._members: dict[int, tuple[bytes, ...]] = {}

    async def open(self) -> OnChain:
        """Read what never changes, and return this.

        Raises:
            ChainError: the contracts do not answer.
        """
        self.token_name = str(await self.contracts.token.read("name"))
        self.withdrawal_window_s = int(await self.contracts.payment.read("WITHDRAWAL_WINDOW"))
        self.max_request_time_s = int(await self.contracts.payment.read("MAX_REQUEST_TIME"))
        return self

    @property
    def addresses(self) -> Addresses:
        """Where the contracts are."""
        return self.contracts.addresses

    # --- channels ---

    async def deposit(self, channel: bytes) -> Deposit:
        """Return a channel; one that nobody has paid into has nothing. A withdrawal that was let lapse is none."""
        deposited, spent, unlock_at = await self.contracts.payment.read("channels", channel)
        lapsed = now_ms() > (unlock_at + self.withdrawal_window_s) * 1000
        return Deposit(deposited, spent, 0 if lapsed else unlock_at)

    async def deposits(self, channels: Iterable[bytes]) -> dict[bytes, Deposit]:
        """Return several channels, asked for some at a time."""
        found = dict[bytes, Deposit]()
        for some in _slices(sorted(channels), _AT_ONCE):
            found |= zip(some, await asyncio.gather(*map(self.deposit, some)), strict=True)
        return found

    async def fund(self, client: bytes, signer: bytes, gateway: bytes, amount_wei: int, key: str) -> Receipt:
        """Pay into a channel, with this process's own tokens; ``key`` names the payment, made once."""
        await self._allow(amount_wei, key)
        return await self._send(self.contracts.payment.call("deposit", client, signer, gateway, amount_wei), key)

    async def fund_account(self, amount_wei: int, key: str) -> Receipt:
        """Pay into this process's own account for escrows."""
        await self._allow(amount_wei, key)
        return await self._send(self.contracts.payment.call("depositAccount", amount_wei), key)

    async def _allow(self, amount_wei: int, key: str) -> None:
        """Let the contract take so much of this process's tokens.

        Raises:
            PaymentRequired: it does not have that many.
        """
        own, payment = self.writer.address, self.addresses.payment
        has = await self.tokens(own)
        if has < amount_wei:
            raise PaymentRequired(f"{amount_wei} wei of the token are needed; this wallet has {has}")
        if await self.contracts.token.read("allowance", own, payment) < amount_wei:
            await self._send(self.contracts.token.call("approve", payment, amount_wei), f"approve:{key}")

    async def tokens(self, address: bytes) -> int:
        """Return an address's balance of the token, in wei."""
        return int(await self.contracts.token.read("balanceOf", address))

    async def leave(self, signer: bytes, gateway: bytes, key: str) -> Receipt:
        """Begin to withdraw what is left of a channel of this process's own."""
        return await self._send(self.contracts.payment.call("requestWithdrawal", signer, gateway), key)

    async def stay(self, signer: bytes, gateway: bytes, key: str) -> Receipt:
        """Take a withdrawal that was begun back."""
        return await self._send(self.contracts.payment.call("cancelWithdrawal", signer, gateway), key)

    async def withdraw(self, client: bytes, signer: bytes, gateway: bytes, key: str) -> Receipt:
        """Finish a withdrawal after its delay; the rest of the channel goes to its client."""
        return await self._send(self.contracts.payment.call("finalizeWithdrawal", client, signer, gateway), key)

    async def withdraw_account(self, amount_wei: int, key: str) -> Receipt:
        """Take tokens out of this process's own account for escrows."""
        return await self._send(self.contracts.payment.call("withdraw", amount_wei), key)

    async def exits(self, first_block: int) -> tuple[set[bytes], int]:
        """Return the channels whose clients began to withdraw since a block, and the block to look from next time."""
        newest = await self.contracts.chain.block_number()
        if newest < first_block:
            return set(), first_block
        events = await self.contracts.payment.past_events("WithdrawalRequested", first_block, newest)
        return {event.arguments["channelId"] for event in events}, newest + 1

    # --- validators ---

    async def members(self, epoch: int) -> tuple[bytes, ...]:
        """Return the validators of an epoch, in the order of a quorum's bitmap. They never change."""
        if epoch not in self._members:
            self._members[epoch] = tuple(await self.contracts.registry.read("members", epoch))
            while len(self._members) > 64:
                self._members.pop(next(iter(self._members)))
        return self._members[epoch]

    # --- batches ---

    async def batch_nonce(self, gateway: bytes) -> int:
        """Return the nonce of the last batch of a gateway."""
        return int(await self.contracts.payment.read("batchNonce", gateway))

    async def is_settled(self, gateway: bytes, nonce: int) -> bool:
        """Return whether a batch of this nonce is on chain (a nonce below the last one may have been left out)."""
        last = await self.batch_nonce(gateway)
        if not last - _KEPT_BATCHES < nonce <= last:
            return nonce <= last and bool(await self._settled_events(gateway, nonce))
        return any(await self.contracts.payment.read("batchCommitment", gateway, nonce))

    async def settled_in(self, statement: BatchStatement) -> tuple[str, int] | None:
        """Return transaction hash and gas of the batch, if just this one is on chain."""
        batch = statement.batch
        if not await self.is_settled(batch.gateway, batch.nonce):
            return None
        for event in await self._settled_events(batch.gateway, batch.nonce):
            commitment = (event.arguments["receiptsRoot"], event.arguments["daHash"], event.arguments["count"])
            if commitment == (batch.receipts_root, batch.da_hash, batch.count):
                receipt = await self.receipt(event.transaction_hash)
                return "0x" + event.transaction_hash.hex(), int(receipt["gasUsed"], 16)
        return None

    async def batch_quorum(self, transaction: bytes, epoch: int) -> Quorum | None:
        """Return the signatures with which a transaction settled a batch; None where it called another function."""
        sent = await self.contracts.chain.request("eth_getTransactionByHash", ["0x" + transaction.hex()])
        data = bytes.fromhex(sent["input"][2:]) if sent else b""
        called = self.contracts.payment.interface.decode_call("settleBatch", data)
        if called is None:
            return None
        *_, bitmap, signatures = called
        return Quorum(epoch, bitmap, tuple(signatures[i : i + 65] for i in range(0, len(signatures), 65)))

    async def published_vouchers(self, gateway: bytes, channels: Collection[bytes]) -> dict[bytes, Voucher]:
        """Return the vouchers with which batches have drawn on these channels last, unchecked; some may have none."""
        wanted, found = set(channels), dict[bytes, Voucher]()
        for event in reversed(await self._settled_events(gateway, None)):
            if not wanted:
                break
            sent = await self.contracts.chain.request("eth_getTransactionByHash", ["0x" + event.transaction_hash.hex()])
            data = bytes.fromhex(sent["input"][2:])
            called = self.contracts.payment.interface.decode_call("settleBatch", data)
            for client, signer, cumulative, _, r, vs in called[1] if called else ():  # none: through another contract
                channel = channel_id(client, signer, gateway)
                if channel in wanted:
                    wanted.remove(channel)
                    found[channel] = Voucher(client, signer, gateway, cumulative, full_signature(r + vs))
        return found

    async def _settled_events(self, gateway: bytes, nonce: int | None) -> list[Any]:
        topics = [gateway.rjust(32, b"\0"), *([] if nonce is None else [nonce.to_bytes(32, "big")])]
        return await self.contracts.payment.past_events("BatchSettled", self.addresses.block, None, topics)

    def _settle_call(self, statement: BatchStatement, quorum: Quorum) -> Call:
        batch = statement.batch
        head = (
            batch.gateway,
            batch.nonce,
            batch.epoch,
            batch.count,
            batch.receipts_root,
            batch.da_hash,
            batch.claims_hash,
            batch.credits_hash,
        )
        claims = []
        for claim in statement.claims:
            voucher, compact = claim.voucher, compact_signature(claim.voucher.signature)
            amounts = (voucher.cumulative_wei, claim.total_wei)
            claims.append((voucher.client, voucher.signer, *amounts, compact[:32], compact[32:]))
        credits_ = [(credit.payee, credit.amount_wei) for credit in statement.credits]
        return self.contracts.payment.call(
            "settleBatch", head, claims, credits_, quorum.bitmap, b"".join(quorum.signatures)
        )

    async def simulate_batch(self, statement: BatchStatement, quorum: Quorum) -> None:
        """Try a batch without sending it.

        Raises:
            TransactionReverted: the contract would refuse it; see ``refused_claim``.
        """
        await self.contracts.payment.simulate(self._settle_call(statement, quorum), self.writer.address)

    def refused_claim(self, error: TransactionReverted) -> int | None:
        """Return the index of the claim for which a batch was refused; None where it was not for a claim."""
        if error.reason in ("InferencePayment__BadVoucher", "InferencePayment__BadClaim"):
            return int(str(error.arguments[0]))
        return None

    async def settle_batch(self, statement: BatchStatement, quorum: Quorum, key: str) -> tuple[str, int]:
        """Put a batch on chain; return transaction hash and gas.

        Raises:
            TransactionReverted: the contract refused it.
            ChainError: not known yet; asked again with the same key, it goes on with the same transaction.
        """
        receipt = await self._send(self._settle_call(statement, quorum), key)
        return "0x" + receipt.hash.hex(), receipt.gas_used

    # --- escrow ---

    async def account(self, client: bytes) -> EscrowAccount:
        """Return a client's account for escrows."""
        free, nonce = await self.contracts.payment.read("accounts", client)
        return EscrowAccount(free, nonce)

    async def is_escrowed(self, terms: EscrowTerms) -> bool:
        """Return whether just these terms are in escrow now."""
        found = await self.contracts.payment.read("requests", terms.client, terms.nonce)
        return bytes(found) == preprocess_commitment(terms)

    async def pay_escrow(self, terms: EscrowTerms, quorum: Quorum, key: str) -> Receipt:
        """Pay into escrow, out of this process's own account for escrows."""
        call = self.contracts.payment.call(
            "initiateInferenceRequest", _request(terms), quorum.bitmap, b"".join(quorum.signatures)
        )
        return await self._send(call, key)

    async def complete_escrow(
        self, terms: EscrowTerms, output_hash: bytes, fee_wei: int, quorum: Quorum, key: str
    ) -> str:
        """Pay an escrow out; return the transaction's hash."""
        signatures = b"".join(quorum.signatures)
        call = self.contracts.payment.call(
            "completeInferenceRequest", _request(terms), output_hash, fee_wei, quorum.bitmap, signatures
        )
        return "0x" + (await self._send(call, key)).hash.hex()

    async def fail_escrow(self, terms: EscrowTerms, quorum: Quorum, key: str) -> str:
        """Give an escrow back, on the validators' word; return the transaction's hash."""
        call = self.contracts.payment.call(
            "markRequestFailed", _request(terms), quorum.bitmap, b"".join(quorum.signatures)
        )
        return "0x" + (await self._send(call, key)).hash.hex()

    async def expire_escrow(self, terms: EscrowTerms, key: str) -> str:
        """Give an escrow back after its expiry, which anybody may do; return the transaction's hash."""
        call = self.contracts.payment.call("handleExpiredRequest", _request(terms))
        return "0x" + (await self._send(call, key)).hash.hex()

    async def confirmed(self, transaction: bytes) -> None:
        """Raise unless a transaction is on chain and succeeded.

        Raises:
            PaymentRequired: it is not, or it did not.
        """
        receipt = await self.contracts.chain.request("eth_getTransactionReceipt", ["0x" + transaction.hex()])
        if receipt is None:
            raise PaymentRequired(f"transaction 0x{transaction.hex()} is not on the chain yet; confirm it once it is")
        if int(receipt["status"], 16) != 1:
            raise PaymentRequired(f"transaction 0x{transaction.hex()} failed")

    # --- one-off transfers ---

    def _transfer_call(self, transfer: TransferAuthorization) -> Call:
        return self.contracts.token.call(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            transfer.payer,
            transfer.payee,
            transfer.value_wei,
            transfer.valid_after_s,
            transfer.valid_before_s,
            transfer.nonce,
            transfer.signature,
        )

    async def simulate_transfer(self, transfer: TransferAuthorization) -> None:
        """Try a signed transfer without sending it.

        Raises:
            TransactionReverted: it would fail: no funds, used before, or not valid now.
        """
        await self.contracts.token.simulate(self._transfer_call(transfer), self.writer.address)

    async def take_transfer(self, transfer: TransferAuthorization, key: str) -> str:
        """Take a signed transfer; return the transaction's hash."""
        return "0x" + (await self._send(self._transfer_call(transfer), key)).hash.hex()

    # --- transactions ---

    async def _send(self, call: Call, key: str) -> Receipt:
        return await self.writer.send(call, key=key)

    async def receipt(self, transaction: bytes) -> Any:
        """Return a transaction's receipt as JSON-RPC has it.

        Raises:
            ChainError: the chain has none.
        """
        found = await self.contracts.chain.request("eth_getTransactionReceipt", ["0x" + transaction.hex()])
        if found is None:
            raise ChainError(f"the chain has no transaction 0x{transaction.hex()}")
        return found


def _slices(items: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _request(terms: EscrowTerms) -> tuple[Any, ...]:
    return (
        terms.client,
        terms.nonce,
        terms.gateway,
        terms.node,
        terms.amount_wei,
        terms.epoch,
        terms.expiry_s,
        terms.request_hash,
    )
