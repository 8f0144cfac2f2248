"""A compute node hears from its registry of subnets whose owner signed them, each version once, and of no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ncn_framework.errors import CapacityError
from ncn_framework.models import Domain, Record
from ncn_framework.wire import registry_pb2 as pb
from ncn_framework.wire.convert import record_to_pb
from ncn_framework.wire.convert_subnets import ENDORSED_SUBNET
from ncn_registry.records import Judge
from ncn_registry.subnets_heard import SubnetsHeard

from .network import Sea, a_registry, running, signed, until
from .test_client import a_role, heard_by
from .test_service import info
from .validators import OPERATOR, FakeValidators, a_configuration, a_published


class Told:
    """A registry's stub that tells these records and hangs up."""

    def __init__(self, *records: Record) -> None:
        self.records = records

    def Watch(self, request: pb.WatchRequest, wait_for_ready: bool) -> Told:  # noqa: N802 - gRPC's name
        assert list(request.kinds) == [ENDORSED_SUBNET]
        return self

    def __aiter__(self) -> Any:
        return self._events()

    async def _events(self) -> Any:
        for record in self.records:
            yield pb.WatchEvent(put=record_to_pb(record))

    def cancel(self) -> None:
        """Nothing goes on."""


async def test_a_node_hears_of_subnets_and_a_gateway_does_not(tmp_path: Path) -> None:
    async with a_registry(tmp_path / "r", Sea(), [FakeValidators()]) as registry:
        compute = a_role("compute", tmp_path / "compute", registry.target)
        gateway = a_role("gateway", tmp_path / "gateway", registry.target)
        async with running(compute), running(gateway):
            first = a_published(a_configuration())
            await registry.stub.RegisterNode(info(first))
            await until(lambda: first in heard_by(compute))
            second = a_published(a_configuration(sequence=2))
            await registry.stub.RegisterNode(info(second))
            await until(lambda: second in heard_by(compute))
            assert not [record for record in heard_by(gateway) if record.kind == ENDORSED_SUBNET]


async def test_what_its_owner_did_not_sign_is_not_passed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = a_role("compute", tmp_path / "compute", "")
    heard = SubnetsHeard(node, Judge(Domain(), node.lifecycle.clock))
    good = a_published(a_configuration(sequence=3))
    unsigned = replace(a_configuration(sequence=4), signature=a_configuration(sequence=9).signature)
    forged = [
        replace(a_published(a_configuration(sequence=4)), signature=good.signature),
        a_published(unsigned),
        signed(replace(good, sequence=5, payload=b"nothing"), OPERATOR),
    ]
    with pytest.raises(CapacityError, match="ended the watch"):
        await heard.watch(Told(*forged, good, good, a_published(a_configuration(sequence=2)), *forged))
    assert heard_by(node) == [good]
    assert caplog.text.count("does not count") == 6
    with pytest.raises(CapacityError):
        await heard.watch(Told(good))
    assert heard_by(node) == [good], "told again after a break"
