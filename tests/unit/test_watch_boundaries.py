"""The rules of a watch's events at their boundaries: times that differ by milliseconds, and what an event carries."""

from __future__ import annotations

import msgspec
import pytest

from task_bridge.domain.events import Event
from task_bridge.domain.task import NO_RESULT, Task
from task_bridge.domain.watch import (
    Policy,
    TaskView,
    Watch,
    last_poll_until,
    next_event,
    record_poll,
    stall_at,
    view_from_event,
)
from unit.builders import NOW, POLICY, SOURCE, a_watch, an_event, running, succeeded

IDENTITY = {"queueTime": "2025-11-24T22:40:00.000Z", "eventChainId": 7}


def seen(task: Task, now: float = NOW) -> TaskView:
    view = TaskView()
    record_poll(view, None, task, now)
    return view


@pytest.mark.parametrize(
    ("api", "task", "extra"),
    [
        ("vim", running(extra=IDENTITY), IDENTITY),
        ("cis", running(extra=IDENTITY), None),
        ("vim", succeeded(extra=IDENTITY), None),  # that of `completed` has it
        ("cis", succeeded(extra=IDENTITY), None),
    ],
    ids=["classic", "cis", "classic that has ended", "cis that has ended"],
)
def test_watching_carries_the_identity_of_a_classic_task_that_runs(
    api: str, task: Task, extra: dict[str, object] | None
) -> None:
    draft = next_event(a_watch(api=api), None, seen(task), NOW, POLICY)
    assert draft is not None
    assert (draft.event.data.kind, draft.event.data.extra) == ("watching", extra)


@pytest.mark.parametrize("api", ["vim", "cis"])
def test_completed_carries_all_there_is(api: str) -> None:
    last = an_event("watching", api=api, status="RUNNING")
    draft = next_event(a_watch(api=api), last, seen(succeeded(extra=IDENTITY)), NOW, POLICY)
    assert draft is not None
    assert (draft.event.data.kind, draft.event.data.extra) == ("completed", IDENTITY)


@pytest.mark.parametrize(
    ("configured", "last", "source"),
    [
        ("https://new", an_event("watching"), "https://new"),
        (None, an_event("watching"), SOURCE),
        ("https://new", None, "https://new"),
        (None, None, "urn:vcenter:lab"),
    ],
)
def test_an_event_names_the_url_that_is_configured_or_was(
    configured: str | None, last: Event | None, source: str
) -> None:
    policy = Policy(configured, POLICY.progress_interval_s, POLICY.events_max_age_s)
    draft = next_event(a_watch(), last, TaskView(unwatched=True), NOW, policy)
    assert draft is not None
    assert draft.event.source == source


@pytest.mark.parametrize(
    ("since_s", "is_held_back"),
    [
        (-0.5, False),  # the clock was set back: nobody knows how long ago the event was
        (-0.002, False),
        (-0.0009, True),  # its time was rounded up
        (0.0, True),
        (1.999, True),
        (2.0, False),
        (3.0, False),
    ],
)
def test_progress_is_held_back_for_the_interval_after_an_event(since_s: float, is_held_back: bool) -> None:
    # A base without fractions keeps the sums exact enough.
    last = an_event("progress", time=1_000.0, status="RUNNING")
    draft = next_event(a_watch(), last, seen(running(50), 1_000.0), 1_000.0 + since_s, POLICY)
    assert (draft is None) is is_held_back
    if draft is not None:
        assert draft.event.data.kind == "progress"


@pytest.mark.parametrize(("now", "changed_at"), [(1_000.1234, 1_000.123), (1_000.1236, 1_000.124)])
def test_a_change_is_remembered_to_the_millisecond_as_events_are(now: float, changed_at: float) -> None:
    assert seen(running(), now).changed_at == changed_at


@pytest.mark.parametrize(("apart_s", "is_reported"), [(0.0, True), (0.0004, True), (0.0006, False), (-0.0006, False)])
def test_a_standstill_is_the_reported_one_if_nothing_changed_since_but_rounding(
    apart_s: float, is_reported: bool
) -> None:
    last = an_event("stalled", status="RUNNING", unchanged_since="2025-11-24T22:40:00.000Z", stalled_reported=True)
    view = TaskView(changed_at=last.unchanged_since + apart_s)
    at = stall_at(a_watch(stalled_after_s=60.0), last, view)
    assert (at == float("inf")) is is_reported


@pytest.mark.parametrize(
    ("deadline", "now", "until"),
    [(NOW, NOW, NOW + 15), (NOW, NOW + 9, NOW + 15), (NOW, NOW + 10, NOW + 15), (NOW, NOW + 100, NOW + 105)],
)
def test_the_last_poll_has_fifteen_seconds_after_the_deadline_or_five_for_who_comes_late(
    deadline: float, now: float, until: float
) -> None:
    assert last_poll_until(a_watch(timeout_at=deadline), now) == until


def test_a_watch_of_the_least_words_wants_nothing_more() -> None:
    read = msgspec.json.decode(b'{"id": "1", "vcenter": "lab", "task": "a:b", "since": 0}', type=Watch)
    assert (read.api, read.partial_results, read.stored_request, read.labels) == ("cis", False, False, {})
    assert (read.timeout_at, read.stalled_after_s, read.traceparent, read.tracestate) == (None, 0.0, None, None)


def test_a_view_of_nothing_knows_nothing() -> None:
    view = view_from_event(None)
    assert (view.changed_at, view.polled_at, view.task, view.absence, view.answer) == (0.0, 0.0, None, None, None)
    assert not view.last_poll_requested
    assert (view.last_poll_over, view.unwatched, view.memory_lost) == (False, False, False)


def test_an_ended_task_without_its_result_waits_for_it() -> None:
    last = an_event("watching", status="RUNNING")
    assert next_event(a_watch(), last, seen(succeeded(result=None)), NOW, POLICY) is None
    draft = next_event(a_watch(), last, seen(succeeded(result=NO_RESULT)), NOW, POLICY)
    assert draft is not None
