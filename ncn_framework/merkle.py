"""Merkle trees as OpenZeppelin's ``MerkleProof`` has them: pairs are sorted, then hashed; an odd one moves up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .digests import keccak

__all__ = ["climb", "path", "root"]


def root(leaves: Iterable[bytes]) -> bytes:
    """Return the root of a tree of 32-byte leaves, in any order; 32 zero bytes where there are none."""
    level = sorted(leaves)
    while len(level) > 1:
        level = _above(level)
    return level[0] if level else bytes(32)


def path(leaves: Iterable[bytes], leaf: bytes) -> tuple[bytes, ...]:
    """Return what ``climb`` needs to come from ``leaf`` to the root.

    Raises:
        ValueError: it is not among ``leaves``.
    """
    level, found = sorted(leaves), list[bytes]()
    place = level.index(leaf)
    while len(level) > 1:
        beside = place ^ 1
        if beside < len(level):
            found.append(level[beside])
        level, place = _above(level), place // 2
    return tuple(found)


def climb(leaf: bytes, siblings: Iterable[bytes]) -> bytes:
    """Return the root that a leaf and its path lead to."""
    for sibling in siblings:
        leaf = keccak(b"".join(sorted((leaf, sibling))))
    return leaf


def _above(level: Sequence[bytes]) -> list[bytes]:
    pairs = (level[i : i + 2] for i in range(0, len(level), 2))
    return [keccak(b"".join(sorted(pair))) if len(pair) == 2 else pair[0] for pair in pairs]
