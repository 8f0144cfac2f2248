"""The last part of a proof: in which batch the answer was settled, and which validators signed that."""

from __future__ import annotations

from dataclasses import replace

from ncn_framework.errors import MalformedRequest, VerificationError
from ncn_framework.inclusion import InclusionJson, inclusion_from_json
from ncn_framework.proof import Proof

from .exchange import Call, Exchange, decoded

__all__ = ["included"]


def included(proof: Proof) -> Exchange[Proof]:
    """Ask the gateway where an answer was settled; return its proof with that, checked.

    Raises:
        TaskEnded: not yet.
        UnknownTask: this gateway has charged nothing for it.
        VerificationError: what the gateway says does not hold.
    """
    call = Call("GET", f"/api/v1/inference/0x{proof.request.request_id.hex()}/inclusion")
    form = decoded(call, (yield call), InclusionJson)
    try:
        whole = replace(proof, inclusion=inclusion_from_json(form))
    except MalformedRequest as cause:
        raise VerificationError("inclusion", str(cause)) from cause
    whole.check()
    return whole
