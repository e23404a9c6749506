"""The watcher among its ports: looks in, events out, messages held, acked or let go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec
import pytest

from task_bridge import watcher
from task_bridge.domain.clock import ServerClock
from task_bridge.domain.durations import rfc3339
from task_bridge.domain.errors import NatsUnavailable
from task_bridge.domain.events import Event, WatchRef
from task_bridge.domain.ports import UNCHANGED, Memory, PollResult, StreamContents, Unanswered
from task_bridge.domain.task import NO_RESULT, Task, TaskError
from task_bridge.domain.watch import Draft, Policy, TaskView, Watch, record_poll
from task_bridge.metrics import Metrics
from task_bridge.result_reads import ResultReads
from task_bridge.watcher import Watcher
from unit.builders import (
    NOW,
    POLICY,
    TASK,
    a_task,
    a_watch,
    an_event,
    blocked,
    failed,
    lost,
    progress,
    result_of,
    running,
    succeeded,
)
from unit.fakes import Clock, Entry, FakeMarks, FakeSource, RecordingHandle, RecordingJournal

DEADLINE_S = 5.0
ACK_WAIT_S = 10.0
ENDED = succeeded(None)


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not fact():  # noqa: ASYNC110 - facts of several things, none of which tells when it changes
            await asyncio.sleep(0.001)


async def idle() -> None:
    """Lets everything run that can: the fakes answer within a few turns of the loop."""
    for _ in range(50):
        await asyncio.sleep(0)


class Bridge:
    """A running watcher with its fakes around it."""

    def __init__(self, sources: Mapping[str, FakeSource], policy: Policy, journal: RecordingJournal | None) -> None:
        self.clock = Clock()
        self.journal = journal or RecordingJournal(self.clock)
        self.metrics = Metrics()
        self.sources = sources
        self.server_clock = ServerClock(self.clock, self.clock)
        reads = ResultReads(FakeMarks())
        self.watcher = Watcher(
            sources,
            self.journal,
            lambda _: policy,
            self.metrics,
            self.server_clock,
            reads,
            ack_wait_s=lambda: ACK_WAIT_S,
        )

    def step_server_clock(self, seconds: float) -> None:
        """From now on nats-server's answers carry a time that differs by so much."""
        self.server_clock.record_server_time(self.server_clock.now() + seconds, self.clock())

    @property
    def source(self) -> FakeSource:
        return self.sources["lab"]

    async def take(self, watch: Watch | None = None) -> RecordingHandle:
        handle = RecordingHandle()
        await self.watcher.take_over(watch or a_watch(), handle)
        return handle

    async def see(self, *standings: PollResult, task: str = TASK) -> list[str]:
        """The kinds of all events once these looks have been dealt with."""
        for standing in standings:
            self.source.give(standing, task=task)
            await idle()
        return self.journal.kinds


@contextlib.asynccontextmanager
async def a_bridge(
    policy: Policy = POLICY, *, unconfigured: bool = False, journal: RecordingJournal | None = None
) -> AsyncIterator[Bridge]:
    bridge = Bridge({} if unconfigured else {"lab": FakeSource()}, policy, journal)
    following = asyncio.create_task(bridge.watcher.run())
    try:
        yield bridge
    finally:
        await bridge.watcher.stop()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with a_bridge() as running_bridge:
        yield running_bridge


def of_another(event: Event) -> Event:
    """The same event of another watch of the task."""
    data = msgspec.structs.replace(event.data, watch=WatchRef("1764023000000-7", rfc3339(NOW - 1000)))
    return msgspec.structs.replace(event, data=data)


WATCHING = an_event("watching", status="RUNNING", progress=progress(3), unchanged_since=rfc3339(NOW))
PROGRESSED = an_event("progress", status="RUNNING", progress=progress(4), sequence=2)
SUCCEEDED = an_event("completed", "succeeded", status="SUCCEEDED", sequence=2)
UNWATCHED = an_event("abandoned", "unwatched", status="RUNNING", sequence=2)


# A watch's life


async def test_a_watch_is_taken_up_looked_at_told_and_over(bridge: Bridge) -> None:
    handle = await bridge.take(a_watch(partial_results=True))
    assert bridge.source.followed == {TASK: (NOW, False, True)}
    assert bridge.watcher.held_count == 1

    await bridge.see(running(0), blocked(), ENDED)
    assert bridge.journal.kinds == ["watching", "status"]
    await bridge.see(succeeded(result_of([1])))

    assert bridge.journal.kinds == ["watching", "status", "completed.succeeded"]
    assert [event.data.sequence for event in bridge.journal.events] == [1, 2, 3]
    assert bytes(bridge.journal.events[-1].data.result) == b"[1]"
    assert handle.said == ["ack"]
    assert (bridge.watcher.held_count, bridge.source.followed) == (0, {})


async def test_the_next_look_waits_until_what_was_seen_is_stored(bridge: Bridge) -> None:
    await bridge.take()
    bridge.journal.open.clear()
    await bridge.see(running(0))
    assert bridge.source.calls == [f"follow {TASK}"]

    bridge.journal.open.set()
    await idle()

    assert bridge.source.calls == [f"follow {TASK}", f"again {TASK}"]


async def test_a_look_without_news_is_neither_told_nor_asked_for_again(bridge: Bridge) -> None:
    await bridge.take()

    await bridge.see(running(0), UNCHANGED, UNCHANGED)

    assert bridge.journal.kinds == ["watching"]
    assert bridge.source.calls.count(f"again {TASK}") == 1


async def test_what_is_seen_while_an_event_is_being_stored_is_told_after_it(bridge: Bridge) -> None:
    await bridge.take()
    bridge.journal.open.clear()
    await bridge.see(running(0), blocked())
    assert bridge.journal.kinds == []

    bridge.journal.open.set()
    await idle()

    assert [event.data.status for event in bridge.journal.events] == ["RUNNING", "BLOCKED"]


async def test_many_tasks_of_one_batch_are_all_told(bridge: Bridge) -> None:
    tasks = [f"task:{number}" for number in range(60)]
    handles = [await bridge.take(a_watch(id=f"id-{task}", task=task)) for task in tasks]

    bridge.source.give_batch([(task, running(0)) for task in tasks])
    bridge.source.give_batch([(task, succeeded()) for task in tasks])
    await until(lambda: all(handle.said == ["ack"] for handle in handles))

    for task in tasks:
        told = [entry.event for entry in bridge.journal.of("lab", task)]
        assert [(event.kind, event.data.sequence) for event in told] == [
            ("watching", 1),
            ("completed.succeeded", 2),
        ]


async def test_looks_of_a_task_that_is_not_held_are_called_off(bridge: Bridge) -> None:
    await bridge.see(running(0), task="stranger")

    assert (bridge.source.calls, bridge.journal.kinds) == (["forget stranger"], [])


async def test_a_fault_over_one_event_stops_neither_the_watch_nor_the_others(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.take(a_watch(id="other", task="other"))
    bridge.journal.faults.append(RuntimeError("a fault of the bridge's own"))
    await bridge.see(running(0))
    assert bridge.journal.kinds == []

    await bridge.see(running(0), task="other")
    await bridge.see(running(1))

    assert [event.data.task for event in bridge.journal.events] == ["other", TASK]
    assert (bridge.watcher.held_count, handle.said) == (2, [])


async def test_a_fault_over_one_look_keeps_no_other_from_being_taken_in(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def observing(view: TaskView, last: Event | None, task: Task, now: float) -> None:
        if task.operation == "poison":
            raise ZeroDivisionError
        record_poll(view, last, task, now)

    monkeypatch.setattr(watcher, "record_poll", observing)
    monkeypatch.setattr(watcher, "RETRY_S", 0.01)
    await bridge.take()
    await bridge.take(a_watch(id="other", task="other"))
    poison = msgspec.structs.replace(running(0), operation="poison")
    bridge.source.give_batch([(TASK, poison), ("other", running(0))])
    await idle()
    assert [event.data.task for event in bridge.journal.events] == ["other"]

    await until(lambda: bridge.source.calls.count(f"follow {TASK}") == 2)  # so that it is told anew
    await bridge.see(running(0))
    assert [event.data.task for event in bridge.journal.events] == ["other", TASK]


async def test_what_could_not_be_said_is_said_a_little_later(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "RETRY_S", 0.01)
    handle = await bridge.take()
    bridge.journal.faults += [RuntimeError("a fault of the bridge's own")] * 2
    await bridge.see(succeeded())  # and nothing more: the task ended

    await until(lambda: handle.said == ["ack"])
    assert bridge.journal.kinds == ["watching", "completed.succeeded"]


async def test_what_is_due_late_is_still_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "TIMER_HORIZON_S", 0.02)
    async with a_bridge() as bridge:
        bridge.source.on_hurry = Unanswered()
        await bridge.take(a_watch(timeout_at=bridge.clock() + 0.2))
        await until(lambda: bridge.journal.kinds == ["abandoned.watch_timed_out"])


@pytest.mark.parametrize("step_s", [3_600.0, -3_600.0])
async def test_a_stepped_clock_ends_nothing_early_or_late(bridge: Bridge, step_s: float) -> None:
    bridge.source.on_hurry = UNCHANGED
    ends_at = bridge.clock() + 0.2
    ends = await bridge.take(a_watch(id="ends", task="ends", timeout_at=ends_at))
    lives = await bridge.take(a_watch(id="lives", task="lives", timeout_at=bridge.clock() + 1_800.0))
    for task in ("ends", "lives"):
        await bridge.see(running(0), task=task)

    bridge.step_server_clock(step_s)
    later_at = bridge.server_clock.now() + 0.3
    later = await bridge.take(a_watch(id="later", task="later", timeout_at=later_at))
    await until(lambda: ends.said == later.said == ["ack"])

    assert lives.said == []
    for task, timeout_at in (("ends", ends_at), ("later", later_at)):
        final = bridge.journal.of("lab", task)[-1].event
        assert final.kind == "abandoned.watch_timed_out"
        assert 0 <= round(final.time - timeout_at, 3) < 1.0


@pytest.mark.parametrize("step_s", [3_600.0, -3_600.0])
async def test_a_stepped_clock_stalls_nothing_early_or_late(bridge: Bridge, step_s: float) -> None:
    await bridge.take(a_watch(stalled_after_s=60.0))
    await bridge.see(running(0))
    bridge.step_server_clock(step_s)
    bridge.clock.jump(59)
    assert await bridge.see(UNCHANGED) == ["watching"]

    bridge.clock.jump(2)
    assert await bridge.see(UNCHANGED) == ["watching", "stalled"]


# Handed over again, or by another


async def test_a_redelivery_to_the_owner_keeps_what_is_known_and_renews_the_handle(bridge: Bridge) -> None:
    first = await bridge.take()
    await bridge.see(running(0))

    second = await bridge.take()
    await bridge.see(running(0), succeeded())

    assert bridge.journal.kinds == ["watching", "completed.succeeded"]
    assert bridge.source.calls.count(f"follow {TASK}") == 1
    assert (first.said, second.said) == ([], ["ack"])


async def test_a_watch_delivered_twice_at_once_is_taken_up_once(bridge: Bridge) -> None:
    first, second = await asyncio.gather(bridge.take(), bridge.take())

    await bridge.see(succeeded())

    assert bridge.source.calls.count(f"follow {TASK}") == 1
    assert bridge.journal.kinds == ["watching", "completed.succeeded"]
    assert sorted([first.said, second.said]) == [[], ["ack"]]


async def test_whoever_takes_over_goes_on_from_the_last_event(bridge: Bridge) -> None:
    bridge.journal.write(WATCHING)

    handle = await bridge.take()
    assert bridge.source.followed == {TASK: (NOW, True, False)}
    await bridge.see(running(3))
    assert bridge.journal.kinds == ["watching"]
    await bridge.see(blocked())

    last = bridge.journal.events[-1].data
    assert (last.kind, last.sequence, last.previous_status) == ("status", 2, "RUNNING")
    assert handle.said == []


async def test_a_new_watch_begins_behind_the_end_of_an_older_one(bridge: Bridge) -> None:
    bridge.journal.write(of_another(UNWATCHED))

    await bridge.take()
    await bridge.see(running(3))

    last = bridge.journal.events[-1].data
    assert (last.kind, last.sequence, last.previous_status, last.watch.id) == ("watching", 1, None, a_watch().id)


async def test_a_new_watch_takes_the_place_of_one_that_is_held(bridge: Bridge) -> None:
    old = await bridge.take()
    await bridge.see(running(3))
    bridge.journal.write(UNWATCHED)

    new = await bridge.take(a_watch(id="1764024999000-43"))
    await bridge.see(running(3), succeeded())

    assert bridge.journal.kinds == ["watching", "abandoned.unwatched", "watching", "completed.succeeded"]
    assert (old.said, new.said, bridge.watcher.held_count) == ([], ["ack"], 0)


async def test_a_new_watch_is_not_hurt_by_the_old_one_that_still_stores_an_event(bridge: Bridge) -> None:
    old = await bridge.take()
    await bridge.see(running(3))
    bridge.journal.open.clear()
    await bridge.see(blocked())
    bridge.journal.write(UNWATCHED)
    taking = asyncio.create_task(bridge.take(a_watch(id="1764024999000-43")))
    await idle()
    bridge.journal.open.set()
    new = await taking

    await bridge.see(blocked())

    assert bridge.journal.kinds == ["watching", "abandoned.unwatched", "watching"]
    assert (old.said, new.said) == (["ack"], [])
    assert (bridge.watcher.held_count, list(bridge.source.followed)) == (1, [TASK])


async def test_who_finds_that_another_wrote_steps_back_without_a_word(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.write(PROGRESSED)

    await bridge.see(blocked(), running(5), succeeded())

    assert bridge.journal.kinds == ["watching", "progress"]
    assert handle.said == ["drop"]
    assert (bridge.watcher.held_count, bridge.source.followed) == (0, {})


async def test_who_stepped_back_can_be_given_the_watch_again(bridge: Bridge) -> None:
    await bridge.take()
    await bridge.see(running(0))
    bridge.journal.write(PROGRESSED)
    await bridge.see(blocked())

    handle = await bridge.take()
    await bridge.see(blocked(), succeeded())

    assert [event.data.sequence for event in bridge.journal.events] == [1, 2, 3, 4]
    assert bridge.journal.kinds[2:] == ["status", "completed.succeeded"]
    assert handle.said == ["ack"]


async def test_an_event_of_ones_own_that_was_stored_unnoticed_is_gone_on_from(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.write(an_event("status", status="BLOCKED", sequence=2), instance=bridge.journal.instance)

    await bridge.see(blocked(), running(0))

    told = [(event.kind, event.data.sequence, event.data.status) for event in bridge.journal.events]
    assert told == [("watching", 1, "RUNNING"), ("status", 2, "BLOCKED"), ("status", 3, "RUNNING")]
    assert handle.said == []


@pytest.mark.parametrize("final", [SUCCEEDED, UNWATCHED])
async def test_a_final_event_that_another_wrote_is_the_end_and_acked(bridge: Bridge, final: Event) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.write(final)

    await bridge.see(blocked())

    assert bridge.journal.kinds == ["watching", final.kind]
    assert (handle.said, bridge.watcher.held_count, bridge.source.followed) == (["ack"], 0, {})


async def test_a_final_event_of_another_watch_is_not_the_end_of_this_one(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    handle.current = False
    bridge.journal.write(of_another(UNWATCHED))

    await bridge.see(blocked())

    assert (handle.said, bridge.watcher.held_count) == (["drop"], 0)


# Served already


@pytest.mark.parametrize(
    ("last", "watch"),
    [
        (SUCCEEDED, a_watch()),
        (of_another(SUCCEEDED), a_watch()),
        (UNWATCHED, a_watch()),
        (of_another(UNWATCHED), a_watch(stored_request=True)),
    ],
)
async def test_a_watch_that_was_served_is_acked_at_once(bridge: Bridge, last: Event, watch: Watch) -> None:
    bridge.journal.write(last, stored_at=NOW + 5)
    handle = RecordingHandle()

    outcome = await bridge.watcher.take_over(watch, handle)

    assert (outcome, handle.said) == ("already_completed", ["ack"])
    assert (bridge.watcher.held_count, bridge.source.calls) == (0, [])


@pytest.mark.parametrize(("current", "outcome", "said"), [(False, None, ["drop"]), (True, "accepted", [])])
@pytest.mark.parametrize("last", [of_another(PROGRESSED), of_another(UNWATCHED)])
async def test_a_watch_that_arrives_when_it_is_over_is_let_lie(
    bridge: Bridge, last: Event, current: bool, outcome: str | None, said: list[str]
) -> None:
    bridge.journal.write(last)
    handle = RecordingHandle(current=current)

    assert await bridge.watcher.take_over(a_watch(), handle) == outcome

    assert (handle.said, bridge.watcher.held_count) == (said, int(current))


async def test_a_watch_that_is_taken_up_is_accepted(bridge: Bridge) -> None:
    assert await bridge.watcher.take_over(a_watch(), RecordingHandle()) == "accepted"
    assert await bridge.watcher.take_over(a_watch(), RecordingHandle()) == "accepted"


async def test_without_nats_nothing_is_taken_up(bridge: Bridge) -> None:
    bridge.journal.reachable = False
    handle = RecordingHandle()

    with pytest.raises(NatsUnavailable):
        await bridge.watcher.take_over(a_watch(), handle)

    assert (bridge.watcher.held_count, bridge.source.calls, handle.said) == (0, [], [])


# A word that the watch may be over


async def test_a_watch_ended_elsewhere_is_let_go_at_a_hint(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.write(UNWATCHED)

    await bridge.watcher.check_ownership("lab", TASK)

    assert (handle.said, bridge.watcher.held_count, bridge.source.followed) == (["ack"], 0, {})


async def test_a_hint_alone_ends_nothing(bridge: Bridge) -> None:
    handle = await bridge.take()

    await bridge.watcher.check_ownership("lab", TASK)
    await bridge.watcher.check_ownership("lab", "stranger")

    assert (handle.said, bridge.watcher.held_count) == ([], 1)


@pytest.mark.parametrize("newest", [PROGRESSED, of_another(UNWATCHED)])
async def test_a_watch_that_others_write_of_is_let_go(bridge: Bridge, newest: Event) -> None:
    handle = await bridge.take()
    handle.current = False
    bridge.journal.write(newest)

    await bridge.watcher.check_ownership("lab", TASK)

    assert (handle.said, bridge.watcher.held_count) == (["drop"], 0)


async def test_a_watch_whose_memory_is_covered_goes_on_after_the_stranger_s_event(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.write(of_another(PROGRESSED))
    await bridge.watcher.check_ownership("lab", TASK)
    await idle()

    await bridge.see(blocked())

    assert (handle.said, bridge.watcher.held_count) == ([], 1)
    own = [event.data.sequence for event in bridge.journal.events if event.data.watch.id == a_watch().id]
    assert own == [1, 2]


async def test_what_a_lagging_replica_shows_of_a_watch_hides_no_loss(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that was killed has the watch's first event again, which has gone. Others show none of the task."""
    bridge.journal.write(WATCHING)
    memory = await bridge.journal.read_memory(a_watch())
    bridge.journal.entries.clear()
    appends: list[tuple[int, bool]] = []
    append = bridge.journal.append

    async def read_memory(watch: Watch) -> Memory[Entry]:
        return memory

    async def record_append(draft: Draft, after: int, *, memory_lost: bool = False) -> Entry:
        appends.append((after, memory_lost))
        return await append(draft, after, memory_lost=memory_lost)

    monkeypatch.setattr(bridge.journal, "read_memory", read_memory)
    monkeypatch.setattr(bridge.journal, "append", record_append)
    await bridge.watcher.take_over(a_watch(), RecordingHandle(is_redelivered=True))

    await bridge.see(blocked())

    assert appends == [(1, False), (0, True)]


async def test_a_watch_whose_last_event_has_gone_is_restated(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.entries.clear()

    async with asyncio.TaskGroup() as group:
        contents = StreamContents(first_sequence=2, removals=0)
        check = group.create_task(bridge.watcher.check_memories(lambda: contents))
        await until(lambda: bridge.journal.kinds != [])
        check.cancel()

    assert (handle.said, bridge.journal.kinds, bridge.watcher.held_count) == ([], ["status"], 1)


async def test_a_watch_whose_last_event_has_gone_goes_on_with_the_next_one(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.entries.clear()

    await bridge.see(blocked())

    assert (handle.said, bridge.journal.kinds, bridge.watcher.held_count) == ([], ["status"], 1)


@pytest.mark.parametrize("is_noticed_first", [True, False])
async def test_a_watch_whose_last_event_and_message_have_gone_is_over(bridge: Bridge, is_noticed_first: bool) -> None:
    """Another replica may have ended it, and its final event went with the others."""
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.entries.clear()
    handle.current = False

    if is_noticed_first:
        await bridge.watcher.check_ownership("lab", TASK)
        await idle()
    await bridge.see(succeeded())

    assert (handle.said, bridge.journal.kinds, bridge.watcher.held_count) == (["drop"], [], 0)


async def test_a_late_delivery_of_a_watch_that_is_over_is_ignored_though_its_events_have_gone(bridge: Bridge) -> None:
    """A replica that was stopped finds it in its socket."""
    handle = RecordingHandle(current=False)
    requested_at = bridge.server_clock.now() - ACK_WAIT_S - 1

    await bridge.watcher.take_over(a_watch(since=requested_at), handle)

    assert (handle.said, bridge.watcher.held_count) == (["drop"], 0)


@pytest.mark.parametrize(("wait_s", "asked"), [(ACK_WAIT_S - 1, 0), (ACK_WAIT_S + 1, 1)])
async def test_only_a_first_event_after_which_another_replica_may_have_the_message_asks_for_it(
    bridge: Bridge, wait_s: float, asked: int
) -> None:
    handle = await bridge.take()
    bridge.clock.jump(wait_s)

    kinds = await bridge.see(running(0), blocked())

    assert (kinds, handle.asked) == (["watching", "status"], asked)


async def test_a_watch_without_events_is_left_where_another_watch_of_its_task_has_ended(bridge: Bridge) -> None:
    handle = await bridge.take()
    bridge.journal.write(of_another(UNWATCHED))

    await bridge.see(running(0))

    assert (handle.said, bridge.journal.kinds) == (["drop"], ["abandoned.unwatched"])


async def test_a_missed_hint_is_made_good_by_the_sweep(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.write(UNWATCHED)

    async with asyncio.TaskGroup() as group:
        sweep = group.create_task(bridge.watcher.sweep_ownership())
        await until(lambda: not bridge.watcher.held_count)
        sweep.cancel()

    assert handle.said == ["ack"]


async def test_watches_that_are_released_are_looked_at_no_more_and_nothing_is_said_of_them(bridge: Bridge) -> None:
    handles = [await bridge.take(a_watch(task=task)) for task in ("a", "b", "c")]
    for task in ("a", "b", "c"):
        await bridge.see(running(0), task=task)

    released = bridge.watcher.release(2)

    assert released == [("lab", "a"), ("lab", "b")]
    assert (set(bridge.source.followed), bridge.watcher.held_count) == ({"c"}, 1)
    assert [handle.said for handle in handles] == [[], [], []]


async def test_a_watch_that_is_being_published_of_is_not_released(bridge: Bridge) -> None:
    await bridge.take()
    bridge.journal.open.clear()
    await bridge.see(running(0))

    assert bridge.watcher.release(1) == []
    bridge.journal.open.set()


# Timers


async def test_progress_held_back_is_told_without_another_look() -> None:
    async with a_bridge(POLICY._replace(progress_interval_s=1.0)) as bridge:
        await bridge.take()
        await bridge.see(running(0), running(1), running(2))
        assert bridge.journal.kinds == ["watching"]

        await until(lambda: len(bridge.journal.entries) == 2)

        last = bridge.journal.events[-1]
        assert (last.kind, last.data.progress) == ("progress", progress(2))
        assert round(last.time - bridge.journal.events[0].time, 3) >= 1.0
        assert bridge.source.calls.count(f"again {TASK}") == 3  # once for each look


@pytest.mark.parametrize("step_s", [0.0, 3_600.0])
async def test_unchanged_polls_are_wanted_from_the_next_standstill_on(bridge: Bridge, step_s: float) -> None:
    bridge.step_server_clock(step_s)
    await bridge.take(a_watch(stalled_after_s=60.0))
    await bridge.see(running(0))
    assert bridge.source.quiet_until[TASK] - bridge.server_clock.monotonic() == pytest.approx(60.0, abs=1.0)


async def test_a_standstill_is_told_by_the_look_that_finds_it(bridge: Bridge) -> None:
    await bridge.take(a_watch(stalled_after_s=60.0))
    await bridge.see(running(0))
    bridge.clock.jump(59)
    assert await bridge.see(UNCHANGED) == ["watching"]

    bridge.clock.jump(2)
    assert await bridge.see(UNCHANGED, UNCHANGED) == ["watching", "stalled"]


@pytest.mark.parametrize("unconfigured", [False, True])
async def test_a_quiet_watch_is_restated_without_a_look(unconfigured: bool) -> None:
    async with a_bridge(POLICY._replace(events_max_age_s=0.06), unconfigured=unconfigured) as bridge:
        bridge.journal.write(msgspec.structs.replace(WATCHING, time=bridge.clock()))
        await bridge.take()

        await until(lambda: len(bridge.journal.entries) >= 3)

        assert set(bridge.journal.kinds[1:]) == {"status"}
        data = bridge.journal.events[1].data
        assert (data.status, data.previous_status, data.progress) == ("RUNNING", "RUNNING", progress(3))


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (UNCHANGED, "abandoned.watch_timed_out"),
        (blocked(), "abandoned.watch_timed_out"),
        (Unanswered(TaskError("X", "Busy.")), "abandoned.watch_timed_out"),
        (lost(), "abandoned.lost"),
        (failed(), "completed.failed"),
    ],
)
async def test_at_the_deadline_vcenter_is_asked_once_more_and_its_answer_decides(
    bridge: Bridge, found: PollResult, kind: str
) -> None:
    bridge.source.on_hurry = found
    bridge.journal.write(WATCHING)
    handle = await bridge.take(a_watch(timeout_at=bridge.clock() + 0.01))

    await until(lambda: handle.said == ["ack"])

    assert bridge.journal.kinds == ["watching", kind]
    assert bridge.source.calls.count(f"hurry {TASK}") == 1
    assert bridge.watcher.held_count == 0


async def test_the_answer_to_the_last_look_goes_with_the_end(bridge: Bridge) -> None:
    bridge.source.on_hurry = Unanswered(TaskError("X", "Busy."))
    handle = await bridge.take(a_watch(timeout_at=bridge.clock() + 0.01))
    await until(lambda: handle.said == ["ack"])

    error = bridge.journal.events[-1].data.error
    assert error is not None
    assert (error.type, "Busy." in error.message) == ("X", True)


async def test_a_last_look_that_finds_the_end_waits_for_its_result(bridge: Bridge) -> None:
    bridge.source.on_hurry = ENDED
    handle = await bridge.take(a_watch(timeout_at=bridge.clock() + 0.01))
    await until(lambda: bridge.journal.kinds == ["watching"])
    assert handle.said == []

    await bridge.see(succeeded(NO_RESULT))

    assert (bridge.journal.kinds, handle.said) == (["watching", "completed.succeeded"], ["ack"])


@pytest.mark.parametrize(("found", "kind"), [(failed(), "completed.failed"), (lost(), "abandoned.lost")])
async def test_a_watch_taken_up_long_after_its_deadline_gets_its_last_look_too(
    bridge: Bridge, found: PollResult, kind: str
) -> None:
    bridge.source.on_hurry = found
    handle = await bridge.take(a_watch(timeout_at=NOW - 3600))
    await until(lambda: handle.said == ["ack"])

    assert bridge.journal.kinds[-1] == kind


async def test_a_watch_of_a_vcenter_no_longer_configured_times_out_at_once() -> None:
    async with a_bridge(unconfigured=True) as bridge:
        bridge.journal.write(WATCHING)
        handle = await bridge.take(a_watch(timeout_at=bridge.clock() + 0.02))
        assert bridge.watcher.held_by_status() == {("lab", "UNCONFIGURED"): 1}

        await until(lambda: handle.said == ["ack"])

        last = bridge.journal.events[-1]
        assert (last.kind, last.data.status) == ("abandoned.watch_timed_out", "RUNNING")
        assert last.time < bridge.clock() < NOW + DEADLINE_S


async def test_a_watch_that_was_let_go_wakes_no_more(bridge: Bridge) -> None:
    await bridge.take(a_watch(timeout_at=bridge.clock() + 0.2))
    await bridge.see(running(0))
    bridge.journal.write(PROGRESSED)
    await bridge.see(blocked())
    await bridge.take(a_watch(id="later", task="later", timeout_at=bridge.clock() + 0.21))

    await until(lambda: "hurry later" in bridge.source.calls)

    assert f"hurry {TASK}" not in bridge.source.calls


# The way out


async def test_stop_finishes_what_is_in_flight_and_begins_nothing(bridge: Bridge) -> None:
    handle = await bridge.take()
    bridge.journal.open.clear()
    await bridge.see(succeeded())
    assert bridge.journal.waiting == 1

    stopping = asyncio.create_task(bridge.watcher.stop())
    await idle()
    assert not stopping.done()
    bridge.journal.open.set()
    await stopping
    await bridge.see(blocked())

    assert bridge.journal.kinds == ["watching"]  # the end is told by whoever takes over
    assert (handle.said, bridge.watcher.held_count) == ([], 1)


async def test_stop_acks_what_a_publish_in_flight_ended(bridge: Bridge) -> None:
    handle = await bridge.take()
    await bridge.see(running(0))
    bridge.journal.open.clear()
    await bridge.see(succeeded())

    bridge.journal.open.set()
    await bridge.watcher.stop()

    assert (bridge.journal.kinds, handle.said) == (["watching", "completed.succeeded"], ["ack"])


async def test_after_stop_no_timer_goes_off(bridge: Bridge) -> None:
    bridge.source.on_hurry = UNCHANGED
    bridge.journal.write(WATCHING)
    deadline = bridge.clock() + 0.1
    await bridge.take(a_watch(timeout_at=deadline))
    await bridge.watcher.stop()

    await until(lambda: bridge.clock() > deadline + 0.05)

    assert bridge.journal.kinds == ["watching"]


async def test_another_replica_goes_on_where_the_stopped_one_left() -> None:
    async with a_bridge() as one:
        await one.take()
        await one.see(running(0))
        await one.watcher.stop()
        journal = RecordingJournal(one.clock, "another")
        journal.entries = one.journal.entries
        async with a_bridge(journal=journal) as other:
            handle = await other.take()

            await other.see(running(0), blocked(), succeeded())

            told = [(entry.event.kind, entry.event.data.sequence, entry.instance) for entry in journal.entries]
            assert told == [
                ("watching", 1, "mine"),
                ("status", 2, "another"),
                ("completed.succeeded", 3, "another"),
            ]
            assert handle.said == ["ack"]


# What it tells about itself


async def test_watches_are_counted_by_vcenter_and_status(bridge: Bridge) -> None:
    for status in ("PENDING", "RUNNING", "BLOCKED", "ARCHIVED", "PAUSED"):
        await bridge.take(a_watch(id=status, task=status))
        await bridge.see(a_task(status), task=status)
    await bridge.take(a_watch(id="ended", task="ended"))
    await bridge.see(ENDED, task="ended")
    await bridge.take(a_watch(id="unseen", task="unseen"))
    await bridge.take(a_watch(id="gone", vcenter="gone"))

    assert bridge.watcher.held_by_status() == {
        ("lab", "PENDING"): 1,
        ("lab", "RUNNING"): 1,
        ("lab", "BLOCKED"): 1,
        ("lab", "OTHER"): 2,
        ("lab", "SUCCEEDED"): 1,
        ("lab", "UNSEEN"): 1,
        ("gone", "UNCONFIGURED"): 1,
    }
    assert bridge.watcher.held_count == 8

    await bridge.see(running(0), task="PENDING")
    await bridge.see(succeeded(), task="ended")
    assert bridge.watcher.held_by_status()["lab", "RUNNING"] == 2
    assert bridge.watcher.held_by_status().total() == bridge.watcher.held_count == 7


@pytest.mark.parametrize(
    ("end", "count", "seconds"),
    [
        (succeeded(ended_at=rfc3339(NOW - 10)), 1, 10.0),
        (failed(ended_at=rfc3339(NOW + 3600)), 1, 0.0),  # vCenter's clock is ahead
        (succeeded(), 0, 0.0),
        (lost(), 0, 0.0),
    ],
)
async def test_how_long_an_end_took_to_be_stored_is_measured(
    bridge: Bridge, end: PollResult, count: int, seconds: float
) -> None:
    await bridge.take()

    await bridge.see(end)

    registry = bridge.metrics.registry
    assert registry.get_sample_value("task_bridge_detection_seconds_count") == count
    assert registry.get_sample_value("task_bridge_detection_seconds_sum") == pytest.approx(seconds, abs=1.0)
