"""Settings of the gateway: table ``[gateway]``."""

from __future__ import annotations

from pydantic import Field, SecretStr

from ncn_framework.config import Names, Settings, known_as
from ncn_framework.payments import ESCROW, EXACT, VOUCHER

__all__ = ["GatewaySettings"]


class GatewaySettings(Settings):
    """What an operator can set; the names in capitals are those of the reference network."""

    table = "gateway"

    private_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the gateway, 64 hex digits; without one, a key file is made under home.",
        json_schema_extra=known_as("GATEWAY_PRIVATE_KEY"),  # type: ignore[arg-type]
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every one of this machine's.")
    http_port: int = Field(8080, ge=0, lt=65536, description="HTTP port; 0 lets the system choose.")
    websocket_port: int = Field(9000, ge=0, lt=65536, description="Second HTTP port, known for its /ws.")
    grpc_port: int = Field(50051, ge=0, lt=65536, description="gRPC port, for clients and compute nodes.")
    allowed_nodes: Names = Field((), description="Addresses of the compute nodes to accept; none: any.")
    max_body_bytes: int = Field(32 << 20, gt=0, description="Largest request body and gRPC message.")
    default_limit_units: int = Field(1_000_000, gt=0, lt=2**63, description="Unit limit of requests that name none.")
    default_deadline_ms: int = Field(60_000, gt=0, description="Time for requests that name no deadline.")
    max_deadline_ms: int = Field(3_600_000, gt=0, description="Farthest deadline that a request may name.")
    payment_modes: Names = Field(
        (VOUCHER, ESCROW, EXACT),
        min_length=1,
        description="Payment modes to accept; the first is the default. Whoever accepts free is paid for nothing.",
    )
    heartbeat_interval_ms: int = Field(2_000, gt=0, description="How often nodes shall report; three missed: gone.")
    max_queue: int = Field(1_024, ge=0, description="Requests that may wait for a slot, per node.")
    recent_tasks: int = Field(1_024, ge=0, description="Finished tasks kept in memory, beside the database.")
    database: str = Field("", description="SQLAlchemy URL; empty: SQLite in home/gateway.db.")
