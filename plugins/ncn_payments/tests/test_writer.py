"""Sending: each once, in order, whatever the chain says, on both development chains."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from ncn_framework.errors import ChainError, ReplayConflict, TransactionReverted
from ncn_framework.signing import Signer
from ncn_payments import writer as writer_module
from ncn_payments.chain import Chain
from ncn_payments.chain.interface import quantity
from ncn_payments.config import PaymentsSettings
from ncn_payments.devkeys import ETHER_WEI
from ncn_payments.errors import ChainUnreachable, RpcError
from ncn_payments.transactions import Call
from ncn_payments.writer import Receipt, TransactionWriter

from . import programs
from .sending import GWEI, send

SOMEBODY = b"\x07" * 20
POOR = Signer(b"\x09" * 32)


class Through(Chain):
    """A chain that hands every request on, unless a test says otherwise."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.chain_id, self.poll_s = chain.chain_id, 0.01
        self.asked: Counter[str] = Counter()
        self.instead: dict[str, Callable[..., Any]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def request(self, method: str, params: Sequence[Any] = ()) -> Any:
        self.asked[method] += 1
        if method in self.instead:
            answer = self.instead[method](*params)
            if answer is not Through:
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return await self._chain.request(method, params)


@pytest.fixture
def through(chain: Chain) -> Through:
    return Through(chain)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "transactions.db"


@pytest.fixture
async def writer(through: Through, deployer: Signer, journal: Path) -> AsyncIterator[TransactionWriter]:
    async with TransactionWriter(through, deployer, journal) as made:
        yield made


async def count(chain: Chain, signer: Signer) -> int:
    return quantity(await chain.request("eth_getTransactionCount", ["0x" + signer.address.hex(), "latest"]))


async def deployed(writer: TransactionWriter, runtime: bytes) -> bytes:
    contract = (await writer.send(programs.creation(runtime), key=f"deploy:{runtime.hex()}")).contract
    assert contract is not None
    return contract


# --- as it should be ---


async def test_receipt(chain: Chain, writer: TransactionWriter, deployer: Signer) -> None:
    created = await writer.send(programs.creation(programs.STORE_AND_LOG), key="deploy")
    assert created.contract is not None
    assert await chain.code(created.contract) == programs.STORE_AND_LOG
    sent = await writer.send(Call(created.contract, (9).to_bytes(32, "big")), key="call")
    assert (sent.key, sent.contract, len(sent.logs)) == ("call", None, 1)
    assert sent.block == created.block + 1
    paid = await writer.send(Call(SOMEBODY), key="pay", value_wei=5)
    assert await chain.balance(SOMEBODY) == 5
    spent = created.fee_wei + sent.fee_wei + paid.fee_wei + 5
    assert await chain.balance(deployer.address) == ETHER_WEI - spent


async def test_same_key_same_transaction(chain: Chain, writer: TransactionWriter, deployer: Signer) -> None:
    calls = [writer.send(Call(SOMEBODY), key="once", value_wei=5) for _ in range(20)]
    results = await asyncio.gather(*calls)
    assert len({result.hash for result in results}) == 1
    assert await writer.send(Call(SOMEBODY), key="once", value_wei=5) == results[0]
    assert await chain.balance(SOMEBODY) == 5
    assert await count(chain, deployer) == 1
    for other in (Call(SOMEBODY, b"x"), Call(b"\x08" * 20)):
        with pytest.raises(ReplayConflict, match="once"):
            await writer.send(other, key="once", value_wei=5)


async def test_two_hundred_at_once(chain: Chain, writer: TransactionWriter, deployer: Signer) -> None:
    results = await asyncio.gather(*(writer.send(Call(SOMEBODY), key=f"{n}", value_wei=1) for n in range(200)))
    assert len({result.hash for result in results}) == 200
    assert await count(chain, deployer) == 200
    assert await chain.balance(SOMEBODY) == 200


async def test_several_writers_of_one_key(chain: Chain, deployer: Signer, journal: Path) -> None:
    async with TransactionWriter(chain, deployer, journal) as a, TransactionWriter(chain, deployer, journal) as b:
        await asyncio.gather(*((a, b)[n % 2].send(Call(SOMEBODY), key=f"{n // 2}", value_wei=1) for n in range(40)))
    assert await count(chain, deployer) == 20
    assert await chain.balance(SOMEBODY) == 20


async def test_keys_of_several_senders(chain: Chain, deployer: Signer, client: Signer, journal: Path) -> None:
    async with TransactionWriter(chain, deployer, journal) as a, TransactionWriter(chain, client, journal) as b:
        await asyncio.gather(*(one.send(Call(SOMEBODY), key="same", value_wei=1) for one in (a, b)))
    assert await chain.balance(SOMEBODY) == 2


async def test_nothing_is_polled_when_nothing_waits(through: Through, writer: TransactionWriter) -> None:
    await writer.send(Call(SOMEBODY), key="a")
    before = through.asked.total()
    await asyncio.sleep(5 * through.poll_s)
    assert through.asked.total() == before


async def test_settings(chain: Chain, deployer: Signer, tmp_path: Path) -> None:
    settings = PaymentsSettings(confirmations=2, replace_after_ms=5, max_fee_gwei=7)
    made = TransactionWriter.of(settings, chain, deployer, tmp_path)
    assert (made._confirmations, made._replace_after_s, made._max_fee_wei) == (2, 0.005, 7 * GWEI)
    assert made._path == tmp_path / "transactions.db"
    assert made.address == deployer.address


# --- reverts and refusals ---


async def test_revert_is_found_before_sending(chain: Chain, writer: TransactionWriter, deployer: Signer) -> None:
    contract = await deployed(writer, programs.REVERT)
    panic = bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big")
    with pytest.raises(TransactionReverted, match="a transaction reverted: unknown error 0x4e487b71"):
        await writer.send(Call(contract, panic), key="reverts")  # one word of it comes back
    assert await count(chain, deployer) == 1
    await writer.send(Call(SOMEBODY), key="reverts")  # nothing was sent: the key is free


async def test_revert_on_chain_is_kept(chain: Chain, through: Through, deployer: Signer, journal: Path) -> None:
    async with TransactionWriter(through, deployer, journal) as writer:
        contract = await deployed(writer, programs.REVERT)
        through.instead["eth_estimateGas"] = lambda *_: hex(100_000)
        call = Call(contract, bytes.fromhex("deadbeef") + bytes(28), "Thing.do")
        for _ in range(2):
            with pytest.raises(TransactionReverted, match=r"Thing\.do reverted: unknown error 0xdeadbeef"):
                await writer.send(call, key="reverts")
        assert await count(chain, deployer) == 2
    async with TransactionWriter(through, deployer, journal) as writer:
        with pytest.raises(TransactionReverted, match="0xdeadbeef"):
            await writer.send(call, key="reverts")
    assert await count(chain, deployer) == 2


async def test_too_little_ether(chain: Chain, deployer: Signer, journal: Path) -> None:
    async with TransactionWriter(chain, POOR, journal) as writer:
        with pytest.raises(TransactionReverted, match=r"too little ether") as caught:
            await writer.send(Call(SOMEBODY), key="a")
        assert caught.value.reason == "InsufficientFunds"
        await send(chain, deployer, 0, Call(POOR.address), value=10**18)
        await writer.send(Call(SOMEBODY), key="a", value_wei=1)
        with pytest.raises(TransactionReverted, match=r"too little ether"):
            await writer.send(Call(SOMEBODY), key="b", value_wei=10**18)
    assert await chain.balance(SOMEBODY) == 1


async def test_a_price_above_the_limit(through: Through, deployer: Signer, journal: Path) -> None:
    async with TransactionWriter(through, deployer, journal, max_fee_wei=GWEI // 2) as writer:
        with pytest.raises(ChainError, match="max_fee_gwei"):
            await writer.send(Call(SOMEBODY), key="a")
    assert not through.asked["eth_sendRawTransaction"]


async def test_what_the_chain_refuses_for_good_is_filled(
    chain: Chain, through: Through, writer: TransactionWriter, deployer: Signer
) -> None:
    refused: list[str] = []

    def refuse_first(transaction: str) -> Any:
        if not refused or transaction == refused[0]:
            refused.append(transaction)
            return RpcError(-32000, "max initcode size exceeded", method="eth_sendRawTransaction")
        return Through

    through.instead["eth_sendRawTransaction"] = refuse_first
    with pytest.raises(RpcError, match="initcode"):
        await writer.send(Call(SOMEBODY), key="a", value_wei=1)
    await writer.send(Call(SOMEBODY), key="b", value_wei=2)  # not held up
    assert await count(chain, deployer) == 2
    await writer.send(Call(SOMEBODY), key="a", value_wei=4)  # and the key can be used again
    assert await chain.balance(SOMEBODY) == 6


# --- trouble on the way ---


async def test_sent_again_when_the_chain_was_away(through: Through, writer: TransactionWriter, chain: Chain) -> None:
    tries = 0

    def away(*_: Any) -> Any:
        nonlocal tries
        tries += 1
        return ChainUnreachable("away") if tries == 1 else Through

    through.instead["eth_sendRawTransaction"] = away
    writer._replace_after_s = 0.02
    await writer.send(Call(SOMEBODY), key="a", value_wei=1)
    assert tries >= 2
    assert await chain.balance(SOMEBODY) == 1


async def test_errors_while_watching_pass(through: Through, writer: TransactionWriter, chain: Chain) -> None:
    answers: list[Any] = [ChainUnreachable("away"), RpcError(-32000, "busy"), ValueError("a defect")]
    sent = False

    def note(*_: Any) -> Any:
        nonlocal sent
        sent = True
        return Through

    def troubled(*_: Any) -> Any:
        return answers.pop(0) if sent and answers else Through

    through.instead["eth_sendRawTransaction"] = note
    through.instead["eth_getTransactionCount"] = troubled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "_LONGEST_PAUSE_S", 0.01)
        await writer.send(Call(SOMEBODY), key="a", value_wei=1)
    assert not answers
    assert await chain.balance(SOMEBODY) == 1


async def test_fees_are_raised_until_it_is_included(
    chain: Chain, through: Through, deployer: Signer, journal: Path
) -> None:
    await chain.request("evm_setAutomine", [False])
    hashes: list[str] = []

    def note(transaction: str) -> Any:
        if transaction not in hashes:
            hashes.append(transaction)
        return Through

    through.instead["eth_sendRawTransaction"] = note
    async with TransactionWriter(through, deployer, journal, replace_after_s=0.02) as writer:
        sending = asyncio.create_task(writer.send(Call(SOMEBODY), key="a", value_wei=1))
        behind = asyncio.create_task(writer.send(Call(SOMEBODY), key="b", value_wei=2))
        while len(hashes) < 5:
            await asyncio.sleep(0.01)
        assert not sending.done()
        await chain.request("evm_setAutomine", [True])
        await chain.request("evm_mine")
        first, second = await sending, await behind
        attempts = await writer._stored(writer._journal.attempts, 0)
    fees = [(attempt.max_fee_wei, attempt.priority_fee_wei) for attempt in attempts]
    assert len(fees) >= 3
    for (fee, tip), (next_fee, next_tip) in pairwise(fees):
        assert next_fee * 8 > fee * 9
        assert next_tip * 8 > tip * 9
    assert first.hash in {attempt.hash for attempt in attempts}
    assert second.hash != first.hash
    assert await chain.balance(SOMEBODY) == 3
    assert await count(chain, deployer) == 2


async def test_fees_stop_at_the_limit(
    chain: Chain, through: Through, deployer: Signer, journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await chain.request("evm_setAutomine", [False])
    async with TransactionWriter(through, deployer, journal, replace_after_s=0.01, max_fee_wei=4 * GWEI) as writer:
        sending = asyncio.create_task(writer.send(Call(SOMEBODY), key="a", value_wei=1))
        caplog.set_level(logging.WARNING)
        while "forbids a higher fee" not in caplog.text:
            await asyncio.sleep(0.01)
        attempts = await writer._stored(writer._journal.attempts, 0)
        assert max(attempt.max_fee_wei for attempt in attempts) <= 4 * GWEI
        await chain.request("evm_setAutomine", [True])
        await chain.request("evm_mine")
        await sending
    assert await chain.balance(SOMEBODY) == 1


async def test_another_program_with_the_key(chain: Chain, through: Through, deployer: Signer, journal: Path) -> None:
    """Its transaction takes the nonce between the record and the sending; ours gets another one, once."""
    stolen = False

    def steal(*_: Any) -> Any:
        return Through if stolen else ChainUnreachable("away")

    through.instead["eth_sendRawTransaction"] = steal
    async with TransactionWriter(through, deployer, journal, replace_after_s=0.02) as writer:
        sending = asyncio.create_task(writer.send(Call(SOMEBODY), key="a", value_wei=1))
        while not through.asked["eth_sendRawTransaction"]:
            await asyncio.sleep(0)
        await send(chain, deployer, 0, Call(b"\x08" * 20), value=100, tip=50 * GWEI, fee=90 * GWEI)
        stolen = True
        receipt = await sending
    assert receipt.key == "a"
    assert (await chain.balance(SOMEBODY), await chain.balance(b"\x08" * 20)) == (1, 100)
    assert await count(chain, deployer) == 2


async def test_a_missing_receipt_is_no_reason_to_send_twice(
    chain: Chain, through: Through, writer: TransactionWriter, deployer: Signer
) -> None:
    """The node that counts is ahead of the one that has receipts."""
    missing = 5

    def late(*_: Any) -> Any:
        nonlocal missing
        missing -= 1
        return None if missing >= 0 else Through

    through.instead["eth_getTransactionReceipt"] = late
    await writer.send(Call(SOMEBODY), key="a", value_wei=1)
    assert missing < 0
    assert await count(chain, deployer) == 1


async def test_confirmations(chain: Chain, through: Through, deployer: Signer, journal: Path) -> None:
    async with TransactionWriter(through, deployer, journal, confirmations=3) as writer:
        sending = asyncio.create_task(writer.send(Call(SOMEBODY), key="a"))
        while not through.asked["eth_getTransactionReceipt"]:
            await asyncio.sleep(0.01)
        for _ in range(2):
            asked = through.asked["eth_getTransactionReceipt"]
            while through.asked["eth_getTransactionReceipt"] < asked + 2:
                await asyncio.sleep(0.01)
            assert not sending.done()
            await chain.request("evm_mine")
        assert (await sending).block == 1


async def test_a_cancelled_wait_does_not_stop_it(chain: Chain, through: Through, writer: TransactionWriter) -> None:
    await chain.request("evm_setAutomine", [False])
    sending = asyncio.create_task(writer.send(Call(SOMEBODY), key="a", value_wei=1))
    while not through.asked["eth_sendRawTransaction"]:
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await chain.request("evm_setAutomine", [True])
    await chain.request("evm_mine")
    assert isinstance(await writer.send(Call(SOMEBODY), key="a", value_wei=1), Receipt)
    assert await chain.balance(SOMEBODY) == 1


async def test_closing_tells_who_waits_and_the_next_start_goes_on(
    chain: Chain, through: Through, deployer: Signer, journal: Path
) -> None:
    await chain.request("evm_setAutomine", [False])
    async with TransactionWriter(through, deployer, journal) as writer:
        sending = asyncio.create_task(writer.send(Call(SOMEBODY), key="a", value_wei=1))
        while not through.asked["eth_sendRawTransaction"]:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
    with pytest.raises(ChainError, match="closed"):
        await sending
    await chain.request("evm_setAutomine", [True])
    await chain.request("evm_mine")
    async with TransactionWriter(through, deployer, journal) as writer:
        await writer.send(Call(SOMEBODY), key="a", value_wei=1)
    assert await chain.balance(SOMEBODY) == 1


# --- the journal ---


async def test_a_chain_that_began_anew_is_another_one(tmp_path: Path, deployer: Signer, kind: str) -> None:
    from .conftest import make_chain

    for folder in ("first", "second"):
        async with make_chain(kind, tmp_path / folder) as chain:
            await chain.request("evm_increaseTime", [1])
            if folder == "second":
                first_block = await chain.request("eth_getBlockByNumber", ["0x0", False])
                through = Through(chain)
                changed = {**first_block, "hash": "0x" + "ab" * 32}  # both may begin within one second
                through.instead["eth_getBlockByNumber"] = lambda number, _, c=changed: c if number == "0x0" else Through
                chain = through
            async with TransactionWriter(chain, deployer, tmp_path / "transactions.db") as writer:
                await writer.send(Call(SOMEBODY), key="same", value_wei=1)
            assert await chain.balance(SOMEBODY) == 1


async def test_a_journal_that_cannot_be_written(
    chain: Chain, through: Through, writer: TransactionWriter, journal: Path
) -> None:
    from ncn_framework.errors import StoreError

    with sqlite3.connect(journal) as database:
        database.execute("DROP TABLE attempts")
    database.close()
    with pytest.raises(StoreError, match=r"transactions\.db"):
        await writer.send(Call(SOMEBODY), key="a")
    assert not through.asked["eth_sendRawTransaction"]


async def test_recorded_before_it_is_sent(through: Through, writer: TransactionWriter, journal: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(transaction: str) -> Any:
        with sqlite3.connect(journal) as database:
            seen.extend(database.execute("SELECT nonce, raw FROM attempts"))
        database.close()
        return Through

    through.instead["eth_sendRawTransaction"] = look
    await writer.send(Call(SOMEBODY), key="a")
    assert [nonce for nonce, _ in seen] == [0]
    assert all(isinstance(bytes_, bytes) for _, bytes_ in seen)


async def test_keys_of_the_journal_are_not_the_private_key(
    writer: TransactionWriter, journal: Path, deployer: Signer
) -> None:
    await writer.send(Call(SOMEBODY), key="a")
    content = b"".join(path.read_bytes() for path in journal.parent.glob("transactions.db*"))
    assert bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80") not in content
