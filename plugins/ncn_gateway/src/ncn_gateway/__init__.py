"""NCN gateway: HTTP, WebSocket and gRPC in front of compute nodes."""

__version__ = "0.1.0"
