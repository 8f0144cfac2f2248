"""The compute plugin in a registry: silent until a request is to be executed again, and then in the real jail."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ncn_compute import bundled
from ncn_compute.manifest import load
from ncn_compute.plugin import Plugin
from ncn_compute.repeater import Repeater
from ncn_compute.workers import WorkerPool
from ncn_framework.comparison import difference
from ncn_framework.config import Config
from ncn_framework.errors import Draining, ModelError, NoCapacity, NoHandlerError
from ncn_framework.lifecycle import now_ms
from ncn_framework.manager import loaded_plugin
from ncn_framework.models import Chunk, InferenceRequest, ModelManifest, Receipt, SignedReceipt
from ncn_framework.node import Node
from ncn_framework.sources import Sources
from ncn_framework.tensors import Tensor, bytes_tensor
from ncn_framework.testing.fakes import fake_manifest, fake_record, fake_request, fake_route

pytestmark = pytest.mark.usefixtures("nothing_left")


@asynccontextmanager
async def a_registry(home: Path, models: Path | None = None, **settings: str) -> AsyncIterator[Node]:
    """Run a registry with the compute plugin alone until the context is left."""
    environment = {"NCN_HOME": str(home), **{f"NCN_COMPUTE_{k.upper()}": v for k, v in settings.items()}}
    if models is not None:
        environment["MODEL_PATH"] = str(models)
    config = Config(Sources(environment=environment, folder=home))
    node = Node("registry", config, [loaded_plugin("compute", Plugin)])
    stop, started = asyncio.Event(), asyncio.Event()

    async def ready(_: Node) -> None:
        started.set()

    task = asyncio.create_task(node.run(stop, ready))
    await started.wait()
    try:
        yield node
    finally:
        stop.set()
        await task


def repeater(node: Node) -> Repeater:
    """Return what executes in a registry."""
    plugin = node.plugins.instances["compute"]
    assert isinstance(plugin.executor, Repeater)
    return plugin.executor


def a_request(manifest: ModelManifest, value: float = 1.0) -> InferenceRequest:
    """Return a request to one of the bundled models."""
    if manifest.name == "mlp":
        given = Tensor("x", "FP32", (1, 256), struct.pack("<256f", *[value] * 256))
    else:
        given = bytes_tensor("text", [b"The quick brown fox"])
    return InferenceRequest(manifest.digest, (given,), bytes(32), 1_000, now_ms() + 60_000)


@pytest.fixture
def closings(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[str]:
    """Hear of each pool that was closed."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    close: Callable[[WorkerPool], Awaitable[None]] = WorkerPool.close

    async def closed(pool: WorkerPool) -> None:
        await close(pool)
        heard.put_nowait("closed")

    monkeypatch.setattr(WorkerPool, "close", closed)
    return heard


async def test_a_registry_that_nobody_asks_does_nothing(tmp_path: Path) -> None:
    async with a_registry(tmp_path) as node:
        assert node.endpoints == {}
        assert repeater(node)._opened == {}
    assert os.listdir(tmp_path) == [], "no key, no model, no database"


async def test_it_is_no_node(tmp_path: Path, models: Path) -> None:
    """Nothing is announced, reserved, signed or settled there."""
    async with a_registry(tmp_path, models) as node:
        hook, manifest = node.plugins.hook, load(models / "mlp")
        request = a_request(manifest)
        assert hook.ncn_register(record=fake_record()) == []
        assert hook.ncn_reserve(request=request, route=fake_route(manifest)) == []
        receipt = SignedReceipt(Receipt(bytes(32), bytes(32), manifest.digest, bytes(32), 1, 1, 0, bytes(20), 1, 2), ())
        assert hook.ncn_sign(receipt=receipt) == []
        assert hook.ncn_settle(receipt=receipt, request=request) is None


async def test_a_request_is_executed_again_in_the_jail(
    tmp_path: Path, models: Path, closings: asyncio.Queue[str]
) -> None:
    """Twice by one worker, the same each time, and the worker ends when the registry does."""
    manifest = load(models / "mlp")
    async with a_registry(tmp_path, models) as node:
        once = await node.lifecycle.repeat(a_request(manifest), manifest)
        assert [(chunk.sequence, chunk.units) for chunk in once] == [(1, 1)]
        pids = repeater(node)._opened[manifest.digest].pool.result().pids
        again = await node.lifecycle.repeat(a_request(manifest), manifest)
        assert difference(once, again, manifest.tolerance) == ""
        assert difference(once, await node.lifecycle.repeat(a_request(manifest, 2.0), manifest), manifest.tolerance)
        assert repeater(node)._opened[manifest.digest].pool.result().pids == pids
        assert closings.empty()
    assert closings.qsize() == 1


async def test_a_worker_that_nobody_wants_any_more_is_ended(
    tmp_path: Path, models: Path, closings: asyncio.Queue[str]
) -> None:
    manifest = load(models / "mlp")
    async with a_registry(tmp_path, models, repeat_idle_ms="0") as node:
        await node.lifecycle.repeat(a_request(manifest), manifest)
        assert await asyncio.wait_for(closings.get(), 30) == "closed"
        assert repeater(node)._opened == {}


async def test_another_model_takes_the_place_of_an_idle_one_and_waits_for_no_busy_one(
    tmp_path: Path, models: Path, closings: asyncio.Queue[str]
) -> None:
    mlp, minilm = load(models / "mlp"), load(models / "minilm")
    async with a_registry(tmp_path, models, repeat_models="1") as node:
        busy = asyncio.create_task(node.lifecycle.repeat(a_request(mlp), mlp))
        while not repeater(node)._opened:
            await asyncio.sleep(0)
        with pytest.raises(NoCapacity, match="repeat_models"):
            await node.lifecycle.repeat(a_request(minilm), minilm)
        await busy
        await node.lifecycle.repeat(a_request(minilm), minilm)
        assert await asyncio.wait_for(closings.get(), 30) == "closed"
        assert list(repeater(node)._opened) == [minilm.digest]


async def test_who_gives_up_takes_the_model_from_nobody(tmp_path: Path, models: Path) -> None:
    """Two wait for one model to open; one is cancelled."""
    manifest = load(models / "mlp")
    async with a_registry(tmp_path, models) as node:
        first = asyncio.create_task(node.lifecycle.repeat(a_request(manifest), manifest))
        second = asyncio.create_task(node.lifecycle.repeat(a_request(manifest), manifest))
        while not repeater(node)._opened or repeater(node)._opened[manifest.digest].users < 2:
            await asyncio.sleep(0)
        first.cancel()
        assert len(await second) == 1
        with pytest.raises(asyncio.CancelledError):
            await first
        assert repeater(node)._opened[manifest.digest].users == 0


async def test_a_registry_stops_while_a_model_opens(tmp_path: Path, models: Path) -> None:
    manifest = load(models / "mlp")
    async with a_registry(tmp_path, models) as node:
        asked = asyncio.create_task(node.lifecycle.repeat(a_request(manifest), manifest))
        while not repeater(node)._opened:
            await asyncio.sleep(0)
    with pytest.raises((asyncio.CancelledError, Draining)):
        await asked
    with pytest.raises(Draining, match="shutting down"):
        await node.lifecycle.repeat(a_request(manifest), manifest)


async def test_a_model_that_is_not_there_is_named_and_found_once_it_is(tmp_path: Path) -> None:
    models = tmp_path / "models"
    manifest = load(bundled.materialise("mlp", tmp_path / "elsewhere"))
    async with a_registry(tmp_path) as node:
        with pytest.raises(ModelError, match="is not a directory"):
            await node.lifecycle.repeat(a_request(manifest), manifest)
        models.mkdir()
        with pytest.raises(ModelError, match=f"0x{manifest.digest.hex()} is not in {models}"):
            await node.lifecycle.repeat(a_request(manifest), manifest)
        bundled.materialise("mlp", models)
        assert len(await node.lifecycle.repeat(a_request(manifest), manifest)) == 1


async def test_a_damaged_model_is_not_executed(tmp_path: Path) -> None:
    folder = bundled.materialise("mlp", tmp_path / "models")
    manifest = load(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    async with a_registry(tmp_path) as node:
        with pytest.raises(ModelError, match="SHA-256"):
            await node.lifecycle.repeat(a_request(manifest), manifest)


async def test_a_model_of_another_runtime_is_left_to_its_plugin(tmp_path: Path) -> None:
    manifest = replace(fake_manifest(), runtime="another")
    async with a_registry(tmp_path) as node:
        with pytest.raises(NoHandlerError, match="'another'"):
            await node.lifecycle.repeat(fake_request(manifest=manifest), manifest)


def test_chunks_of_an_answer_are_compared_by_what_they_hold() -> None:
    """Links bind a chunk to a node, which another execution is not."""
    one = Chunk(1, 1, b"\x90", b"1" * 32)
    assert difference([one], [replace(one, link=b"2" * 32)], 0.0) == ""
