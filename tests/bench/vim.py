"""Classic tasks: 5,000 at once, of which 100 a second end, and 5,000 of which nothing is to be told.

How soon an end is noticed is vCenter's own time of it until the event was stored; the others are pyVmomi's own
waiter in threads and a loop that pulls, on the same vCenter, one after the other.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.scale import Ends, spread
from bench.stage import Row, Stage, stage

SIZE, PER_SECOND, TOGETHER = 5_000, 100, 10
TAKE_UP_S = 15.0
IDLE_S = 180.0
RIVALS = Path(__file__).with_name("vim_rivals.py")
RIVAL_SIZES = {"threads": 200, "pull": SIZE}


async def measure() -> AsyncIterator[Row]:
    async with stage() as it:
        async for row in _ending(it):
            yield row
        yield await _idle(it)
    for way, size in RIVAL_SIZES.items():
        async with stage() as it:
            yield await _rival(it, way, size)


async def _ending(it: Stage) -> AsyncIterator[Row]:
    noticed, requests_a_s, a_task_ms = await follow_to_end(it, SIZE)
    yield Row(f"{SIZE:,} classic tasks, {PER_SECOND} end per second: end to event", noticed, "p50 ≤ 0.2 s, p99 ≤ 1 s")
    yield Row("   requests to vCenter meanwhile", f"{requests_a_s:.1f}/s", "≤ 4/s")
    yield Row("   the bridge's CPU per task, in all", f"{a_task_ms:.2f} ms", "≤ 1.5 ms")


async def follow_to_end(it: Stage, size: int) -> tuple[str, float, float]:
    """How soon ends are noticed, requests a second meanwhile, and milliseconds of CPU a task in all."""
    ends = Ends()
    await it.client.subscribe("vcenter.tasks.events.*.*.completed.>", cb=ends.hear)
    await it.client.flush()
    cpu_s = it.cpu_s()
    tasks = await _tasks(it, size, TAKE_UP_S)
    await it.watch(tasks)
    await it.has("watching", size)
    await ends.are(1)
    before = await it.used()
    await ends.are(size - PER_SECOND)
    used = before.until(await it.used())
    await ends.are(size)
    a_task_ms = 1000 * (it.cpu_s() - cpu_s) / size
    return spread([end.noticed_s for end in ends.all]), used.requests / used.seconds, a_task_ms


async def _idle(it: Stage) -> Row:
    await it.watch(await it.create(SIZE, fate="stays_pending", flavour="vim"))
    await it.has("watching", 2 * SIZE)
    await asyncio.sleep(10.0)
    used = await it.used_in(IDLE_S)
    a_minute = 60 * used.requests / used.seconds
    return Row(
        f"{SIZE:,} classic tasks, nothing happens",
        f"{a_minute:.1f} requests/min, {used.core_percent:.1f} % CPU",
        "2/min",
    )


async def _rival(it: Stage, way: str, size: int) -> Row:
    tasks = await _tasks(it, size, TAKE_UP_S)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "tasks.json"
        file.write_text(json.dumps(tasks))
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(RIVALS), way, it.url, str(file), stdout=asyncio.subprocess.PIPE
        )
        told, _ = await process.communicate()
    assert process.returncode == 0, way
    used = json.loads(told)
    measured = f"{spread(used['noticed_s'])}; {1000 * used['cpu_s'] / size:.1f} ms CPU a task"
    return Row(f"   pyVmomi, {way}, {size:,} tasks", measured)


async def _tasks(it: Stage, size: int, first_end_s: float) -> list[str]:
    """So many that end one after the other."""
    began, tasks = time.monotonic(), list[str]()
    for first in range(0, size, TOGETHER):
        ends_s = first_end_s + first / PER_SECOND - (time.monotonic() - began)
        tasks += await it.create(TOGETHER, flavour="vim", **{"with": {"after_s": ends_s, "looks": 1}})
    return tasks
