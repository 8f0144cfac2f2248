"""Manifests on disk: built, written, read, verified, found."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from ncn_compute import manifest
from ncn_framework.errors import ModelError
from ncn_framework.models import ModelFile, ModelManifest
from ncn_framework.tensors import TensorSpec

SPEC = (TensorSpec("x", "FP32", (-1, 2)),)


def make(directory: Path, **changes: object) -> ModelManifest:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "b.bin").write_bytes(b"bb")
    (directory / "sub").mkdir(exist_ok=True)
    (directory / "sub/a.bin").write_bytes(b"a")
    made = manifest.build(directory, name="tiny", runtime="safetensors", inputs=SPEC, outputs=SPEC, unit_fee_wei=7)
    made = dataclasses.replace(made, **changes)  # type: ignore[arg-type]
    manifest.save(directory, made)
    return made


def test_lists_every_file_sorted_with_size_and_hash(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.files == (
        ModelFile("b.bin", 2, hashlib.sha256(b"bb").digest()),
        ModelFile("sub/a.bin", 1, hashlib.sha256(b"a").digest()),
    )
    again = manifest.build(tmp_path, name="tiny", runtime="safetensors", inputs=SPEC, outputs=SPEC, unit_fee_wei=7)
    assert again == made, "manifest.json itself is not listed"


def test_what_is_saved_is_loaded_and_verifies(tmp_path: Path) -> None:
    made = make(tmp_path)
    loaded = manifest.load(tmp_path)
    assert loaded == made
    assert loaded.digest == made.digest == hashlib.sha256((tmp_path / "manifest.json").read_bytes()).digest()
    manifest.verify(tmp_path, loaded)


def test_a_directory_without_files_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model files"):
        manifest.build(tmp_path, name="x", runtime="x", inputs=SPEC, outputs=SPEC)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 1}', b"\xff" * 10, b"x" * ((1 << 20) + 1)])
def test_a_malformed_manifest_is_refused_by_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"manifest\.json"):
        manifest.load(tmp_path)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"), [(b"b", "has 1 bytes; its manifest says 2"), (b"xx", "has SHA-256 .* its manifest says")]
)
def test_a_changed_file_is_named_with_both_values(tmp_path: Path, content: bytes, words: str) -> None:
    made = make(tmp_path)
    (tmp_path / "b.bin").write_bytes(content)
    with pytest.raises(ModelError, match=f"b.bin {words}"):
        manifest.verify(tmp_path, made)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(ModelError, match=r"b\.bin is listed but cannot be read"):
        manifest.verify(tmp_path, made)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "sub/../../outside", "", "a\\b", "a\0b", "..", "."])
def test_a_path_that_leaves_the_directory_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    made = make(tmp_path / "model")
    file = ModelFile(path, 1, hashlib.sha256(b"x").digest())
    with pytest.raises(ModelError):
        manifest.verify(tmp_path / "model", dataclasses.replace(made, files=(file,)))


def test_a_link_out_of_the_directory_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"bb")
    model = tmp_path / "model"
    made = make(model)
    (model / "b.bin").rename(model / "c.bin")
    (model / "b.bin").symlink_to("c.bin")
    manifest.verify(model, made)
    (model / "b.bin").unlink()
    (model / "b.bin").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match=r"b\.bin is a link to .*outside"):
        manifest.verify(model, made)
    with pytest.raises(ModelError, match="outside of the model's directory"):
        manifest.build(model, name="x", runtime="x", inputs=SPEC, outputs=SPEC)


def test_a_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / "b.bin").unlink()
    (tmp_path / "b.bin").mkdir()
    with pytest.raises(ModelError, match="not a regular file"):
        manifest.verify(tmp_path, made)


def test_finds_one_model_or_a_directory_of_them(tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", version="2")
    make(tmp_path / ".temporary", version="3")
    (tmp_path / "empty").mkdir()
    assert manifest.find_models(tmp_path) == {
        one.digest: (one, tmp_path / "one"),
        two.digest: (two, tmp_path / "two"),
    }
    assert manifest.find_models(tmp_path / "one") == {one.digest: (one, tmp_path / "one")}
    assert manifest.find_models(tmp_path / "empty") == {}
    with pytest.raises(ModelError, match="MODEL_PATH"):
        manifest.find_models(tmp_path / "absent")
