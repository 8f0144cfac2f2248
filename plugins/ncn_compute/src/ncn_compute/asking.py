"""What a command asks a registry about a subnet, over gRPC."""

from __future__ import annotations

from typing import Any

import grpc

from ncn_framework import digests
from ncn_framework.config import Config
from ncn_framework.errors import ConfigError
from ncn_framework.models import Domain
from ncn_framework.signing import address_hex, check_signature
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_from_pb
from ncn_framework.wire.convert_payments import sized
from ncn_framework.wire.convert_records import host_and_port
from ncn_framework.wire.convert_subnets import Subnet, subnet_from_record
from ncn_framework.wire.grpc_errors import error_from_rpc
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceStub

__all__ = ["ask_subnet", "registry_of"]

_LIMIT_S = 15.0
_DEFAULT = "127.0.0.1:50050"
"""The network's port of registries."""


def registry_of(config: Config, address: str | None) -> str:
    """Return HOST:PORT of the registry at ``address``, or else of the node's setting, or else this machine's.

    Raises:
        ConfigError: it is not HOST:PORT.
    """
    found = config.sources.find("registry", "grpc_addr", ("NCN_REGISTRY_GRPC_ADDR", "REGISTRY_GRPC_ADDR"))
    named = "" if found is None or found[0] == "local" else str(found[0])
    target = address or named or _DEFAULT
    try:
        host_and_port(target)
    except ValueError as cause:
        raise ConfigError(f"the registry to ask: {cause}") from cause
    return target


def ask_subnet(config: Config, target: str, name: str) -> Subnet:
    """Return a subnet's configuration, after checking that its owner signed it.

    Args:
        config: of this process.
        target: HOST:PORT of the registry, which has checked the quorum.
        name: the subnet's, or its owner's address.

    Raises:
        UnknownSubnet: there is none.
        ConfigError: the settings name another network than the registry's.
        CapacityError: the registry cannot be reached.
        SignatureRejected: its owner did not sign it.
    """
    with grpc.insecure_channel(target) as channel:
        stub: Any = P2PRegistryServiceStub(channel)
        try:
            network = stub.GetNetwork(mpb.Empty(), timeout=_LIMIT_S)
            found = stub.GetSubnet(pb.SubnetID(id=name), timeout=_LIMIT_S)
        except grpc.RpcError as cause:
            raise error_from_rpc(cause, f"registry {target}") from cause  # type: ignore[arg-type]
    domain, named = Domain(network.chain_id, sized(network.contract, 20, "contract")), config.core.domain
    if named not in (domain, Domain(domain.chain_id)):
        raise ConfigError(
            f"registry {target} belongs to chain {domain.chain_id} with contract {address_hex(domain.contract)}; "
            f"the settings say {named.chain_id} with {address_hex(named.contract)}: set NCN_CHAIN_ID and NCN_CONTRACT"
        )
    record = record_from_pb(found.record)
    what = f"the configuration of subnet {name[:64]}"
    check_signature(digests.record_digest(domain, record), record.signature, record.owner, what)
    return subnet_from_record(record)
