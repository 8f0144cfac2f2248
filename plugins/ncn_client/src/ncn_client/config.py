"""Settings of the client: table ``[client]``."""

from __future__ import annotations

from pydantic import Field, SecretStr

from ncn_framework.config import Settings, known_as

__all__ = ["ClientSettings"]


class ClientSettings(Settings):
    """What the commands that ask a gateway take where no flag says otherwise."""

    table = "client"

    gateway: str = Field("http://127.0.0.1:8080", description="URL of the gateway to ask.")
    private_key: SecretStr = Field(
        SecretStr(""), description="Key that signs requests and vouchers, 64 hex digits; it goes before the wallet."
    )
    wallet: str = Field("", description="Name of the wallet whose key signs; without any key, requests are anonymous.")
    wallet_password: SecretStr = Field(
        SecretStr(""),
        description="Password of the wallet, where nobody can be asked.",
        json_schema_extra=known_as("NCN_WALLET_PASSWORD"),  # type: ignore[arg-type]
    )
    payer: str = Field("", description="Address whose deposit pays, where the key is a session key of it.")
    payment: str = Field(
        "",
        pattern="^(voucher|escrow|free|)$",
        description="Payment mode; empty: the first of the gateway's that works.",
    )
    max_fee_wei: int | None = Field(
        None, ge=0, description="Most that one request may cost, in wei; default: no bound."
    )
    timeout_ms: int = Field(60_000, gt=0, description="Time for an answer: the deadline of each request.")
