"""Questions of commands to a running registry, over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import grpc

from ncn_framework.config import Config
from ncn_framework.errors import ConfigError, NcnError
from ncn_framework.wire import messages_pb2 as mpb
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import node_info_from_record, record_from_pb
from ncn_framework.wire.convert_records import host_and_port
from ncn_framework.wire.grpc_errors import error_from_rpc
from ncn_framework.wire.registry_pb2_grpc import P2PRegistryServiceStub

from .config import LOCAL, RegistrySettings
from .forms import (
    NodeForm,
    PeerForm,
    RecordForm,
    ReputationForm,
    ValidatorForm,
    node_form,
    peer_form,
    record_form,
    reputation_form,
    validator_form,
)

__all__ = ["Asked"]

_LIMIT_S = 15.0


@dataclass(frozen=True)
class Asked:
    """A registry to ask.

    Attributes:
        target: HOST:PORT of its gRPC.
    """

    target: str

    @classmethod
    def of(cls, config: Config, address: str | None) -> Self:
        """Return the registry at ``address``, or else the one of the settings.

        Raises:
            ConfigError: it is not HOST:PORT.
        """
        settings = config.load(RegistrySettings)
        named = "" if settings.grpc_addr == LOCAL else settings.grpc_addr
        target = address or named or settings.grpc_listen_addr
        try:
            host_and_port(target)
        except ValueError as cause:
            raise ConfigError(f"the registry to ask: {cause}") from cause
        return cls(target)

    def peers(self) -> list[PeerForm]:
        """Return the registries that it is connected to."""
        with self._stub() as stub:
            return [peer_form(peer) for peer in stub.ListPeers(mpb.Empty(), timeout=_LIMIT_S)]

    def validators(self) -> list[ValidatorForm]:
        """Return the validators of the current epoch."""
        with self._stub() as stub:
            return [validator_form(one) for one in stub.ListValidators(pb.ListRequest(), timeout=_LIMIT_S)]

    def reputations(self, account: bytes = b"") -> list[ReputationForm]:
        """Return the reputation of one account, or of all that are known.

        Raises:
            UnknownNode: nothing is known of this one.
        """
        with self._stub() as stub:
            if account:
                return [reputation_form(stub.GetReputation(mpb.WalletAddress(address=account), timeout=_LIMIT_S))]
            found: list[ReputationForm] = []
            while True:
                after = found[-1].account if found else ""
                page = list(map(reputation_form, stub.ListReputations(pb.ListRequest(after=after), timeout=_LIMIT_S)))
                if not page:
                    return found
                found += page

    def records(self, kind: str | None) -> list[RecordForm]:
        """Return the records that it shows, of a kind or all."""
        found = []
        with self._stub() as stub:
            call = stub.Watch(pb.WatchRequest(kinds=[kind] if kind else []), timeout=_LIMIT_S)
            for event in call:
                if event.HasField("synced"):
                    break
                if event.HasField("put"):
                    found.append(record_form(record_from_pb(event.put)))
            call.cancel()
        return sorted(found, key=lambda form: (form.kind, form.owner))

    def nodes(self, model: bytes) -> list[NodeForm]:
        """Return the nodes that are alive; those that serve ``model``, or all."""
        with self._stub() as stub:
            found = stub.DiscoverNodes(pb.DiscoverNodesRequest(model=model), timeout=_LIMIT_S)
            return sorted(map(_form, found), key=lambda form: form.node)

    def node(self, owner: bytes) -> NodeForm:
        """Return one node.

        Raises:
            UnknownNode: nobody knows it.
        """
        with self._stub() as stub:
            return _form(stub.GetNode(mpb.WalletAddress(address=owner), timeout=_LIMIT_S))

    @contextmanager
    def _stub(self) -> Iterator[Any]:
        with grpc.insecure_channel(self.target) as channel:
            try:
                yield P2PRegistryServiceStub(channel)
            except grpc.RpcError as cause:
                raise _error(cause, self.target) from cause


def _error(cause: Any, target: str) -> NcnError:
    error = error_from_rpc(cause, f"registry {target}")
    if cause.code() is grpc.StatusCode.UNAVAILABLE and not cause.trailing_metadata():
        return type(error)(f"registry {target} cannot be reached; start one: ncn serve registry, or name it with --at")
    return error


def _form(message: mpb.NodeInfo) -> NodeForm:
    record = record_from_pb(message.record)
    heard_ms = message.last_heard_ms
    return node_form(record, node_info_from_record(record), message.in_flight, heard_ms, heard_ms > 0)
