"""SIGKILL between record, send and confirmation; afterwards every transaction is there, exactly once."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ncn_framework.signing import Signer
from ncn_payments.chain import Chain
from ncn_payments.chain.anvil import AnvilChain
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.chain.interface import quantity
from ncn_payments.chain.rpc import RpcChain
from ncn_payments.transactions import Call
from ncn_payments.writer import TransactionWriter

from .conftest import make_chain

SOMEBODY = b"\x07" * 20

SENDER = """
import asyncio, os, pathlib, random, signal, sys
from ncn_payments import journal, writer as writer_module
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.chain.rpc import RpcChain
from ncn_payments.devkeys import development_signer
from ncn_payments.transactions import Call
from ncn_payments.writer import TransactionWriter

where, database, moment, count = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def around(owner, name, *, before=None, after=None):
    original = getattr(owner, name)
    async def changed(self, *arguments, **options):
        if before: before(*arguments)
        result = await original(self, *arguments, **options)
        if after: after(*arguments)
        return result
    setattr(owner, name, changed)

made = RpcChain((where,), 31337) if where.startswith("http") else EmbeddedChain(pathlib.Path(where))

if moment == "before-record":
    journal.Journal.record = die
elif moment == "recorded":
    around(TransactionWriter, "_broadcast", before=die)
elif moment == "sent":
    around(TransactionWriter, "_broadcast", after=die)
elif moment == "before-settle":
    journal.Journal.settle = die
elif moment == "settled":
    around(TransactionWriter, "_settle", after=die)

async def main():
    async with made as chain, TransactionWriter(chain, development_signer("deployer", 31337), database) as writer:
        if moment == "random":
            asyncio.get_running_loop().call_later(random.uniform(0.0, 0.3), die)
        await asyncio.gather(*(writer.send(Call(bytes([7]) * 20), key=f"k{n}", value_wei=1) for n in range(count)))

asyncio.run(main())
"""


@asynccontextmanager
async def world(kind: str, folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """Yield where the sender finds its chain: anvil survives it, the embedded chain dies with it."""
    await asyncio.to_thread(folder.mkdir)
    if kind == "embedded":
        yield str(folder / "chain"), folder / "transactions.db"
        return
    make_chain("anvil", folder)  # skips where there is none
    async with AnvilChain(folder) as anvil:
        yield anvil.url, folder / "transactions.db"


def chain_at(where: str) -> Chain:
    return RpcChain((where,), 31337) if where.startswith("http") else EmbeddedChain(Path(where))


async def run_sender(where: str, database: Path, moment: str, count: int) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", SENDER, where, str(database), moment, str(count)
    )
    return await process.wait()


async def finish(where: str, database: Path, signer: Signer, count: int) -> tuple[int, int]:
    """Ask for everything again, and return the money received and the nonces used."""
    async with chain_at(where) as chain:
        async with TransactionWriter(chain, signer, database) as writer:
            receipts = await asyncio.gather(
                *(writer.send(Call(SOMEBODY), key=f"k{number}", value_wei=1) for number in range(count))
            )
        assert len({receipt.hash for receipt in receipts}) == count
        used = quantity(await chain.request("eth_getTransactionCount", ["0x" + signer.address.hex(), "latest"]))
        return await chain.balance(SOMEBODY), used


@pytest.mark.parametrize("moment", ["before-record", "recorded", "sent", "before-settle", "settled"])
async def test_killed_at(kind: str, moment: str, tmp_path: Path, deployer: Signer) -> None:
    async with world(kind, tmp_path / "world") as (where, database):
        assert await run_sender(where, database, moment, 3) == -signal.SIGKILL
        assert await finish(where, database, deployer, 3) == (3, 3)


@pytest.mark.parametrize("moment", ["recorded", "sent"])
async def test_the_next_start_finishes_alone(kind: str, moment: str, tmp_path: Path, deployer: Signer) -> None:
    """Nobody has to ask again: what was recorded is sent and settled when the writer is next opened."""
    async with world(kind, tmp_path / "world") as (where, database):
        assert await run_sender(where, database, moment, 1) == -signal.SIGKILL
        async with chain_at(where) as chain, TransactionWriter(chain, deployer, database):
            while await asyncio.to_thread(pending, database):
                await asyncio.sleep(0.01)
            assert await chain.balance(SOMEBODY) == 1


def pending(database: Path) -> int:
    with sqlite3.connect(database) as connection:
        (number,) = connection.execute("SELECT count(*) FROM transactions WHERE state = 'pending'").fetchone()
    connection.close()
    return int(number)


async def test_killed_again_and_again(kind: str, tmp_path: Path, deployer: Signer) -> None:
    async with world(kind, tmp_path / "world") as (where, database):
        for _ in range(6):
            assert await run_sender(where, database, "random", 25) in (-signal.SIGKILL, 0)
        assert await finish(where, database, deployer, 25) == (25, 25)


async def test_two_processes_with_one_key(tmp_path: Path, deployer: Signer) -> None:
    async with world("anvil", tmp_path / "world") as (where, database):
        results = await asyncio.gather(*(run_sender(where, database, "never", 30) for _ in range(2)))
        assert results == [0, 0]
        assert await finish(where, database, deployer, 30) == (30, 30)
