"""Models fetched from real servers that break off, lie and play tricks: whole and at their place, or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ncn_compute import fetch, manifest, syncing
from ncn_compute.fetch import FetchStopped
from ncn_compute.syncing import Synced, sync
from ncn_framework.errors import ModelError
from ncn_framework.manifests import manifest_json
from ncn_framework.models import ModelFile, ModelManifest
from ncn_framework.testing.fakes import fake_manifest
from ncn_framework.wire.convert_subnets import ListedModel

from .model_server import ModelServer, serving

WEIGHTS = random.Random(1).randbytes(3_500_000)
FILES = {"weights.safetensors": WEIGHTS, "deep/er/config.json": b"{}", "empty": b""}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving() as made:
        yield made


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(fetch, "_pause", taken.append)
    return taken


def made(files: dict[str, bytes], name: str = "a model") -> ModelManifest:
    listed = tuple(ModelFile(path, len(data), hashlib.sha256(data).digest()) for path, data in files.items())
    return fake_manifest(name=name, files=listed)


def listed(made: ModelManifest, *sources: str) -> ListedModel:
    size = sum(file.size_bytes for file in made.files)
    return ListedModel(made.digest, made.name, made.runtime, size, sources)


def put(
    server: ModelServer, files: dict[str, bytes] = FILES, place: str = "/models/one", **changes: Any
) -> ListedModel:
    """Serve a model, and return it as a subnet lists it."""
    one = made(files, **changes)
    server.files |= {f"{place}/{path}": data for path, data in files.items()}
    server.files[f"{place}/manifest.json"] = manifest_json(one)
    return listed(one, f"{server.url}{place}/")


def synced(root: Path, *models: ListedModel, **options: Any) -> list[Synced]:
    return list(sync(models, root, **{"most_bytes": 1 << 30, **options}))


def only(results: Sequence[Synced]) -> Synced:
    (result,) = results
    return result


def assert_nothing_there(root: Path) -> None:
    assert [path for path in root.iterdir() if not path.name.startswith(".sync")] == []
    assert manifest.find_models(root) == {}


def test_a_model_is_fetched_checked_and_put_in_place(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    seen: list[tuple[int, int]] = []
    root = tmp_path / "models"
    result = only(synced(root, model, progress=lambda of: lambda done, total: seen.append((done, total))))
    directory = root / f"a-model-{model.digest.hex()[:12]}"
    assert result == Synced(model, directory, True)
    found, place = manifest.find_models(root)[model.digest]
    manifest.verify(place, found)
    assert {path: (directory / path).read_bytes() for path in FILES} == FILES
    for path in (directory, *directory.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), "jailed workers read it"
    assert seen[-1] == (model.size_bytes, model.size_bytes)
    assert {path.name for path in root.iterdir()} == {".sync.lock", directory.name}
    asked = len(server.asked)
    assert only(synced(root, model)) == Synced(model, directory)
    assert len(server.asked) == asked, "what is there is not asked for"


def test_a_connection_that_breaks_half_way_is_gone_on_with(
    tmp_path: Path, server: ModelServer, pauses: list[float]
) -> None:
    model = put(server)
    path = "/models/one/weights.safetensors"
    server.break_after[path] = [1_500_000, 100, 0, 1_000_000]
    assert only(synced(tmp_path, model)).fetched
    assert [given for asked, given in server.asked if asked == path] == [
        None,
        "bytes=1500000-",
        "bytes=1500100-",
        "bytes=1500100-",
        "bytes=2500100-",
    ]
    assert len(pauses) == 4


def test_a_source_that_knows_no_ranges_is_begun_again(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    server.ranges = False
    server.break_after["/models/one/weights.safetensors"] = [2_000_000]
    done: list[int] = []
    assert only(synced(tmp_path, model, progress=lambda of: lambda now, total: done.append(now))).fetched
    assert min(done) >= 0
    assert done[-1] == model.size_bytes


def test_what_was_cut_short_is_gone_on_with_by_the_next_run(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    reached = 0

    def progress(done: int, total: int) -> None:
        nonlocal reached
        reached = done

    with pytest.raises(FetchStopped, match="sync again"):
        synced(tmp_path, model, progress=lambda of: progress, stopped=lambda: reached > 1_000_000)
    assert_nothing_there(tmp_path)
    assert only(synced(tmp_path, model)).fetched
    ranges = [given for path, given in server.asked if path.endswith("weights.safetensors")]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 1_000_000


def test_a_crash_between_the_last_byte_and_its_place_costs_nothing(
    tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = put(server)
    save = manifest.save

    def crash(directory: Path, one: ModelManifest) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        synced(tmp_path, model)
    assert_nothing_there(tmp_path)
    monkeypatch.setattr(manifest, "save", save)
    server.asked.clear()
    assert only(synced(tmp_path, model)).fetched
    assert [path for path, _ in server.asked] == ["/models/one/manifest.json"]


def test_a_wrong_byte_is_not_let_in(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    data = bytearray(WEIGHTS)
    data[1_234_567] ^= 1
    server.files["/models/one/weights.safetensors"] = bytes(data)
    result = only(synced(tmp_path, model))
    assert result.directory is None
    assert "has SHA-256" in result.problem
    assert_nothing_there(tmp_path)
    assert list(tmp_path.glob(".sync-*/parts/0")) == [], "it is not gone on with"


def test_a_wrong_beginning_is_fetched_anew(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    parts = tmp_path / f".sync-{model.digest.hex()}" / "parts"
    parts.mkdir(parents=True)
    (parts / "0").write_bytes(b"not it" * 1_000)
    assert only(synced(tmp_path, model)).fetched
    assert ("/models/one/weights.safetensors", None) in server.asked


def test_the_next_source_is_asked_where_one_is_wrong_or_away(tmp_path: Path, server: ModelServer) -> None:
    good = put(server, place="/good")
    server.files["/bad/manifest.json"] = manifest_json(made({"x": b"y"}))
    server.files["/half/manifest.json"] = server.files["/good/manifest.json"]
    server.statuses["/good/manifest.json"] = [503, 429]
    sources = (f"{server.url}/none", f"{server.url}/bad", f"{server.url}/half", *good.sources)
    model = ListedModel(good.digest, good.name, good.runtime, good.size_bytes, sources)
    assert only(synced(tmp_path, model)).fetched
    bad = ListedModel(good.digest, good.name, good.runtime, good.size_bytes, sources[:3])
    result = only(synced(tmp_path / "other", bad))
    assert "answered 404" in result.problem
    assert "has a manifest with digest" in result.problem


def test_a_source_that_stays_away_is_given_up(tmp_path: Path, server: ModelServer, pauses: list[float]) -> None:
    model = put(server)
    server.break_after["/models/one/weights.safetensors"] = [0] * 20
    result = only(synced(tmp_path, model))
    assert "5 times without a new byte" in result.problem
    assert pauses == sorted(pauses)
    gone = listed(made(FILES), "http://127.0.0.1:1/models")
    assert "ConnectError, 5 times" in only(synced(tmp_path, gone)).problem


def test_a_model_without_a_source_says_so(tmp_path: Path) -> None:
    assert "names no source" in only(synced(tmp_path, listed(made(FILES)))).problem


def test_a_longer_file_is_cut_off(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    server.files["/models/one/deep/er/config.json"] = b"{}" * 2
    assert "is longer than the 2 bytes" in only(synced(tmp_path, model)).problem
    server.files["/models/one/manifest.json"] = b" " * (2 << 20)
    assert "manifest.json" in only(synced(tmp_path, model)).problem
    assert_nothing_there(tmp_path)


def test_another_encoding_than_asked_for_is_refused(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    server.encoding = "gzip"
    assert "another encoding" in only(synced(tmp_path, model)).problem


def test_redirects_are_followed_to_http_alone(tmp_path: Path, server: ModelServer) -> None:
    model = put(server, place="/elsewhere")
    for path in ("manifest.json", *FILES):
        server.redirects[f"/here/{path}"] = f"{server.url}/elsewhere/{path}"
    moved = ListedModel(model.digest, model.name, model.runtime, model.size_bytes, (f"{server.url}/here",))
    assert only(synced(tmp_path / "one", moved)).fetched
    server.redirects["/here/manifest.json"] = "file:///etc/passwd"
    assert "no http or https" in only(synced(tmp_path / "two", moved)).problem
    server.redirects["/here/manifest.json"] = f"{server.url}/here/manifest.json"
    assert "redirects more than" in only(synced(tmp_path / "three", moved)).problem


@pytest.mark.parametrize(
    "path",
    [
        "../../evil",
        "/etc/cron.d/evil",
        "a/../../evil",
        "a//b",
        "./a",
        "a/",
        ".hidden",
        "a/.ssh/b",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        "manifest.json",
        "Manifest.JSON",
        "x" * 300,
        "",
        "weights.safetensors/inner",
        "WEIGHTS.safetensors",
    ],
)
def test_path_tricks_are_refused(tmp_path: Path, server: ModelServer, path: str) -> None:
    root = tmp_path / "deep" / "models"
    model = put(server, {"weights.safetensors": b"w", path: b"evil"})
    result = only(synced(root, model))
    assert "of the manifest" in result.problem or "the manifest names" in result.problem
    assert_nothing_there(root)
    assert [asked for asked, _ in server.asked] == ["/models/one/manifest.json"], "no file was asked for"
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]


def test_a_name_stays_in_its_folder(tmp_path: Path, server: ModelServer) -> None:
    model = put(server, name="../../../evil\n")
    directory = only(synced(tmp_path, model)).directory
    assert directory == tmp_path / f"evil-{model.digest.hex()[:12]}"


def test_links_at_the_place_of_what_is_fetched_are_not_followed(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "models"
    root.mkdir()
    staging = root / f".sync-{model.digest.hex()}"
    staging.symlink_to(outside)
    assert "is a link" in only(synced(root, model)).problem
    staging.unlink()
    (staging / "parts").mkdir(parents=True)
    (victim := tmp_path / "victim").write_text("untouched")
    (staging / "parts" / "0").symlink_to(victim)
    assert only(synced(root, model)).directory is None
    assert victim.read_text() == "untouched"
    assert list(outside.iterdir()) == []


def test_a_subnet_that_lies_about_a_models_size_is_refused(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    small = ListedModel(model.digest, model.name, model.runtime, 7, model.sources)
    assert "the subnet says 7 bytes" in only(synced(tmp_path, small)).problem


def test_quota_and_disk_are_kept(tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = put(server)
    second = put(server, {"w": b"second"}, "/two", name="second")
    results = synced(tmp_path, first, second, most_bytes=first.size_bytes + 5)
    assert [result.fetched for result in results] == [True, False]
    assert "compute.max_models_bytes" in results[1].problem
    usage = (1 << 40, 1 << 40, syncing._SPARE_BYTES + 5)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": usage[2]}))
    assert "the disk of" in only(synced(tmp_path, second)).problem


def test_a_damaged_model_is_replaced(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    directory = only(synced(tmp_path, model)).directory
    assert directory is not None
    (directory / "empty").write_bytes(b"not any more")
    again = only(synced(tmp_path, model))
    assert again == Synced(model, directory, True)
    assert (directory / "empty").read_bytes() == b""


def test_local_folders_are_sources_too(tmp_path: Path) -> None:
    source = tmp_path / "a source"
    (source / "deep").mkdir(parents=True)
    files = {"deep/w": b"weights", "c": b"config"}
    for path, data in files.items():
        (source / path).write_bytes(data)
    one = made(files)
    (source / "manifest.json").write_bytes(manifest_json(one))
    model = listed(one, source.as_uri())
    assert only(synced(tmp_path / "models", model)).fetched
    (source / "c").unlink()
    os.mkfifo(source / "c")
    assert "not a regular file" in only(synced(tmp_path / "others", model)).problem
    (source / "c").unlink()
    assert "cannot be read" in only(synced(tmp_path / "others", model)).problem


def test_two_processes_do_not_sync_to_one_folder(tmp_path: Path, server: ModelServer) -> None:
    model = put(server)
    with open(tmp_path / ".sync.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="another process"):
            synced(tmp_path, model)
    assert only(synced(tmp_path, model)).fetched


def test_a_folder_that_is_a_model_takes_no_others(tmp_path: Path, server: ModelServer) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match="is a model itself"):
        synced(tmp_path, put(server))


def test_a_source_that_drips_is_given_up(tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = put(server)
    monkeypatch.setattr(fetch, "_PATIENCE_S", -1_000.0)
    assert "bytes a second; given up" in only(synced(tmp_path, model)).problem
