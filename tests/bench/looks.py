"""What a look costs: the bridge, the floor under it, and what a user would write, one after the other by size.

Every task is looked at every 2 s by each of them. The bridge does everything else beside it: holds the watches,
says so to JetStream, watches its loop. Nothing changes in vCenter meanwhile. The lister runs at the same time as the
bridge, since what a shared machine gives changes by a third from one minute to the next.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

from bench.stage import Row, Stage, Used, stage
from lab import PASSWORD, USERNAME

SIZES = (1_000, 10_000, 50_000)
EVERY_2_S = {
    "BRIDGE_POLL_MIN": "2s",
    "BRIDGE_POLL_MAX": "2s",
    "BRIDGE_VCENTERS__LAB__MAX_REQUESTS_PER_SECOND": "1000",
}
WINDOW_S, WINDOWS = 10.0, 5
RIVALS = Path(__file__).with_name("rivals.py")


async def measure() -> AsyncIterator[Row]:
    for size in SIZES:
        async for row in at(size):
            yield row


async def at(size: int) -> AsyncIterator[Row]:
    async with stage(**EVERY_2_S) as it:
        tasks = await it.create(size, fate="runs_forever")
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "tasks.json"
            file.write_text(json.dumps({"session": await session(it), "tasks": tasks}))
            floor = await rival("floor", it, file, 4.0)
            by_hand = {way: await rival(way, it, file, 8.0) for way in written_by_hand(size)}
            await it.watch(tasks)
            await it.has("watching", size)
            await asyncio.sleep(4.0)
            pairs = [
                await asyncio.gather(it.used_in(WINDOW_S), rival("program", it, file, WINDOW_S)) for _ in range(WINDOWS)
            ]
    ratios = sorted(bridge.us_a_look / program.us_a_look for bridge, program in pairs)
    looks_per_s = sum(bridge.looks for bridge, _ in pairs) / sum(bridge.seconds for bridge, _ in pairs)
    yield Row(
        f"CPU per poll, {size:,} tasks: the bridge to the lister",
        f"{median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f}); {looks_per_s:,.0f}/s",
        "≤ 1.5 times",
    )
    yield Row(f"   {size:,}: the bridge", f"{median(bridge.us_a_look for bridge, _ in pairs):.1f} µs")
    yield Row(
        f"   {size:,}: lister, every 2 s, nothing else", f"{median(program.us_a_look for _, program in pairs):.1f} µs"
    )
    yield Row(f"   {size:,}: lister, in a tight loop", f"{floor.us_a_look:.1f} µs")
    for way, used in by_hand.items():
        asked = used.looks / used.seconds
        yield Row(
            f"   {size:,}: one coroutine per task, {way}",
            f"{used.us_a_look:,.0f} µs; {asked:,.0f}/s of {size / 2:,.0f}",
        )


def written_by_hand(size: int) -> tuple[str, ...]:
    return {1_000: ("aiohttp", "httpx"), 10_000: ("aiohttp",)}.get(size, ())


async def session(it: Stage) -> str:
    answer = await it.http.post(f"{it.url}/api/session", auth=(USERNAME, PASSWORD))
    answer.raise_for_status()
    return str(answer.json())


async def rival(way: str, it: Stage, file: Path, seconds: float) -> Used:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(RIVALS), way, it.url, str(file), str(seconds), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, way
    used = json.loads(told)
    return Used(used["seconds"], used["cpu_s"], used["looks"], 0, 0)
