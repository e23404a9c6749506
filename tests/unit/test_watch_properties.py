"""What holds for every history of looks, whatever vCenter, the network and the clock do."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import NamedTuple

import msgspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from task_bridge.domain.events import Event
from task_bridge.domain.ports import PollResult, Unanswered
from task_bridge.domain.task import NO_RESULT, UNAVAILABLE, Result, Task, TaskError
from task_bridge.domain.watch import LAST_POLL_S, LATE_POLL_S, Absence, Policy, Watch
from unit.builders import NOW, SOURCE, Replica, a_task, a_watch, denied, kinds, lost, progress, running, succeeded

POLICY = Policy(SOURCE, progress_interval_s=2.0, events_max_age_s=400.0)
ACTIVE = ["PENDING", "RUNNING", "BLOCKED", "ARCHIVED"]


class Step(NamedTuple):
    """So many seconds pass, then a look shows this (None: vCenter didn't answer)."""

    after_s: float
    standing: PollResult | None


History = list[Step]

results = st.sampled_from([NO_RESULT, UNAVAILABLE, Result(b'{"a":1}'), Result(b'{"a":2,"more":"xxxxxxxxxx"}')])
active = st.builds(
    a_task,
    st.sampled_from(ACTIVE),
    progress=st.none() | st.builds(progress, st.none() | st.integers(0, 4)),
    cancelable=st.none() | st.booleans(),
    result=st.none() | results,
    extra=st.sampled_from([None, {"subtasks": {}}, {"subtasks": {"a": 1}}]),
)
ended = st.builds(a_task, st.just("SUCCEEDED"), result=results) | st.builds(
    a_task,
    st.just("FAILED"),
    result=results,
    error=st.sampled_from([TaskError("ERROR", "It broke."), TaskError("CANCELED", "Canceled.")]),
)
no_answer = st.sampled_from([None, Unanswered(), Unanswered(TaskError("X", "Busy."))])
endings = st.one_of(ended, st.sampled_from([lost(), denied()]))
standings = st.one_of(active, active, active, no_answer, endings)

pauses = st.sampled_from([0.0, 0.001, 0.5, 1.0, 2.0, 3.0, 15.0, 40.0, 61.0, 250.0])
steps = st.builds(Step, pauses, standings)
histories = st.lists(steps, max_size=14)
jumping_histories = st.lists(st.builds(Step, pauses | st.just(-100.0), standings), max_size=14)
watches = st.builds(
    a_watch,
    timeout_at=st.none() | st.sampled_from([NOW + 1, NOW + 30, NOW + 100, NOW + 300]),
    stalled_after_s=st.sampled_from([0.0, 1.0, 50.0]),
    partial_results=st.booleans(),
    details=st.booleans(),
)
inline_maxes = st.sampled_from([0, 1_000])

quick = settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])


def lived_through(
    watch: Watch, history: History, *, cuts: frozenset[int] = frozenset(), inline_max: int = 1_000, repeats: int = 1
) -> Replica:
    """The replica that is there at the end; at each of `cuts` another one took over before that step."""
    replica = Replica(watch, POLICY, inline_max=inline_max, whole_looks=repeats > 1)
    world: PollResult | None = None
    for number, (after_s, found) in enumerate(history):
        standing = as_asked(watch, found)
        if number in cuts:
            replica = replica.resumed()
        replica.wait_until(replica.now + after_s, world)
        for _ in range(repeats):
            replica.look(standing)
        world = standing
    return replica


def as_asked(watch: Watch, standing: PollResult | None) -> PollResult | None:
    """A look at a task that goes on brings a result and an extra only where they are asked for; a result always."""
    if not isinstance(standing, Task) or standing.ended:
        return standing
    result = (standing.result or NO_RESULT) if watch.partial_results else None
    return msgspec.structs.replace(standing, result=result, extra=standing.extra if watch.details else None)


def is_end(standing: PollResult | None) -> bool:
    return isinstance(standing, Absence) or (isinstance(standing, Task) and standing.ended)


def statuses(events: list[Event]) -> list[str | None]:
    """The statuses in order, restatements and progress left out; and the ending."""
    told: list[str | None] = []
    for event in events:
        if not told or told[-1] != event.data.status:
            told.append(event.data.status)
    return told


def ending(events: list[Event]) -> tuple[str, str | None, str, bytes] | None:
    if not events or not events[-1].data.final:
        return None
    data = events[-1].data
    return events[-1].kind, data.status, data.result_state, bytes(data.result)


@quick
@given(watches, jumping_histories, st.frozensets(st.integers(0, 14)), inline_maxes)
def test_events_are_numbered_without_gaps_and_nothing_follows_the_final_one(
    watch: Watch, history: History, cuts: frozenset[int], inline_max: int
) -> None:
    events = lived_through(watch, history, cuts=cuts, inline_max=inline_max).events

    assert [event.data.sequence for event in events] == list(range(1, len(events) + 1))
    assert not any(event.data.final for event in events[:-1])
    assert all(event.data.final == event.kind.startswith(("completed.", "abandoned.")) for event in events)
    assert all(event.data.watch == watch.ref for event in events)


@quick
@given(watches, jumping_histories, st.frozensets(st.integers(0, 14)))
def test_a_history_that_ends_the_task_has_exactly_one_final_event(
    watch: Watch, history: History, cuts: frozenset[int]
) -> None:
    events = lived_through(watch, history, cuts=cuts).events

    finals = sum(event.data.final for event in events)
    assert finals == 1 if any(is_end(step.standing) for step in history) else finals <= 1


@quick
@given(watches.filter(lambda watch: watch.timeout_at is not None), histories, st.frozensets(st.integers(0, 14)))
def test_a_watch_with_a_timeout_is_over_when_its_last_look_had_its_time(
    watch: Watch, history: History, cuts: frozenset[int]
) -> None:
    replica = lived_through(watch, history, cuts=cuts)
    # A replica that takes it over late has a few seconds for a last poll; each timer takes a moment.
    over_at = max(watch.deadline + LAST_POLL_S, replica.began + LATE_POLL_S) + 0.1
    replica.wait_until(max(replica.now, over_at))

    final = replica.events[-1]
    assert final.data.final
    assert final.time <= over_at
    assert final.time >= watch.deadline or any(is_end(step.standing) for step in history)


@quick
@given(watches, jumping_histories, st.frozensets(st.integers(0, 14)))
def test_a_watch_begins_with_watching_unless_vcenter_never_showed_the_task(
    watch: Watch, history: History, cuts: frozenset[int]
) -> None:
    events = lived_through(watch, history, cuts=cuts).events

    assert [event.kind for event in events[1:]].count("watching") == 0
    if events:
        first = events[0]
        assert first.kind == "watching" or (first.data.kind == "abandoned" and first.data.status is None)
        assert first.data.previous_status is None


@quick
@given(watches, jumping_histories)
def test_an_end_is_told_as_vcenter_showed_it(watch: Watch, history: History) -> None:
    events = lived_through(watch, history).events

    if events and events[-1].data.kind == "completed":
        shown = next(step.standing for step in history if is_end(step.standing))
        assert isinstance(shown, Task)
        outcomes = {
            ("SUCCEEDED", None): "succeeded",
            ("FAILED", "ERROR"): "failed",
            ("FAILED", "CANCELED"): "canceled",
        }
        assert events[-1].data.status == shown.status
        assert events[-1].data.error == shown.error
        assert events[-1].data.outcome == outcomes[shown.status, shown.error.type if shown.error else None]


@quick
@given(watches, jumping_histories, st.frozensets(st.integers(0, 14)), inline_maxes)
def test_every_event_says_something_new(watch: Watch, history: History, cuts: frozenset[int], inline_max: int) -> None:
    events = lived_through(watch, history, cuts=cuts, inline_max=inline_max).events

    for before, event in pairwise(events):
        assert event.data.previous_status == before.data.status
        if event.kind == "progress":
            assert event.data.status == before.data.status
            assert what_counts(event) != what_counts(before)
        if event.kind == "status" and event.data.status == before.data.status:
            assert event.time - before.time >= POLICY.restate_after_s - 0.001
        if event.data.kind == "completed":
            assert event.data.status in ("SUCCEEDED", "FAILED")


def what_counts(event: Event) -> tuple[object, ...]:
    data = event.data
    return (
        data.status,
        data.progress,
        data.cancelable,
        bytes(data.result),
        data.result_ref and data.result_ref.sha256,
        repr(data.extra),
    )


@quick
@given(watches, histories, st.frozensets(st.integers(0, 14)))
def test_progress_comes_at_most_once_an_interval(watch: Watch, history: History, cuts: frozenset[int]) -> None:
    events = lived_through(watch, history, cuts=cuts).events

    for before, event in pairwise(events):
        assert event.kind != "progress" or event.time - before.time >= POLICY.progress_interval_s - 0.002


@quick
@given(watches, histories, st.frozensets(st.integers(0, 14)))
def test_a_standstill_is_told_once(watch: Watch, history: History, cuts: frozenset[int]) -> None:
    events = lived_through(watch, history, cuts=cuts).events

    stalls = [event for event in events if event.kind == "stalled"]
    assert len({event.data.unchanged_since for event in stalls}) == len(stalls)
    for event in stalls:
        assert watch.stalled_after_s
        assert event.time - event.unchanged_since >= watch.stalled_after_s - 0.002


@quick
@given(watches.filter(lambda watch: watch.timeout_at is None), st.lists(st.builds(Step, pauses, active)))
def test_the_last_progress_is_always_told(watch: Watch, history: History) -> None:
    replica = lived_through(watch, history)
    replica.wait_until(replica.now + POLICY.progress_interval_s + 0.1)

    if history:
        shown = history[-1].standing
        assert isinstance(shown, Task)
        told = replica.events[-1].data
        assert (told.status, told.progress, told.cancelable) == (shown.status, shown.progress, shown.cancelable)
        extras = [step.standing.extra for step in history if isinstance(step.standing, Task) and step.standing.extra]
        assert told.extra == (extras[-1] if extras and watch.details else None)


def times(history: History) -> list[float]:
    """When each step begins: the time of a takeover before it."""
    return list(accumulate((step.after_s for step in history[:-1]), initial=NOW)) if history else []


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(watches, histories, st.frozensets(st.integers(0, 14), min_size=1), inline_maxes)
@example(a_watch(), [Step(0, running(0)), Step(1, running(1)), Step(1, succeeded())], frozenset({1, 2}), 1_000)
@example(a_watch(timeout_at=NOW + 30), [Step(0, running(0)), Step(40, None)], frozenset({1}), 1_000)
@example(a_watch(timeout_at=NOW + 1, stalled_after_s=0), [Step(1, None), Step(15, None)], frozenset({1}), 1_000)
def test_whoever_takes_over_anywhere_tells_the_same_statuses_and_the_same_ending(
    watch: Watch, history: History, cuts: frozenset[int], inline_max: int
) -> None:
    # A later takeover has a few seconds of its own for a last poll, so what it publishes may differ.
    late = watch.deadline + LAST_POLL_S - LATE_POLL_S - 0.005
    cuts = frozenset(cut for cut, at in enumerate(times(history)) if cut in cuts and at <= late)
    alone = lived_through(watch, history, inline_max=inline_max)
    handed_over = lived_through(watch, history, cuts=cuts, inline_max=inline_max)

    assert statuses(handed_over.events) == statuses(alone.events)
    assert ending(handed_over.events) == ending(alone.events)


@quick
@given(watches, jumping_histories, inline_maxes)
def test_looks_that_come_twice_change_nothing(watch: Watch, history: History, inline_max: int) -> None:
    once = lived_through(watch, history, inline_max=inline_max)
    twice = lived_through(watch, history, inline_max=inline_max, repeats=2)

    assert twice.stream == once.stream


@quick
@given(watches, histories)
def test_a_takeover_without_news_says_nothing(watch: Watch, history: History) -> None:
    replica = lived_through(watch, history)
    shown = as_asked(watch, history[-1].standing) if history else None
    replica.wait_until(replica.now + POLICY.progress_interval_s + 0.1, shown)
    replica.look(shown)
    count = len(replica.stream)

    another = replica.resumed()
    another.look(shown)

    assert kinds(another.events)[count:] == []
