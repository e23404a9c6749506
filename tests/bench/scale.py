"""Ten and fifty thousand watches on default settings, whose tasks' progress changes every 30 s.

How soon an end is noticed is read from the stored events themselves: the end by vCenter's clock, and when
nats-server stored it, both of this machine. A quiet time begins when looks have become as rare as they get.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

import msgspec
from nats.aio.msg import Msg

from bench.stage import Row, Stage, stage
from lab import until
from task_bridge.domain.durations import parse_time
from task_bridge.simulator import Script, Step
from task_bridge.simulator.script import progress

EVERY_S = 30.0
SETTLED_S = 200.0
"""Looks are as rare as they get, one in 15 s, from here on."""
WINDOW_S = 45.0
GROUPS = 100


class End(NamedTuple):
    """A task that ended: how old its watch was, and how long until the event was stored, in seconds."""

    age_s: float
    noticed_s: float


class Ends:
    """The ends that the stream has stored."""

    def __init__(self) -> None:
        self.all: list[End] = []

    async def are(self, count: int, within_s: float = 300.0) -> None:
        """Waits until there are so many."""
        await until(lambda: len(self.all) >= count, within_s)

    async def hear(self, message: Msg) -> None:
        data = msgspec.json.decode(message.data)["data"]
        stored_at = parse_time((message.headers or {})["Nats-Time-Stamp"])
        began, ended_at = parse_time(data["watch"]["since"]), parse_time(data["ended_at"])
        assert began
        assert ended_at
        assert stored_at
        self.all.append(End(ended_at - began, stored_at - ended_at))


def script(ends_after_s: float, first_change_s: float) -> dict[str, Any]:
    """Runs with a change of progress every 30 s, then succeeds."""
    changes = [first_change_s + EVERY_S * n for n in range(int(ends_after_s / EVERY_S) + 1)]
    steps = [
        Step(0.0, {"status": "RUNNING", "progress": progress(0)}),
        *(Step(at, {"progress": progress(n + 1)}) for n, at in enumerate(changes) if at < ends_after_s),
        Step(ends_after_s, {"status": "SUCCEEDED", "progress": progress(100), "result": {"status": "OK"}}),
    ]
    made: dict[str, Any] = msgspec.to_builtins(Script(tuple(steps)))
    return made


async def watched(it: Stage, count: int, first_end_s: float, last_end_s: float) -> None:
    """So many tasks, watched, that end spread over a time."""
    for number in range(GROUPS):
        share = number / GROUPS
        ends_s = first_end_s + (last_end_s - first_end_s) * share
        await it.watch(await it.create(count // GROUPS, script=script(ends_s, EVERY_S * share)))


async def ten_thousand() -> AsyncIterator[Row]:
    count = 10_000
    async with stage() as it:
        ends = Ends()
        await it.client.subscribe("vcenter.tasks.events.*.*.completed.>", cb=ends.hear)
        await watched(it, count, 12.0, 30.0)
        await ends.are(count)
        noticed = sorted(end.noticed_s for end in ends.all)
        yield Row(f"{count:,} tasks of 12 to 30 s: end to event", spread(noticed), "p50 ≤ 1 s, p99 ≤ 3 s")
        ends.all.clear()
        await watched(it, count, SETTLED_S + WINDOW_S, SETTLED_S + WINDOW_S + 30)
        async for row in quiet(it, count, goals=("≤ 10 %, ≤ 20 requests/s", "", "≤ 100 ms")):
            yield row
        await ends.are(count)
        over = max(end.noticed_s - end.age_s / 10 for end in ends.all)
        words = f"{spread(sorted(end.noticed_s for end in ends.all))}, a tenth of the age {over:+.1f} s"
        yield Row("   older tasks: end to event", words, "≤ a tenth + 1 s")


async def fifty_thousand() -> AsyncIterator[Row]:
    count = 50_000
    async with stage() as it:
        await watched(it, count, 3_600.0, 3_600.0)
        async for row in quiet(it, count, goals=("≤ 18 %", "≤ 250 MB", "≤ 100 ms")):
            yield row


async def quiet(it: Stage, count: int, goals: tuple[str, str, str]) -> AsyncIterator[Row]:
    """What the bridge needs once all tasks are watched and as seldom looked at as can be."""
    began = asyncio.get_running_loop().time()
    before = await it.used()
    lags = await lags_until(it, began + SETTLED_S)
    growing = before.until(await it.used())
    used = await it.used_in(WINDOW_S)
    rates = f"{used.looks / used.seconds:,.0f} looks, {used.events / used.seconds:,.0f} events, "
    words = f"{used.core_percent:.1f} % of a core; {rates}{used.requests / used.seconds:.1f} requests a second"
    yield Row(f"{count:,} watches", words, goals[0])
    words = f"{growing.core_percent:.1f} %; {growing.requests / growing.seconds:.1f} requests a second"
    yield Row("   while the tasks are young", words)
    yield Row("   memory", f"{it.rss_mb():.0f} MB", goals[1])
    lag_ms = 1000 * await it.lag_s()
    yield Row("   event loop late by at most", f"{lag_ms:.0f} ms; before that {1000 * max(lags):.0f} ms", goals[2])


async def lags_until(it: Stage, at: float) -> list[float]:
    """The worst lateness of the event loop in every while up to then."""
    lags = []
    while (left_s := at - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(min(20.0, left_s))
        lags.append(await it.lag_s())
    return lags


def spread(ordered: Iterable[float]) -> str:
    cuts = statistics.quantiles(ordered, n=100)
    return f"p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s"
