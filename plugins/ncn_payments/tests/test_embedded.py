"""What only the embedded chain has: one for the process, locked against others, consistent after any crash."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from eth_typing import Address

from ncn_framework.errors import ChainError, ConfigError
from ncn_framework.signing import Signer
from ncn_payments.chain import Chain
from ncn_payments.chain.embedded import EmbeddedChain, NearbyChain
from ncn_payments.chain.interface import quantity
from ncn_payments.chain.rpc import RpcChain
from ncn_payments.devkeys import development_signer
from ncn_payments.errors import ChainUnreachable, RpcError
from ncn_payments.transactions import Call

from . import programs
from .sending import raw, send

SOMEBODY = b"\x07" * 20


async def test_one_for_the_process(tmp_path: Path, deployer: Signer) -> None:
    async with EmbeddedChain(tmp_path) as first:
        async with EmbeddedChain(tmp_path) as second:
            await send(first, deployer, 0, Call(SOMEBODY), value=1)
            assert await second.balance(SOMEBODY) == 1
        await send(first, deployer, 1, Call(SOMEBODY), value=1)  # the other one left; this one goes on
        async with EmbeddedChain(tmp_path / "other") as other:
            assert await other.balance(SOMEBODY) == 0
    with pytest.raises(ChainUnreachable):
        await first.request("eth_blockNumber")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ncn-chain")]


async def test_from_several_loops(tmp_path: Path, deployer: Signer) -> None:
    async with EmbeddedChain(tmp_path) as chain:
        await send(chain, deployer, 0, Call(SOMEBODY), value=1)

        async def elsewhere() -> int:
            async with EmbeddedChain(tmp_path) as same:
                return await same.balance(SOMEBODY)

        assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) == 1


async def test_other_processes_are_kept_out(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from ncn_payments.chain.embedded import EmbeddedChain\n"
        "async def main():\n"
        "    async with EmbeddedChain(pathlib.Path(sys.argv[1])): pass\n"
        "asyncio.run(main())\n"
    )
    async with EmbeddedChain(tmp_path):
        tried = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
        )
    assert tried.returncode == 1
    assert f"process {os.getpid()} has the embedded chain in {tmp_path} open" in tried.stderr
    assert (await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(tmp_path)])).returncode == 0


async def test_nearby_prefers_this_process(tmp_path: Path, deployer: Signer) -> None:
    remote = RpcChain(("http://127.0.0.1:1/chain",), 31337, patience_s=0.01)
    async with NearbyChain(tmp_path, remote) as nearby:
        with pytest.raises(ChainUnreachable):
            await nearby.block_number()
        async with EmbeddedChain(tmp_path) as chain:
            await send(chain, deployer, 0, Call(SOMEBODY), value=1)
            assert await nearby.balance(SOMEBODY) == 1


async def test_the_loop_never_waits(tmp_path: Path, deployer: Signer) -> None:
    async with EmbeddedChain(tmp_path) as chain:
        receipt = await send(chain, deployer, 0, programs.creation(programs.BURN))
        message = {"to": receipt["contractAddress"], "gas": hex(2_000_000)}
        slow = asyncio.create_task(chain.request("eth_call", [message, "latest"]))
        turns = 0
        while not slow.done():
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(RpcError, match="OutOfGas"):
            await slow
        assert turns > 10


async def test_blocks_have_the_time_of_the_clock(tmp_path: Path, deployer: Signer) -> None:
    now = 1_900_000_000.0
    async with EmbeddedChain(tmp_path, clock=lambda: now) as chain:
        for nonce, passed in enumerate((0.2, 0.3, 0.4, 5.0, -60.0)):
            now += passed
            await send(chain, deployer, nonce, Call(SOMEBODY))
        blocks = [await chain.request("eth_getBlockByNumber", [hex(number), False]) for number in range(6)]
        times = [quantity(block["timestamp"]) - 1_900_000_000 for block in blocks]
        assert times == [0, 0, 0, 0, 5, 5]  # several in a second, and never back


async def test_transactions_that_come_together_share_a_block(embedded: Chain, deployer: Signer) -> None:
    sent = [raw(deployer, nonce, Call(SOMEBODY), value=1, gas=21_000) for nonce in range(50)]
    await asyncio.gather(*(embedded.request("eth_sendRawTransaction", [one]) for one in sent))
    assert await embedded.balance(SOMEBODY) == 50
    assert await embedded.block_number() < 25


async def test_a_full_block_postpones(embedded: Chain, deployer: Signer) -> None:
    await embedded.request("evm_setAutomine", [False])
    call = Call(SOMEBODY, b"\xff" * 128_000)  # 5.14 million units of gas, by EIP-7623's floor
    for nonce in range(7):
        await embedded.request("eth_sendRawTransaction", [raw(deployer, nonce, call, value=1, gas=6_000_000)])
    await embedded.request("evm_mine")
    assert await embedded.balance(SOMEBODY) == 5
    await embedded.request("evm_setAutomine", [True])
    assert await embedded.balance(SOMEBODY) == 7
    assert await embedded.block_number() == 2


async def test_what_the_state_refuses_leaves_the_others_alone(
    embedded: Chain, deployer: Signer, client: Signer
) -> None:
    balance = await embedded.balance(deployer.address)
    await embedded.request("evm_setAutomine", [False])
    most = balance - 10**17
    for nonce, value in enumerate((most, most, 1)):  # each alone is covered; the second is not once the first is in
        await embedded.request("eth_sendRawTransaction", [raw(deployer, nonce, Call(SOMEBODY), value=value)])
    await embedded.request("eth_sendRawTransaction", [raw(client, 0, Call(SOMEBODY), value=1)])
    await embedded.request("evm_setAutomine", [True])
    assert await embedded.balance(SOMEBODY) == most + 1
    assert quantity(await embedded.request("eth_getTransactionCount", ["0x" + deployer.address.hex(), "latest"])) == 1


async def test_calls_nest_as_deep_as_the_machine_allows(embedded: Chain, deployer: Signer) -> None:
    receipt = await send(embedded, deployer, 0, programs.creation(programs.RECURSE))
    contract = bytes.fromhex(receipt["contractAddress"][2:])
    limit = sys.getrecursionlimit()
    receipt = await send(embedded, deployer, 1, Call(contract), gas=29_000_000)
    assert receipt["status"] == "0x1"
    assert sys.getrecursionlimit() == limit
    await send(embedded, deployer, 2, Call(SOMEBODY), value=1)
    assert await embedded.balance(SOMEBODY) == 1


async def test_malformed_transactions(embedded: Chain, deployer: Signer) -> None:
    good = raw(deployer, 0, Call(SOMEBODY))
    for bad in ("0x", "0x02", "0x05" + good[4:], good[:-2], good + "00", "zz", 5, None, "0x03" + good[4:]):
        with pytest.raises(RpcError):
            await embedded.request("eth_sendRawTransaction", [bad])
    assert await embedded.block_number() == 0


async def test_a_log_with_fewer_topics_does_not_fit(embedded: Chain, deployer: Signer) -> None:
    receipt = await send(embedded, deployer, 0, programs.creation(programs.STORE_AND_LOG))
    await send(embedded, deployer, 1, Call(bytes.fromhex(receipt["contractAddress"][2:]), bytes(32)))
    for topics, count in (([None], 1), ([None, None], 0)):
        assert len(await embedded.request("eth_getLogs", [{"fromBlock": "0x0", "topics": topics}])) == count


# --- the file ---


async def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "embedded.db").write_bytes(b"nothing like SQLite" * 100)
    with pytest.raises(ChainError, match=r"embedded\.db"):
        async with EmbeddedChain(tmp_path):
            pass


async def test_lost_rows(tmp_path: Path, deployer: Signer) -> None:
    import sqlite3

    async with EmbeddedChain(tmp_path) as chain:
        await send(chain, deployer, 0, Call(SOMEBODY))
    with sqlite3.connect(tmp_path / "embedded.db") as database:
        database.execute("DELETE FROM nodes WHERE CAST(key AS TEXT) LIKE 'v1:canonical%'")
    database.close()
    with pytest.raises(ChainError, match="damaged"):
        async with EmbeddedChain(tmp_path):
            pass


def test_another_chain_id(tmp_path: Path) -> None:
    from ncn_payments.chain.evm import Evm

    Evm(tmp_path / "a.db", 31337, {}, {}).close()
    with pytest.raises(ConfigError, match="31337"):
        Evm(tmp_path / "a.db", 1, {}, {})


def test_a_block_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncn_payments.chain.evm import Evm

    signer = development_signer("deployer", 31337)
    evm = Evm(tmp_path / "a.db", 31337, {signer.address: 10**20}, {})
    transaction = evm.transaction_builder.decode(bytes.fromhex(raw(signer, 0, Call(SOMEBODY), value=1)[2:]))

    def refused() -> None:
        raise ChainError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(evm._database, "commit", refused)
        with pytest.raises(ChainError, match="full"):
            evm.mine([transaction])
    assert evm.head.block_number == 0
    assert evm.state().get_balance(Address(SOMEBODY)) == 0
    assert evm.mine([transaction]).included == [transaction]
    assert evm.state().get_balance(Address(SOMEBODY)) == 1
    evm.close()


CRASHING = """
import asyncio, os, pathlib, signal, sys
from ncn_payments.chain.embedded import EmbeddedChain
from ncn_payments.devkeys import development_signer
from ncn_payments.transactions import Call, Transaction
from ncn_framework.signing import Signer

async def main():
    signer = development_signer("deployer", 31337)
    async with EmbeddedChain(pathlib.Path(sys.argv[1])) as chain:
        nonce = int(await chain.request("eth_getTransactionCount", ["0x" + signer.address.hex(), "latest"]), 16)
        while True:
            raw, _ = Transaction(31337, nonce, 10**9, 10**10, 21000, bytes([7]) * 20, 1, b"").signed(signer)
            await chain.request("eth_sendRawTransaction", ["0x" + raw.hex()])
            nonce += 1
            await chain.request("eth_blockNumber")
            print(nonce, flush=True)

asyncio.run(main())
"""


async def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Whatever was reported as mined is there after SIGKILL, and the state fits the head."""
    reported = 0
    for kill_after in (1, 7, 20):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CRASHING, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(kill_after):
            reported = int(await process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest, _ = await process.communicate()
        reported = int(rest.split()[-1]) if rest.endswith(b"\n") else reported
        async with EmbeddedChain(tmp_path) as chain:
            blocks = await chain.block_number()
            assert blocks in (reported, reported + 1)
            assert await chain.balance(SOMEBODY) == blocks
            head = await chain.request("eth_getBlockByNumber", ["latest", True])
            assert len(head["transactions"]) == 1
