"""Manifests on disk: a model is a directory with ``manifest.json`` and the files that it lists."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ncn_framework.errors import ModelError
from ncn_framework.manifests import manifest_from_json, manifest_json
from ncn_framework.models import ModelFile, ModelManifest, Parameter
from ncn_framework.tensors import TensorSpec

__all__ = ["FILE_NAME", "build", "find_models", "load", "save", "verify"]

FILE_NAME = "manifest.json"

_MAX_MANIFEST_BYTES = 1 << 20


def build(
    directory: Path,
    *,
    name: str,
    runtime: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    architecture: str = "",
    version: str = "1",
    parameters: Mapping[str, Parameter] | None = None,
    base_fee_wei: int = 0,
    unit_fee_wei: int = 0,
    memory_bytes: int = 2 << 30,
    time_limit_ms: int = 60_000,
    tolerance: float = 0.0,
) -> ModelManifest:
    """Return a manifest of every file below ``directory`` (but ``manifest.json``), each of them hashed.

    Raises:
        ModelError: there is no file, or one is not a regular file inside the directory.
    """
    paths = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if not path.is_dir() and path != directory / FILE_NAME
    )
    if not paths:
        raise ModelError(f"{directory} holds no model files")
    return ModelManifest(
        name=name,
        version=version,
        runtime=runtime,
        architecture=architecture,
        files=tuple(ModelFile(path, *_measure(directory, path)) for path in paths),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        parameters=dict(parameters or {}),
        base_fee_wei=base_fee_wei,
        unit_fee_wei=unit_fee_wei,
        memory_bytes=memory_bytes,
        time_limit_ms=time_limit_ms,
        tolerance=tolerance,
    )


def save(directory: Path, manifest: ModelManifest) -> None:
    """Write ``manifest.json`` in its canonical form, replacing one that is there in a single step."""
    temporary = directory / f".{FILE_NAME}.{os.getpid()}"
    temporary.write_bytes(manifest_json(manifest))
    temporary.chmod(0o644)
    temporary.replace(directory / FILE_NAME)


def load(directory: Path) -> ModelManifest:
    """Return the manifest in ``directory``; the files that it lists are not looked at (``verify``).

    Raises:
        ModelError: it is missing or malformed.
    """
    path = directory / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_MANIFEST_BYTES:
        raise ModelError(f"{path} is longer than {_MAX_MANIFEST_BYTES} bytes")
    try:
        return manifest_from_json(data)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def verify(directory: Path, manifest: ModelManifest) -> None:
    """Check that every file that ``manifest`` lists is there, with the size and SHA-256 that it says.

    Raises:
        ModelError: names the first file that is not, with what was expected and what was found.
    """
    for file in manifest.files:
        path = _inside(directory, file.path)
        size = path.stat().st_size
        if size != file.size_bytes:
            raise ModelError(f"{path} has {size} bytes; its manifest says {file.size_bytes}; fetch the model again")
        _, digest = _measure(directory, file.path)
        if digest != file.sha256:
            raise ModelError(
                f"{path} has SHA-256 {digest.hex()}; its manifest says {file.sha256.hex()}; fetch the model again"
            )


def _inside(directory: Path, relative: str) -> Path:
    """Return the path of a regular file that lies in ``directory`` even after links are followed."""
    pure = PurePosixPath(relative)
    if not relative or pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative:
        raise ModelError(f"{directory}: {relative!r} is not a relative path that stays in the directory")
    path = directory / pure
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path} is listed but cannot be read: {error}") from error
    if not resolved.is_relative_to(directory.resolve()):
        raise ModelError(f"{path} is a link to {resolved}, outside of the model's directory")
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is not a regular file")
    return resolved


def _measure(directory: Path, relative: str) -> tuple[int, bytes]:
    path = _inside(directory, relative)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            return os.fstat(file.fileno()).st_size, digest
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def find_models(root: Path) -> dict[bytes, tuple[ModelManifest, Path]]:
    """Return the models at ``root`` by digest: itself one, or a directory of them. Files are not verified.

    Raises:
        ModelError: ``root`` is no directory, or a manifest is malformed.
    """
    if not root.is_dir():
        raise ModelError(f"{root} is not a directory; set MODEL_PATH to a model, or to a directory of models")
    if (root / FILE_NAME).is_file():
        places = [root]
    else:
        places = sorted(path.parent for path in root.glob(f"[!.]*/{FILE_NAME}") if path.is_file())
    found = {}
    for place in places:
        manifest = load(place)
        found[manifest.digest] = (manifest, place)
    return found
