"""Runtimes in the strict jail: real models against their own libraries, and programs that try to get out."""

from __future__ import annotations

import json
import os
import struct
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from numpy.typing import NDArray

from ncn_compute import manifest, runtimes
from ncn_compute.worker import libraries
from ncn_compute.worker.model import Model
from ncn_compute.worker.protocol import load_message
from ncn_compute.workers import WorkerPool
from ncn_framework.errors import ModelError, ModelFailed, WorkerDied
from ncn_framework.models import ModelManifest, Parameter
from ncn_framework.tensors import Tensor, TensorSpec, bytes_tensor, split_bytes, unpack_tensors

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
]

ONE_NUMBER = (TensorSpec("x", "FP32", (-1,)),)
PYTHON = Path(__file__).read_bytes()
TOML = (Path(__file__).parents[3] / "pyproject.toml").read_bytes()


@asynccontextmanager
async def serving(directory: Path, made: ModelManifest | None = None) -> AsyncIterator[WorkerPool]:
    async with WorkerPool(made or manifest.load(directory), directory, mode="strict") as pool:
        yield pool


def build(directory: Path, made: ModelManifest) -> Model:
    """Load a model in this process, as the worker does in the jail: for manifests that are wrong, not for evil."""
    return libraries.build(load_message(directory, made))


async def ask(pool: WorkerPool, *inputs: Tensor, **parameters: Parameter) -> list[tuple[int, dict[str, Any]]]:
    """Return each piece of an answer: units, and values by name."""
    pieces = []
    async for units, data in pool.execute(inputs, parameters):
        pieces.append((units, {tensor.name: values(tensor) for tensor in unpack_tensors(data)}))
    return pieces


def values(tensor: Tensor) -> Any:
    if tensor.dtype == "BYTES":
        return [element.decode() for element in split_bytes(tensor)]
    dtypes = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8", "BF16": "<u2"}
    return np.frombuffer(tensor.data, dtypes[tensor.dtype]).reshape(tensor.shape)


def floats(name: str, array: NDArray[Any]) -> Tensor:
    return Tensor(name, "FP32", array.shape, array.astype("<f4").tobytes())


def make(directory: Path, runtime: str, **changes: Any) -> ModelManifest:
    """Write and return a manifest of the files in ``directory``: numbers to numbers unless told otherwise."""
    settings: dict[str, Any] = {"inputs": ONE_NUMBER, "outputs": (TensorSpec("y", "FP32", (-1,)),)}
    settings |= {"name": "made", "memory_bytes": 1 << 30, "time_limit_ms": 10_000, **changes}
    made = manifest.build(directory, runtime=runtime, **settings)
    manifest.save(directory, made)
    directory.chmod(0o755)  # workers are another user
    return made


def an_executor(directory: Path, code: str, **changes: Any) -> ModelManifest:
    (directory / "executor.py").write_text(textwrap.dedent(code))
    return make(directory, "executor", **changes)


# --- TorchScript ---


async def test_silero_gives_what_it_gives_outside_and_forgets_between_requests(models: Path) -> None:
    directory = models / "silero-vad"
    generator = np.random.default_rng(7)
    loudness = np.repeat([0.0, 0.3, 0.05, 0.6], 8)[:, None]
    audio = (np.sin(np.arange(32 * 512).reshape(32, 512) / 9) + generator.normal(size=(32, 512))) * loudness
    audio = audio.astype(np.float32)
    reference = torch.jit.load(str(directory / "silero_vad.jit"))  # type: ignore[no-untyped-call]

    def expected(rows: NDArray[Any]) -> list[float]:
        reference.reset_states()
        with torch.inference_mode():
            return [float(reference(torch.from_numpy(row[None]), 16_000)) for row in rows]

    async with serving(directory) as pool:
        ((units, whole),) = await ask(pool, floats("x", audio))
        ((_, part),) = await ask(pool, floats("x", audio[8:16]))
        with pytest.raises(ModelFailed, match="at least one row"):
            await ask(pool, floats("x", audio[:0]))
        with pytest.raises(ModelFailed, match="parameter 'reset_method' is unknown; the model has: sr"):
            await ask(pool, floats("x", audio), reset_method="forward")
        with pytest.raises(ModelFailed, match="'sr' is '16k'; the model wants int"):
            await ask(pool, floats("x", audio), sr="16k")
    assert units == 32
    assert np.allclose(whole["speech"], expected(audio), atol=1e-5)
    assert np.ptp(whole["speech"]) > 0.01, "the chances differ"
    assert np.allclose(part["speech"], expected(audio[8:16]), atol=1e-5)


class _Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0, flip: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        y = -x if flip else x
        return y * scale, torch.tensor([x.shape[0]])


async def test_torchscript_arguments_are_found_by_name_and_outputs_by_order(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(_Pair()), str(tmp_path / "pair.pt"))
    outputs = (TensorSpec("y", "FP32", (-1,)), TensorSpec("count", "INT64", (1,)))
    made = make(tmp_path, "torchscript", outputs=outputs, parameters={"scale": 3.0})
    three = floats("x", np.array([1, 2, 3]))
    async with serving(tmp_path, made) as pool:
        ((units, found),) = await ask(pool, three)
        ((_, flipped),) = await ask(pool, three, flip=True, scale=1.0)
    assert (units, found["y"].tolist(), found["count"].tolist()) == (3, [3, 6, 9], [3])
    assert flipped["y"].tolist() == [-1, -2, -3]


class _Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (TensorSpec("z", "FP32", (-1,)),)}, "forward has no argument 'z'; it has: x"),
        ({"parameters": {"reset_method": "forget"}}, "no method 'forget'"),
        ({"inputs": (TensorSpec("x", "BYTES", (-1,)),)}, "'x' is BYTES, which TorchScript does not have"),
        ({}, "output 'y' as float64; the manifest says FP32"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_at_load(
    changes: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    torch.jit.save(torch.jit.script(_Double()), str(tmp_path / "double.pt"))
    with pytest.raises(ModelError, match=message):
        build(tmp_path, make(tmp_path, "torchscript", **changes))


class _Evil(torch.nn.Module):
    """TorchScript reads and writes files by itself: what ``torch.from_file`` maps, and what it makes."""

    def forward(self, x: torch.Tensor, path: str = "", write: bool = False) -> torch.Tensor:
        if path == "":
            return x
        return torch.from_file(path, write, 4, dtype=torch.uint8).float()


async def test_evil_torchscript_reaches_no_file_and_the_next_request_is_served(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")
    home = tmp_path / "model"
    home.mkdir()
    torch.jit.save(torch.jit.script(_Evil()), str(home / "evil.pt"))
    reference = torch.jit.load(str(home / "evil.pt"))  # type: ignore[no-untyped-call]
    assert reference(torch.ones(1), str(secret)).tolist() == list(b"host")
    async with serving(home, make(home, "torchscript")) as pool:
        for path, write in (("/etc/passwd", False), (str(secret), False), (str(home / "evil.pt"), True)):
            with pytest.raises(ModelFailed):
                await ask(pool, floats("x", np.ones(1)), path=path, write=write)
        ((_, found),) = await ask(pool, floats("x", np.ones(1)))
    assert found["y"].tolist() == [1]
    assert secret.read_text() == "host"


class _Payload:
    """A pickle that runs a command where it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"echo out > {self.marker}",)


@pytest.mark.parametrize(
    ("name", "message"),
    [("evil.pt", "cannot be loaded as runtime 'torchscript'"), ("evil.pt2", "lists 0 files that end in .pt or .pth")],
)
async def test_an_evil_pickle_is_no_model_and_runs_nothing(name: str, message: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    home = tmp_path / "model"
    home.mkdir()
    torch.save(_Payload(marker), home / name)
    with pytest.raises(ModelError, match=message):
        async with serving(home, make(home, "torchscript")):
            pass
    assert not marker.exists()


# --- ONNX ---


async def test_magika_gives_what_it_gives_outside(models: Path) -> None:
    directory = models / "magika"
    rows = np.array([[*text[:1024], *text[-1024:]] for text in (PYTHON, TOML)], dtype=np.int32)
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"bytes": rows})
    async with serving(directory) as pool:
        ((units, found),) = await ask(pool, Tensor("bytes", "INT32", rows.shape, rows.tobytes()))
        with pytest.raises(ModelFailed, match="parameter 'top' is unknown"):
            await ask(pool, Tensor("bytes", "INT32", rows.shape, rows.tobytes()), top=1)
    assert units == 2
    assert np.allclose(found["target_label"], expected, atol=1e-5)
    labels = json.loads((directory / "config.min.json").read_text())["target_labels_space"]
    assert [labels[row.argmax()] for row in found["target_label"]] == ["python", "toml"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": (TensorSpec("label", "FP32", (-1, 214)),)}, "no output 'label' of type FP32"),
        ({"inputs": (TensorSpec("bytes", "INT64", (-1, 2048)),)}, "no input 'bytes' of type INT64"),
        ({"parameters": {"top": 1}}, "parameter 'top': an ONNX file takes none"),
    ],
)
def test_a_manifest_that_does_not_fit_the_onnx_file_is_refused(
    changes: Mapping[str, Any], message: str, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes((models / "magika" / "model.onnx").read_bytes())
    fitting = {
        "inputs": (TensorSpec("bytes", "INT32", (-1, 2048)),),
        "outputs": (TensorSpec("target_label", "FP32", (-1, 214)),),
    }
    with pytest.raises(ModelError, match=message):
        build(tmp_path, make(tmp_path, "onnx", **{**fitting, **changes}))


async def test_what_is_not_onnx_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\xff not a graph")
    with pytest.raises(ModelError, match="cannot be loaded as runtime 'onnx'"):
        async with serving(tmp_path, make(tmp_path, "onnx")):
            pass


# --- executors ---


async def test_an_executor_streams_and_sees_its_folder_its_parameters_and_nothing_of_other_requests(
    tmp_path: Path,
) -> None:
    (tmp_path / "words.txt").write_text("one two three")
    (tmp_path / "reading.py").write_text("def read(path):\n    return path.read_text().split()\n")
    made = an_executor(
        tmp_path,
        """
        import numpy as np
        from reading import read

        def load(directory, parameters):
            return read(directory / "words.txt")[: parameters["most"]]

        def execute(model, inputs, parameters):
            for number, word in enumerate(model, 1):
                yield number, {"word": word, "y": inputs["x"] * number * parameters.get("scale", 1)}
        """,
        outputs=(TensorSpec("word", "BYTES", ()), TensorSpec("y", "FP32", (-1,))),
        parameters={"most": 2},
    )
    async with serving(tmp_path, made) as pool:
        pieces = await ask(pool, floats("x", np.array([1, 2])))
        scaled = await ask(pool, floats("x", np.array([1])), scale=10)
    assert [(units, piece["word"], piece["y"].tolist()) for units, piece in pieces] == [
        (1, ["one"], [1, 2]),
        (2, ["two"], [2, 4]),
    ]
    assert [piece["y"].tolist() for _, piece in scaled] == [[10], [20]]


async def test_an_answer_that_nobody_reads_is_broken_off(tmp_path: Path) -> None:
    made = an_executor(
        tmp_path,
        """
        import itertools

        ended = 0

        def execute(model, inputs, parameters):
            global ended
            if parameters["ended"]:
                yield 1, {"y": inputs["x"] * ended}
                return
            try:
                for number in itertools.count():
                    yield number, {"y": inputs["x"]}
            finally:
                ended += 1
        """,
    )
    x = floats("x", np.array([1]))
    async with serving(tmp_path, made) as pool:
        async with aclosing(pool.execute([x], {"ended": False})) as endless:
            async for _ in endless:
                break
        pids = pool.pids
        ((_, found),) = await ask(pool, x, ended=True)
        assert found["y"].tolist() == [1]
        assert pool.pids == pids, "by the same worker"


EVIL = """
    import ctypes, os, socket, subprocess, sys
    import numpy as np

    libc = ctypes.CDLL(None, use_errno=True)

    def call(number, *arguments):
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    ATTEMPTS = {
        "passwd": lambda: open("/etc/passwd").read(),
        "shadow": lambda: open("/etc/shadow").read(),
        "proc": lambda: open("/proc/1/environ").read(),
        "processes": lambda: os.listdir("/sys"),
        "socket": lambda: socket.socket(),
        "unix": lambda: socket.socketpair(),
        "fork": lambda: os.fork(),
        "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", "pass"]),
        "subprocess": lambda: subprocess.run(["/bin/true"]),
        "write": lambda: open(os.path.join(os.path.dirname(__file__), "mine"), "w"),
        "tmp": lambda: open("/tmp/mine", "w"),
        "chmod": lambda: os.chmod(__file__, 0o777),
        "kill": lambda: os.kill(1, 9),
        "ptrace": lambda: call(101, 0, 0, 0, 0),
        "keyctl": lambda: call(250, 0, 0, 0, 0, 0),
        "unshare": lambda: call(272, 0x10000000),
        "memfd": lambda: os.memfd_create("mine"),
        "limits": lambda: call(302, 0, 7, (ctypes.c_uint64 * 2)(9, 9), 0),
    }

    def execute(model, inputs, parameters):
        what = parameters["what"]
        if what == "exit":
            os._exit(0)
        if what == "raise":
            raise RuntimeError("as it says \\x1b[31m")
        if what == "refused":
            yield 1, {"y": np.array([len(ATTEMPTS)], dtype=np.float32), "got": got()}
            return
        yield {
            "falls": lambda: (-1, {"y": inputs["x"], "got": ""}),
            "none": lambda: None,
            "names": lambda: (1, {"z": inputs["x"]}),
            "dtype": lambda: (1, {"y": inputs["x"].astype(np.float64), "got": ""}),
            "shape": lambda: (1, {"y": inputs["x"][None], "got": ""}),
            "fine": lambda: (1, {"y": inputs["x"], "got": ""}),
        }[what]()

    def got():
        found = []
        for name, attempt in ATTEMPTS.items():
            try:
                attempt()
            except OSError:
                continue
            found.append(name)
        return " ".join(found)
"""


async def test_an_evil_executor_gets_nothing_and_the_next_request_is_served(tmp_path: Path) -> None:
    made = an_executor(tmp_path, EVIL, outputs=(TensorSpec("y", "FP32", (-1,)), TensorSpec("got", "BYTES", ())))
    x = floats("x", np.array([1]))
    async with serving(tmp_path, made) as pool:
        ((_, found),) = await ask(pool, x, what="refused")
        assert found["got"] == [""], "each of these was refused"
        assert found["y"].tolist() == [18]
        for what, message in (
            ("raise", r"RuntimeError: as it says  \[31m"),
            ("falls", "gave units -1"),
            ("none", "gave a NoneType; a result is a pair"),
            ("names", "gave outputs z; the manifest says y, got"),
            ("dtype", "output 'y' as float64; the manifest says FP32"),
            ("shape", r"output 'y' of shape \[1, 1\]; the manifest says \[-1\]"),
        ):
            with pytest.raises(ModelFailed, match=message):
                await ask(pool, x, what=what)
        pids = pool.pids
        with pytest.raises(WorkerDied, match="ended with status 0"):
            await ask(pool, x, what="exit")
        ((_, after),) = await ask(pool, x, what="fine")
        assert after["y"].tolist() == [1]
        assert pool.pids != pids, "another process"
    assert sorted(os.listdir(tmp_path)) == ["executor.py", "manifest.json"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def load(directory, parameters): pass", r"defines no function execute\(model, inputs, parameters\)"),
        ("import something_missing", "No module named 'something_missing'"),
        ("raise KeyError('mine')", "cannot be loaded as runtime 'executor': KeyError: 'mine'"),
    ],
)
def test_an_executor_that_cannot_be_loaded_is_no_model(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "executor", sys)
    with pytest.raises(ModelError, match=message):
        build(tmp_path, an_executor(tmp_path, code))


async def test_an_executor_gets_nothing_while_it_is_loaded(tmp_path: Path) -> None:
    made = an_executor(tmp_path, "open('/etc/passwd')")
    with pytest.raises(ModelError, match="FileNotFoundError"):
        async with serving(tmp_path, made):
            pass


def test_an_executor_with_requirements_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torchvision\n")
    made = an_executor(tmp_path, "def execute(model, inputs, parameters): return 1, {'y': inputs['x']}")
    with pytest.raises(ModelError, match="programs with requirements are not executed here"):
        build(tmp_path, made)


# --- all of them ---


def test_runtimes_are_those_whose_libraries_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(runtimes.available()) == {"safetensors", "torchscript", "onnx", "executor"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    runtimes.available.cache_clear()
    try:
        assert set(runtimes.available()) == {"safetensors", "torchscript", "executor"}
        with pytest.raises(ModelError, match=r"needs onnxruntime, .* try: pip install 'ncn-compute\[onnx\]'"):
            runtimes.require("onnx")
        with pytest.raises(ModelError, match="runtime 'tensorflow' is unknown; known: safetensors"):
            runtimes.require("tensorflow")
    finally:
        runtimes.available.cache_clear()


@pytest.mark.parametrize(("runtime", "name"), [("torchscript", ".pt or .pth or .jit"), ("onnx", ".onnx")])
def test_a_manifest_must_list_the_one_file(runtime: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(struct.pack("<f", 1))
    with pytest.raises(ModelError, match=f"lists 0 files that end in {name}"):
        build(tmp_path, make(tmp_path, runtime))


async def test_memory_beyond_the_manifest_ends_the_worker_alone(tmp_path: Path) -> None:
    made = an_executor(
        tmp_path,
        """
        import numpy as np

        def execute(model, inputs, parameters):
            size = 1 << 30 if parameters["bomb"] else 8
            return 1, {"y": np.ones(size, dtype=np.uint8)[:1].astype(np.float32)}
        """,
        memory_bytes=512 << 20,
    )
    async with serving(tmp_path, made) as pool:
        with pytest.raises((WorkerDied, ModelFailed), match=r"memory limit|MemoryError"):
            await ask(pool, floats("x", np.ones(1)), bomb=True)
        ((_, found),) = await ask(pool, floats("x", np.ones(1)), bomb=False)
    assert found["y"].tolist() == [1]


async def test_every_dtype_comes_through_an_executor(tmp_path: Path) -> None:
    made = an_executor(
        tmp_path,
        """
        import torch

        def execute(model, inputs, parameters):
            bits = torch.frombuffer(bytearray(inputs["half"].tobytes()), dtype=torch.bfloat16)
            return 1, {"text": [element.upper() for element in inputs["text"]], "half": bits * 2}
        """,
        inputs=(TensorSpec("text", "BYTES", (-1,)), TensorSpec("half", "BF16", (-1,))),
        outputs=(TensorSpec("text", "BYTES", (-1,)), TensorSpec("half", "BF16", (-1,))),
    )
    given = torch.tensor([1.5, -3.0], dtype=torch.bfloat16)
    raw = given.view(torch.uint16).numpy().tobytes()
    async with serving(tmp_path, made) as pool:
        text = bytes_tensor("text", [b"one", "zwölf".encode()])
        ((_, found),) = await ask(pool, text, Tensor("half", "BF16", (2,), raw))
    assert found["text"] == ["ONE", "ZWöLF"]
    assert found["half"].tolist() == (given * 2).view(torch.uint16).tolist()
