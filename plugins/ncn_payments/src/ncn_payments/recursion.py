"""A guard around imports that raise Python's recursion limit.

``py_ecc``, which eth-account, eth-keyfile and py-evm import, sets the limit to 100,000. C code that counts its
recursion against that limit (msgspec, json) then overruns the stack on deeply nested input: the process dies. At
12,288 it does not, neither in the main thread nor in others. py-evm asks for that much, for its 1,024 nested calls;
``py_ecc`` needs its own only for pairings of deep exponents, which no contract here makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["recursion_limit_kept"]

EVM_LIMIT = 1024 * 12
"""``eth.EVM_RECURSION_LIMIT``."""


@contextmanager
def recursion_limit_kept() -> Iterator[None]:
    """Import inside; afterwards the limit is what it was, or py-evm's where py-evm is loaded."""
    before = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(max(before, EVM_LIMIT) if "eth" in sys.modules else before)
