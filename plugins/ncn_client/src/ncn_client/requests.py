"""A request before it is sent: what may be said of it, what it may cost, and its JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from ncn_framework.errors import MalformedRequest, PaymentRequired
from ncn_framework.models import ANONYMOUS, Domain, InferenceRequest, ModelManifest, Parameter
from ncn_framework.payments import Voucher
from ncn_framework.signing import address_hex
from ncn_framework.wire.json import StatusJson, SubmitJson, encode, hash_bytes, tensor_json
from ncn_framework.wire.json_payments import voucher_json

from .amounts import shown
from .catalogue import Model
from .exchange import Pay

__all__ = ["LIMIT_UNITS", "Named", "Options", "Prepared", "Task", "body", "id_of", "prepared_of", "units_within"]

LIMIT_UNITS = 1_000_000
"""Most units to pay for, where the caller names none and ``max_fee_wei`` buys as many."""

_MAX_TIMEOUT_S = 366 * 86_400


class Options(TypedDict, total=False):
    """What may be said of a request beside its model and inputs.

    Attributes:
        parameters: name to scalar.
        limit_units: most units to pay for; where not said, 1,000,000, or as many fewer as ``max_fee_wei`` buys.
        max_fee_wei: most that the request may cost; the client's where not said.
        timeout_s: the deadline, from now; the client's where not said.
        deadline_ms: the deadline in milliseconds since the epoch, instead of ``timeout_s``.
        nonce: 32 bytes, instead of random ones; with the same nonce everything else must be the same too.
        payment: mode of payment: ``voucher``, ``escrow`` or ``free``; where not said, the client's, else the first
            of the gateway's modes that the client can do.
        pay: pays into escrow (``exchange.Pay``); the client's where not said.
    """

    parameters: Mapping[str, Parameter]
    limit_units: int
    max_fee_wei: int
    timeout_s: float
    deadline_ms: int
    nonce: bytes
    payment: str
    pay: Pay


@dataclass(frozen=True)
class Prepared:
    """A complete request: hashed, signed where the client has a key, not yet sent.

    Sent twice it is executed and charged once, and the second time gives the first answer.

    Attributes:
        model: what is asked.
        request: as it is sent, but for the voucher, which is signed anew each time.
        domain: of the network.
        pay: pays into escrow, in that mode.
    """

    model: Model
    request: InferenceRequest
    domain: Domain
    pay: Pay | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        """The request's id, 0x-hex."""
        return "0x" + self.request.request_id.hex()

    @property
    def limit_wei(self) -> int:
        """Most that it may cost."""
        return self.model.manifest.fee_wei(self.request.limit_units, self.request.payment)

    @property
    def left_s(self) -> float:
        """Seconds until its deadline; 0 once that has passed."""
        return max(0.0, (self.request.deadline_ms - now_ms()) / 1000)


@dataclass(frozen=True)
class Task:
    """A request that the gateway accepted, where it stood then, and the voucher that came with it, if any."""

    prepared: Prepared
    status: StatusJson
    voucher: Voucher | None = None

    @property
    def id(self) -> str:
        """The request's id, 0x-hex."""
        return self.prepared.id


Named = Task | Prepared | bytes | str
"""What names a request: itself, or its id as 32 bytes or 0x-hex."""


def prepared_of(named: Named) -> Prepared | None:
    """Return the request itself, where it is more than an id."""
    return named.prepared if isinstance(named, Task) else named if isinstance(named, Prepared) else None


def id_of(named: Named) -> str:
    """Return the request's id, 0x-hex.

    Raises:
        MalformedRequest: it is none.
    """
    if isinstance(named, Task | Prepared):
        return named.id
    return "0x" + (named if isinstance(named, bytes) else hash_bytes(named, "the request's id")).hex()


def units_within(manifest: ModelManifest, payment: str, limit_units: int | None, max_fee_wei: int | None) -> int:
    """Return the units to ask for.

    Args:
        manifest: of the model; it has the prices.
        payment: mode of payment.
        limit_units: as the caller named it.
        max_fee_wei: most that the request may cost; None has no bound.

    Raises:
        MalformedRequest: a number is out of its range.
        PaymentRequired: so many units, or none named and not even one, cost more than ``max_fee_wei``.
    """
    units = number("limit_units", LIMIT_UNITS if limit_units is None else limit_units, least=1)
    if max_fee_wei is None:
        return units
    if max_fee_wei < 0:
        raise MalformedRequest(f"max_fee_wei is {max_fee_wei}; it must not be negative")
    if manifest.fee_wei(units, payment) <= max_fee_wei:
        return units
    if limit_units is None:
        if manifest.unit_fee_wei and manifest.fee_wei(1, payment) <= max_fee_wei:
            return (max_fee_wei - manifest.base_fee_wei) // manifest.unit_fee_wei
        units = 1
    named = f"{units} unit{'' if units == 1 else 's'} of model {manifest.name!r}"
    raise PaymentRequired(
        f"{named} may cost {shown(manifest.fee_wei(units, payment))}, more than max_fee_wei allows, "
        f"{shown(max_fee_wei)}; raise it" + ("" if units == 1 else ", or lower limit_units")
    )


def now_ms() -> int:
    """Return the wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def milliseconds(timeout_s: float) -> int:
    """Return a timeout in milliseconds.

    Raises:
        MalformedRequest: not above 0 and at most 366 days.
    """
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise MalformedRequest(f"timeout_s is {timeout_s}; it must lie between 0 and {_MAX_TIMEOUT_S}")
    return int(timeout_s * 1000)


def number(name: str, value: int, least: int) -> int:
    """Return ``value``.

    Raises:
        MalformedRequest: below ``least`` or beyond 63 bits.
    """
    if not least <= value < 2**63:
        raise MalformedRequest(f"{name} is {value}; it must lie between {least} and 2^63-1")
    return value


def parameter(name: str, value: Parameter) -> Parameter:
    """Return a parameter.

    Raises:
        MalformedRequest: JSON cannot hold it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise MalformedRequest(f"parameter {name!r} is {value}, which JSON cannot hold; leave it out")
    return value if isinstance(value, bool | float | str) else number(f"parameter {name!r}", value, least=-(2**63))


def body(prepared: Prepared, voucher: Voucher | None) -> bytes:
    """Return the JSON to send."""
    request = prepared.request
    anonymous = request.client == ANONYMOUS
    return encode(
        SubmitJson(
            model="0x" + request.model.hex(),
            inputs=[tensor_json(tensor, "base64") for tensor in request.inputs],
            parameters=dict(request.parameters),
            client=None if anonymous else address_hex(request.client),
            nonce="0x" + request.nonce.hex(),
            limit_units=request.limit_units,
            deadline_ms=request.deadline_ms,
            payment=request.payment,
            signature=None if anonymous else "0x" + request.signature.hex(),
            voucher=None if voucher is None else voucher_json(voucher),
            encoding="base64",
        )
    )
