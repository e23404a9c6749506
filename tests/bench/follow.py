"""Follows: classic tasks that nobody asks for, 100 a second, 1,000 at once, and those of an hour of absence.

How soon a task is found is vCenter's own queue time until its `watching` event was stored. The other is a loop with
pyVmomi that reads a history collector, beside the bridge on the same tasks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from bench.scale import spread
from bench.stage import OPTIONS, Row, Stage, stage, staged
from lab import until
from task_bridge.domain.durations import parse_time

FOR_S, PER_SECOND, TOGETHER = 60, 100, 10
AT_ONCE = 1_000
HOUR_TASKS = 36_000
"""Ten tasks a second for an hour."""
TAKES_S = 8.0
RIVAL = Path(__file__).with_name("follow_rival.py")


class Found:
    """The tasks whose watches began, with how long after their queue time, and those that ended."""

    def __init__(self) -> None:
        self.after_s: dict[str, float] = {}
        self.ended: set[str] = set()

    async def hear(self, message: Msg) -> None:
        data = msgspec.json.decode(message.data)["data"]
        stored_at, queued_at = parse_time((message.headers or {})["Nats-Time-Stamp"]), parse_time(data["queued_at"])
        assert stored_at
        assert queued_at
        if data["kind"] == "watching":
            self.after_s[data["task"]] = stored_at - queued_at
        if data["final"]:
            self.ended.add(data["task"])


async def measure() -> AsyncIterator[Row]:
    async with stage() as it:
        async for row in _beside_rivals(it):
            yield row
    async with stage() as it:
        yield await _at_once(it)
    async for row in _absence():
        yield row


async def _beside_rivals(it: Stage) -> AsyncIterator[Row]:
    found = await _follow(it)
    rival = await _start_rival(it.url)
    before, tasks = await it.used(), list[str]()
    began = time.monotonic()
    for number in range(FOR_S * PER_SECOND // TOGETHER):
        await asyncio.sleep(max(0.0, began + number * TOGETHER / PER_SECOND - time.monotonic()))
        tasks += await _create(it, TOGETHER)
    created_s = time.monotonic() - began
    used = before.until(await it.used())
    await until(lambda: len(found.ended) >= len(tasks), 60.0)
    cpu_s = (await it.used()).cpu_s - before.cpu_s
    complete = 100 * len(found.after_s.keys() & set(tasks)) / len(tasks)
    yield Row(
        f"{len(tasks):,} tasks, {len(tasks) / created_s:.0f} a second: queue time to `watching`",
        f"{spread(list(found.after_s.values()))}; {complete:.1f} % found",
        "p50 ≤ 0.5 s, p99 ≤ 1.5 s, 100 %",
    )
    yield Row("   requests to vCenter, watches included", f"{used.requests / used.seconds:.1f}/s")
    yield Row("   the bridge's CPU per task, to its end", f"{1000 * cpu_s / len(tasks):.2f} ms")
    yield await _end_rival(rival, tasks)


async def _at_once(it: Stage) -> Row:
    found = await _follow(it)
    await _create(it, AT_ONCE)
    await until(lambda: len(found.after_s) >= AT_ONCE, 60.0)
    return Row(f"{AT_ONCE:,} tasks at once: queue time to `watching`", spread(list(found.after_s.values())))


async def _absence() -> AsyncIterator[Row]:
    """The bridge is away while an hour's tasks are queued; then it catches up."""
    async with staged({"BRIDGE_FOLLOW_MAX_RATE": "2000"}, OPTIONS) as it:
        found = await _follow(it)
        await it.bridge.end(within_s=30)
        for _ in range(HOUR_TASKS // AT_ONCE):
            await it.create(AT_ONCE, flavour="vim", fate="succeeds_at_once")
        began = time.monotonic()
        await it.bridge.start()
        await until(lambda: len(found.ended) >= HOUR_TASKS, 300.0)
        answer = await it.http.get(f"{it.url}/simulator/journal?operation=ReadNextTasks")
        pages = len(answer.json()["requests"])
        yield Row(
            f"{HOUR_TASKS:,} tasks of an absence: from the start until all have their endings",
            f"{time.monotonic() - began:.1f} s, {pages} pages of the history",
        )


async def _follow(it: Stage) -> Found:
    found = Found()
    await it.client.subscribe("vcenter.tasks.events.>", cb=found.hear)
    request = {"name": "bench", "services": ["VirtualMachine"]}
    reply = await it.client.request("vcenter.tasks.api.follow", json.dumps(request).encode(), timeout=15)
    assert json.loads(reply.data)["outcome"] == "accepted"
    await asyncio.sleep(5.0)
    return found


async def _create(it: Stage, count: int) -> list[str]:
    return await it.create(count, flavour="vim", fate="succeeds", **{"with": {"after_s": TAKES_S, "looks": 1}})


async def _start_rival(url: str) -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(RIVAL), url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def _end_rival(rival: Process, tasks: list[str]) -> Row:
    told, _ = await rival.communicate(b"\n")
    used: dict[str, Any] = json.loads(told)
    seen = {task: after_s for task, after_s in used["after_s"].items() if task in set(tasks)}
    measured = f"{spread(list(seen.values()))}; {100 * len(seen) / len(tasks):.1f} % found; "
    measured += f"{1000 * used['cpu_s'] / len(tasks):.1f} ms CPU a task"
    return Row("   pyVmomi, history each second: queue time to seen", measured)
