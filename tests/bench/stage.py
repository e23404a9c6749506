"""What the benches stand on: nats-server, a simulated vCenter and the bridge, each a process of its own.

On a small machine they share its cores with the bench itself, so CPU seconds of the bridge's process count more
than times.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import nats
from nats.aio.client import Client
from prometheus_client.parser import text_string_to_metric_families

from lab import PASSWORD, USERNAME, BridgeProcess, NatsServer
from task_bridge.simulator import Options

VCENTER = """
import asyncio, gc, msgspec, sys, uvloop
from contextlib import AsyncExitStack
from task_bridge.simulator import Options, SimulatedVCenter
from task_bridge.simulator.serve import serve_vcenter
async def main():
    gc.set_threshold(200_000, 20, 100)
    options = msgspec.json.decode(sys.argv[1], type=Options)
    async with AsyncExitStack() as stack:
        for _ in range(int(sys.argv[2])):
            print(await stack.enter_async_context(serve_vcenter(SimulatedVCenter(options))), flush=True)
        await asyncio.Event().wait()
uvloop.run(main())
"""


SERVE = """
import runpy, sys
sys.modules["aiohttp"] = None
runpy.run_module("task_bridge", run_name="__main__", alter_sys=True)
"""
"""`task-bridge serve` without aiohttp, 8 MB that nats-py imports where it is: only tests install it."""
OPTIONS = Options(username=USERNAME, password=PASSWORD)


class Row(NamedTuple):
    """A line of the table; `load` is the machine's load average over the last minute."""

    what: str
    measured: str
    goal: str = ""

    def __str__(self) -> str:
        return f"{self.what:<46} {self.measured:<50} {self.goal:<24} {os.getloadavg()[0]:4.1f}"


class Used(NamedTuple):
    """What a process used and did, from one moment to another."""

    seconds: float
    cpu_s: float
    looks: float
    requests: float
    events: float

    def until(self, later: Used) -> Used:
        return Used(*(after - before for before, after in zip(self, later, strict=True)))

    @property
    def core_percent(self) -> float:
        return 100 * self.cpu_s / self.seconds

    @property
    def us_a_look(self) -> float:
        return 1e6 * self.cpu_s / self.looks


class Stage:
    """A bridge at work, and what happens around it."""

    def __init__(self, server: NatsServer, url: str, bridge: BridgeProcess, client: Client, ready_s: float) -> None:
        self.url = url
        self.ready_s = ready_s
        self.bridge = bridge
        self.client = client
        self.http = httpx.AsyncClient(trust_env=False, timeout=60)
        self._server = server
        self._reading_cpu_s = 0.0
        self._pages = f"http://127.0.0.1:{_port(bridge.log)}"

    async def create(self, count: int, **about: Any) -> list[str]:
        """So many tasks in vCenter, of one fate or script."""
        answer = await self.http.post(f"{self.url}/simulator/tasks", json={"count": count, **about})
        answer.raise_for_status()
        tasks: list[str] = answer.json()["tasks"]
        return tasks

    async def watch(self, requests: Iterable[object]) -> None:
        """Publishes each request: a task's id, or more about it."""
        for request in requests:
            await self.client.publish("vcenter.tasks.watch", json.dumps(request).encode())
        await self.client.flush()

    async def has(self, name: str, count: int, within_s: float = 180.0) -> None:
        """Waits until the bridge has counted so many."""
        deadline = time.monotonic() + within_s
        while (await self.counted())[name] < count:
            assert time.monotonic() < deadline, f"not {count} {name} within {within_s} s"
            await asyncio.sleep(0.5)

    async def counted(self) -> Counter[str]:
        """The bridge's metrics by name, over all labels; and `watching`, those events alone."""
        answer = await self.scrape()
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                sums[sample.name.removeprefix("task_bridge_")] += sample.value  # type: ignore[assignment]
                if sample.labels.get("kind") == "watching" and sample.name.endswith("events_total"):
                    sums["watching"] += sample.value  # type: ignore[assignment]
        return sums

    async def scrape(self) -> httpx.Response:
        return await self.http.get(f"{self._pages}/metrics")

    async def used(self) -> Used:
        """All that the bridge used and did so far, but for what this reading of its metrics takes."""
        seconds, cpu_s = asyncio.get_running_loop().time(), self.cpu_s()
        counted, not_counted_s = await self.counted(), self._reading_cpu_s
        self._reading_cpu_s += self.cpu_s() - cpu_s
        done = [counted[name] for name in ("looks_total", "vcenter_requests_total", "events_total")]
        return Used(seconds, cpu_s - not_counted_s, *done)

    async def used_in(self, seconds: float) -> Used:
        before = await self.used()
        await asyncio.sleep(seconds)
        return before.until(await self.used())

    def cpu_s(self) -> float:
        return _cpu_s(self.bridge.pid)

    def nats_cpu_s(self) -> float:
        return _cpu_s(self._server.pid)

    def rss_mb(self) -> float:
        return rss_mb(self.bridge.pid)

    def nats_mb(self) -> float:
        return rss_mb(self._server.pid)

    def open_files(self) -> int:
        """The bridge's open files, sockets among them."""
        return len(os.listdir(f"/proc/{self.bridge.pid}/fd"))

    def loop_tasks(self) -> int:
        """How many tasks the bridge's event loop has, as its command wrote it down."""
        return int((self.bridge.log.parent / "tasks").read_text() or 0)

    async def lag_s(self) -> float:
        """The longest that the event loop was late within the last half to whole minute."""
        return float((await self.counted())["event_loop_lag_seconds"])


@asynccontextmanager
async def stage(**environment: str) -> AsyncIterator[Stage]:
    """All of it, on default settings but for `environment`; gone afterwards."""
    async with staged(environment, OPTIONS) as it:
        yield it


@asynccontextmanager
async def staged(environment: dict[str, str], options: Options, serve: list[str] | None = None) -> AsyncIterator[Stage]:
    """The same with `options` of the simulated vCenter, and another command that runs the bridge."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        server = NatsServer(directory)
        server.start()
        async with vcenter(options) as url:
            command = serve or [sys.executable, "-c", SERVE, "serve"]
            bridge = BridgeProcess(_environment(server.url, url, environment), directory, command)
            try:
                began = time.monotonic()
                await bridge.start()
                await bridge.ready(within_s=120)
                ready_s = time.monotonic() - began
                client = await nats.connect(server.url)
                it = Stage(server, url, bridge, client, ready_s)
                yield it
                await it.http.aclose()
                await client.close()
                await bridge.end(within_s=30)
            finally:
                await bridge.close()
                server.stop()


def _cpu_s(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) makes it; /proc counts in steps of 10 ms


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@asynccontextmanager
async def vcenter(options: Options = OPTIONS) -> AsyncIterator[str]:
    """The URL of a simulated vCenter in a process of its own."""
    async with vcenters(1, options) as urls:
        yield urls[0]


@asynccontextmanager
async def vcenters(count: int, options: Options = OPTIONS) -> AsyncIterator[list[str]]:
    """The URLs of so many simulated vCenters, in one process of their own."""
    # ASYNC220: starting it takes a moment, and nothing else runs here yet.
    command = [sys.executable, "-c", VCENTER, msgspec.json.encode(options).decode(), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert process.stdout is not None
    try:
        yield [process.stdout.readline().strip() for _ in range(count)]
    finally:
        process.terminate()
        process.wait(15)


def _environment(nats_url: str, vcenter_url: str, more: dict[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "BRIDGE_NATS_URL": nats_url,
        "BRIDGE_VCENTERS__LAB__URL": vcenter_url,
        "BRIDGE_VCENTERS__LAB__USERNAME": USERNAME,
        "BRIDGE_VCENTERS__LAB__PASSWORD": PASSWORD,
        "BRIDGE_HTTP_LISTEN": "127.0.0.1:0",
        **more,
    }


def _port(log: Path) -> int:
    line = next(line for line in log.read_text().splitlines() if '"http_listening"' in line)
    return int(json.loads(line)["port"])
