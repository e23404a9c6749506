"""The journal and the ownership of watches on a real nats-server, in what no whole bridge meets at will."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
import structlog
from nats.js.api import RawStreamMsg

from lab import Lab, until
from task_bridge.domain.errors import NatsUnavailable
from task_bridge.domain.ports import MemoryLost
from task_bridge.domain.subjects import SubjectNames
from task_bridge.domain.watch import Draft, Watch
from task_bridge.jetstream.journal import JetStreamJournal
from task_bridge.jetstream.nats_py_workarounds import cancel_and_wait
from task_bridge.jetstream.ownership import HeldMessage, Ownership
from task_bridge.jetstream.provision import expected_config, provision
from task_bridge.jetstream.streams import Streams
from task_bridge.jetstream.watch_store import hold_watches
from task_bridge.logs import FailureLog
from task_bridge.metrics import Metrics
from unit.builders import TASK, a_watch, an_event

ACK_WAIT_S = 1.0


class Stage:
    """The streams of one prefix, and how to write and read them."""

    def __init__(self, lab: Lab) -> None:
        self.names = SubjectNames("fences")
        self.streams = Streams(lab.client)
        self.js = lab.js

    async def open(self) -> None:
        what = expected_config(self.names, replicas=1, ack_wait_s=ACK_WAIT_S, events_max_age_s=604_800)
        await provision(self.streams, what, create=True)

    def journal(self, metrics: Metrics | None = None) -> JetStreamJournal:
        return JetStreamJournal(self.streams, self.names, metrics or Metrics(), time.time)

    async def put_watch(self, watch: Watch) -> None:
        await self.js.publish(self.names.watch_subject(watch.vcenter, watch.task), msgspec.json.encode(watch))

    async def stored(self) -> list[RawStreamMsg]:
        """All events of the task, in order."""
        subject = self.names.event_filter("lab", TASK)
        page, _ = await self.streams.read_page(self.names.events_stream, subject, 0, 100)
        return [await self.js.get_msg(self.names.events_stream, message.sequence) for message in page]


@pytest.fixture
async def stage(lab: Lab) -> Stage:
    stage = Stage(lab)
    await stage.open()
    return stage


def draft(number: int) -> Draft:
    return Draft(an_event("status", sequence=number, status="RUNNING"), None)


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"task_bridge_{name}", labels) or 0.0


@pytest.mark.parametrize("is_own", [True, False], ids=["own", "another replica's"])
async def test_an_event_that_is_its_task_s_last_already_is_adopted_wherever_it_lies(stage: Stage, is_own: bool) -> None:
    """A recreated stream counts from 1 again, so the event can have the sequence that the one before it had."""
    metrics = Metrics()
    journal = stage.journal(metrics)
    writer = journal if is_own else stage.journal()
    first = await writer.append(draft(1), 0)
    before = counted(metrics, "events_total", vcenter="lab", kind="status", outcome="")
    async with asyncio.timeout(5):
        entry = await journal.append(draft(1), first.sequence)
    assert (entry.sequence, entry.instance, entry.event.id) == (first.sequence, writer.instance, first.event.id)
    assert len(await stage.stored()) == 1
    assert counted(metrics, "events_total", vcenter="lab", kind="status", outcome="") == before + is_own
    assert counted(metrics, "fenced_total") == (0 if is_own else 1)


async def test_an_event_that_was_purged_is_stored_again_within_the_time_of_deduplication(stage: Stage) -> None:
    first = await stage.journal().append(draft(1), 0)
    await stage.journal().append(draft(2), first.sequence)
    used = [(message.headers or {})["Nats-Msg-Id"] for message in await stage.stored()]
    await stage.js.purge_stream(stage.names.events_stream)
    async with asyncio.timeout(5):
        with pytest.raises(MemoryLost) as lost:
            await stage.journal().append(draft(2), first.sequence)
        entry = await stage.journal().append(draft(2), lost.value.sequence, memory_lost=True)
    (stored,) = await stage.stored()
    assert (stored.seq, (stored.headers or {})["Bridge-Watch"]) == (entry.sequence, entry.event.data.watch.id)
    assert (stored.headers or {})["Nats-Msg-Id"] not in used


async def test_a_takeover_that_fails_late_does_not_drop_the_newer_delivery_of_its_watch(stage: Stage) -> None:
    handles: list[HeldMessage] = []
    must_fail = asyncio.Event()

    async def take_over(_: Watch, handle: HeldMessage) -> None:
        handles.append(handle)
        if len(handles) == 1:
            await must_fail.wait()
            raise NatsUnavailable("too late")

    async def quarantine(_: object, reason: str) -> bool:
        raise AssertionError(reason)

    # Heartbeats come too late for the server's ack_wait, so that it delivers the watch again.
    ownership = Ownership(
        stage.streams,
        hold_watches(stage.names),
        Metrics(),
        capacity=10,
        ack_wait_s=lambda: 600,
        take_over=take_over,
        report_outcome=lambda *_: None,
        quarantine=quarantine,
        failures=FailureLog(structlog.get_logger(), "not_taken_up", "taken_up_again"),
    )
    owning = asyncio.create_task(ownership.run())
    try:
        await stage.put_watch(a_watch())
        await until(lambda: len(handles) == 2)
        must_fail.set()
        handles[0].drop()
        assert ownership.held_count == 1
        handles[1].drop()
        assert ownership.held_count == 0
    finally:
        await cancel_and_wait(owning)
