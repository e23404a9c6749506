"""Half-open HTTP connections take no file descriptor that NATS or vCenter needs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lab import BridgeProcess, Lab, until
from task_bridge.simulator import scenarios

FILES_MAX = 512
SERVE = ["sh", "-c", f'ulimit -n {FILES_MAX} && exec "$0" -m task_bridge serve', sys.executable]


@asynccontextmanager
async def half_open(port: int, count: int) -> AsyncIterator[None]:
    """So many connections at once that sent half of a request, and are opened anew when they are closed."""

    async def hold() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(b"GET /livez HTTP/1.1\r\nHost: local")
                    await reader.read()
                finally:
                    writer.close()
            await asyncio.sleep(0.2)

    holding = [asyncio.create_task(hold()) for _ in range(count)]
    try:
        yield
    finally:
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)


async def status(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


@pytest.mark.timeout(120)
async def test_hundreds_of_half_open_connections_keep_no_task_from_ending(lab: Lab, tmp_path: Path) -> None:
    process = BridgeProcess(lab.environment(), tmp_path, SERVE)
    await process.start()
    try:
        await process.ready()
        await lab.listen()
        lines = [json.loads(line) for line in process.log.read_text().splitlines()]
        port = next(line["port"] for line in lines if line["event"] == "http_listening")
        async with half_open(port, 2 * FILES_MAX):
            refused = asyncio.create_task(until_status(port, "/livez", 503))
            lab.server.stop()  # the next connection to it needs a file descriptor
            lab.server.start()
            await until(lambda: process.log.read_text().count('"nats_back"') or None, within_s=30)
            await until(lambda: lab.client.is_connected)
            tasks = [lab.vcenter.create(scenarios.succeeds(after_s=0.5)) for _ in range(20)]
            for task in tasks:
                await lab.publish(task)
            for task in tasks:
                assert (await lab.ended(task, within_s=30))["outcome"] == "succeeded"
            await refused
        await until_status(port, "/livez", 200)
        assert "Too many open files" not in process.log.read_text()
    finally:
        await process.close()


async def until_status(port: int, path: str, expected: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError, IndexError):
                if await status(port, path) == expected:
                    return
            await asyncio.sleep(0.05)
