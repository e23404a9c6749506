"""How soon a request becomes a `watching` event, and an end its event: alone, and 10,000 at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

from nats.aio.msg import Msg

from bench.scale import Ends, spread
from bench.stage import Row, Stage, stage
from lab import until

ALONE, AT_ONCE = 20, 10_000
END_AFTER_S = 20.0


class Heard:
    """When each task's `watching` was seen by a plain subscriber."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    async def hear(self, message: Msg) -> None:
        token = message.subject.split(".")[4]
        self.at.setdefault(token, time.perf_counter())


async def measure() -> AsyncIterator[Row]:
    async with stage() as it:
        heard = Heard()
        await it.client.subscribe("vcenter.tasks.events.>", cb=heard.hear)
        await it.client.flush()
        lone = await alone(it, heard, await it.create(ALONE, fate="stays_pending"))
        words = f"median {statistics.median(lone):.1f} ms, worst {max(lone):.1f} of {ALONE}"
        yield Row("one request: publish to its event", words)
        tasks = await it.create(AT_ONCE, fate="stays_pending")
        before_s = it.cpu_s()
        burst_s = await at_once(it, heard, tasks)
        words = f"{burst_s:.1f} s, CPU {it.cpu_s() - before_s:.1f} s"
        yield Row(f"{AT_ONCE:,} requests at once: to the last event", words, "≤ 2.5 s")
        words = await ends_at_once(it)
        yield Row(f"{AT_ONCE:,} ends at once: end to event", words)


async def alone(it: Stage, heard: Heard, tasks: list[str]) -> list[float]:
    """Milliseconds from publish to event, one request after the other."""
    taken = []
    for task in tasks:
        began = time.perf_counter()
        await it.watch([task])
        token = task.replace(".", "%2E")
        await until(lambda token=token: token in heard.at)  # type: ignore[misc] # when, `heard` knows
        taken.append((heard.at[token] - began) * 1000)
        await asyncio.sleep(0.2)
    return taken


async def at_once(it: Stage, heard: Heard, tasks: list[str]) -> float:
    """Seconds from the first publish to the last event."""
    before = len(heard.at)
    began = time.perf_counter()
    await it.watch(tasks)
    await until(lambda: len(heard.at) >= before + len(tasks), within_s=120)
    return max(heard.at.values()) - began


async def ends_at_once(it: Stage) -> str:
    """How soon ends are noticed that come together, and the CPU until the last event."""
    ends, watching = Ends(), (await it.counted())["watching"]
    await it.client.subscribe("vcenter.tasks.events.*.*.completed.>", cb=ends.hear)
    await it.watch(await it.create(AT_ONCE, fate="succeeds", **{"with": {"after_s": END_AFTER_S}}))
    await it.has("watching", watching + AT_ONCE)
    await ends.are(1)
    before_s = it.cpu_s()
    await ends.are(AT_ONCE)
    return f"{spread([end.noticed_s for end in ends.all])}; CPU {it.cpu_s() - before_s:.1f} s"
