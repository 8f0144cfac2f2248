"""Settings of the compute node: table ``[compute]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from ncn_framework.config import Names, Settings, known_as

__all__ = ["ComputeSettings"]


class ComputeSettings(Settings):
    """What an operator can set; the names in capitals are those of the reference network."""

    table = "compute"

    private_key: SecretStr = Field(
        SecretStr(""), description="Key of the node, 64 hex digits; without one, a key file is made under home."
    )
    gateway_addr: Names = Field(
        ("127.0.0.1:50051",),
        description="Gateways to dial, HOST:PORT, separated by commas.",
        json_schema_extra=known_as("GATEWAY_ADDR"),  # type: ignore[arg-type]
    )
    find_gateways: int = Field(
        0,
        ge=0,
        le=64,
        description="Gateways to dial that the registry names, at most; with GATEWAY_ADDR unset, these alone.",
    )
    model_path: Path | None = Field(
        None,
        description="A model's folder, or a folder of those; by default home/models, where the bundled models go.",
        json_schema_extra=known_as("MODEL_PATH"),  # type: ignore[arg-type]
    )
    sandbox_mode: Literal["strict", "permissive", "disabled"] = Field(
        "strict",
        description="Jail of the models: strict, permissive or (development only) disabled.",
        json_schema_extra=known_as("SANDBOX_MODE"),  # type: ignore[arg-type]
    )
    capacity: int = Field(64, gt=0, le=65_536, description="Requests to take at once.")
    workers: int = Field(1, gt=0, le=256, description="Worker processes for each model.")
    record_lifetime_ms: int = Field(600_000, ge=10_000, description="How long a record of this node counts.")
    subnets: Names = Field(
        (),
        description="Subnets to join, names or addresses, and gateways to dial; with GATEWAY_ADDR unset, theirs alone.",
    )
    sync_models: bool = Field(True, description="Fetch the models of the subnets that are joined by this setting.")
    max_models_bytes: int = Field(
        200 << 30, gt=0, description="Bytes of all models on this node's disk, beyond which none is fetched."
    )
    repeat_idle_ms: int = Field(
        60_000, ge=0, description="How long a registry keeps a model open that it has executed again, for the next one."
    )
    repeat_models: int = Field(2, gt=0, le=64, description="Models that a registry executes again at once, at most.")
