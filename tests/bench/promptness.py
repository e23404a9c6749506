"""How soon a request becomes a `watching` event, alone and 10,000 at once. `make bench` prints the table.

nats-server, the simulated vCenter, the bridge and this client are processes of their own; on a small machine they
share its cores, so CPU seconds of the bridge stand beside the time.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from lab import PASSWORD, USERNAME, NatsServer, until

ALONE, AT_ONCE = 20, 10_000
VCENTER = f"""
import asyncio
from task_bridge.simulator import Options, SimulatedVCenter
from task_bridge.simulator.serve import serving
async def main():
    async with serving(SimulatedVCenter(Options(username={USERNAME!r}, password={PASSWORD!r}))) as url:
        print(url, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


class Heard:
    """When each task's `watching` was seen by a plain subscriber."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    async def hear(self, message: Msg) -> None:
        token = message.subject.split(".")[4]
        self.at.setdefault(token, time.perf_counter())


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def created(vcenter_url: str, count: int) -> list[str]:
    async with httpx.AsyncClient(base_url=vcenter_url, trust_env=False, timeout=60) as http:
        answer = await http.post("/simulator/tasks", json={"fate": "stays_pending", "count": count})
        answer.raise_for_status()
        tasks: list[str] = answer.json()["tasks"]
        return tasks


async def alone(client: Client, heard: Heard, tasks: list[str]) -> list[float]:
    """Milliseconds from publish to event, one request after the other."""
    taken = []
    for task in tasks:
        began = time.perf_counter()
        await client.publish("vcenter.tasks.watch", json.dumps(task).encode())
        token = task.replace(".", "%2E")
        await until(lambda token=token: token in heard.at)  # type: ignore[misc] # when, `heard` knows
        taken.append((heard.at[token] - began) * 1000)
        await asyncio.sleep(0.2)
    return taken


async def at_once(client: Client, heard: Heard, tasks: list[str]) -> float:
    """Seconds from the first publish to the last event."""
    before = len(heard.at)
    began = time.perf_counter()
    for task in tasks:
        await client.publish("vcenter.tasks.watch", json.dumps(task).encode())
    await client.flush()
    await until(lambda: len(heard.at) >= before + len(tasks), within_s=120)
    return max(heard.at.values()) - began


async def measured(directory: Path) -> None:
    server = NatsServer(directory)
    server.start()
    # ASYNC220: starting them takes a moment, and nothing else runs here yet.
    vcenter = subprocess.Popen([sys.executable, "-c", VCENTER], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert vcenter.stdout is not None
    url = vcenter.stdout.readline().strip()
    environment = {
        **os.environ,
        "BRIDGE_NATS_URL": server.url,
        "BRIDGE_VCENTERS__LAB__URL": url,
        "BRIDGE_VCENTERS__LAB__USERNAME": USERNAME,
        "BRIDGE_VCENTERS__LAB__PASSWORD": PASSWORD,
        "BRIDGE_HTTP_LISTEN": "off",
    }
    log = directory / "bridge.log"
    with log.open("ab") as file:
        command = [sys.executable, "-m", "task_bridge", "serve"]
        bridge = subprocess.Popen(command, env=environment, cwd=directory, stdout=file, stderr=file)  # noqa: ASYNC220
    try:
        await until(lambda: '"event": "ready"' in log.read_text())
        client, heard = await nats.connect(server.url), Heard()
        await client.subscribe("vcenter.tasks.events.>", cb=heard.hear)
        await client.flush()
        lone = await alone(client, heard, await created(url, ALONE))
        tasks = await created(url, AT_ONCE)
        before_s = cpu_s(bridge.pid)
        burst_s = await at_once(client, heard, tasks)
        used_s = cpu_s(bridge.pid) - before_s
        await client.close()
    finally:
        for process in (bridge, vcenter):
            process.terminate()
            process.wait(15)
        server.stop()
    print(f"one request alone   median {statistics.median(lone):.1f} ms, worst {max(lone):.1f} ms of {ALONE}")
    print(f"{AT_ONCE:,} at once       last event after {burst_s:.2f} s, CPU of the bridge {used_s:.2f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measured(Path(name)))
