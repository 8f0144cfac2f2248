"""What a gateway is told when too few validators sign: of each claim, only what a few liars could not bring about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from ncn_framework.errors import EndorsementRefused, NcnError
from ncn_framework.signing import address_hex
from ncn_framework.statements import BatchStatement, CompletionStatement, Statement, VerdictStatement

__all__ = ["merged", "requests_of"]

_LONGEST = 300  # characters of one validator's reason
_MOST_REASONS = 8


def requests_of(statement: Statement) -> frozenset[bytes]:
    """Return the ids of the requests whose answers may be asked for, to check ``statement``."""
    match statement:
        case BatchStatement():
            return frozenset(charge.receipt.receipt.request_id for charge in statement.charges)
        case CompletionStatement() | VerdictStatement():
            return frozenset({statement.receipt.receipt.request_id})
        case _:
            return frozenset()


def merged(
    reasons: Mapping[bytes, NcnError], signed: int, needed: int, able: int, epoch: int, wanted: Collection[bytes]
) -> EndorsementRefused:
    """Return one refusal out of what validators said.

    Which requests are settled or invalid counts where so many say it that a quorum without them cannot be: a gateway
    writes such requests off, and one validator that lies must not bring that about. The next nonce is the lowest that
    a quorum of those who answered would take, so that none of them can use the nonces up.

    Args:
        reasons: by validator, why it did not sign.
        signed: how many did.
        needed: how many make a quorum.
        able: how many there are that may sign.
        epoch: whose members they are.
        wanted: the requests that are to be shown.
    """
    refusals = [error for error in reasons.values() if isinstance(error, EndorsementRefused)]
    blocking = max(able - needed + 1, 1)
    named = Counter(request_id for one in refusals for request_id in one.settled)
    settled = {
        request_id: max(one.settled.get(request_id, 0) for one in refusals)
        for request_id, times in named.items()
        if times >= blocking
    }
    condemned = Counter(request_id for one in refusals for request_id in one.invalid)
    invalid = {request_id for request_id, times in condemned.items() if times >= blocking}
    demands = sorted([0] * signed + [one.next_nonce for one in refusals if one.next_nonce])
    next_nonce = demands[min(needed, len(demands)) - 1] if demands else 0
    return EndorsementRefused(
        f"{signed} of the {able} validators of epoch {epoch} signed; {needed} are needed{_said(reasons)}",
        settled,
        next_nonce,
        invalid=invalid,
        wanted=wanted,
    )


def _said(reasons: Mapping[bytes, NcnError]) -> str:
    who: dict[str, list[str]] = {}
    for validator, error in reasons.items():
        text = " ".join(str(error).split())[:_LONGEST]
        who.setdefault("".join(filter(str.isprintable, text)), []).append(address_hex(validator))
    lines = [f"{', '.join(names)}: {text}" for text, names in list(who.items())[:_MOST_REASONS]]
    return "".join(f"; {line}" for line in lines)
