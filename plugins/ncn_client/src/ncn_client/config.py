"""Settings of the client: table ``[client]``."""

from __future__ import annotations

from pydantic import Field, SecretStr

from ncn_framework.config import Settings

__all__ = ["ClientSettings"]


class ClientSettings(Settings):
    """What the commands that ask a gateway take where no flag says otherwise."""

    table = "client"

    gateway: str = Field("http://127.0.0.1:8080", description="URL of the gateway to ask.")
    private_key: SecretStr = Field(
        SecretStr(""), description="Key that signs requests, 64 hex digits; without one, requests are anonymous."
    )
    timeout_ms: int = Field(60_000, gt=0, description="Time for an answer: the deadline of each request.")
