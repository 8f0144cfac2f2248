"""Settings of the registry, and of who talks to one: table ``[registry]``."""

from __future__ import annotations

from pydantic import Field, SecretStr

from ncn_framework.config import Names, Settings, known_as

from .limits import Limits

__all__ = ["LOCAL", "MOST_PAYLOAD_BYTES", "RegistrySettings"]

MOST_PAYLOAD_BYTES = 15 << 10
"""What the DHT takes, 16 KiB, less what is around the payload."""

LOCAL = "local"
"""Value of ``grpc_addr`` that stands for the registry of the same process."""


class RegistrySettings(Settings):
    """What an operator can set; the names in capitals, and the flags, are those of the reference network."""

    table = "registry"

    private_key: SecretStr = Field(
        SecretStr(""), description="Key of the registry, 64 hex digits; without one, a key file is made under home."
    )
    p2p_listen_addr: str = Field(
        "/ip4/127.0.0.1/tcp/8828",
        description="Where other registries reach this one by libp2p: a multiaddress, or HOST:PORT.",
        json_schema_extra=known_as(flag="--p2p-listen-addr"),  # type: ignore[arg-type]
    )
    grpc_listen_addr: str = Field(
        "127.0.0.1:50050",
        description="HOST:PORT to serve gRPC on, for gateways and compute nodes.",
        json_schema_extra=known_as(flag="--grpc-listen-addr"),  # type: ignore[arg-type]
    )
    grpc_addr: str = Field(
        "",
        description="HOST:PORT of the registry that a gateway or compute node uses; empty: none.",
        json_schema_extra=known_as("REGISTRY_GRPC_ADDR"),  # type: ignore[arg-type]
    )
    bootstrap: Names = Field((), description="Multiaddresses (with /p2p/...) of registries to join, between commas.")
    announce: Names = Field(
        (), description="Multiaddresses to be known by; needed where the one listened on is 0.0.0.0."
    )
    announce_grpc_addr: str = Field(
        "", description="HOST:PORT of gRPC that this registry's record names; default: where it listens."
    )
    announce_gateway_addr: str = Field(
        "", description="HOST:PORT of gRPC that a gateway's record names; default: where it listens."
    )
    heartbeat_interval_ms: int = Field(
        2_000, ge=100, le=600_000, description="How often to be heard of; after three intervals of silence: gone."
    )
    record_lifetime_ms: int = Field(
        600_000, ge=10_000, description="How long a record of this gateway or registry counts; renewed at half of it."
    )
    max_lifetime_ms: int = Field(
        86_400_000, ge=10_000, description="Farthest expiry of a record that this registry takes."
    )
    max_skew_ms: int = Field(30_000, gt=0, description="By how much a heartbeat's clock may differ.")
    max_record_bytes: int = Field(
        MOST_PAYLOAD_BYTES, ge=1_024, le=MOST_PAYLOAD_BYTES, description="Largest payload of a record."
    )
    max_records: int = Field(100_000, gt=0, description="Records to keep, at most.")
    max_store_bytes: int = Field(256 << 20, gt=0, description="Bytes of all payloads together, at most.")
    max_watchers: int = Field(1_024, gt=0, description="Gateways and nodes that may watch at once.")
    watcher_backlog: int = Field(
        4_096, gt=0, description="Changes that may wait for a slow watcher; it must begin again after that."
    )
    dht_renew_interval_ms: int = Field(
        4 * 3_600_000, ge=60_000, description="How often records are put into the DHT again."
    )
    dht_timeout_ms: int = Field(5_000, gt=0, description="Limit of a look-up in the DHT.")
    hedge_ms: int = Field(
        300, gt=0, le=10_000, description="How long a validator may take until another one is asked, too."
    )
    validation_timeout_ms: int = Field(
        8_000, gt=0, le=60_000, description="How long validators may take to sign, or to say why they do not."
    )
    repeat_timeout_ms: int = Field(
        20_000, gt=0, le=300_000, description="The same, where they are shown answers and execute requests again."
    )
    sample_rate: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of the requests to be shown and executed again, before this registry's validators sign.",
    )

    @property
    def limits(self) -> Limits:
        """How long validators are waited for."""
        return Limits(self.validation_timeout_ms / 1000, self.repeat_timeout_ms / 1000, self.hedge_ms / 1000)
