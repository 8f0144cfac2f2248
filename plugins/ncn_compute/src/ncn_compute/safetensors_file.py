"""Safetensors files, written: 8-byte length, JSON header, data (the format's own document)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["write_safetensors"]


def write_safetensors(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> None:
    """Write a file of ``tensors``, in their order.

    The data waits on disk until the header is known, so that only one tensor is in memory at a time.

    Args:
        path: of the file.
        tensors: name, the format's dtype (such as ``F32``), shape, and little-endian elements of each.
    """
    header: dict[str, object] = {}
    offset = 0
    with tempfile.TemporaryFile(dir=path.parent) as waiting:
        for name, dtype, shape, data in tensors:
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
            waiting.write(data)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        waiting.seek(0)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(waiting, file, 1 << 20)
