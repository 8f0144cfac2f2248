"""Where a file departs from JSON, or from the one canonical form of what it says."""

from __future__ import annotations

import re

from .errors import VerificationError

__all__ = ["check_canonical", "malformed_at"]


def malformed_at(data: bytes, what: str) -> tuple[str, str]:
    """Return where ``data`` stops being UTF-8 or JSON, and why."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return _line(data, error.start), f"the file is not UTF-8: {error.reason}"
    found = re.search(r" \(byte (\d+)\)$", what)
    return (_line(data, int(found[1])), what[: found.start()]) if found else ("file", what)


def _line(data: bytes, offset: int) -> str:
    number = data.count(b"\n", 0, offset) + 1
    return f"line {number}, byte {offset}"


def check_canonical(data: bytes, canonical: bytes) -> None:
    """Raise at the first byte in which ``data`` differs from the canonical form of what it says."""
    if data == canonical:
        return
    have, want = memoryview(data), memoryview(canonical)
    low, high = 0, min(len(data), len(canonical))
    while low < high:  # the first `low` bytes are equal, the first difference is no farther than `high`
        middle = (low + high + 1) // 2
        low, high = (middle, high) if have[low:middle] == want[low:middle] else (low, middle - 1)
    field = _field_at(canonical, low)
    raise VerificationError(
        _line(data, low) + (f" ({field})" if field else ""),
        f"not the canonical form: {data[low : low + 24]!r} where {canonical[low : low + 24]!r} belongs",
    )


def _field_at(canonical: bytes, offset: int) -> str:
    """Return the path of the field whose line in the canonical form ``offset`` lies in; a line holds one value."""
    path: list[str | int] = []
    end = canonical.find(b"\n", offset)
    for line in canonical[: end if end >= 0 else None].split(b"\n")[1:]:
        text = line.lstrip(b" ")
        depth = (len(line) - len(text)) // 2
        del path[depth:]
        if text[:1] in (b"}", b"]", b""):
            continue
        if len(path) == depth and isinstance(path[-1], int):
            path[-1] += 1
        elif key := re.match(rb'"((?:[^"\\]|\\.)*)": ', text):
            path[depth - 1 :] = [key[1].decode()]
        if text.endswith(b"["):
            path.append(-1)  # the next line is element 0
    if path and path[-1] == -1:
        path.pop()
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
