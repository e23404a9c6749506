"""The lifecycle of a tracked task, over a transport that only writes down what it is asked for."""

from __future__ import annotations

import random

import pytest
from structlog.testing import capture_logs

from task_bridge.domain.ports import UNCHANGED, PollResult, Unanswered
from task_bridge.domain.task import Task, TaskError
from task_bridge.domain.watch import Absence
from task_bridge.vcenter.policy import PollPolicy, Timeouts
from task_bridge.vcenter.shared import ResultQueue
from task_bridge.vcenter.tracked_task import (
    FORGOTTEN,
    PARKED,
    POLLING,
    WAITING,
    PollTransport,
    TaskTracker,
    TrackedTask,
)

RUNNING = Task("RUNNING")
GONE = TaskError("NOT_FOUND", "No such task.")
REFUSED = TaskError("SERVICE_UNAVAILABLE", "Not now.")
POLICY = PollPolicy(poll_min_s=1.0, poll_max_s=15.0, not_found_grace_s=30.0)


class RecordingTransport:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.has_result_coming = False

    def start(self, tracked: TrackedTask) -> None:
        self.calls.append(("start", tracked.id))

    def stop(self, tracked: TrackedTask) -> None:
        self.calls.append(("stop", tracked.id))

    def pause(self, tracked: TrackedTask) -> None:
        assert tracked.phase == PARKED
        self.calls.append(("pause", tracked.id))

    def resume(self, tracked: TrackedTask) -> None:
        assert tracked.phase == WAITING
        self.calls.append(("resume", tracked.id))

    def poll_now(self, tracked: TrackedTask) -> bool:
        self.calls.append(("poll_now", tracked.id))
        return not self.has_result_coming

    def poll_at(self, tracked: TrackedTask, due: float) -> None:
        self.calls.append(("poll_at", tracked.id, due))

    def absence_poll_at(self, tracked: TrackedTask, confirm_at: float) -> float:
        return confirm_at + 0.5


_PROVES_PORT: type[PollTransport[TrackedTask]] = RecordingTransport


class Bench:
    """A tracker, its transport and its results, by a clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.transport = RecordingTransport()
        self.queue = ResultQueue()
        self.tracker: TaskTracker[TrackedTask] = TaskTracker(
            "lab", POLICY, Timeouts(confirm_s=5.0), self.transport, self.queue, lambda: self.now, random.Random(1)
        )

    def track(self, task: str = "a", *, seen: bool = False) -> TrackedTask:
        tracked = TrackedTask(task, seen)
        self.tracker.track(tracked)
        self.transport.calls.clear()
        return tracked

    async def results(self) -> list[tuple[str, PollResult]]:
        return await anext(self.queue.batches()) if len(self.queue) else []


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_task_is_started_once_and_replaces_another_of_its_id(bench: Bench) -> None:
    first = bench.track()
    second = TrackedTask("a", seen=True)
    bench.tracker.track(second)
    assert bench.transport.calls == [("stop", "a"), ("start", "a")]
    assert bench.tracker.tasks == {"a": second}
    assert first.phase == FORGOTTEN


async def test_a_changed_task_is_parked_until_it_is_resumed(bench: Bench) -> None:
    tracked = bench.track()
    assert bench.tracker.resume("a", quiet_until=0.0) is None
    bench.tracker.report_task(tracked, RUNNING)
    assert (tracked.phase, tracked.task) == (PARKED, RUNNING)
    assert bench.tracker.resume("a", quiet_until=0.0) is tracked
    assert bench.tracker.resume("a", quiet_until=0.0) is None
    assert bench.transport.calls == [("pause", "a"), ("resume", "a")]
    assert await bench.results() == [("a", RUNNING)]


async def test_an_unchanged_task_is_not_parked(bench: Bench) -> None:
    tracked = bench.track()
    bench.tracker.report_unchanged([tracked])
    assert tracked.phase == WAITING
    assert await bench.results() == [("a", UNCHANGED)]


@pytest.mark.parametrize("is_urgent", [False, True])
async def test_unchanged_polls_are_kept_back_while_nothing_follows_from_them(bench: Bench, is_urgent: bool) -> None:
    tracked = bench.track()
    bench.tracker.report_task(tracked, RUNNING)
    bench.tracker.resume("a", quiet_until=160.0)
    await bench.results()
    if is_urgent:
        bench.tracker.poll_now("a")
    bench.now = 159.9
    bench.tracker.report_unchanged([tracked])
    assert await bench.results() == ([("a", UNCHANGED)] if is_urgent else [])
    bench.now = 160.0
    bench.tracker.report_unchanged([tracked])
    assert await bench.results() == [("a", UNCHANGED)]


@pytest.mark.parametrize("unchanged", [True, False])
async def test_any_result_serves_an_urgent_poll(bench: Bench, unchanged: bool) -> None:
    tracked = bench.track()
    bench.tracker.poll_now("a")
    assert tracked.is_urgent
    if unchanged:
        bench.tracker.report_unchanged([tracked])
    else:
        bench.tracker.report_task(tracked, RUNNING)
    bench.tracker.report_unreachable()
    assert not tracked.is_urgent
    assert len(await bench.results()) == 1


async def test_a_result_that_is_on_its_way_serves_an_urgent_poll(bench: Bench) -> None:
    tracked = bench.track()
    bench.transport.has_result_coming = True
    bench.tracker.poll_now("a")
    bench.tracker.poll_now("unknown")
    bench.tracker.report_unreachable()
    assert not tracked.is_urgent
    assert await bench.results() == []


async def test_urgent_tasks_alone_are_unanswered_while_vcenter_is_unreachable(bench: Bench) -> None:
    urgent, polled, forgotten = bench.track("urgent"), bench.track("polled"), bench.track("forgotten")
    bench.track("other")
    for task in ("urgent", "polled", "forgotten"):
        bench.tracker.poll_now(task)
    polled.phase = POLLING  # its own answer, or failure, is still to come
    bench.tracker.forget("forgotten")
    bench.tracker.last_refusal = REFUSED
    bench.tracker.report_unreachable()
    assert (urgent.phase, polled.is_urgent, forgotten.phase) == (PARKED, True, FORGOTTEN)
    assert await bench.results() == [("urgent", Unanswered(REFUSED))]


async def test_a_poll_that_proved_nothing_is_repeated_and_an_urgent_one_reported(bench: Bench) -> None:
    tracked = bench.track()
    bench.tracker.retry_at(tracked, 103.0)
    assert bench.transport.calls == [("poll_at", "a", 103.0)]
    bench.tracker.poll_now("a")
    bench.tracker.retry_at(tracked, 107.0, GONE)
    assert bench.transport.calls[1:] == [("poll_now", "a"), ("pause", "a"), ("poll_at", "a", 107.0)]
    assert await bench.results() == [("a", Unanswered(GONE))]


def test_an_unreadable_task_is_logged_once_and_polled_less_and_less_often(bench: Bench) -> None:
    tracked = bench.track()
    with capture_logs() as logs:
        for _ in range(8):
            bench.tracker.mark_unreadable(tracked, "It is garbled.", log_after=2)
            bench.tracker.retry_later(tracked)
    assert [(line["event"], line["reason"]) for line in logs] == [("task_not_readable", "It is garbled.")]
    waits = [due - 100.0 for _, _, due in bench.transport.calls if isinstance(due, float)]
    assert waits[0] <= 1.0
    assert 7.5 <= waits[-1] <= 15.0
    assert bench.tracker.mark_readable(tracked)
    assert tracked.failures == 0
    assert not bench.tracker.mark_readable(tracked)


async def test_a_missing_task_is_lost_only_after_a_second_answer(bench: Bench) -> None:
    tracked = bench.track(seen=True)
    bench.tracker.absences.record_shown("b", tracked.provider, bench.now)
    assert bench.tracker.mark_missing(tracked)
    assert not bench.tracker.mark_missing(tracked)
    assert not bench.tracker.confirm_missing(tracked, is_denied=False)
    bench.tracker.retry_missing(tracked, GONE)
    assert bench.transport.calls == [("poll_at", "a", 105.5)]
    bench.now = 105.5
    assert bench.tracker.confirm_missing(tracked, is_denied=False)
    bench.tracker.report_absence(tracked, GONE, is_denied=False)
    assert await bench.results() == [("a", Absence("lost", GONE))]


@pytest.mark.parametrize("event", ["shown", "forgotten"])
async def test_a_task_that_is_shown_or_forgotten_meanwhile_is_not_lost(bench: Bench, event: str) -> None:
    tracked = bench.track(seen=True)
    bench.tracker.mark_missing(tracked)
    if event == "shown":
        assert bench.tracker.mark_seen(tracked)
        assert not bench.tracker.mark_seen(tracked)
    else:
        bench.tracker.forget("a")
        bench.transport.calls.clear()
    bench.tracker.retry_missing(tracked, GONE)
    bench.tracker.report_absence(tracked, GONE, is_denied=True)
    assert bench.transport.calls == []
    assert await bench.results() == []


async def test_closing_forgets_every_task_and_ends_the_results(bench: Bench) -> None:
    bench.track("a")
    bench.track("b")
    bench.tracker.close()
    assert bench.transport.calls == [("stop", "a"), ("stop", "b")]
    assert [batch async for batch in bench.queue.batches()] == []


@pytest.mark.parametrize("log_after", [1, 2, 3])
def test_an_unreadable_task_is_logged_from_the_failure_on_that_counts(bench: Bench, log_after: int) -> None:
    tracked = bench.track()
    with capture_logs() as logs:
        counts = []
        for _ in range(4):
            bench.tracker.mark_unreadable(tracked, "It is garbled.", log_after=log_after)
            counts.append((tracked.failures, len(logs)))
    assert counts == [(failures, int(failures >= log_after)) for failures in (1, 2, 3, 4)]


def test_unless_it_is_said_otherwise_the_first_failure_is_logged(bench: Bench) -> None:
    tracked = bench.track()
    with capture_logs() as logs:
        for _ in range(2):
            bench.tracker.mark_unreadable(tracked, "It is garbled.")
            assert len(logs) == 1


def test_one_whose_group_is_logged_is_counted_only(bench: Bench) -> None:
    tracked = bench.track()
    with capture_logs() as logs:
        bench.tracker.mark_unreadable(tracked, "It is garbled.", logs=False)
    assert (tracked.failures, tracked.is_logged, logs) == (1, False, [])


def test_forgetting_says_whether_the_task_was_tracked(bench: Bench) -> None:
    bench.track("a")
    assert bench.tracker.forget("a")
    assert not bench.tracker.forget("a")


def test_a_task_that_is_shown_has_been_seen_and_vanishes_later(bench: Bench) -> None:
    tracked = bench.track(seen=False)
    bench.tracker.mark_seen(tracked)
    assert tracked.seen
    assert bench.tracker.mark_missing(tracked)
    assert bench.tracker.absences.vanished_count == 1


async def test_an_unreadable_answer_interrupts_what_vcenter_said_of_a_missing_task(bench: Bench) -> None:
    tracked = bench.track(seen=True)
    bench.tracker.absences.record_shown("b", tracked.provider, bench.now)
    bench.tracker.mark_missing(tracked)
    bench.tracker.confirm_missing(tracked, is_denied=False)
    bench.now += 3.0
    bench.tracker.mark_unreadable(tracked, "A router answered.")
    bench.now += 3.0
    bench.tracker.mark_missing(tracked)
    assert not bench.tracker.confirm_missing(tracked, is_denied=False)
    bench.now += 5.0
    assert bench.tracker.confirm_missing(tracked, is_denied=False)


async def test_a_task_whose_id_another_has_is_lost_at_once(bench: Bench) -> None:
    tracked = bench.track(seen=True)
    bench.tracker.mark_replaced(tracked)
    assert bench.tracker.confirm_missing(tracked, is_denied=False)
    bench.tracker.report_absence(tracked, GONE, is_denied=False)
    assert await bench.results() == [("a", Absence("lost", GONE))]
