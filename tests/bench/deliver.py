"""Deliveries: from a stored event to its request, requests a second, and memory while a target is away."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats

from bench.stage import Row, rss_mb
from lab import EVENTS, BridgeProcess, NatsServer, until
from receiver import Receiver, Reply, receiving
from task_bridge.checks import expected_jetstream
from task_bridge.delivery.report import build_sample
from task_bridge.domain.subjects import SubjectNames
from task_bridge.jetstream.provision import provision
from task_bridge.jetstream.streams import Streams
from task_bridge.settings import load

ALONE, AT_ONCE, WAITING = 100, 5_000, 10_000
NAMES = SubjectNames("vcenter.tasks")


class Target:
    """The streams, a process `task-bridge deliver`, and its target."""

    def __init__(self, streams: Streams, process: BridgeProcess, receiver: Receiver) -> None:
        self._streams = streams
        self._numbers = itertools.count()
        self.process = process
        self.receiver = receiver

    async def put(self) -> None:
        """Store the final event of one more task."""
        task = f"t{next(self._numbers)}"
        event = json.loads(build_sample("x", time.time())[1])
        event["data"]["task"] = task
        headers = {"Bridge-Watch": task, "Bridge-Sequence": "3"}
        subject = NAMES.put_subject("lab", task, "completed.succeeded")
        await self._streams.publish(EVENTS, subject, json.dumps(event).encode(), headers)

    async def put_many(self, count: int) -> None:
        for _ in range(count // 50):
            await asyncio.gather(*(self.put() for _ in range(50)))


@asynccontextmanager
async def target() -> AsyncIterator[Target]:
    receiver = Receiver()
    with tempfile.TemporaryDirectory() as name:
        server = NatsServer(Path(name))
        server.start()
        client = await nats.connect(server.url)
        streams = Streams(client, None)
        await provision(streams, expected_jetstream(load({}, need_vcenters=False)), create=True)
        async with receiving(receiver):
            settings = {"BRIDGE_NATS_URL": server.url, "BRIDGE_DELIVERIES__HOOK__URL": receiver.url}
            given = {"PATH": os.environ["PATH"], **settings, "BRIDGE_HTTP_LISTEN": "off"}
            process = BridgeProcess(given, Path(name), [sys.executable, "-m", "task_bridge", "deliver"])
            await process.start()
            try:
                await until(lambda: "delivery_started" in process.log.read_text())
                yield Target(streams, process, receiver)
            finally:
                await process.close()
                await client.close()
                server.stop()


async def measure() -> AsyncIterator[Row]:
    async with target() as it:
        delays = []
        for number in range(ALONE):
            await it.put()
            stored_at = time.monotonic()
            await until(lambda number=number: len(it.receiver.got) > number)  # type: ignore[misc]
            delays.append((it.receiver.got[-1].began - stored_at) * 1000)
        words = f"median {statistics.median(delays[5:]):.1f} ms, worst {max(delays[5:]):.1f} of {ALONE - 5}"
        yield Row("one event: stored to its request", words, "median 50 ms")
        before, began = len(it.receiver.got), time.monotonic()
        await it.put_many(AT_ONCE)
        stored_s = time.monotonic() - began
        await until(lambda: len(it.receiver.got) >= before + AT_ONCE, 120)
        taken_s = time.monotonic() - began
        words = f"{AT_ONCE / taken_s:,.0f} a second (stored {AT_ONCE / stored_s:,.0f} a second)"
        yield Row(f"{AT_ONCE:,} events at once, MAX_IN_FLIGHT 8", words, "500 a second")
        it.receiver.decide = lambda *_: Reply(503)
        memory_before = rss_mb(it.process.pid)
        await it.put_many(WAITING)
        await asyncio.sleep(10)
        words = f"{rss_mb(it.process.pid):.0f} MB, {memory_before:.0f} MB before"
        yield Row(f"{WAITING:,} events wait for a target that fails", words, "no more than 256 wait")
