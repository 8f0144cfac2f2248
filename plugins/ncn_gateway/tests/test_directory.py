"""Who may be given no work: no candidate, no lease, whether it was connected before or comes after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ncn_framework.errors import NoCandidate, NodeLost
from ncn_framework.lifecycle import now_ms
from ncn_framework.models import Considered, ModelManifest, NodeInfo
from ncn_framework.signing import Signer
from ncn_framework.testing.fakes import fake_candidates, fake_signer
from ncn_framework.wire.convert import node_record
from ncn_gateway.directory import Directory
from ncn_gateway.links import NodeLink
from ncn_gateway.routing import choose

from .fakes import MANIFEST

NODE, OTHER = fake_signer("node"), fake_signer("another node")
SECOND = replace(MANIFEST, name="second")


def connect(
    directory: Directory, node: Signer, models: Sequence[ModelManifest] = (MANIFEST,), capacity: int = 1, at: int = 1
) -> None:
    """Put a node into the directory, as if it had connected."""
    entry = directory.put(node_record(NodeInfo(node.address, tuple(models), capacity, "strict"), at, now_ms() + 60_000))
    entry.link = entry.link or NodeLink(directory, node.address)


def served(directory: Directory, manifest: ModelManifest = MANIFEST) -> set[bytes]:
    """Return the candidates for a model."""
    return {candidate.node for candidate in directory.find(manifest.digest)}


@pytest.mark.parametrize("before", [True, False])
async def test_who_is_out_is_no_candidate_until_it_is_in_again(before: bool) -> None:
    directory = Directory()
    connect(directory, OTHER)
    if before:
        connect(directory, NODE, (MANIFEST, SECOND))
    directory.stand(NODE.address, True, "jailed")
    if not before:
        connect(directory, NODE, (MANIFEST, SECOND))
    assert served(directory) == {OTHER.address}
    assert served(directory, SECOND) == set()
    route = await choose(directory.find(MANIFEST.digest))
    assert (route.node, route.considered[-1]) == (OTHER.address, Considered(NODE.address, "standing"))
    with pytest.raises(NoCandidate, match="all 1 nodes that serve the model are out of service"):
        await choose(directory.find("second"))
    with pytest.raises(NoCandidate, match="may be given no work: jailed"):
        async with directory.lease(NODE.address, 1):
            pass
    connect(directory, NODE, (MANIFEST, SECOND), at=2)  # a new record changes nothing
    assert served(directory) == {OTHER.address}
    directory.stand(NODE.address, False, "freed")
    assert served(directory) == {NODE.address, OTHER.address}
    assert served(directory, SECOND) == {NODE.address}
    async with directory.lease(NODE.address, 1):
        assert directory.nodes[NODE.address].in_flight == 1


async def test_standing_outlives_a_connection() -> None:
    directory = Directory()
    connect(directory, NODE)
    directory.stand(NODE.address, True, "jailed")
    directory.stand(NODE.address, True, "jailed again")
    directory.remove(NODE.address)
    assert directory.models == {}
    connect(directory, NODE)
    assert served(directory) == set()
    directory.stand(OTHER.address, False, "was never out")
    assert directory.out == {NODE.address: "jailed again"}


async def test_who_waits_for_a_node_that_is_put_out_fails_and_what_runs_goes_on() -> None:
    directory = Directory()
    connect(directory, NODE)
    async with directory.lease(NODE.address, 1):
        waiting = asyncio.create_task(directory.lease(NODE.address, 1).__aenter__())
        while not directory.nodes[NODE.address].waiting:
            await asyncio.sleep(0)
        directory.stand(NODE.address, True, "jailed")
        with pytest.raises(NodeLost, match=r"was put out of service \(jailed\) while the request waited"):
            await waiting
        assert directory.nodes[NODE.address].in_flight == 1
    assert directory.nodes[NODE.address].in_flight == 0


async def test_a_route_names_a_few_of_many_that_are_out() -> None:
    directory = Directory()
    connect(directory, NODE)
    for number in range(100):
        other = fake_signer(f"node {number}")
        connect(directory, other)
        directory.stand(other.address, True, "jailed")
    route = await choose(directory.find(MANIFEST.digest))
    assert [one.reason for one in route.considered] == ["chosen", *["standing"] * 8]


async def test_other_candidates_than_the_directorys_are_chosen_from_all_the_same() -> None:
    assert (await choose(fake_candidates(2))).considered[0].reason in ("chosen", "higher-score")
