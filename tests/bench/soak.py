"""Watches that come and end at 200 a second, with results of 1 kB to 5 MB now and then: what of it stays?

Nothing may: not memory, not open files, not tasks of the event loop, not messages. EVENTS and the results age out
after four minutes here, so from the fifth on their streams are to be as large as they were.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import msgspec

from bench.stage import OPTIONS, Row, Stage, staged
from task_bridge.domain.subjects import CONSUMER, SubjectNames
from task_bridge.simulator import scenarios

A_SECOND = 300
LASTS_S = (2.0, 5.0, 10.0, 20.0)
SAMPLE_S = 60.0
EVENTS_MAX_AGE = "4m"
NAMES = SubjectNames("vcenter.tasks")
STREAMS = {
    "requests": NAMES.requests_stream,
    "watches": NAMES.watches_stream,
    "events": NAMES.events_stream,
    "results": f"OBJ_{NAMES.results_bucket}",
}
COUNTED = """
import asyncio, sys
from pathlib import Path
from task_bridge import app
serve = app.serve
async def counted(settings):
    async def count():
        while True:
            Path("tasks").write_text(str(len(asyncio.all_tasks())))
            await asyncio.sleep(1)
    counting = asyncio.create_task(count())
    await serve(settings)
    counting.cancel()
app.serve = counted
from task_bridge.cli import main
sys.argv = ["task-bridge", "serve"]
main()
"""
"""The bridge, which writes down how many tasks its event loop has."""


class Sample(NamedTuple):
    """How it stands `at_s` seconds after the beginning."""

    at_s: float
    rss_mb: float
    nats_mb: float
    files: int
    tasks: int
    asked: int
    ended: int
    cpu_percent: float
    streams: dict[str, tuple[int, int]]
    pending: tuple[int, int]

    def __str__(self) -> str:
        streams = ", ".join(f"{name} {count:,}/{size / 1e6:.1f} MB" for name, (count, size) in self.streams.items())
        return (
            f"{self.rss_mb:.0f} MB, {self.files} files, {self.tasks} tasks; {self.asked:,} asked, "
            f"{self.asked - self.ended:,} open; {self.cpu_percent:.0f} % CPU; {streams}; "
            f"{self.pending[0]} held, {self.pending[1]} pending; nats-server {self.nats_mb:.0f} MB"
        )


async def measure() -> AsyncIterator[Row]:
    minutes = float(os.environ.get("MINUTES") or 30)
    options = msgspec.structs.replace(OPTIONS, retention_s=90.0, remembered_tasks=1_000, remembered_requests=1_000)
    serve = [sys.executable, "-c", COUNTED]
    async with staged({"BRIDGE_EVENTS_MAX_AGE": EVENTS_MAX_AGE}, options, serve) as it:
        samples = []
        load = Load(it)
        loading = asyncio.create_task(load.run(60 * minutes))
        began, cpu_s = time.monotonic(), it.cpu_s()
        while not loading.done():
            await asyncio.wait((loading,), timeout=SAMPLE_S)
            sample = await taken(it, load, began, cpu_s)
            samples.append(sample)
            yield Row(f"soak, {sample.at_s / 60:.0f} min", str(sample))
        loading.result()
        await it.has("detection_seconds_count", load.asked)
        sample = await taken(it, load, began, cpu_s)
        yield Row("soak, all ended", str(sample))
        settled = [one for one in samples if one.at_s > 300] or samples
        grown = (settled[-1].rss_mb - settled[0].rss_mb) * 1e6 / max(1, settled[-1].ended - settled[0].ended)
        sizes = [one.rss_mb for one in settled]
        what = f"{minutes:.0f} minutes at {A_SECOND} watches a second, {load.asked:,} in all"
        measured = f"{min(sizes):.0f} to {max(sizes):.0f} MB after minute 5, {grown:+.0f} bytes a watch"
        yield Row(what, f"{measured}, {sample.cpu_percent:.0f} % of a core", "flat")


class Load:
    """Tasks that begin and are asked for, evenly. `asked`: how many so far."""

    def __init__(self, it: Stage) -> None:
        self.asked = 0
        self._it = it

    async def run(self, for_s: float) -> None:
        """Keeps the pace even after a pause of the machine."""
        began = time.monotonic()
        for second, arrivals in enumerate(each_second()):
            if second >= for_s:
                return
            await asyncio.sleep(began + second - time.monotonic())
            for about in arrivals:
                tasks = await self._it.create(**about)
                await self._it.watch(tasks)
                self.asked += len(tasks)


def each_second() -> Iterator[list[dict[str, Any]]]:
    """What begins in each second: most with 1 kB of result; one in a second has 50 kB, one in ten seconds 500 kB,
    which is stored, and one in a minute 5 MB.
    """
    second = 0
    while True:
        second += 1
        sizes = [size for every, size in ((1, 50_000), (10, 500_000), (60, 5_000_000)) if second % every == 0]
        count = (A_SECOND - len(sizes)) // len(LASTS_S)
        yield [
            *(fate(count, after_s, 1_000) for after_s in LASTS_S),
            *(fate(1, LASTS_S[0], size) for size in sizes),
        ]


def fate(count: int, after_s: float, size: int) -> dict[str, Any]:
    return {"count": count, "script": msgspec.to_builtins(scenarios.large_result(size, after_s))}


async def taken(it: Stage, load: Load, began: float, cpu_s: float) -> Sample:
    at_s, js = time.monotonic() - began, it.client.jetstream()
    states = {name: (await js.stream_info(stream)).state for name, stream in STREAMS.items()}
    watches = await js.consumer_info(NAMES.watches_stream, CONSUMER)
    ended = (await it.counted())["detection_seconds_count"]
    return Sample(
        at_s,
        it.rss_mb(),
        it.nats_mb(),
        it.open_files(),
        it.loop_tasks(),
        load.asked,
        int(ended),
        100 * (it.cpu_s() - cpu_s) / at_s,
        {name: (state.messages, state.bytes) for name, state in states.items()},
        (watches.num_ack_pending or 0, watches.num_pending or 0),
    )
