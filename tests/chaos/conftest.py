"""nats-servers that the tests share, one and a cluster of three; each test has a prefix of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chaos.servers import Servers
from chaos.world import World, world


def _servers(directory: Path, replicas: int) -> Iterator[Servers]:
    servers = Servers(directory, replicas)
    servers.start()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    yield from _servers(tmp_path_factory.mktemp("R1"), 1)


@pytest.fixture(scope="session")
def three_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    yield from _servers(tmp_path_factory.mktemp("R3"), 3)


@pytest.fixture(params=["one_server", "three_servers"], ids=["R1", "R3"])
def servers(request: pytest.FixtureRequest) -> Servers:
    """Both, one after the other."""
    servers: Servers = request.getfixturevalue(request.param)
    return servers


_numbers = iter(range(1, 10_000))


@pytest.fixture
async def here(one_server: Servers, tmp_path: Path) -> AsyncIterator[World]:
    """A world on one nats-server."""
    async with world(tmp_path, one_server, f"w{next(_numbers)}") as here:
        yield here


@pytest.fixture
async def anywhere(servers: Servers, tmp_path: Path) -> AsyncIterator[World]:
    """A world on one nats-server, and another one on three."""
    async with world(tmp_path, servers, f"w{next(_numbers)}") as here:
        yield here
