"""A complete bridge on one machine, in one event loop, with its own nats-server and a simulated vCenter over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..app import Bridge
from ..domain.errors import CannotStart
from ..settings import Settings
from ..simulator import SimulatedVCenter
from ..simulator.serve import serve_vcenter
from ..vcenter.policy import TIMEOUTS, Timeouts
from .nats_server import run_nats_server

READY_TIMEOUT_S = 10.0


class LocalStack(NamedTuple):
    """A bridge that is ready, its vCenter, and their addresses."""

    bridge: Bridge
    vcenter: SimulatedVCenter
    nats_url: str
    vcenter_url: str


@asynccontextmanager
async def run_local_stack(
    directory: Path, vcenter_name: str, timeouts: Timeouts = TIMEOUTS, **settings: Any
) -> AsyncIterator[LocalStack]:
    """Run the stack until the block ends. NATS keeps its data in `directory`; `settings` are the bridge's.

    Raises CannotStart.
    """
    vcenter = SimulatedVCenter()
    login = {"given_username": vcenter.options.username, "given_password": vcenter.options.password}
    async with run_nats_server(directory / "nats") as server, serve_vcenter(vcenter) as vcenter_url:
        addresses: dict[str, Any] = {
            "nats": {"urls": server.url},
            "vcenters": {vcenter_name: {"url": vcenter_url, **login}},
        }
        bridge = Bridge(Settings(**addresses, http_listen="127.0.0.1:0", allow_cancel=True, **settings), timeouts)
        async with bridge.running() as failed:
            await _wait_until_ready(bridge, failed)
            yield LocalStack(bridge, vcenter, server.url, vcenter_url)


async def _wait_until_ready(bridge: Bridge, failed: asyncio.Future[None]) -> None:
    deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
    while bridge.status.health().status == "unready":
        if failed.done():
            failed.result()
        if asyncio.get_running_loop().time() > deadline:
            raise CannotStart(f"The bridge isn't ready after {READY_TIMEOUT_S:.0f} s; see its log.")
        await asyncio.sleep(0.02)
