"""Both development chains, through the one interface, with the same results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from ncn_framework.errors import ChainError, ConfigError
from ncn_framework.signing import Signer
from ncn_payments.chain import Chain, open_chain
from ncn_payments.chain.embedded import EmbeddedChain, NearbyChain
from ncn_payments.chain.interface import quantity
from ncn_payments.chain.rpc import RpcChain
from ncn_payments.config import PaymentsSettings
from ncn_payments.devkeys import ETHER_WEI, accounts
from ncn_payments.errors import ChainUnreachable, RpcError
from ncn_payments.transactions import Call

from . import programs
from .sending import GWEI, raw, send

SOMEBODY = b"\x07" * 20


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def hexed(data: bytes) -> str:
    return "0x" + data.hex()


async def deployed(chain: Chain, signer: Signer, nonce: int, runtime: bytes) -> bytes:
    receipt = await send(chain, signer, nonce, programs.creation(runtime))
    assert receipt["status"] == "0x1"
    return bytes.fromhex(receipt["contractAddress"][2:])


async def test_first_block(chain: Chain) -> None:
    assert quantity(await chain.request("eth_chainId")) == chain.chain_id == 31337
    assert await chain.request("net_version") == "31337"
    assert await chain.block_number() == 0
    for address in accounts().values():
        assert await chain.balance(address) == ETHER_WEI
    assert await chain.code(SOMEBODY) == b""


async def test_transfer(chain: Chain, deployer: Signer) -> None:
    receipt = await send(chain, deployer, 0, Call(SOMEBODY), value=5, gas=21_000)
    assert receipt["status"] == "0x1"
    assert receipt["gasUsed"] == hex(21_000)
    assert receipt["contractAddress"] is None
    assert await chain.balance(SOMEBODY) == 5
    spent = 5 + 21_000 * quantity(receipt["effectiveGasPrice"])
    assert await chain.balance(deployer.address) == ETHER_WEI - spent
    block = await chain.request("eth_getBlockByNumber", [receipt["blockNumber"], True])
    (transaction,) = block["transactions"]
    assert block["hash"] == receipt["blockHash"]
    assert transaction["hash"] == receipt["transactionHash"]
    assert (transaction["from"], transaction["nonce"], transaction["value"]) == (hexed(deployer.address), "0x0", "0x5")
    assert await chain.request("eth_getTransactionByHash", [transaction["hash"]]) == transaction
    by_hash = await chain.request("eth_getBlockByHash", [block["hash"], False])
    assert by_hash["transactions"] == [transaction["hash"]]
    assert quantity(receipt["effectiveGasPrice"]) == quantity(block["baseFeePerGas"]) + GWEI


async def test_contract(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.STORE_AND_LOG)
    assert await chain.code(contract) == programs.STORE_AND_LOG
    receipt = await send(chain, deployer, 1, Call(contract, word(99)))
    stored = await chain.request("eth_getStorageAt", [hexed(contract), "0x0", "latest"])
    assert stored == hexed(word(99))
    (log,) = receipt["logs"]
    assert (log["address"], log["topics"], log["data"]) == (hexed(contract), [hexed(word(7))], hexed(word(99)))
    assert (log["transactionHash"], log["logIndex"]) == (receipt["transactionHash"], "0x0")
    before = await chain.request(
        "eth_getStorageAt", [hexed(contract), "0x0", hex(quantity(receipt["blockNumber"]) - 1)]
    )
    assert before == hexed(word(0))


async def test_call_sees_the_time_and_changes_nothing(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.STORE_AND_LOG)
    head = await chain.request("eth_getBlockByNumber", ["latest", False])
    assert int.from_bytes(await chain.call(contract, word(1)), "big") >= quantity(head["timestamp"])
    assert await chain.request("eth_getStorageAt", [hexed(contract), "0x0", "latest"]) == hexed(word(0))
    assert await chain.block_number() == quantity(head["number"])


async def test_transient_storage(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.TRANSIENT)
    assert await chain.call(contract, b"") == word(42)


async def test_logs(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.STORE_AND_LOG)
    other = await deployed(chain, deployer, 1, programs.STORE_AND_LOG)
    for nonce, (to, number) in enumerate(((contract, 1), (other, 2), (contract, 3)), 2):
        await send(chain, deployer, nonce, Call(to, word(number)))

    async def found(**wanted: Any) -> list[int]:
        logs = await chain.request("eth_getLogs", [{"fromBlock": "0x0", "toBlock": "latest", **wanted}])
        return [quantity(log["data"]) for log in logs]

    assert await found() == [1, 2, 3]
    assert await found(address=hexed(contract)) == [1, 3]
    assert await found(address=[hexed(contract), hexed(other)], topics=[hexed(word(7))]) == [1, 2, 3]
    assert await found(topics=[[hexed(word(6)), hexed(word(7))]]) == [1, 2, 3]
    assert await found(topics=[None]) == [1, 2, 3]
    assert await found(topics=[hexed(word(6))]) == []
    assert await found(fromBlock=hex(await chain.block_number())) == [3]
    assert await found(address=hexed(SOMEBODY)) == []


async def test_revert_data(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.REVERT)
    for method in ("eth_call", "eth_estimateGas"):
        message = {"from": hexed(deployer.address), "to": hexed(contract), "data": hexed(word(77))}
        with pytest.raises(RpcError) as caught:
            await chain.request(method, [message, "latest"] if method == "eth_call" else [message])
        assert caught.value.code == 3
        assert caught.value.revert_data == word(77)
    receipt = await send(chain, deployer, 1, Call(contract, word(77)))
    assert receipt["status"] == "0x0"


async def test_estimate_suffices(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.STORE_AND_LOG)
    calls = (
        Call(SOMEBODY),
        Call(contract, word(99)),
        Call(SOMEBODY, b"\xff" * 2_000),  # where the floor of EIP-7623 counts
        programs.creation(programs.TRANSIENT * 50),
    )
    for nonce, call in enumerate(calls, 1):
        message = {"from": hexed(deployer.address), "data": hexed(call.data)}
        if call.to:
            message["to"] = hexed(call.to)
        gas = quantity(await chain.request("eth_estimateGas", [message]))
        receipt = await send(chain, deployer, nonce, call, gas=gas)
        assert receipt["status"] == "0x1"
        assert gas <= quantity(receipt["gasUsed"]) * 1.2 + 3_000


async def test_endless_call_ends(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.BURN)
    with pytest.raises(RpcError):
        await chain.request("eth_call", [{"to": hexed(contract), "gas": hex(200_000)}, "latest"])
    receipt = await send(chain, deployer, 1, Call(contract), gas=100_000)
    assert (receipt["status"], receipt["gasUsed"]) == ("0x0", hex(100_000))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chain_id": 1}, "chain"),
        ({"nonce": 0}, "nonce too low"),
        ({"value": 2 * ETHER_WEI}, "nsufficient funds"),
        ({"gas": 20_000}, "intrinsic"),
        ({"gas": 31_000_000}, "gas"),
        ({"tip": 20 * GWEI}, "fee per gas"),
        ({"fee": 1, "tip": 1}, "fee per gas"),
    ],
)
async def test_refused_transactions(chain: Chain, deployer: Signer, change: dict[str, int], words: str) -> None:
    await send(chain, deployer, 0, Call(SOMEBODY))
    options = {"nonce": 1, **change}
    nonce = options.pop("nonce")
    with pytest.raises(RpcError, match=words):
        await chain.request("eth_sendRawTransaction", [raw(deployer, nonce, Call(SOMEBODY), **options)])
    assert await chain.block_number() == 1


async def test_unknown_methods_and_arguments(chain: Chain) -> None:
    for method, params in (
        ("eth_nothing", []),
        ("eth_getBalance", ["0x12", "latest"]),
        ("eth_getBalance", []),
        ("eth_call", ["nonsense", "latest"]),
        ("eth_getTransactionReceipt", ["0x12"]),
    ):
        with pytest.raises(RpcError):
            await chain.request(method, params)
    assert await chain.request("eth_getTransactionReceipt", [hexed(bytes(32))]) is None
    assert await chain.request("eth_getBlockByNumber", ["0xffff", False]) is None


async def test_transactions_after_a_gap_wait(chain: Chain, deployer: Signer) -> None:
    await chain.request("eth_sendRawTransaction", [raw(deployer, 1, Call(SOMEBODY), value=1)])
    assert await chain.balance(SOMEBODY) == 0
    await send(chain, deployer, 0, Call(SOMEBODY), value=1)
    second = raw(deployer, 2, Call(SOMEBODY), value=1)
    await chain.request("eth_sendRawTransaction", [second])
    while await chain.balance(SOMEBODY) < 3:
        await asyncio.sleep(0)
    with pytest.raises(RpcError, match=r"already|nonce too low"):
        await chain.request("eth_sendRawTransaction", [second])


async def test_replacement(chain: Chain, deployer: Signer) -> None:
    await chain.request("evm_setAutomine", [False])
    first = raw(deployer, 0, Call(SOMEBODY), value=1)
    await chain.request("eth_sendRawTransaction", [first])
    assert quantity(await chain.request("eth_getTransactionCount", [hexed(deployer.address), "pending"])) == 1
    with pytest.raises(RpcError, match="underpriced"):
        await chain.request("eth_sendRawTransaction", [raw(deployer, 0, Call(SOMEBODY), value=2)])
    dearer = raw(deployer, 0, Call(SOMEBODY), value=3, tip=2 * GWEI, fee=20 * GWEI)
    await chain.request("eth_sendRawTransaction", [dearer])
    await chain.request("evm_mine")
    assert await chain.balance(SOMEBODY) == 3
    assert await chain.block_number() == 1


async def test_many_at_once(chain: Chain, deployer: Signer) -> None:
    sent = [raw(deployer, nonce, Call(SOMEBODY), value=1) for nonce in range(100)]
    await asyncio.gather(*(chain.request("eth_sendRawTransaction", [one]) for one in sent))
    while await chain.balance(SOMEBODY) < 100:
        await asyncio.sleep(0)
    assert await chain.block_number() <= 100


async def test_time(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.STORE_AND_LOG)
    before = int.from_bytes(await chain.call(contract, b""), "big")
    await chain.request("evm_increaseTime", [3_600])
    await chain.request("evm_mine")
    assert int.from_bytes(await chain.call(contract, b""), "big") >= before + 3_600
    receipt = await send(chain, deployer, 1, Call(contract, word(1)))
    block = await chain.request("eth_getBlockByNumber", [receipt["blockNumber"], False])
    assert quantity(block["timestamp"]) >= before + 3_600


async def test_goes_on_after_a_restart(
    opened: Callable[[], AbstractAsyncContextManager[Chain]], deployer: Signer
) -> None:
    async with opened() as chain:
        contract = await deployed(chain, deployer, 0, programs.STORE_AND_LOG)
        receipt = await send(chain, deployer, 1, Call(contract, word(5)))
        head = await chain.request("eth_getBlockByNumber", ["latest", False])
    with pytest.raises(ChainUnreachable):
        await chain.request("eth_blockNumber")
    async with opened() as chain:
        again = await chain.request("eth_getBlockByNumber", ["latest", False])
        assert again["hash"] == head["hash"]
        found = await chain.request("eth_getTransactionReceipt", [receipt["transactionHash"]])
        assert (found["blockHash"], found["logs"][0]["data"]) == (receipt["blockHash"], hexed(word(5)))
        assert await chain.request("eth_getStorageAt", [hexed(contract), "0x0", "latest"]) == hexed(word(5))
        await send(chain, deployer, 2, Call(contract, word(6)))
        assert await chain.block_number() == quantity(head["number"]) + 1


async def test_web3_agrees(chain: Chain, deployer: Signer) -> None:
    contract = await deployed(chain, deployer, 0, programs.STORE_AND_LOG)
    w3 = chain.w3
    assert await w3.is_connected()
    assert await w3.eth.chain_id == 31337
    transaction_hash = await w3.eth.send_raw_transaction(bytes.fromhex(raw(deployer, 1, Call(contract, word(8)))[2:]))
    receipt = await w3.eth.wait_for_transaction_receipt(transaction_hash)
    assert receipt["status"] == 1
    assert receipt["logs"][0]["data"] == word(8)
    block: Any = await w3.eth.get_block(receipt["blockNumber"], full_transactions=True)
    assert block["transactions"][0]["hash"] == transaction_hash
    assert await w3.eth.get_storage_at(w3.to_checksum_address(contract), 0) == word(8)


# --- choosing one ---


def test_open_chain(tmp_path: Path) -> None:
    def opened(host: bool = False, chain_id: int = 31337, **values: Any) -> Chain:
        return open_chain(PaymentsSettings(**values), home=tmp_path, chain_id=chain_id, host=host)

    from ncn_payments.chain.anvil import AnvilChain

    assert isinstance(opened(host=True), EmbeddedChain)
    assert isinstance(opened(), NearbyChain)
    assert isinstance(opened(chain="anvil", host=True), AnvilChain)
    assert isinstance(opened(chain="anvil"), RpcChain)
    assert isinstance(opened(chain="rpc", rpc_url="http://a:1,https://b"), RpcChain)
    assert isinstance(opened(rpc_url="http://a:1", chain_id=1), RpcChain)
    with pytest.raises(ConfigError, match="RPC_URL"):
        opened(chain="rpc")
    for kind in ("embedded", "anvil"):
        with pytest.raises(ConfigError, match="31337"):
            opened(chain=kind, chain_id=1)


@pytest.mark.parametrize("value", [None, 5, "", "xyz", {}])
def test_quantity_refuses(value: Any) -> None:
    with pytest.raises(ChainError):
        quantity(value)
