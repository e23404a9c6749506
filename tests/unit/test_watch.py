"""The rules of a watch, one row each: what was told, what a look shows, what follows."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from task_bridge.domain.durations import rfc3339
from task_bridge.domain.events import Event, ResultRef, WatchRef
from task_bridge.domain.ports import PollResult, Unanswered
from task_bridge.domain.task import NO_RESULT, UNAVAILABLE, Message, Result, Task, TaskError
from task_bridge.domain.watch import (
    LAST_POLL_S,
    LATE_POLL_S,
    Policy,
    TaskView,
    Watch,
    answers_request,
    is_past_last_poll,
    last_poll_until,
    next_event,
    record_poll,
    stall_at,
    view_from_event,
    wake_at,
)
from unit.builders import (
    DAY_S,
    NOW,
    POLICY,
    SOURCE,
    TASK,
    Replica,
    a_task,
    a_watch,
    an_event,
    blocked,
    denied,
    failed,
    kinds,
    lost,
    progress,
    result_of,
    running,
    stored,
    succeeded,
)

Script = list[tuple[float, PollResult | None]]
"""Looks: at how many seconds after NOW, and what they showed (None: no answer)."""

RESTATE_S = POLICY.restate_after_s


def played(script: Script, watch: Watch | None = None, **options: Any) -> Replica:
    """A replica that lived through the script; timers went off in between."""
    replica = Replica(watch or a_watch(), **options)
    play(replica, script)
    return replica


def play(replica: Replica, script: Script) -> None:
    world: PollResult | None = None
    for at, standing in script:
        replica.wait_until(NOW + at, world)
        replica.look(standing)
        world = standing


def told(events: list[Event]) -> list[tuple[float, str]]:
    """When each event took place, in seconds after NOW, and its kind."""
    return [(round(event.time - NOW, 2), event.kind) for event in events]


def last_of(replica: Replica) -> Event:
    return replica.events[-1]


# What follows from a look


@pytest.mark.parametrize(
    ("before", "seen", "expected"),
    [
        (None, a_task("PENDING"), ["watching"]),
        (None, running(0), ["watching"]),
        (None, blocked(), ["watching"]),
        (None, a_task("ARCHIVED"), ["watching"]),
        (None, succeeded(), ["watching", "completed.succeeded"]),
        (None, failed(), ["watching", "completed.failed"]),
        (a_task("PENDING"), running(), ["status"]),
        (running(0), running(0), []),
        (running(0), running(5), ["progress"]),
        (running(5), running(4), ["progress"]),
        (running(0), blocked(), ["status"]),  # BLOCKED is no end
        (blocked(), running(0), ["status"]),
        (blocked(), blocked(), []),
        (blocked(), succeeded(), ["completed.succeeded"]),
        (running(), a_task("ARCHIVED"), ["status"]),  # a word that a later vCenter may bring
        (a_task("ARCHIVED"), a_task("CANCELED"), ["status"]),
        (a_task("ARCHIVED"), succeeded(), ["completed.succeeded"]),
        (running(0), blocked(progress=progress(5)), ["status"]),  # one look, one event
        (running(0), succeeded(progress=progress(100)), ["completed.succeeded"]),
        (running(0), failed("CANCELED"), ["completed.canceled"]),
        (running(0), failed("CANCELLED"), ["completed.failed"]),
        (running(0), failed(None), ["completed.failed"]),
        (running(cancelable=True), running(cancelable=False), ["progress"]),
        (running(cancelable=None), running(cancelable=True), ["progress"]),
        (running(progress=progress(5, message="a")), running(progress=progress(5, message="b")), ["progress"]),
        (running(5), running(), ["progress"]),
        (running(user="a", description="b"), running(user="c", description="d"), []),
        (running(), lost(), ["abandoned.lost"]),
        (running(), denied(), ["abandoned.denied"]),
        (None, lost(), ["abandoned.lost"]),
        (None, denied(), ["abandoned.denied"]),
        (None, Unanswered(), []),
        (running(), Unanswered(TaskError("X", "no")), []),
        (running(), None, []),
        (succeeded(), succeeded(), []),  # shown again after the end
        (succeeded(), running(), []),
        (failed(), lost(), []),
        (lost(), running(), []),
    ],
)
def test_one_look_gives_at_most_one_event_and_two_when_the_first_finds_the_end(
    before: PollResult | None, seen: PollResult | None, expected: list[str]
) -> None:
    replica = played([(0, before)] if before else [])
    replica.wait_until(NOW + 10)
    count = len(replica.events)

    replica.look(seen)

    assert kinds(replica.events)[count:] == expected


def test_an_event_tells_all_that_the_look_showed_and_whose_watch_it_is() -> None:
    task = running(
        40, description="Apply", user="admin", cancelable=True, parent="p", started_at="2025-11-24T22:40:00.000Z"
    )
    watch = a_watch(timeout_at=NOW + 60, labels={"a": "b"}, traceparent="00-x", tracestate="y", api="cis")

    event = last_of(played([(1.5, task)], watch))

    data = event.data
    assert (event.source, event.time, event.traceparent, event.tracestate) == (SOURCE, NOW + 1.5, "00-x", "y")
    assert (data.vcenter, data.api, data.task) == ("lab", "cis", TASK)
    assert data.watch == WatchRef(watch.id, rfc3339(NOW), rfc3339(NOW + 60), {"a": "b"})
    for name in ("status", "service", "operation", "description", "user", "parent", "cancelable", "progress"):
        assert getattr(data, name) == getattr(task, name), name
    assert (data.started_at, data.ended_at, data.duration_seconds) == (task.started_at, None, None)
    assert (data.error, data.extra, data.result_state) == (None, None, "none")
    assert data.unchanged_since == rfc3339(NOW + 1.5)


def test_the_end_tells_when_it_was_and_what_goes_beyond_info() -> None:
    end = succeeded(
        result_of({"a": 1}), ended_at="2025-11-24T22:40:09.000Z", duration_seconds=9.0, extra={"subtasks": {}}
    )

    data = last_of(played([(0, running()), (10, end)])).data

    assert (data.ended_at, data.duration_seconds, data.extra) == (end.ended_at, 9.0, {"subtasks": {}})
    assert (data.final, data.outcome, data.result_state, bytes(data.result)) == (
        True,
        "succeeded",
        "inline",
        b'{"a":1}',
    )


def test_only_the_end_carries_extra_and_error() -> None:
    end = failed(extra={"notifications": {}})

    watching, completed = played([(0, end)]).events

    assert (watching.data.extra, watching.data.error) == (None, None)
    assert (completed.data.extra, completed.data.error) == (end.extra, end.error)


def test_events_are_numbered_and_name_the_status_before() -> None:
    events = played([(0, a_task("PENDING")), (5, running(0)), (10, running(9)), (15, succeeded())]).events

    assert [(event.data.sequence, event.data.previous_status, event.data.status) for event in events] == [
        (1, None, "PENDING"),
        (2, "PENDING", "RUNNING"),
        (3, "RUNNING", "RUNNING"),
        (4, "RUNNING", "SUCCEEDED"),
    ]


def test_an_end_found_by_the_first_look_follows_its_own_status() -> None:
    watching, completed = played([(0, succeeded())]).events

    assert (watching.data.status, watching.data.previous_status, watching.data.final) == ("SUCCEEDED", None, False)
    assert (completed.data.status, completed.data.previous_status) == ("SUCCEEDED", "SUCCEEDED")


# The result of the end


def test_the_end_waits_for_its_result() -> None:
    watch, view = a_watch(), view_from_event(None)
    first = an_event("watching", status="RUNNING")
    record_poll(view, first, succeeded(None), NOW + 1)
    assert next_event(watch, first, view, NOW + 1, POLICY) is None

    record_poll(view, first, succeeded(result_of([1])), NOW + 2)
    draft = next_event(watch, first, view, NOW + 2, POLICY)

    assert draft is not None
    assert (draft.event.kind, draft.result) == ("completed.succeeded", result_of([1]))
    assert draft.event.unchanged_since == pytest.approx(NOW + 1, abs=0.001)


def test_since_when_nothing_changed_survives_a_takeover_before_the_result() -> None:
    watch, first = a_watch(partial_results=True), stored(played([(0, succeeded())]).events[0])
    view = view_from_event(first)
    record_poll(view, first, succeeded(result_of([1])), NOW + 30)

    draft = next_event(watch, first, view, NOW + 30, POLICY)

    assert draft is not None
    assert (draft.event.kind, draft.event.data.unchanged_since) == ("completed.succeeded", rfc3339(NOW))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (running(0), ["watching", "abandoned.lost"]),
        (succeeded(), ["watching", "completed.succeeded"]),
        (None, ["abandoned.lost"]),
    ],
)
def test_what_was_seen_before_the_task_vanished_is_told_first(seen: Task | None, expected: list[str]) -> None:
    replica = Replica(a_watch())
    if seen:
        record_poll(replica.view, None, seen, NOW)
    replica.view.absence = lost()

    replica.settle()

    assert kinds(replica.events) == expected


def test_a_watch_that_begins_with_the_end_is_watching_before_the_result_is_there() -> None:
    view = TaskView()
    record_poll(view, None, succeeded(None), NOW)

    draft = next_event(a_watch(), None, view, NOW, POLICY)

    assert draft is not None
    assert draft.event.kind == "watching"


@pytest.mark.parametrize(
    ("result", "state"), [(NO_RESULT, "none"), (UNAVAILABLE, "unavailable"), (result_of({"a": 1}), "inline")]
)
@pytest.mark.parametrize(("end", "kind"), [(succeeded, "completed.succeeded"), (failed, "completed.failed")])
def test_the_end_is_told_whatever_became_of_the_result(end: Any, kind: str, result: Result, state: str) -> None:
    event = last_of(played([(0, running()), (5, end(result=result))]))

    assert (event.kind, event.data.result_state) == (kind, state)


def test_a_large_result_of_the_end_is_told_by_reference() -> None:
    data = last_of(played([(0, succeeded(result_of(["x" * 50])))], inline_max=20)).data

    assert data.result_state == "stored"
    assert data.result_ref is not None
    assert data.result_ref.size == 54


# Progress: at most one an interval, the last of an interval always


@pytest.mark.parametrize(
    ("script", "until", "expected"),
    [
        ([(0, running(0)), (0.5, running(1))], 1.9, [(0, "watching")]),
        ([(0, running(0)), (0.5, running(1))], 10, [(0, "watching"), (2, "progress")]),
        ([(0, running(0)), (0.5, running(1)), (1, running(2))], 10, [(0, "watching"), (2, "progress")]),
        ([(0, running(0)), (0.5, running(1)), (1, running(0))], 10, [(0, "watching")]),
        ([(0, running(0)), (2, running(1))], 10, [(0, "watching"), (2, "progress")]),
        ([(0, running(0)), (3, running(1)), (4, running(2))], 10,
         [(0, "watching"), (3, "progress"), (5, "progress")]),
        ([(0, running(0)), (0.5, running(1)), (1, blocked())], 10, [(0, "watching"), (1, "status")]),
        ([(0, running(0)), (0.5, running(1)), (1, succeeded())], 10, [(0, "watching"), (1, "completed.succeeded")]),
        ([(0, running(0)), (0.5, running(cancelable=True))], 10, [(0, "watching"), (2, "progress")]),
        # A status isn't held back, and progress after it is.
        ([(0, running(0)), (1, blocked()), (1.5, blocked(cancelable=True))], 10,
         [(0, "watching"), (1, "status"), (3, "progress")]),
    ],
)  # fmt: skip
def test_progress_is_told_once_an_interval_and_the_last_of_it_always(
    script: Script, until: float, expected: list[tuple[float, str]]
) -> None:
    replica = played(script)
    replica.wait_until(NOW + until)

    assert told(replica.events) == expected


def test_progress_told_late_is_the_newest() -> None:
    replica = played([(0, running(0)), (0.5, running(1)), (1.5, running(7))])
    replica.wait_until(NOW + 3)

    assert last_of(replica).data.progress == progress(7)
    assert last_of(replica).data.unchanged_since == rfc3339(NOW + 1.5)


def test_without_an_interval_every_progress_is_told() -> None:
    replica = played([(0, running(0)), (0, running(1)), (0, running(2))], policy=POLICY._replace(progress_interval_s=0))

    assert kinds(replica.events) == ["watching", "progress", "progress"]


def test_a_clock_that_was_set_back_does_not_hold_progress_back() -> None:
    replica = played([(0, running(0)), (-3600, running(1))])

    assert kinds(replica.events) == ["watching", "progress"]


# Standstill


STALLING = a_watch(stalled_after_s=60.0)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([(0, running(0)), (59, running(0))], [(0, "watching")]),
        ([(0, running(0)), (60, running(0))], [(0, "watching"), (60, "stalled")]),
        ([(0, running(0)), (60, running(0)), (120, running(0)), (600, running(0))],
         [(0, "watching"), (60, "stalled")]),
        ([(0, blocked()), (60, blocked())], [(0, "watching"), (60, "stalled")]),
        ([(0, running(0)), (60, running(1)), (119, running(1))], [(0, "watching"), (60, "progress")]),
        ([(0, running(0)), (60, running(1)), (120, running(1))],
         [(0, "watching"), (60, "progress"), (120, "stalled")]),
        ([(0, running(0)), (30, blocked()), (60, blocked()), (90, blocked())],
         [(0, "watching"), (30, "status"), (90, "stalled")]),
        # Told, moved on, stood still again.
        ([(0, running(0)), (60, running(0)), (100, running(1)), (160, running(1))],
         [(0, "watching"), (60, "stalled"), (100, "progress"), (160, "stalled")]),
        ([(0, running(0)), (60, running(0)), (100, blocked()), (160, blocked())],
         [(0, "watching"), (60, "stalled"), (100, "status"), (160, "stalled")]),
        # What isn't status, progress, cancelable or the partial result is no life.
        ([(0, running(0, user="a")), (60, running(0, user="b"))], [(0, "watching"), (60, "stalled")]),
        ([(0, running(0)), (50, running(0, cancelable=True)), (60, running(0, cancelable=True))],
         [(0, "watching"), (50, "progress")]),
        # Only a good look tells, however long it takes.
        ([(0, running(0)), (60, None), (600, None)], [(0, "watching")]),
        ([(0, running(0)), (60, Unanswered()), (600, None)], [(0, "watching")]),
        ([(0, running(0)), (60, None), (600, running(0))], [(0, "watching"), (600, "stalled")]),
        ([(0, running(0)), (59, running(0)), (600, None)], [(0, "watching")]),
        ([(0, succeeded()), (60, succeeded())], [(0, "watching"), (0, "completed.succeeded")]),
    ],
)  # fmt: skip
def test_a_standstill_is_told_once_by_a_good_look(script: Script, expected: list[tuple[float, str]]) -> None:
    assert told(played(script, STALLING).events) == expected
    assert told(played(script, STALLING, whole_looks=True).events) == expected


def test_a_standstill_tells_since_when() -> None:
    event = last_of(played([(0, running(0)), (10, running(1)), (70.5, running(1))], STALLING))

    assert (event.kind, event.data.unchanged_since) == ("stalled", rfc3339(NOW + 10))


def test_without_stalled_after_nothing_stalls() -> None:
    replica = played([(0, running(0)), (DAY_S, running(0))], a_watch(stalled_after_s=0.0))

    assert kinds(replica.events) == ["watching"]


@pytest.mark.parametrize("resumes", [1, 2])
def test_a_standstill_is_told_once_by_whoever_takes_over(resumes: int) -> None:
    replica = played([(0, running(0)), (60, running(0))], STALLING)
    for number in range(resumes):
        replica = replica.resumed()
        play(replica, [(100 + 100 * number, running(0))])

    assert told(replica.events) == [(0, "watching"), (60, "stalled")]


def test_a_standstill_that_began_before_the_takeover_is_told_after_it() -> None:
    replica = played([(0, running(0)), (30, running(0))], STALLING).resumed()
    play(replica, [(59, running(0)), (60, running(0))])

    assert told(replica.events) == [(0, "watching"), (60, "stalled")]


def test_a_standstill_is_not_told_again_after_its_status_was_restated() -> None:
    replica = played([(0, running(0)), (60, running(0))], STALLING)
    replica.wait_until(NOW + 60 + RESTATE_S)
    for _ in range(2):
        replica.look(running(0))
        replica = replica.resumed()

    assert kinds(replica.events) == ["watching", "stalled", "status"]


def test_after_the_restatement_and_a_change_the_next_standstill_is_told() -> None:
    at = 60 + RESTATE_S
    script: Script = [(0, running(0)), (60, running(0)), (at, None), (at + 5, running(1)), (at + 65, running(1))]

    assert kinds(played(script, STALLING).events) == ["watching", "stalled", "status", "progress", "stalled"]


def test_the_next_standstill_is_told_when_the_clock_was_set_back_in_between() -> None:
    script: Script = [(0, running(0)), (60, running(0)), (-3600, running(1)), (-3540, running(1))]

    assert kinds(played(script, STALLING).events) == ["watching", "stalled", "progress", "stalled"]


def test_progress_that_is_held_back_is_a_sign_of_life() -> None:
    watch = a_watch(stalled_after_s=1.0)

    replica = played([(0, running(0)), (0.9, running(1)), (1.8, running(2))], watch)

    assert told(replica.events) == [(0, "watching")]


# Restated


@pytest.mark.parametrize("looks", [[running(3)], [None], []])
def test_a_quiet_watch_is_stated_again_before_its_memory_ages_out(looks: list[PollResult | None]) -> None:
    replica = played([(0, running(3))])
    if looks:
        play(replica, [(100, looks[0])])
    replica.wait_until(NOW + RESTATE_S - 1)
    assert kinds(replica.events) == ["watching"]

    replica.wait_until(NOW + 2 * RESTATE_S)

    assert told(replica.events) == [(0, "watching"), (RESTATE_S, "status"), (2 * RESTATE_S, "status")]
    data = last_of(replica).data
    assert (data.status, data.previous_status, data.progress) == ("RUNNING", "RUNNING", progress(3))
    assert data.unchanged_since == rfc3339(NOW)


def test_restating_needs_no_look_after_a_takeover() -> None:
    replica = played([(0, running(3, user="admin", description="Apply"))]).resumed()
    replica.wait_until(NOW + RESTATE_S)

    first, again = replica.events
    ours = {"kind": first.data.kind, "sequence": first.data.sequence, "previous_status": None}
    assert (again.data.kind, again.data.sequence, again.data.previous_status) == ("status", 2, "RUNNING")
    assert msgspec.structs.replace(again.data, **ours) == first.data


def test_a_watch_without_an_event_has_nothing_to_restate() -> None:
    replica = played([(0, None)])
    replica.wait_until(NOW + 10 * RESTATE_S)

    assert replica.events == []


# Timeouts


TIMED = a_watch(timeout_at=NOW + 100)
ENDED_NOW: list[tuple[PollResult | None, float, list[str], str | None]] = [
    (running(0), 100, ["watching", "abandoned.watch_timed_out"], "RUNNING"),
    (running(7), 100, ["watching", "abandoned.watch_timed_out"], "RUNNING"),  # no progress before the end
    (blocked(), 100, ["watching", "abandoned.watch_timed_out"], "BLOCKED"),
    (succeeded(), 100, ["watching", "completed.succeeded"], "SUCCEEDED"),
    (failed(), 100, ["watching", "completed.failed"], "FAILED"),
    (lost(), 100, ["watching", "abandoned.lost"], "RUNNING"),
    (Unanswered(), 100, ["watching", "abandoned.watch_timed_out"], "RUNNING"),
    (None, 115, ["watching", "abandoned.watch_timed_out"], "RUNNING"),
]


@pytest.mark.parametrize(("found", "at", "expected", "status"), ENDED_NOW)
def test_at_the_deadline_one_last_look_decides(
    found: PollResult | None, at: float, expected: list[str], status: str | None
) -> None:
    replica = played([(0, running(0))], TIMED)
    replica.wait_until(NOW + 200, found)

    assert kinds(replica.events) == expected
    assert told(replica.events)[-1][0] == at
    assert last_of(replica).data.status == status


@pytest.mark.parametrize(("found", "at", "expected", "status"), ENDED_NOW)
def test_whoever_took_over_before_the_deadline_decides_the_same(
    found: PollResult | None, at: float, expected: list[str], status: str | None
) -> None:
    replica = played([(0, running(0))], TIMED).resumed()
    replica.wait_until(NOW + 200, found)

    assert (kinds(replica.events), told(replica.events)[-1][0]) == (expected, at)
    assert last_of(replica).data.status == status


def test_a_watch_whose_task_was_never_shown_times_out_without_a_status() -> None:
    replica = played([(0, None)], TIMED)
    replica.wait_until(NOW + 200)

    event = last_of(replica)
    assert told([event]) == [(115, "abandoned.watch_timed_out")]
    assert (event.data.sequence, event.data.status, event.data.unchanged_since) == (1, None, None)


def test_a_task_first_shown_by_the_last_look_is_watching_before_it_times_out() -> None:
    replica = played([(0, None)], TIMED)
    replica.wait_until(NOW + 200, running(0))

    assert told(replica.events) == [(100, "watching"), (100, "abandoned.watch_timed_out")]


def test_an_answer_within_the_time_of_the_last_look_decides() -> None:
    replica = played([(0, running(0)), (90, None), (110, succeeded())], TIMED)

    assert told(replica.events) == [(0, "watching"), (110, "completed.succeeded")]


def test_an_end_whose_result_does_not_come_in_time_is_told_without() -> None:
    replica = played([(0, running(0))], TIMED)
    replica.wait_until(NOW + 99)
    record_poll(replica.view, replica.last, succeeded(None), replica.now)
    replica.settle()
    assert kinds(replica.events) == ["watching"]

    replica.wait_until(NOW + 200)

    assert told(replica.events)[1:] == [(115, "completed.succeeded")]
    assert last_of(replica).data.result_state == "unavailable"


@pytest.mark.parametrize(
    ("over", "task", "after", "past"),
    [
        (False, None, -1.0, False),
        (True, None, -0.001, False),
        (True, None, 0.0, True),
        (False, None, 0.0, False),
        (False, None, LAST_POLL_S - 0.1, False),
        (False, None, LAST_POLL_S, True),
        (True, running(), 0.0, True),
        (True, succeeded(None), 0.0, False),
        (True, succeeded(None), LAST_POLL_S, True),
    ],
)
def test_the_last_look_is_past_when_it_is_over_or_had_its_time(
    over: bool, task: Task | None, after: float, past: bool
) -> None:
    view = TaskView(task=task, last_poll_until=TIMED.deadline + LAST_POLL_S, last_poll_over=over)

    assert is_past_last_poll(TIMED, view, TIMED.deadline + after) is past


@pytest.mark.parametrize(
    ("requested_after", "over_after"),
    [
        (0.0, LAST_POLL_S),
        (3.0, LAST_POLL_S),  # taken over 3 s after the deadline: 12 s are left
        (LAST_POLL_S - LATE_POLL_S, LAST_POLL_S),
        (LAST_POLL_S - 1.0, LAST_POLL_S - 1.0 + LATE_POLL_S),
        (DAY_S, DAY_S + LATE_POLL_S),
    ],
)
def test_a_takeover_does_not_restart_the_time_of_the_last_look(requested_after: float, over_after: float) -> None:
    until = last_poll_until(TIMED, TIMED.deadline + requested_after)

    assert until - TIMED.deadline == pytest.approx(over_after, abs=0.001)


def test_without_a_timeout_there_is_no_deadline() -> None:
    assert a_watch().deadline == math.inf
    assert not is_past_last_poll(a_watch(), TaskView(last_poll_over=True), NOW + 1000 * DAY_S)


# Why a watch ended without knowing the task's end


@pytest.mark.parametrize(
    ("absence", "outcome", "advice"),
    [(lost("Gone."), "lost", "no longer knows"), (denied(), "denied", "privilege")],
)
def test_an_absence_is_told_with_vcenters_answer_and_advice(absence: Any, outcome: str, advice: str) -> None:
    data = last_of(played([(0, running(3)), (50, absence)])).data

    assert (data.kind, data.outcome, data.final) == ("abandoned", outcome, True)
    assert (data.status, data.progress) == ("RUNNING", progress(3))
    assert data.error is not None
    assert data.error.type == absence.answer.type
    assert advice in data.error.message
    assert absence.answer.message in data.error.message


def test_a_task_that_was_never_shown_is_lost_without_a_status() -> None:
    data = last_of(played([(0, lost())])).data

    assert (data.sequence, data.status, data.previous_status, data.progress) == (1, None, None, None)
    assert data.error is not None
    assert "mistyped" in data.error.message


def test_the_answer_to_the_last_look_is_told() -> None:
    answer = TaskError("SERVICE_UNAVAILABLE", "Busy.", (Message("a", "Busy."),), transient=True, data={"x": 1})
    replica = played([(0, running())], TIMED)
    replica.wait_until(NOW + 200, Unanswered(answer))

    error = last_of(replica).data.error
    assert error is not None
    assert (error.type, error.messages, error.transient, error.data) == (
        "SERVICE_UNAVAILABLE",
        answer.messages,
        True,
        {"x": 1},
    )
    assert "Busy." in error.message
    assert "timeout" in error.message


@pytest.mark.parametrize("answer", ["HTTP 503", "HTTP 503."])
def test_a_timeout_says_each_thing_that_is_known_in_a_sentence(answer: str) -> None:
    replica = played([(0, running())], TIMED)
    replica.view.trouble = "vCenter lab refuses the connection."
    replica.wait_until(NOW + 200, Unanswered(TaskError("X", answer)))

    error = last_of(replica).data.error
    assert error is not None
    assert error.message.endswith(
        " vCenter's last answer: HTTP 503. It couldn't be seen by then: vCenter lab refuses the connection."
    )


def test_a_timeout_without_an_answer_says_what_to_do() -> None:
    replica = played([(0, running())], TIMED)
    replica.wait_until(NOW + 200)

    error = last_of(replica).data.error
    assert error is not None
    assert error.type is None
    assert "the task itself was not touched" in error.message


@pytest.mark.parametrize("script", [[], [(0, running(3))], [(0, blocked())]])
def test_a_watch_ends_on_request(script: Script) -> None:
    replica = played(script).resumed()
    replica.view.unwatched = True
    replica.settle()

    event = last_of(replica)
    assert (event.kind, event.data.final) == ("abandoned.unwatched", True)
    assert event.data.sequence == len(script) + 1
    assert event.data.status == (script[0][1].status if script and isinstance(script[0][1], Task) else None)


def test_a_watch_that_is_over_cannot_be_ended_again() -> None:
    replica = played([(0, succeeded())])
    replica.view.unwatched = True
    replica.settle()

    assert kinds(replica.events) == ["watching", "completed.succeeded"]


# FAILED in its four forms


@pytest.mark.parametrize(
    ("error", "result", "outcome"),
    [
        (TaskError("ERROR", "It broke."), NO_RESULT, "failed"),
        (TaskError(None, "Made from the result."), result_of({"status": "ERROR"}), "failed"),
        (TaskError("ERROR", "It broke."), result_of({"status": "ERROR"}), "failed"),
        (TaskError(None, "No reason given."), NO_RESULT, "failed"),
        (TaskError("CANCELED", "Canceled."), NO_RESULT, "canceled"),
        (TaskError("CANCELED", "Canceled."), result_of({"hosts": []}), "canceled"),
    ],
)
def test_a_failed_task_is_told_with_error_and_result(error: TaskError, result: Result, outcome: str) -> None:
    data = last_of(played([(0, running()), (5, failed(result=result, ended_at=None))])).data
    assert data.outcome == "failed"

    data = last_of(played([(0, running()), (5, a_task("FAILED", error=error, result=result))])).data

    assert (data.kind, data.outcome, data.status, data.error) == ("completed", outcome, "FAILED", error)
    assert bytes(data.result) == (result.json or b"null")


def test_a_result_that_says_otherwise_is_passed_on_beside_succeeded() -> None:
    data = last_of(played([(0, succeeded(result_of({"status": "ERROR"})))])).data

    assert (data.outcome, bytes(data.result), data.error) == ("succeeded", b'{"status":"ERROR"}', None)


# Partial results


PARTIAL = a_watch(partial_results=True, stalled_after_s=60.0)
ONE, TWO = result_of({"done": 1}), result_of({"done": 2, "more": "x" * 20})


@pytest.mark.parametrize("inline_max", [1_000, 0])
@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([(0, running(result=ONE)), (5, running(result=ONE))], [(0, "watching")]),
        ([(0, running(result=ONE)), (5, running(result=TWO))], [(0, "watching"), (5, "progress")]),
        ([(0, running(result=ONE)), (1, running(result=TWO))], [(0, "watching")]),
        ([(0, running(result=ONE)), (5, running(result=TWO)), (60, running(result=TWO)), (65, running(result=TWO))],
         [(0, "watching"), (5, "progress"), (65, "stalled")]),
        # A look that brought no result knows nothing of it.
        ([(0, running(result=ONE)), (5, running(result=None))], [(0, "watching")]),
        ([(0, running(result=ONE)), (5, running(result=UNAVAILABLE))], [(0, "watching")]),
        ([(0, running(result=ONE)), (5, blocked(result=ONE))], [(0, "watching"), (5, "status")]),
        ([(0, running(result=ONE)), (5, succeeded(TWO))], [(0, "watching"), (5, "completed.succeeded")]),
    ],
)  # fmt: skip
def test_a_partial_result_is_followed_inline_and_by_reference(
    script: Script, expected: list[tuple[float, str]], takeover: bool, inline_max: int
) -> None:
    replica = Replica(PARTIAL, inline_max=inline_max)
    for look in script:
        replica = replica.resumed() if takeover else replica
        play(replica, [look])

    assert told(replica.events) == expected


@pytest.mark.parametrize(
    ("script", "states"),
    [
        ([(0, running(result=ONE)), (5, running(result=NO_RESULT))], [ONE.json, b"null"]),
        ([(0, running(result=NO_RESULT)), (5, running(result=ONE))], [b"null", ONE.json]),
        ([(0, running(result=ONE)), (5, blocked(result=None))], [ONE.json, ONE.json]),
        ([(0, running(result=ONE)), (5, blocked(result=UNAVAILABLE))], [ONE.json, ONE.json]),
        ([(0, running(result=ONE)), (65, running(result=ONE))], [ONE.json, ONE.json]),
        ([(0, running(result=ONE)), (65, lost())], [ONE.json, ONE.json]),
        ([(0, running(result=ONE)), (5, succeeded(TWO))], [ONE.json, TWO.json]),
        ([(0, running(result=ONE)), (5, succeeded(NO_RESULT))], [ONE.json, b"null"]),
    ],
)
def test_every_event_carries_the_newest_partial_result(script: Script, states: list[bytes]) -> None:
    events = played(script, PARTIAL).events

    assert [bytes(event.data.result) for event in events] == states


def test_a_partial_result_in_the_store_is_referred_to_until_it_changes() -> None:
    events = played(
        [(0, running(result=TWO)), (5, blocked(result=None)), (9, blocked(result=ONE))], PARTIAL, inline_max=15
    )
    first, second, third = (event.data for event in events.events)

    assert first.result_state == "stored"
    assert isinstance(first.result_ref, ResultRef)
    assert (second.result_ref, second.result_state) == (first.result_ref, "stored")
    assert (third.result_ref, third.result_state, bytes(third.result)) == (None, "inline", ONE.json)


def test_a_partial_result_that_could_not_be_stored_is_told_once_until_it_changes() -> None:
    last = an_event("watching", status="RUNNING", result_state="unavailable", unchanged_since=rfc3339(NOW))
    view = view_from_event(stored(last))
    record_poll(view, last, running(result=ONE), NOW + 5)
    assert next_event(PARTIAL, last, view, NOW + 5, POLICY) is None
    assert wake_at(PARTIAL, last, view, POLICY) == NOW + RESTATE_S

    record_poll(view, last, running(result=TWO), NOW + 10)
    draft = next_event(PARTIAL, last, view, NOW + 10, POLICY)

    assert draft is not None
    assert (draft.event.kind, draft.result) == ("progress", TWO)


def test_a_partial_result_nobody_asked_for_is_neither_told_nor_a_sign_of_life() -> None:
    script: Script = [(0, running(result=None)), (60, running(result=None)), (70, succeeded(ONE))]

    events = played(script, STALLING).events

    assert [(event.kind, event.data.result_state) for event in events] == [
        ("watching", "none"),
        ("stalled", "none"),
        ("completed.succeeded", "inline"),
    ]


# Taking up


@pytest.mark.parametrize(
    ("kind", "outcome", "watch_id", "stored_request", "stored_at", "served"),
    [
        ("status", None, "own", True, 99.0, False),  # not over
        ("status", None, "other", True, 99.0, False),
        ("completed", "succeeded", "own", False, -1.0, True),
        ("completed", "failed", "other", False, -1.0, True),  # the end of a task answers every watch of it
        ("completed", "canceled", "other", True, -1.0, True),
        ("abandoned", "lost", "own", False, -1.0, True),
        ("abandoned", "lost", "other", False, 99.0, False),  # an API request is never delivered twice
        ("abandoned", "lost", "other", True, 99.0, True),  # ended after the request was stored: served it
        ("abandoned", "unwatched", "other", True, -1.0, False),  # ended before: a new watch
        ("abandoned", "watch_timed_out", "other", True, 0.0, False),
    ],
)
def test_a_watch_is_served_when_an_end_answers_it(
    kind: str, outcome: str | None, watch_id: str, stored_request: bool, stored_at: float, served: bool
) -> None:
    watch = a_watch(stored_request=stored_request)
    ref = WatchRef(watch.id if watch_id == "own" else "1764023000000-7", rfc3339(NOW))

    last = an_event(kind, outcome, watch=ref)

    assert answers_request(last, NOW + stored_at, watch) is served


def test_whoever_takes_a_watch_up_knows_what_its_last_event_tells() -> None:
    assert view_from_event(None) == TaskView()
    assert view_from_event(an_event(unchanged_since=rfc3339(NOW - 50))) == TaskView(changed_at=NOW - 50)


@pytest.mark.parametrize(
    ("seen", "changed"),
    [
        (running(3), False),
        (running(4), True),
        (blocked(progress=progress(3)), True),
        (running(3, cancelable=True), True),
        (running(3, user="somebody"), False),
    ],
)
def test_the_first_look_after_a_takeover_is_compared_with_the_last_event(seen: Task, changed: bool) -> None:
    last = stored(last_of(played([(0, running(3))])))
    view = view_from_event(last)

    record_poll(view, last, seen, NOW + 30)

    assert view.changed_at == (NOW + 30 if changed else NOW)
    assert view.polled_at == NOW + 30


def test_a_good_look_forgets_an_absence_and_an_answer() -> None:
    view = TaskView(absence=lost(), answer=TaskError("X", "x"))

    record_poll(view, None, running(), NOW)

    assert (view.absence, view.answer) == (None, None)


# When to ask again


def test_a_watch_without_events_wakes_at_its_deadline_only() -> None:
    assert wake_at(a_watch(), None, TaskView(), POLICY) == math.inf
    assert wake_at(TIMED, None, TaskView(), POLICY) == NOW + 100
    assert wake_at(TIMED, None, TaskView(last_poll_until=NOW + 103), POLICY) == NOW + 103


@pytest.mark.parametrize(
    ("watch", "seen", "asked", "wakes"),
    [
        (a_watch(), None, False, RESTATE_S),
        (a_watch(), running(0), False, RESTATE_S),
        (a_watch(), running(1), False, 2.0),
        (a_watch(), running(0, cancelable=True), False, 2.0),
        (TIMED, running(0), False, 100.0),
        (TIMED, running(1), False, 2.0),
        (TIMED, running(0), True, 115.0),
        (TIMED, succeeded(None), True, 115.0),
        (a_watch(timeout_at=NOW + 1), running(1), False, 1.0),
    ],
)
def test_a_watch_wakes_for_its_deadline_for_progress_held_back_and_to_restate(
    watch: Watch, seen: Task | None, asked: bool, wakes: float
) -> None:
    last = stored(last_of(played([(0, running(0))])))
    view = view_from_event(last)
    if seen:
        record_poll(view, last, seen, NOW + 0.5)
    view.last_poll_until = NOW + 115 if asked else math.inf

    assert wake_at(watch, last, view, POLICY) == NOW + wakes


@pytest.mark.parametrize(
    ("watch", "last", "changed_at", "stalls"),
    [
        (STALLING, None, NOW, math.inf),  # nothing was told yet
        (a_watch(stalled_after_s=0.0), an_event(), NOW, math.inf),
        (STALLING, an_event(), NOW, NOW + 60),
        (STALLING, an_event(unchanged_since=rfc3339(NOW)), NOW + 5, NOW + 65),
        (STALLING, an_event("stalled", stalled_reported=True, unchanged_since=rfc3339(NOW)), NOW, math.inf),
        (STALLING, an_event(stalled_reported=True, unchanged_since=rfc3339(NOW)), NOW, math.inf),
        (STALLING, an_event(stalled_reported=True, unchanged_since=rfc3339(NOW)), NOW + 0.001, NOW + 60.001),
        (STALLING, an_event(stalled_reported=True, unchanged_since=rfc3339(NOW)), NOW - 5, NOW + 55),
    ],
)
def test_a_standstill_counts_from_the_last_change_until_it_is_told(
    watch: Watch, last: Event | None, changed_at: float, stalls: float
) -> None:
    assert stall_at(watch, last, TaskView(changed_at=changed_at)) == pytest.approx(stalls, abs=0.0002)


def test_a_watch_is_restated_after_half_of_the_time_that_events_are_kept() -> None:
    assert Policy(SOURCE, 2.0, events_max_age_s=100.0).restate_after_s == 50.0


# Details


DETAILED = a_watch(details=True, stalled_after_s=60.0)
SOME, MORE = {"subtasks": {"a": "RUNNING"}}, {"subtasks": {"a": "SUCCEEDED"}}


@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([(0, running(extra=SOME)), (5, running(extra=SOME))], [(0, "watching")]),
        ([(0, running(extra=SOME)), (5, running(extra=MORE))], [(0, "watching"), (5, "progress")]),
        ([(0, running()), (5, running(extra=MORE)), (9, running(extra=MORE))], [(0, "watching"), (5, "progress")]),
        ([(0, running(extra=SOME)), (1, running(extra=MORE))], [(0, "watching")]),
        ([(0, running(extra=SOME)), (5, running(extra=None))], [(0, "watching")]),
        ([(0, running(extra=SOME)), (5, blocked(extra=MORE))], [(0, "watching"), (5, "status")]),
        ([(0, running(extra=SOME)), (50, running(extra=MORE)), (70, running(extra=MORE)), (111, running(extra=MORE))],
         [(0, "watching"), (50, "progress"), (111, "stalled")]),
        ([(0, running(extra=SOME)), (5, succeeded(extra=MORE))], [(0, "watching"), (5, "completed.succeeded")]),
    ],
)  # fmt: skip
def test_a_change_of_extra_alone_is_progress(script: Script, expected: list[tuple[float, str]], takeover: bool) -> None:
    replica = Replica(DETAILED)
    for look in script:
        replica = replica.resumed() if takeover else replica
        play(replica, [look])

    assert told(replica.events) == expected


@pytest.mark.parametrize(
    ("script", "extras"),
    [
        ([(0, running(extra=SOME)), (5, blocked(extra=None))], [SOME, SOME]),
        ([(0, running(extra=SOME)), (5, blocked(extra=MORE))], [SOME, MORE]),
        ([(0, running(extra=SOME)), (65, running(extra=SOME))], [SOME, SOME]),
        ([(0, running(extra=SOME)), (65, lost())], [SOME, SOME]),
        ([(0, running(extra=SOME)), (5, succeeded(extra=None))], [SOME, None]),
        ([(0, running(extra=SOME)), (5, succeeded(extra=MORE))], [SOME, MORE]),
    ],
)
def test_every_event_of_a_watch_with_details_carries_the_newest_extra(script: Script, extras: list[object]) -> None:
    assert [event.data.extra for event in played(script, DETAILED).events] == extras


def test_details_change_nothing_for_a_classic_task() -> None:
    script: Script = [(0, running(extra={"question": 1})), (5, running(extra={"question": 2}))]

    assert told(played(script, a_watch(api="vim", details=True)).events) == [(0, "watching")]


def test_an_extra_that_was_dropped_from_its_event_is_not_published_again_until_it_changes() -> None:
    last = an_event("progress", status="RUNNING", extra=None, unchanged_since=rfc3339(NOW))
    view = view_from_event(stored(last))
    view.task = running(extra=SOME)
    record_poll(view, last, running(extra=SOME), NOW + 5)
    assert next_event(DETAILED, last, view, NOW + 5, POLICY) is None
    assert wake_at(DETAILED, last, view, POLICY) == NOW + RESTATE_S

    record_poll(view, last, running(extra=MORE), NOW + 10)
    draft = next_event(DETAILED, last, view, NOW + 10, POLICY)

    assert draft is not None
    assert (draft.event.kind, draft.event.data.extra) == ("progress", MORE)
