"""What a million old events in the stream cost: the same work on an empty stream, and on one that has them.

The old events are 200 bytes each instead of 1.8 KB, so that writing them takes less. What could cost is how many
messages and subjects nats-server finds a task's last event among, not their bytes.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator

from bench.stage import Row, Stage, stage
from lab import EVENTS
from task_bridge.domain.subjects import SubjectNames

OLD, A_TASK, BATCH = 1_000_000, 4, 1_000
ALONE, ENDING, IDLE = 100, 2_000, 1_000
WINDOW_S = 30.0
KINDS = ("watching", "status", "progress", "completed.succeeded")
NAMES = SubjectNames("vcenter.tasks")


async def measure() -> AsyncIterator[Row]:
    for old in (0, OLD):
        async with stage() as it:
            await write(it, old)
            title = f"{old:,} old events" if old else "an empty stream"
            yield Row(f"{title}: request to reply", await admit(it))
            before = await it.used()
            await it.watch(await it.create(ENDING, fate="succeeds", **{"with": {"after_s": 2.0, "looks": 1}}))
            await it.has("detection_seconds_count", ENDING)
            used = before.until(await it.used())
            yield Row("   CPU per event", f"{1e6 * used.cpu_s / used.events:.0f} µs")
            await it.watch(await it.create(IDLE, fate="stays_pending"))
            await it.has("watching", ALONE + ENDING + IDLE)
            await asyncio.sleep(10.0)
            nats_s, idle = it.nats_cpu_s(), await it.used_in(WINDOW_S)
            nats_percent = 100 * (it.nats_cpu_s() - nats_s) / WINDOW_S
            words = f"{idle.core_percent:.1f} % of a core, nats-server {nats_percent:.1f} %"
            yield Row(f"   {IDLE + ALONE:,} idle watches", words)
            yield Row("   memory", f"{it.rss_mb():.0f} MB, nats-server {it.nats_mb():.0f} MB")


async def write(it: Stage, count: int) -> None:
    """Store so many events of tasks that ended, four of each task, as fast as nats-server takes them."""
    body, js = b'{"old":"' + b"x" * 190 + b'"}', it.client.jetstream()
    for first in range(0, count, BATCH):
        subjects = [
            NAMES.put_subject("lab", f"old-{number // A_TASK}", KINDS[number % A_TASK])
            for number in range(first, first + BATCH)
        ]
        for subject in subjects[:-1]:
            await it.client.publish(subject, body)
        await js.publish(subjects[-1], body)  # its ack comes when all are stored; nats-server drops what is too fast
    assert (await js.stream_info(EVENTS)).state.messages == count


async def admit(it: Stage) -> str:
    """How long the API takes to accept a watch, one after the other."""
    taken_ms = []
    for task in await it.create(ALONE, fate="stays_pending"):
        began = time.perf_counter()
        reply = await it.client.request("vcenter.tasks.api.watch", task.encode(), timeout=15)
        taken_ms.append(1000 * (time.perf_counter() - began))
        assert b'"accepted"' in reply.data, reply.data
    cuts = statistics.quantiles(taken_ms, n=20)
    return f"median {cuts[9]:.1f} ms, p95 {cuts[18]:.1f} of {ALONE}"
