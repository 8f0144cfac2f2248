"""Chains to test on: the embedded one and anvil, through one fixture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ncn_framework.errors import ChainError
from ncn_framework.signing import Signer
from ncn_payments.chain import Chain
from ncn_payments.devkeys import CHAIN_ID, development_signer

if TYPE_CHECKING:
    from .network import Network

KINDS = ("embedded", "anvil")


def make_chain(kind: str, folder: Path) -> AbstractAsyncContextManager[Chain]:
    """Return a chain whose state is kept in ``folder``, to be entered."""
    if kind == "embedded":
        from ncn_payments.chain.embedded import EmbeddedChain

        return EmbeddedChain(folder)
    from ncn_payments.chain.anvil import AnvilChain, find_anvil

    try:
        find_anvil()
    except ChainError as error:
        pytest.skip(str(error))
    return AnvilChain(folder)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of development chain."""
    return str(request.param)


@pytest.fixture
def opened(kind: str, tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[Chain]]:
    """Opens the chain of this test; a second time, with the state that the first left."""
    return lambda: make_chain(kind, tmp_path / "chain")


@pytest.fixture
async def chain(opened: Callable[[], AbstractAsyncContextManager[Chain]]) -> AsyncIterator[Chain]:
    async with opened() as made:
        yield made


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Chain]:
    async with make_chain("embedded", tmp_path / "chain") as made:
        yield made


@pytest.fixture
def deployer() -> Signer:
    return development_signer("deployer", CHAIN_ID)


@pytest.fixture
def client() -> Signer:
    return development_signer("client", CHAIN_ID)


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the environment, .env and ncn.toml of whoever runs the tests out of them."""
    import os

    for name in [name for name in os.environ if name.startswith("NCN_")] + ["RPC_URL", "PRIVATE_KEY", "PROPOSERS"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCN_HOME", str(tmp_path / "home"))


# --- a whole network ---


@pytest.fixture(scope="session")
def prepared_networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a development network on a kind of chain that is up and that nobody has used yet."""
    from .network import prepared_folder

    return cache(lambda kind: prepared_folder(kind, tmp_path_factory.mktemp(f"network-{kind}")))


@pytest.fixture
async def network(
    request: pytest.FixtureRequest, prepared_networks: Callable[[str], Path], tmp_path: Path
) -> AsyncIterator[Network]:
    """A network of this test's own; on the embedded chain, or on that of the (indirect) parameter."""
    from .network import opened_network

    kind = getattr(request, "param", "embedded")
    prepared = await asyncio.to_thread(prepared_networks, kind)
    async with opened_network(kind, prepared, tmp_path / "network") as opened:
        yield opened
