"""The whole walk through real processes: a signed answer from a real model, in one process and in two."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
from websockets.asyncio.client import connect

from bench.network import Network, descendants, network
from ncn_client import AsyncClient, Client
from ncn_framework.errors import NcnError, NodeLost, UnknownModel, WorkerDied
from ncn_framework.proof import verify
from ncn_framework.tensors import bytes_tensor
from ncn_framework.wire import messages_pb2 as pb
from ncn_framework.wire.gateway_pb2_grpc import GatewayClientServiceStub

pytestmark = pytest.mark.e2e

SENTENCE = "The quick brown fox jumps over the lazy dog."


def ncn(running: Network, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would, against ``running``."""
    command = [running.python, "-m", "ncn_framework.cli", *arguments]
    return subprocess.run(command, env=running.environment, capture_output=True, text=True, timeout=60, check=False)


def test_one_process_from_nothing(tmp_path: Path) -> None:
    """``ncn serve`` alone, with no model folder: it brings the model, answers, and leaves nothing behind."""
    running = Network(tmp_path / "home", tmp_path / "unused")
    del running.environment["MODEL_PATH"]
    try:
        process = running.start()
        running.wait_ready()
        below = descendants(process.popen.pid)
        assert below, "the model runs in a process of its own"
        asked = ncn(running, "embed", SENTENCE, "--save", str(tmp_path / "answer.json"))
        assert asked.returncode == 0, asked.stderr
        assert "384" in asked.stdout
        checked = ncn(running, "verify", str(tmp_path / "answer.json"))
        assert checked.returncode == 0, checked.stderr
        assert running.stop(process) == 0
    finally:
        running.close()
    for pid in below:
        assert not Path(f"/proc/{pid}").exists(), "a worker outlived the node"
    saved = (tmp_path / "answer.json").read_bytes()
    at = saved.index(b'"data_base64"') + 20
    (tmp_path / "answer.json").write_bytes(saved[:at] + bytes((saved[at] ^ 1,)) + saved[at + 1 :])
    spoiled = ncn(running, "verify", str(tmp_path / "answer.json"))
    assert spoiled.returncode == 1
    assert "chunks[0]" in spoiled.stderr + spoiled.stdout or "request" in spoiled.stderr + spoiled.stdout


def test_two_processes_http(two_processes: Network) -> None:
    with Client(two_processes.url) as client:
        answer = client.embed([SENTENCE, "A second sentence."])
        assert len(answer.vectors) == 2
        assert len(answer.vectors[0]) == 384
        again = verify(client.proof(answer.proof.request.request_id).to_json())
    assert again.receipt == answer.receipt


async def test_two_processes_grpc(two_processes: Network) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{two_processes.grpc_port}") as channel:
        stub = GatewayClientServiceStub(channel)
        names = [info.name async for info in stub.GetSupportedModels(pb.Empty())]
        assert names == ["minilm", "mlp"]
        text = bytes_tensor("text", [SENTENCE.encode()])
        tensor = pb.Tensor(name="text", dtype="BYTES", shape=(1,), data=text.data)
        status = await stub.SubmitInferenceTask(pb.InferenceRequest(model_name="minilm", inputs=[tensor]))
        updates = [u async for u in stub.SubscribeToTaskUpdates(pb.TaskID(id=status.request_id))]
    states = [update.state for update in updates if update.state]
    assert states[0] == "RECEIVED"
    assert states[-1] == "SETTLED"
    assert updates[-1].receipt.signatures


async def test_two_processes_websocket(two_processes: Network) -> None:
    request = {"model": "minilm", "inputs": [{"name": "text", "data": [SENTENCE]}]}
    async with connect(f"ws://127.0.0.1:{two_processes.http_port}/ws") as socket:
        await socket.send(json.dumps({"type": "submit", "ref": "1", "request": request}))
        kinds: list[str] = []
        while not kinds or kinds[-1] not in ("answer", "error"):
            message = json.loads(await socket.recv())
            kinds.append(message["type"])
    assert kinds[0] == "accepted"
    assert kinds[-1] == "answer"
    assert "chunk" in kinds


@pytest.mark.parametrize("order", [("gateway", "compute"), ("compute", "gateway")])
def test_any_start_order_and_either_restarted(order: tuple[str, str], models: Path, tmp_path: Path) -> None:
    running = Network(tmp_path / "home", models)
    try:
        processes = {role: running.start(role) for role in order}
        running.wait_ready()
        with Client(running.url) as client:
            first = client.infer("mlp", {"x": [0.5] * 256})
            assert running.stop(processes["compute"]) == 0
            with pytest.raises(UnknownModel):
                client.infer("mlp", {"x": [0.5] * 256})
            processes["compute"] = running.start("compute")
            running.wait_ready()
            second = client.infer("mlp", {"x": [0.5] * 256})
            assert second.outputs == first.outputs
            assert second.receipt.receipt.node == first.receipt.receipt.node, "the key outlives a restart"
            assert running.stop(processes["gateway"]) == 0
            running.start("gateway")
            running.wait_ready()
            assert client.infer("mlp", {"x": [0.5] * 256}).outputs == first.outputs
            kept = client.proof(first.proof.request.request_id)
            assert kept.receipt == first.receipt, "an answer outlives a restart of the gateway"
    finally:
        running.close()


async def test_killed_worker_and_killed_node(models: Path, tmp_path: Path) -> None:
    """What was in flight fails with its own error; the next request works; nothing holds a lease."""
    with network(tmp_path / "home", models) as running:
        compute = running.processes[1]
        async with AsyncClient(running.url) as client:
            await client.infer("mlp", {"x": [0.5] * 256})
            many = [f"{SENTENCE} {number}" for number in range(512)]
            for worker in descendants(compute.popen.pid):
                asked = asyncio.create_task(client.embed(many))
                await _executing(running)
                os.kill(worker, signal.SIGKILL)
                try:
                    await asked
                except WorkerDied:
                    break
            else:
                pytest.fail("no worker's death ended the request")
            assert (await client.embed(SENTENCE)).vectors
            asked = asyncio.create_task(client.embed(many))
            await _executing(running)
            running.stop(compute, signal.SIGKILL)
            with pytest.raises(NodeLost):
                await asked
            running.start("compute")
            await asyncio.to_thread(running.wait_ready)
            assert (await client.embed(SENTENCE)).vectors
            async with httpx.AsyncClient(base_url=running.url) as http:
                assert _in_flight((await http.get("/metrics")).text) == 0


async def _executing(running: Network) -> None:
    """Return once the gateway has a request in flight."""
    async with httpx.AsyncClient(base_url=running.url) as http, asyncio.timeout(10):
        while _in_flight((await http.get("/metrics")).text) == 0:
            await asyncio.sleep(0.01)


def _in_flight(metrics: str) -> float:
    line = next(line for line in metrics.splitlines() if line.startswith("ncn_requests_in_flight "))
    return float(line.split()[1])


def test_drain_finishes_what_runs(models: Path, tmp_path: Path) -> None:
    """SIGTERM to both while a request runs: it is answered, and both exit with 0."""
    with network(tmp_path / "home", models) as running:
        gateway, compute = running.processes

        async def ask() -> int:
            async with AsyncClient(running.url) as client:
                asked = asyncio.create_task(client.embed([f"{SENTENCE} {n}" for n in range(256)]))
                await _executing(running)
                gateway.popen.terminate()
                return len((await asked).vectors)

        assert asyncio.run(ask()) == 256
        assert gateway.popen.wait(30) == 0
        assert running.stop(compute) == 0


def test_port_in_use_is_a_clear_error(two_processes: Network, tmp_path: Path) -> None:
    command = [two_processes.python, "-m", "ncn_framework.cli", "serve", "gateway"]
    environment = two_processes.environment | {"NCN_HOME": str(tmp_path)}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 2
    assert str(two_processes.grpc_port) in again.stderr
    assert "choose another port" in again.stderr


def test_unknown_setting_is_a_clear_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncn_framework.cli", "serve"],
        env={**os.environ, "NCN_GATEWAY_HTTP_PROT": "1", "NCN_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean NCN_GATEWAY_HTTP_PORT" in done.stderr


def test_errors_are_of_the_tree(two_processes: Network) -> None:
    with Client(two_processes.url) as client, pytest.raises(NcnError, match="no node serves"):
        client.infer("nothing", {"x": [1.0]})
