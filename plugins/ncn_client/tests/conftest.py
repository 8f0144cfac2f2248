"""A fake gateway, and clients that ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from ncn_client import AsyncClient, Client

from .fakes import FakeGateway


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with Client("http://gateway", transport=httpx.MockTransport(gateway)) as made:
        yield made


@pytest.fixture
async def asking(gateway: FakeGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient("http://gateway", transport=httpx.MockTransport(gateway)) as made:
        yield made
