"""The states of a request, and the one table of moves between them."""

from __future__ import annotations

from enum import StrEnum

from .errors import IllegalTransition

__all__ = ["TERMINAL", "TRANSITIONS", "State", "check_move"]


class State(StrEnum):
    """Where a request stands; the value is what clients see."""

    RECEIVED = "RECEIVED"
    ROUTED = "ROUTED"
    RESERVED = "RESERVED"
    AWAITING_PAYMENT = "AWAITING_PAYMENT"
    PAID = "PAID"
    EXECUTING = "EXECUTING"
    EXECUTED = "EXECUTED"
    VALIDATED = "VALIDATED"
    SETTLED = "SETTLED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    REFUNDED = "REFUNDED"


_ENDS = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.RECEIVED: frozenset({State.ROUTED}) | _ENDS,
    State.ROUTED: frozenset({State.RESERVED}) | _ENDS,
    State.RESERVED: frozenset({State.AWAITING_PAYMENT, State.EXECUTING}) | _ENDS,
    State.AWAITING_PAYMENT: frozenset({State.PAID}) | _ENDS,
    State.PAID: frozenset({State.EXECUTING}) | _ENDS,
    State.EXECUTING: frozenset({State.EXECUTED}) | _ENDS,
    State.EXECUTED: frozenset({State.VALIDATED}) | _ENDS,
    State.VALIDATED: frozenset({State.SETTLED}) | _ENDS,
    State.SETTLED: frozenset(),
    State.FAILED: frozenset({State.REFUNDED}),
    State.CANCELLED: frozenset({State.REFUNDED}),
    State.EXPIRED: frozenset({State.REFUNDED}),
    State.REFUNDED: frozenset(),
}

TERMINAL = _ENDS | {State.SETTLED, State.REFUNDED}
"""States in which a task rests; FAILED, CANCELLED and EXPIRED may still become REFUNDED."""


def check_move(before: State, after: State) -> None:
    """Raise ``IllegalTransition`` unless ``after`` may follow ``before``."""
    if after not in TRANSITIONS[before]:
        allowed = ", ".join(sorted(TRANSITIONS[before])) or "nothing"
        raise IllegalTransition(f"a request in {before} cannot move to {after}; allowed: {allowed}")
