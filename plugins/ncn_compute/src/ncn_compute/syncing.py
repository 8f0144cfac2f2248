"""A subnet's models on this node's disk: those that are missing are fetched, checked, and put in place in one step."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ncn_framework.errors import ModelError
from ncn_framework.manifests import manifest_from_json
from ncn_framework.models import ModelManifest
from ncn_framework.wire.convert_subnets import ListedModel

from . import manifest as manifests
from .fetch import FetchStopped, Folder, fetch_file, fetch_small, open_folder

__all__ = ["Progress", "Synced", "sync"]

Progress = Callable[[int, int], None]
"""Called with the bytes of a model that are there, and the bytes in all."""

_MOST_MANIFEST_BYTES = 1 << 20
_MOST_FILES = 10_000
_LONGEST_PATH = 1_024
_SPARE_BYTES = 256 << 20
"""What a disk keeps free."""


@dataclass(frozen=True)
class Synced:
    """What became of one model.

    Attributes:
        model: as the subnet lists it.
        directory: where it is; None where it could not be fetched.
        fetched: it was not there before.
        problem: why it could not be fetched; empty otherwise.
    """

    model: ListedModel
    directory: Path | None
    fetched: bool = False
    problem: str = ""


def sync(
    models: Sequence[ListedModel],
    root: Path,
    *,
    most_bytes: int,
    progress: Callable[[ListedModel], Progress] = lambda model: lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Synced]:
    """Fetch what is missing of ``models`` below ``root``, or damaged there; yield what became of each, in turn.

    Nothing is seen at its place before all of it was checked. What came of a model that failed is kept below
    ``root`` and gone on with the next time.

    Args:
        models: as a subnet lists them.
        root: a folder of models; made where it is missing.
        most_bytes: of all models below ``root`` together.
        progress: returns who is told how a model gets on.
        stopped: asked now and then whether to end.

    Raises:
        ModelError: ``root`` is a model itself, holds a malformed one, or another process syncs there.
        FetchStopped: ``stopped`` said so.
    """
    if (root / manifests.FILE_NAME).exists():
        raise ModelError(f"{root} is a model itself; set MODEL_PATH to a folder of models, or leave it unset")
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        for model in models:
            try:
                present = manifests.find_models(root).get(model.digest)
                if present is not None and _is_whole(*present):
                    yield Synced(model, present[1])
                    continue
                damaged = None if present is None else present[1]
                directory = _fetch(model, root, damaged, most_bytes, progress(model), stopped)
            except FetchStopped:
                raise
            except (ModelError, OSError) as cause:
                yield Synced(model, None, problem=str(cause))
            else:
                yield Synced(model, directory, fetched=True)


def _is_whole(manifest: ModelManifest, directory: Path) -> bool:
    try:
        manifests.verify(directory, manifest)
    except ModelError:
        return False
    return True


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other processes from syncing to the same folder; a lock ends with its process."""
    handle = os.open(root / ".sync.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise ModelError(f"another process syncs models to {root}; wait for its end") from cause
        yield
    finally:
        os.close(handle)


def _fetch(
    model: ListedModel,
    root: Path,
    damaged: Path | None,
    most_bytes: int,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Path:
    if not model.sources:
        raise ModelError(f"the subnet names no source of model {model.name}; copy it to {root} yourself")
    problems = []
    for source in model.sources:
        try:
            with open_folder(source) as folder:
                manifest = _manifest(folder, model)
                _check_room(manifest, root, damaged, most_bytes)
                return _fetch_from(folder, manifest, root, damaged, progress, stopped)
        except FetchStopped:
            raise
        except ModelError as cause:
            problems.append(str(cause))
    raise ModelError("; ".join(problems))


def _manifest(folder: Folder, model: ListedModel) -> ModelManifest:
    """Return the manifest that the subnet's digest names; only then is it believed in anything."""
    manifest = manifest_from_json(fetch_small(folder, manifests.FILE_NAME, _MOST_MANIFEST_BYTES))
    if manifest.digest != model.digest:
        raise ModelError(
            f"{folder.url} has a manifest with digest 0x{manifest.digest.hex()}; the subnet lists "
            f"0x{model.digest.hex()}"
        )
    size = sum(file.size_bytes for file in manifest.files)
    if size != model.size_bytes or not 0 < len(manifest.files) <= _MOST_FILES:
        raise ModelError(
            f"model {model.name} has {len(manifest.files)} files of {size} bytes in all; the subnet says "
            f"{model.size_bytes} bytes, and at most {_MOST_FILES} files are fetched"
        )
    _check_paths([file.path for file in manifest.files])
    if any(file.size_bytes < 0 for file in manifest.files):
        raise ModelError(f"model {model.name} has a file of less than no bytes")
    return manifest


def _check_paths(paths: Sequence[str]) -> None:
    """Refuse paths that leave the model's folder, cannot all be there, or would be something else there."""
    files = set()
    for path in paths:
        parts = PurePosixPath(path).parts
        plain = path.isprintable() and "\\" not in path and len(path) <= _LONGEST_PATH
        if not parts or "/".join(parts) != path or not plain or any(part.startswith(".") for part in parts):
            raise ModelError(f"path {path[:80]!r} of the manifest is not a plain relative one")
        if any(len(os.fsencode(part)) > 255 for part in parts):
            raise ModelError(f"path {path[:80]!r} of the manifest has a part of more than 255 bytes")
        files.add(path.casefold())
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    if len(files) != len(paths) or files & folders or manifests.FILE_NAME in files:
        raise ModelError("the manifest names a file twice, as a folder, or itself")


def _check_room(manifest: ModelManifest, root: Path, damaged: Path | None, most_bytes: int) -> None:
    size = sum(file.size_bytes for file in manifest.files)
    held = sum(
        sum(file.size_bytes for file in other.files)
        for other, directory in manifests.find_models(root).values()
        if directory != damaged
    )
    if held + size > most_bytes:
        raise ModelError(
            f"model {manifest.name} has {size} bytes and {root} holds {held}; setting compute.max_models_bytes "
            f"allows {most_bytes}: raise it, or remove models"
        )
    begun = sum(path.stat().st_size for path in _staging(root, manifest).glob("parts/*"))
    free = shutil.disk_usage(root).free
    if size - begun > free - _SPARE_BYTES:
        raise ModelError(f"model {manifest.name} needs {size - begun} bytes; the disk of {root} has {free} left")


def _staging(root: Path, manifest: ModelManifest) -> Path:
    return root / f".sync-{manifest.digest.hex()}"


def _fetch_from(
    folder: Folder,
    manifest: ModelManifest,
    root: Path,
    damaged: Path | None,
    progress: Progress,
    stopped: Callable[[], bool],
) -> Path:
    staging = _staging(root, manifest)
    parts, made = staging / "parts", staging / "model"
    for path in (staging, parts):
        path.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink():
            raise ModelError(f"{path} is a link; remove it")
    shutil.rmtree(made, ignore_errors=True)  # of an earlier attempt that was cut short
    total, done = sum(file.size_bytes for file in manifest.files), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for number, file in enumerate(manifest.files):
        fetch_file(folder, file, parts / str(number), advance, stopped)
    made.mkdir()
    for number, file in enumerate(manifest.files):
        place = made / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        (parts / str(number)).chmod(0o644)
        os.link(parts / str(number), place)  # the part stays, until all is in place
    manifests.save(made, manifest)
    for path in (made, *made.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)  # whatever the process's umask is: jailed workers read it
    target = damaged or root / _folder_name(manifest)
    if target.exists():
        target.rename(staging / f"old-{os.getpid()}")
    made.rename(target)
    _sync_directory(root)
    shutil.rmtree(staging, ignore_errors=True)
    return target


def _folder_name(manifest: ModelManifest) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", manifest.name).strip("-")[:40] or "model"
    return f"{name}-{manifest.digest.hex()[:12]}"


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
