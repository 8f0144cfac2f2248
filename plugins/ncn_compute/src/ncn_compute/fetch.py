"""Files of a model out of a folder somewhere: resumed where they broke off, bounded, and checked byte by byte.

What is fetched is named by its SHA-256, so that it does not matter who serves it; only how much and how fast.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote, unquote, urlsplit

import httpx

from ncn_framework.errors import ModelError
from ncn_framework.models import ModelFile

__all__ = ["FetchStopped", "Folder", "fetch_file", "fetch_small", "open_folder"]

_BLOCK_BYTES = 1 << 20
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MOST_REDIRECTS = 5
_LEAST_BYTES_S = 16 << 10
"""Slower than that in the long run, a source is given up, so that one that drips cannot hold a node for ever."""
_PATIENCE_S = 60.0
_ATTEMPTS = 5
"""In a row without a new byte."""
_PAUSE_S = 0.5
_pause = time.sleep

Advance = Callable[[int], None]
"""Called with the bytes that came, or, below zero, with those that turned out to be wrong."""


class FetchStopped(ModelError):
    """Fetching was ended from outside; what came so far is kept for the next time."""


class _Broken(Exception):
    """The source broke off, is busy or away; another attempt may go on."""


class Folder(Protocol):
    """A folder that holds a model."""

    url: str

    def read(self, path: str, start: int) -> Iterator[bytes]:
        """Yield a file's bytes from ``start`` on; where the source can't, empty bytes first, and then all from 0 on.

        Raises:
            _Broken: it broke off, or is away.
            ModelError: it is not there.
        """


class _Local:
    """A folder of this machine (``file:``)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._path = Path(unquote(urlsplit(url).path))

    def read(self, path: str, start: int) -> Iterator[bytes]:
        place = self._path / path
        try:
            with open(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ModelError(f"{place} is not a regular file")
                file.seek(start)
                while block := file.read(_BLOCK_BYTES):
                    yield block
        except OSError as cause:
            raise ModelError(f"{place} cannot be read: {cause.strerror}") from cause


class _Remote:
    """A folder behind HTTP."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.url, self._client = url, client

    def read(self, path: str, start: int) -> Iterator[bytes]:
        url = f"{self.url.rstrip('/')}/{quote(path)}"
        headers = {"accept-encoding": "identity", **({"range": f"bytes={start}-"} if start else {})}
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                status = response.status_code
                if status in (408, 425, 429) or status >= 500:
                    raise _Broken(f"{url} answered {status}")
                begins = response.headers.get("content-range", "").partition("-")[0].strip()
                resumed = status == 206 and begins == f"bytes {start}"
                if status != 200 and not resumed and status not in (206, 416):
                    raise ModelError(f"{url} answered {status}")
                if start and not resumed:
                    yield b""  # from the beginning, then
                if status in (206, 416) and not resumed:
                    return
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise ModelError(f"{url} is sent in another encoding than asked for")
                yield from response.iter_raw()  # as it comes: what waited to be a larger block would be lost
        except httpx.TooManyRedirects as cause:
            raise ModelError(f"{url} redirects more than {_MOST_REDIRECTS} times") from cause
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as cause:
            raise ModelError(f"{url} leads to an address that is no http or https") from cause
        except httpx.HTTPError as cause:
            raise _Broken(f"{url}: {type(cause).__name__}") from cause


@contextmanager
def open_folder(url: str) -> Iterator[Folder]:
    """Open the folder at a URL (http, https or file) for reading.

    Raises:
        ModelError: another scheme.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        yield _Local(url)
    elif scheme in ("http", "https"):
        with httpx.Client(timeout=_TIMEOUT, follow_redirects=True, max_redirects=_MOST_REDIRECTS) as client:
            yield _Remote(url, client)
    else:
        raise ModelError(f"source {url[:80]!r} is no URL of http, https or file")


def fetch_small(folder: Folder, path: str, most_bytes: int) -> bytes:
    """Return a whole file of at most ``most_bytes``.

    Raises:
        ModelError: it is not there, is longer, or the source broke off again and again.
    """
    failures = 0
    while True:
        found = bytearray()
        try:
            for block in folder.read(path, 0):
                found += block
                if len(found) > most_bytes:
                    raise ModelError(f"{path} of {folder.url} is longer than {most_bytes} bytes")
            return bytes(found)
        except _Broken as cause:
            failures += 1
            if failures == _ATTEMPTS:
                raise ModelError(f"{cause}, {_ATTEMPTS} times") from cause
            _pause(_PAUSE_S * 2**failures)


def fetch_file(
    folder: Folder, file: ModelFile, part: Path, advance: Advance, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Fetch one file of a manifest into ``part``, going on where an earlier attempt ended.

    Args:
        folder: that holds the model.
        file: what it must be in the end.
        part: where the bytes go; kept after a failure that another attempt may mend, removed when they are wrong.
        advance: told of progress.
        stopped: asked after each block.

    Raises:
        ModelError: the file is not there, is longer than it should be or not the right one, or the source broke off
            again and again.
        FetchStopped: ``stopped`` said so.
    """
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            digest = _go_on(folder, file, part, advance, stopped)
        except _Broken as cause:
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            if failures == _ATTEMPTS:
                raise ModelError(f"{cause}, {_ATTEMPTS} times without a new byte") from cause
            _pause(_PAUSE_S * 2**failures)
            continue
        if digest == file.sha256:
            return
        advance(-file.size_bytes)
        part.unlink()
        if not before:
            raise ModelError(
                f"{file.path} of {folder.url} has SHA-256 {digest.hex()}; the manifest says {file.sha256.hex()}"
            )
        # its beginning came from elsewhere: once more, all of it


def _go_on(folder: Folder, file: ModelFile, part: Path, advance: Advance, stopped: Callable[[], bool]) -> bytes:
    """Append to ``part`` what is missing; return the SHA-256 of the whole."""
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(handle, "r+b") as out:
        hashed, have = hashlib.sha256(), 0
        while have < file.size_bytes and (block := out.read(min(_BLOCK_BYTES, file.size_bytes - have))):
            hashed.update(block)
            have += len(block)
        out.seek(have)
        out.truncate()
        advance(have)
        deadline = time.monotonic() + _PATIENCE_S + (file.size_bytes - have) / _LEAST_BYTES_S
        try:
            if have < file.size_bytes:
                hashed, have = _append(folder, file, out, hashed, have, advance, stopped, deadline)
            out.flush()
            os.fsync(out.fileno())
        except BaseException:
            advance(-out.tell())
            raise
    return hashed.digest()


def _append(
    folder: Folder,
    file: ModelFile,
    out: IO[bytes],
    hashed: hashlib._Hash,
    have: int,
    advance: Advance,
    stopped: Callable[[], bool],
    deadline: float,
) -> tuple[hashlib._Hash, int]:
    for block in folder.read(file.path, have):
        if not block:  # the source begins anew
            out.seek(0)
            out.truncate()
            advance(-have)
            hashed, have = hashlib.sha256(), 0
            continue
        if have + len(block) > file.size_bytes:
            raise ModelError(f"{file.path} of {folder.url} is longer than the {file.size_bytes} bytes of its manifest")
        out.write(block)
        hashed.update(block)
        have += len(block)
        advance(len(block))
        if stopped():
            raise FetchStopped(f"{file.path} has {have} of {file.size_bytes} bytes; sync again to go on")
        if time.monotonic() > deadline:
            raise ModelError(f"{folder.url} sends less than {_LEAST_BYTES_S} bytes a second; given up")
    if have < file.size_bytes:
        raise _Broken(f"{file.path} of {folder.url} ended after {have} of {file.size_bytes} bytes")
    return hashed, have
