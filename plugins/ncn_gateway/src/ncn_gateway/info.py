"""What a gateway says of itself, whichever way it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ncn_framework.models import Domain

__all__ = ["GatewayInfo"]


@dataclass(frozen=True)
class GatewayInfo:
    """Facts about this gateway that do not change while it runs, and its answer to whether it is ready.

    Attributes:
        address: of the gateway's key, 20 bytes.
        domain: that all signatures are bound to.
        software: name and version of the program.
        payment_modes: that are accepted; the first is the default.
        ready: returns None when requests can be served, or else the reason why not.
    """

    address: bytes
    domain: Domain
    software: str
    payment_modes: tuple[str, ...]
    ready: Callable[[], str | None]
