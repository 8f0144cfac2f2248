"""The pool: real models in the strict jail, and programs that take a worker's place and misbehave."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ncn_compute import interpreter, manifest, sandbox
from ncn_compute.sandbox import JailedProcess
from ncn_compute.workers import Output, WorkerPool
from ncn_framework.errors import (
    Draining,
    InvalidTensor,
    ModelError,
    ModelFailed,
    NoCapacity,
    OutputRejected,
    SandboxError,
    WorkerDied,
)
from ncn_framework.models import ModelManifest, SandboxSpec
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor, unpack_tensors

pytestmark = pytest.mark.usefixtures("nothing_left")

ECHO = ModelManifest(
    name="echo",
    version="1",
    runtime="safetensors",
    architecture="none",
    files=(),
    inputs=(TensorSpec("text", "BYTES", (-1,)),),
    outputs=(TensorSpec("y", "FP32", (-1, 2)),),
    memory_bytes=256 << 20,
    time_limit_ms=20_000,
)

FAKE = f"""
import os, signal, socket, sys
sys.path += {[str(path.parent) for path in interpreter.readable() if path.name.startswith("ncn_")]!r}
import msgspec
from ncn_compute.worker import protocol
from ncn_framework.tensors import Tensor, pack_tensors, split_bytes

control = socket.socket(fileno=int(sys.argv[1]))
frames = protocol.FrameBuffer(1 << 24)
decoder = msgspec.msgpack.Decoder(protocol.OWNER_MESSAGES)

def send(message):
    control.sendall(protocol.frame(message))

def receive():
    while (body := frames.next()) is None:
        if not frames.receive(control):
            sys.exit()
    return decoder.decode(body)

def outputs(value=0.0, rows=1):
    import struct
    return pack_tensors([Tensor("y", "FP32", (rows, 2), struct.pack(f"<{{2 * rows}}f", *([value] * 2 * rows)))])

def requests():
    while True:
        request = receive()
        array = request.inputs[0]
        yield request.id, split_bytes(Tensor("text", "BYTES", array.shape, bytes(array.data)))[0].decode()

def start():
    send(protocol.Started([]))
    receive()
    send(protocol.Loaded())
"""

SERVE = (
    FAKE
    + """
start()
answered = 0
for id_, text in requests():
    if text == "hang":
        signal.pause()
    elif text == "begin and hang":
        send(protocol.Piece(id_, 1, outputs(), False))
        signal.pause()
    elif text == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif text == "exit":
        os._exit(7)
    elif text == "bomb":
        taken = []
        while True:
            taken.append(bytearray(b"x" * (8 << 20)))
    elif text == "stream":
        for number in range(1, 4):
            send(protocol.Piece(id_, number, outputs(number), False))
        send(protocol.Done(id_))
    elif text == "fail":
        send(protocol.Failure(id_, "bad\\x1b[31m" + "x" * 500))
    elif text == "shape":
        send(protocol.Piece(id_, 1, pack_tensors([Tensor("y", "FP32", (9, 2), bytes(8))]), True))
    elif text == "name":
        send(protocol.Piece(id_, 1, pack_tensors([Tensor("z", "FP32", (1, 2), bytes(8))]), True))
    elif text == "negative":
        send(protocol.Piece(id_, 1, pack_tensors([Tensor("y", "FP32", (-1, 2), b"")]), True))
    elif text == "not tensors":
        send(protocol.Piece(id_, 1, b"\\xff" * 10, True))
    elif text == "units fall":
        send(protocol.Piece(id_, 5, outputs(), False))
        send(protocol.Piece(id_, 4, outputs(), True))
    elif text == "huge units":
        send(protocol.Piece(id_, 1 << 50, outputs(), True))
    elif text == "other id":
        send(protocol.Piece(id_ + 1, 1, outputs(), True))
    elif text == "out of turn":
        send(protocol.Loaded())
    elif text == "giant frame":
        control.sendall((1 << 31).to_bytes(4, "big"))
        signal.pause()
    elif text == "garbage":
        control.sendall(b"\\0\\0\\0\\x05hello")
        signal.pause()
    elif text == "deep":
        control.sendall((60000).to_bytes(4, "big") + b"\\x91" * 60000)
        signal.pause()
    elif text == "flood":
        while True:
            send(protocol.Piece(id_, 1, outputs(rows=1000), False))
    elif text == "twice":
        send(protocol.Piece(id_, 1, outputs(), True))
        send(protocol.Piece(id_, 1, outputs(), True))
    else:
        answered += 1
        send(protocol.Piece(id_, answered, outputs(float(text)), True))
"""
)


def instead(*programs: str) -> Callable[[SandboxSpec, str], AbstractAsyncContextManager[JailedProcess]]:
    """Return what starts the first program, then the second and so on, the last for ever, in place of the worker."""
    left = list(programs)

    def start(spec: SandboxSpec, mode: str) -> AbstractAsyncContextManager[JailedProcess]:
        program = left.pop(0) if len(left) > 1 else left[0]
        argv = (sys.executable, "-I", "-B", "-c", program, str(spec.pass_fds[0]))
        return sandbox.open_sandbox(replace(spec, argv=argv), mode)

    return start


def fake_pool(directory: Path, *programs: str, changes: dict[str, Any] | None = None, **settings: Any) -> WorkerPool:
    made = replace(ECHO, **(changes or {}))
    return WorkerPool(made, directory, mode="strict", open_sandbox=instead(*(programs or (SERVE,))), **settings)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    return directory


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


async def ask(pool: WorkerPool, text: str) -> list[Output]:
    async with asyncio.timeout(30):
        return [output async for output in pool.execute([bytes_tensor("text", [text.encode()])], {})]


def value_of(output: Output) -> float:
    (tensor,) = unpack_tensors(output.data)
    (first, _) = struct.unpack("<2f", tensor.data)
    return float(first)


async def value(pool: WorkerPool, text: str) -> float:
    (output,) = await ask(pool, text)
    return value_of(output)


# --- real models ---


async def test_minilm_embeds_in_the_strict_jail(models: Path) -> None:
    made = manifest.load(models / "minilm")
    texts = [b"A man is eating food.", b"A man eats a meal.", b"The girl is carrying a baby."]
    async with WorkerPool(made, models / "minilm", mode="strict") as pool:
        (output,) = [o async for o in pool.execute([bytes_tensor("text", texts)], {})]
        with pytest.raises(ModelFailed, match="UnicodeDecodeError"):
            _ = [o async for o in pool.execute([bytes_tensor("text", [b"\xff"])], {})]
        singles = await asyncio.gather(*(_collect(pool, bytes_tensor("text", [text])) for text in texts))
    (tensor,) = unpack_tensors(output.data)
    assert tensor.shape == (3, 384)
    assert output.units == sum(single.units for single in singles)
    rows = [struct.unpack_from("<384f", tensor.data, 1536 * index) for index in range(3)]
    for row, single in zip(rows, singles, strict=True):
        (alone,) = unpack_tensors(single.data)
        assert row == pytest.approx(struct.unpack("<384f", alone.data), abs=2e-6)
        assert sum(x * x for x in row) == pytest.approx(1)

    def cosine(a: int, b: int) -> float:
        return float(sum(x * y for x, y in zip(rows[a], rows[b], strict=True)))

    assert cosine(0, 1) > 0.7 > 0.3 > cosine(0, 2)


async def _collect(pool: WorkerPool, tensor: Tensor) -> Output:
    (output,) = [o async for o in pool.execute([tensor], {})]
    return output


async def test_mlp_serves_many_at_once_each_its_own_answer(models: Path) -> None:
    made = manifest.load(models / "mlp")

    def row(seed: int) -> Tensor:
        return Tensor("x", "FP32", (1, 256), struct.pack("<256f", *((seed * i % 17) / 17 for i in range(256))))

    async with WorkerPool(made, models / "mlp", mode="strict", size=2) as pool:
        assert pool.size == 2
        assert len(set(pool.pids)) == 2
        first = [await _collect(pool, row(seed)) for seed in range(40)]
        together = await asyncio.gather(*(_collect(pool, row(seed)) for seed in range(40)))
        assert together == first
        assert len({output.data for output in first}) > 10
        large = Tensor("x", "FP32", (20_000, 256), bytes(20_000 * 1024))
        output = await _collect(pool, large)
        assert output.units == 20_000
        assert pool.busy == 0
        with pytest.raises(InvalidTensor):
            await _collect(pool, Tensor("x", "FP32", (1, 255), bytes(1020)))


async def test_a_killed_worker_is_replaced_by_the_spare(models: Path) -> None:
    made = manifest.load(models / "mlp")
    zeros = Tensor("x", "FP32", (1, 256), bytes(1024))
    async with WorkerPool(made, models / "mlp", mode="strict", spares=1) as pool:
        before = await _collect(pool, zeros)
        (pid,) = pool.pids
        first_process = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            assert select.select([first_process], [], [], 10)[0]
        finally:
            os.close(first_process)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await _collect(pool, zeros)
        assert await _collect(pool, zeros) == before
        assert pool.pids != (pid,)


async def test_a_model_that_does_not_fit_its_manifest_is_refused_at_the_start(models: Path) -> None:
    made = replace(manifest.load(models / "mlp"), architecture="bert-embedding")
    with pytest.raises(ModelError, match=r"'mlp': .*cannot be loaded as 'bert-embedding'"):
        async with WorkerPool(made, models / "mlp", mode="strict"):
            pass


async def test_works_without_a_sandbox(models: Path) -> None:
    made = manifest.load(models / "mlp")
    async with WorkerPool(made, models / "mlp", mode="disabled") as pool:
        output = await _collect(pool, Tensor("x", "FP32", (2, 256), bytes(2048)))
    assert output.units == 2


# --- programs in a worker's place ---


async def test_streams_and_counts_units(empty: Path) -> None:
    async with fake_pool(empty) as pool:
        outputs = await ask(pool, "stream")
        assert [output.units for output in outputs] == [1, 2, 3]
        assert [value_of(output) for output in outputs] == [1, 2, 3]
        assert await value(pool, "8") == 8


async def test_the_models_own_failure_is_cleaned_and_the_worker_goes_on(empty: Path) -> None:
    async with fake_pool(empty) as pool:
        pids = pool.pids
        with pytest.raises(ModelFailed) as caught:
            await ask(pool, "fail")
        assert str(caught.value).startswith("bad [31mxxx")
        assert len(str(caught.value)) == 300
        assert await value(pool, "8") == 8
        assert pool.pids == pids


@pytest.mark.parametrize(
    "lie",
    [
        "shape", "name", "negative", "not tensors", "units fall", "huge units", "other id", "out of turn",
        "giant frame", "garbage", "deep", "flood",
    ],
)  # fmt: skip
async def test_a_lying_worker_is_rejected_and_replaced(empty: Path, lie: str) -> None:
    async with fake_pool(empty, max_output_bytes=100_000) as pool:
        pids = pool.pids
        with pytest.raises(OutputRejected):
            await ask(pool, lie)
        assert await value(pool, "8") == 8
        assert pool.pids != pids


async def test_an_answer_that_nobody_asked_for_ends_the_worker(empty: Path) -> None:
    async with fake_pool(empty) as pool:
        pids = pool.pids
        assert len(await ask(pool, "twice")) == 1
        async with asyncio.timeout(30):
            while pool.pids == pids:  # what comes unasked may come late
                await asyncio.sleep(0.01)
        assert await value(pool, "8") == 8
        assert await value(pool, "9") == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [("crash", "SIGSEGV"), ("exit", "status 7"), ("bomb", "memory limit|MemoryError|status")],
)
async def test_a_worker_that_dies_fails_its_request_and_the_others_go_on(empty: Path, text: str, words: str) -> None:
    async with fake_pool(empty) as pool:
        results = await asyncio.gather(
            value(pool, "1"), ask(pool, text), *(value(pool, str(n)) for n in range(20)), return_exceptions=True
        )
        assert results[0] == 1
        assert isinstance(results[1], WorkerDied)
        assert "died while it executed this request" in str(results[1])
        assert any(word in str(results[1]) for word in words.split("|"))
        assert results[2:] == list(range(20))


async def test_a_worker_killed_from_outside_fails_the_request_that_it_works_on(empty: Path) -> None:
    async with fake_pool(empty) as pool:
        answer = pool.execute([bytes_tensor("text", [b"begin and hang"])], {})
        assert (await anext(answer)).units == 1
        os.kill(pool.pids[0], signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await anext(answer)
        assert await value(pool, "8") == 8


async def test_a_hang_ends_at_the_time_limit_and_those_behind_are_answered(empty: Path) -> None:
    async with fake_pool(empty, changes={"time_limit_ms": 300}) as pool:
        assert await value(pool, "1") == 1
        results = await asyncio.gather(
            ask(pool, "hang"), *(value(pool, str(n)) for n in range(5)), return_exceptions=True
        )
        assert isinstance(results[0], WorkerDied)
        assert "time limit of 300 ms" in str(results[0])
        assert results[1:] == list(range(5))
        assert await value(pool, "8") == 8


async def test_a_cancelled_request_is_dropped_and_the_next_gets_its_own_answer(empty: Path) -> None:
    async with fake_pool(empty) as pool:
        started = asyncio.Event()

        async def cancelled() -> None:
            async for _ in pool.execute([bytes_tensor("text", [b"stream"])], {}):
                started.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(cancelled())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await value(pool, "8") == 8
        assert pool.busy == 0


async def test_a_line_that_is_too_long_refuses(empty: Path) -> None:
    async with fake_pool(empty, max_waiting=3, changes={"time_limit_ms": 300}) as pool:
        hanging = [asyncio.create_task(ask(pool, "hang"))]
        hanging += [asyncio.create_task(ask(pool, "1")) for _ in range(10)]
        await asyncio.sleep(0)
        assert pool.busy == 11
        with pytest.raises(NoCapacity, match="3 requests wait"):
            await ask(pool, "1")
        results = await asyncio.gather(*hanging, return_exceptions=True)
        assert isinstance(results[0], WorkerDied)
        assert all(isinstance(result, list) for result in results[1:])


async def test_a_worker_is_replaced_after_its_share_of_requests(empty: Path) -> None:
    async with fake_pool(empty, recycle_after=3) as pool:
        outputs = await asyncio.gather(*(ask(pool, str(n)) for n in range(9)))
        assert [value_of(output) for (output,) in outputs] == list(range(9))
        assert [output.units for (output,) in outputs] == [1, 2, 3] * 3, "each worker counts from 1"


async def test_a_worker_that_cannot_start_is_reported_with_its_words(empty: Path) -> None:
    with pytest.raises(WorkerDied, match=r"could not load its libraries: it ended with status 3: no torch here"):
        async with fake_pool(empty, "import os; os.write(2, b'no torch here'); os._exit(3)"):
            pass


async def test_a_worker_that_never_starts_runs_into_the_time_limit(empty: Path) -> None:
    with pytest.raises(WorkerDied, match=r"more than 0\.2 s to load its libraries"):
        async with fake_pool(empty, "import signal; signal.pause()", start_timeout_s=0.2):
            pass


async def test_a_crash_loop_fails_requests_at_once_and_recovers(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = asyncio.Event()

    async def pause(seconds: float) -> None:
        assert seconds > 0
        await resume.wait()

    monkeypatch.setattr("ncn_compute.workers._pause", pause)
    broken = "import os; os.write(2, b'broken'); os._exit(3)"
    async with fake_pool(empty, SERVE, broken, broken, broken, SERVE) as pool:
        results = await asyncio.gather(ask(pool, "crash"), value(pool, "1"), return_exceptions=True)
        assert isinstance(results[0], WorkerDied)
        assert isinstance(results[1], WorkerDied)
        assert "no worker of model 'echo' can be started at the moment" in str(results[1])
        assert "broken" in str(results[1])
        with pytest.raises(WorkerDied, match="at the moment"):
            await ask(pool, "1")
        resume.set()
        await asyncio.sleep(0)
        assert await value(pool, "1") == 1


async def test_a_jail_that_cannot_be_made_is_refused(empty: Path) -> None:
    with pytest.raises(SandboxError):
        async with WorkerPool(ECHO, empty / "absent", mode="strict"):
            pass


async def test_closing_fails_what_has_not_ended_and_leaves_nothing(empty: Path) -> None:
    async with fake_pool(empty, size=2, spares=1) as pool:
        pids = pool.pids
        tasks = [asyncio.create_task(ask(pool, "hang")) for _ in range(20)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Draining) for result in results)
    with pytest.raises(Draining):
        await ask(pool, "1")
    await pool.close()
    for pid in pids:
        assert not is_alive(pid)
    for thread in threading.enumerate():
        if thread.name.startswith("jail-"):
            thread.join(5)
            assert not thread.is_alive()


async def test_cancelling_the_start_leaves_nothing(empty: Path) -> None:
    pool = fake_pool(empty, "import signal; signal.pause()")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pool.__aenter__()


async def test_an_abandoned_stream_does_not_fill_memory(empty: Path) -> None:
    async with fake_pool(empty, max_output_bytes=100_000) as pool:
        answer: AsyncIterator[Output] = pool.execute([bytes_tensor("text", [b"flood"])], {})
        await anext(answer)
        await answer.aclose()  # type: ignore[attr-defined]
        assert await value(pool, "8") == 8
