"""Which network a gateway belongs to, how it wants to be paid, and which of that a client can do."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ncn_framework.errors import PaymentRequired, VerificationError
from ncn_framework.models import FREE, Domain
from ncn_framework.payments import ESCROW, VOUCHER
from ncn_framework.signing import address_from_hex

__all__ = ["Network", "NetworkJson", "no_key", "payment_mode"]


class NetworkJson(msgspec.Struct):
    """What ``GET /api/v1/network`` gives; a gateway that names no payment modes takes free requests."""

    chain_id: int
    contract: str
    gateway: str
    payment_modes: list[str] = msgspec.field(default_factory=lambda: [FREE])


@dataclass(frozen=True)
class Network:
    """A gateway's word of itself.

    Attributes:
        domain: that signatures are bound to.
        gateway: its address.
        modes: payment modes that it takes; the first is its default.
    """

    domain: Domain
    gateway: bytes
    modes: tuple[str, ...]

    @classmethod
    def from_json(cls, form: NetworkJson) -> Network:
        """Return the network.

        Raises:
            VerificationError: a field cannot be what it says.
        """
        if not 0 < form.chain_id < 2**64:
            raise VerificationError("chain_id", f"is {form.chain_id}, outside 1 to 2^64-1")
        found = []
        for name in ("contract", "gateway"):
            try:
                found.append(address_from_hex(getattr(form, name)))
            except ValueError as cause:
                raise VerificationError(name, str(cause)) from cause
        return cls(Domain(form.chain_id, found[0]), found[1], tuple(form.payment_modes))


def payment_mode(modes: tuple[str, ...], *, has_key: bool, can_pay: bool) -> str:
    """Return the first of a gateway's payment modes that a client can do.

    Args:
        modes: as the gateway names them.
        has_key: the client can sign; without a key, it can only ask for nothing.
        can_pay: the client was given a function that pays on chain.

    Raises:
        PaymentRequired: there is none.
    """
    for mode in modes:
        if mode == FREE or (has_key and (mode == VOUCHER or (mode == ESCROW and can_pay))):
            return mode
    named = ", ".join(modes)[:200] or "none"
    if not has_key:
        raise no_key(f"this gateway serves nothing for free; its payment modes: {named}")
    raise PaymentRequired(
        f"this client cannot pay as this gateway wants to be paid: {named}"
        + ("; for escrow, give it a function that pays on chain (pay)" if ESCROW in modes else "")
    )


def no_key(why: str) -> PaymentRequired:
    """Return the error of a client that has to pay and has no key."""
    return PaymentRequired(
        f"{why}. Paying takes a key: make a wallet (`ncn wallet create`), deposit (`ncn payments deposit`), and name "
        "it with --wallet or setting client.wallet; in Python, signer=..."
    )
