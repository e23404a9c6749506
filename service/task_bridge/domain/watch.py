"""A watch, and the rules that decide which event follows from a poll of its task. Pure: the time is an argument.

`next_event` is called again after each stored event until it returns None. It knows only the watch, its last stored
event and the newest view of the task, so a replica that takes the watch over decides the same.
"""

from __future__ import annotations

import hashlib
import math
import sys
from typing import Any, NamedTuple

import msgspec

from .durations import parse_time, rfc3339
from .events import Event, EventData, WatchRef
from .task import (
    CANCELED,
    NO_RESULT,
    UNAVAILABLE,
    Result,
    Target,
    Task,
    TaskError,
    TaskIdentity,
    add_names,
    may_be_same_task,
)

LAST_POLL_S = 15.0
"""How long the last poll at a watch's deadline may take."""
LATE_POLL_S = 5.0
"""How long it may take at least, for a replica that takes the watch over after its deadline."""


_NO_LABELS: dict[str, str] = {}


class Watch(msgspec.Struct, frozen=True, gc=False):
    """A watch as its JetStream message holds it. Times are Unix seconds, durations seconds.

    `stored_request`: it was requested through the stream, so the request may be delivered again at any later time.
    `follow`: the name of the follow that started it; then `queued_at` and `description_id` tell its classic task from
    another with the same id. `only_endings`: it publishes its final event alone.
    """

    id: str
    vcenter: str
    task: str
    since: float
    api: str = "cis"
    follow: str | None = None
    queued_at: float | None = None
    description_id: str | None = None
    only_endings: bool = False
    timeout_at: float | None = None
    stalled_after_s: float = 0.0
    partial_results: bool = False
    details: bool = False
    labels: dict[str, str] = {}
    traceparent: str | None = None
    tracestate: str | None = None
    stored_request: bool = False

    def __post_init__(self) -> None:
        """Keep what most watches have in common once, not with each of 50,000."""
        msgspec.structs.force_setattr(self, "vcenter", sys.intern(self.vcenter))
        msgspec.structs.force_setattr(self, "api", sys.intern(self.api))
        if not self.labels:
            msgspec.structs.force_setattr(self, "labels", _NO_LABELS)

    @property
    def ref(self) -> WatchRef:
        timeout_at = None if self.timeout_at is None else rfc3339(self.timeout_at)
        return WatchRef(self.id, rfc3339(self.since), timeout_at, self.labels, self.follow)

    @property
    def was_seen(self) -> bool:
        """True if vCenter showed the task before the watch began, since a follow found it."""
        return self.follow is not None

    @property
    def identity(self) -> TaskIdentity | None:
        """The identity of the task that a follow found; None for a requested watch, and for CIS tasks."""
        return None if self.queued_at is None else TaskIdentity(self.queued_at, self.description_id)

    @property
    def key(self) -> tuple[str, str]:
        """The watched task: there is one watch of it."""
        return self.vcenter, self.task

    @property
    def log_keys(self) -> dict[str, str]:
        """Keys of every log line about the watch."""
        keys = {"vcenter": self.vcenter, "task": self.task, "watch": self.id}
        return {**keys, "trace_id": self.traceparent.split("-")[1]} if self.traceparent else keys

    @property
    def deadline(self) -> float:
        return math.inf if self.timeout_at is None else self.timeout_at


def answers_request(last: Event, stored_at: float, watch: Watch, current: TaskIdentity | None = None) -> bool:
    """Return whether the task's last event answers the request for `watch`, so that the watch must not start (again).

    `stored_at` is when nats-server stored `last`, by the clock that also gives a stored request its `since`.
    A final event of the watch itself answers. So does one that was stored after a stored request, which JetStream
    may deliver again at any later time. A `completed` answers every request for the task, unless vCenter has given
    the id to another task since: `current` is the identity of the task that has the id now, None where vCenter
    doesn't reuse ids or wasn't asked. A follow knows which task it found, and any ending of that task answers.
    """
    data = last.data
    current = current or watch.identity
    if not data.final:
        return False
    if _ended_watch_or_request(last, stored_at, watch):
        return True
    ended = identity_from_event(data)
    return data.kind == "completed" and (ended is None or current is None or may_be_same_task(ended, current))


def needs_current_identity(last: Event, stored_at: float, watch: Watch) -> bool:
    """Return whether `answers_request` depends on which task has the id now, which only vCenter knows."""
    data = last.data
    if data.kind != "completed" or watch.follow is not None or _ended_watch_or_request(last, stored_at, watch):
        return False
    return identity_from_event(data) is not None


def _ended_watch_or_request(last: Event, stored_at: float, watch: Watch) -> bool:
    """Return whether this final event is the watch's own, came after its stored request, or ended the found task."""
    if last.data.watch.id == watch.id or (watch.stored_request and stored_at > watch.since):
        return True
    return watch.follow is not None and is_of_task(last.data, watch.identity)


def is_of_task(data: EventData, identity: TaskIdentity | None) -> bool:
    """Return whether the event is of the task that a follow found. `identity` is None for a CIS task."""
    if identity is None:
        return data.api == "cis"  # its id is never given to another task
    known = identity_from_event(data)
    return known is not None and may_be_same_task(known, identity)


def identity_from_event(data: EventData) -> TaskIdentity | None:
    """Return the identity of the event's task; None for CIS tasks, whose ids are never reused."""
    queued_at = data.extra.get("queueTime") if isinstance(data.extra, dict) else None
    queued_at = queued_at or data.queued_at  # `extra` may have been cut
    if data.api != "vim" or queued_at is None:
        return None
    described = f"{data.service}.{data.operation}" if data.service else data.operation
    return TaskIdentity(parse_time(queued_at), described)


class Policy(NamedTuple):
    """Settings that decide about events, in seconds, and the vCenter's URL, which events carry as `source`.

    `source` is None for a vCenter that is no longer configured; its events keep the `source` of the last one.
    """

    source: str | None
    progress_interval_s: float
    events_max_age_s: float

    @property
    def restate_after_s(self) -> float:
        # A watch's last event is its memory. It is restated at half its age, so that it never ages out of the stream.
        return self.events_max_age_s / 2


class Absence(msgspec.Struct, frozen=True, gc=False):
    """Proof that vCenter no longer shows the task: `lost` or `denied`, and its last answer."""

    outcome: str
    answer: TaskError


class TaskView(msgspec.Struct, gc=False):
    """The known state of a watch's task. Times are Unix seconds.

    `polled_at`: the last successful poll from which something could follow. `last_poll_until`: when the one poll at the
    watch's deadline must be over, infinite before it is requested. `last_poll_over`: that poll was answered or failed.
    `memory_lost`: the stream no longer holds the watch's last event, so the watch is restated at once. `trouble`: why
    the vCenter isn't well.
    """

    changed_at: float = 0.0
    polled_at: float = 0.0
    task: Task | None = None
    absence: Absence | None = None
    answer: TaskError | None = None
    last_poll_until: float = math.inf
    last_poll_over: bool = False
    unwatched: bool = False
    memory_lost: bool = False
    trouble: str | None = None

    @property
    def last_poll_requested(self) -> bool:
        return self.last_poll_until < math.inf


def view_from_event(last: Event | None) -> TaskView:
    """Return the view with which a watch is taken over: what its last event says."""
    return TaskView(changed_at=last.unchanged_since) if last else TaskView()


def record_poll(view: TaskView, last: Event | None, task: Task, now: float) -> None:
    """Record a successful poll of `task` in the view. While it runs, the newest `extra` is kept."""
    if task.extra is None and view.task is not None and view.task.extra is not None and not task.ended:
        task = msgspec.structs.replace(task, extra=view.task.extra)
    is_untold_extra = last is not None and _is_extra_change(last, last.data.extra, task)
    if view.task:
        changed = _is_change(view.task, task) or _is_extra_change(last, view.task.extra, task)
    else:
        changed = last is None or _is_change_since_event(last.data, task) or is_untold_extra
    if changed:
        view.changed_at = round(now, 3)
        if is_untold_extra and last is not None:  # even in the same millisecond it came after the event
            view.changed_at = max(view.changed_at, round(last.time + 0.001, 3))
    view.task, view.polled_at, view.absence, view.answer = task, now, None, None


def record_target(view: TaskView, target: Target) -> None:
    """Record a name or path of what the task acts on; the next event has it."""
    if view.task is not None and view.task.target is not None:
        view.task = msgspec.structs.replace(view.task, target=add_names(view.task.target, target))


def _is_change(before: Task, now: Task) -> bool:
    if (before.status, before.progress, before.cancelable) != (now.status, now.progress, now.cancelable):
        return True
    if now.ended or now.result is None or not now.result.available:
        return False
    return before.result != now.result


def _is_change_since_event(last: EventData, task: Task) -> bool:
    return (last.status, last.progress, last.cancelable) != (
        task.status,
        task.progress,
        task.cancelable,
    ) or _is_partial_result_change(last, task)


def _is_partial_result_change(last: EventData, task: Task) -> bool:
    """Return whether the result of a running task differs from that of the last event."""
    result = task.result
    if task.ended or result is None or not result.available:
        return False
    if last.result_state == "unavailable":
        return False  # nothing left to compare with; `_is_unpublished` goes by the time of the change
    if last.result_ref is not None:
        return last.result_ref.sha256 != hashlib.sha256(result.json).hexdigest()
    return result.json != (bytes(last.result) if last.result_state == "inline" else b"")


def _is_extra_change(last: Event | None, before: object, task: Task) -> bool:
    """Return whether a running task's `extra` changed. A source gives that of a CIS task only if the watch wants it."""
    is_followed = last is not None and last.data.api == "cis" and not task.ended and task.extra is not None
    return is_followed and task.extra != before


class Draft(NamedTuple):
    """An event whose result isn't placed yet (inline, or in the object store).

    `result` is None if the event keeps the result of the one before.
    """

    event: Event
    result: Result | None


def next_event(watch: Watch, last: Event | None, view: TaskView, now: float, policy: Policy) -> Draft | None:
    """Return the event that follows, None if there is nothing to publish yet."""
    if last is not None and last.data.final:
        return None
    build = _EventBuilder(watch, last, view, now, policy)
    task = view.task
    if view.unwatched:
        return build.abandoned("unwatched")
    if task is not None:
        if last is None and not watch.only_endings:
            return build.event("watching")
        if task.ended:
            return _next_completed(build, task)
    if view.absence is not None:
        return build.abandoned(view.absence.outcome)
    if is_past_last_poll(watch, view, now):
        return build.abandoned("watch_timed_out")
    if last is None:
        return None
    return _next_change(build, last, task) or _next_while_quiet(build, last, now)


def _next_completed(build: _EventBuilder, task: Task) -> Draft | None:
    if task.result is None and not is_past_last_poll(build.watch, build.view, build.now):
        return None  # its result is being fetched
    if task.status == "SUCCEEDED":
        return build.event("completed", "succeeded")
    canceled = task.error is not None and task.error.type in CANCELED
    return build.event("completed", "canceled" if canceled else "failed")


def last_poll_until(watch: Watch, now: float) -> float:
    """Return when the last poll, requested now, must be over. A takeover doesn't restart the 15 s of the deadline."""
    return max(watch.deadline + LAST_POLL_S, now + LATE_POLL_S)


def is_past_last_poll(watch: Watch, view: TaskView, now: float) -> bool:
    """Return whether the watch's deadline has passed and the last poll is over, or had its time."""
    ended = view.task is not None and view.task.ended
    last_poll_failed = view.last_poll_over and not ended
    return now >= watch.deadline and (last_poll_failed or now >= view.last_poll_until)


def _next_change(build: _EventBuilder, last: Event, task: Task | None) -> Draft | None:
    if task is None:
        return None
    if task.status != last.data.status:
        return build.event("status")
    # A clock that was set back must not hold progress back for as long. Times of events are rounded to milliseconds.
    held_back = -0.001 <= build.now - last.time < build.policy.progress_interval_s
    return build.event("progress") if _is_unpublished(last, build.view, task) and not held_back else None


def _is_unpublished(last: Event, view: TaskView, task: Task) -> bool:
    """Return whether the newest poll showed something that the last event doesn't carry."""
    if _is_change_since_event(last.data, task):
        return True
    is_other_extra = _is_extra_change(last, last.data.extra, task)
    if is_other_extra and last.data.extra is not None:
        return True
    # An event that was too large has lost its `extra`: there is nothing to compare with but the time of the change.
    return (is_other_extra or last.data.result_state == "unavailable") and _changed_since(last, view)


def _next_while_quiet(build: _EventBuilder, last: Event, now: float) -> Draft | None:
    if build.view.polled_at >= stall_at(build.watch, last, build.view):
        return build.event("stalled")
    if build.view.memory_lost or now >= last.time + build.policy.restate_after_s:
        return build.event("status")
    return None


def stall_at(watch: Watch, last: Event | None, view: TaskView) -> float:
    """Return when a successful poll without a change becomes a standstill; infinity if none is due."""
    if last is None or not watch.stalled_after_s or _is_stall_reported(last, view):
        return math.inf
    return view.changed_at + watch.stalled_after_s


def _is_stall_reported(last: Event | None, view: TaskView) -> bool:
    return last is not None and last.stalled_reported and not _changed_since(last, view)


def _changed_since(last: Event, view: TaskView) -> bool:
    # Events carry milliseconds, so equal times can differ in a float's last bits. After the clock was set back, a
    # change can also seem older than the event.
    return abs(view.changed_at - last.unchanged_since) > 0.0005


def wake_at(watch: Watch, last: Event | None, view: TaskView, policy: Policy) -> float:
    """Return when `next_event` must be called even without a poll: a deadline, held back progress, a quiet watch."""
    times = [view.last_poll_until if view.last_poll_requested else watch.deadline]
    if last is not None:
        times.append(last.time + policy.restate_after_s)
        if view.task is not None and not view.task.ended and _is_unpublished(last, view, view.task):
            times.append(last.time + policy.progress_interval_s)
    return min(times)


_TASK_FIELDS = tuple(
    name
    for name in Task.__struct_fields__
    if name in EventData.__struct_fields__ and name not in ("error", "result", "extra")
)
"""Fields that an event takes from the newest poll, or else from the event before."""


class _EventBuilder(NamedTuple):
    """Builds a watch's next event from the newest poll, or from the last event if there was none."""

    watch: Watch
    last: Event | None
    view: TaskView
    now: float
    policy: Policy

    def event(self, kind: str, outcome: str | None = None, error: TaskError | None = None) -> Draft:
        last = self.last.data if self.last else None
        task = self.view.task
        state = task or last
        fields: dict[str, Any] = {name: getattr(state, name) for name in _TASK_FIELDS} if state else {}
        if task and task.target and last:
            fields["target"] = add_names(task.target, last.target)
        fields["error"] = error
        if kind == "completed" and task:
            fields["error"] = task.error
        # The `extra` of a classic task holds its identity, which its id alone doesn't.
        if task and (kind == "completed" or (self.watch.api == "vim" and not task.ended)):
            fields["extra"] = task.extra
        elif self.watch.details and self.watch.api == "cis":
            fields["extra"] = task.extra if task and task.extra is not None else last and last.extra
        result = self._result(kind)
        if result is None and last:
            fields |= {
                "result": last.result,
                "result_state": last.result_state,
                "result_ref": last.result_ref,
            }
        data = EventData(
            vcenter=self.watch.vcenter,
            api=self.watch.api,
            task=self.watch.task,
            watch=self.watch.ref,
            kind=kind,
            outcome=outcome,
            final=outcome is not None,
            sequence=last.sequence + 1 if last else 1,
            previous_status=last.status if last else None,
            unchanged_since=rfc3339(self.view.changed_at) if last or task else None,
            **fields,
        )
        return Draft(self._wrap(data), result)

    def _wrap(self, data: EventData) -> Event:
        return Event(
            source=self.policy.source or (self.last and self.last.source) or f"urn:vcenter:{data.vcenter}",
            time=self.now,
            data=data,
            traceparent=self.watch.traceparent,
            tracestate=self.watch.tracestate,
            stalled_reported=data.kind == "stalled" or _is_stall_reported(self.last, self.view),
        )

    def _result(self, kind: str) -> Result | None:
        """Return the result to place; None keeps that of the last event, if the newest poll brought none."""
        result = self.view.task.result if self.view.task else None
        if kind == "completed":
            return result or UNAVAILABLE
        if not self.watch.partial_results:
            return NO_RESULT
        return result if result and result.available else None

    def abandoned(self, outcome: str) -> Draft:
        absence = self.view.absence if outcome in ("lost", "denied") else None
        answer = absence.answer if absence else self.view.answer
        said = f" vCenter's last answer: {answer.message}" if answer else ""
        was_seen = self.last is not None or self.watch.was_seen
        advice = "never seen" if outcome == "lost" and not was_seen else outcome
        trouble = self.view.trouble if outcome == "watch_timed_out" else None
        stop = "" if not said or said.endswith((".", "!", "?")) else "."
        why = f"{stop} It couldn't be seen by then: {trouble}" if trouble else ""
        error = TaskError(
            type=answer.type if answer else None,
            message=_ADVICE[advice] + said + why,
            messages=answer.messages if answer else (),
            transient=answer.transient if answer else None,
            data=answer.data if answer else None,
        )
        return self.event("abandoned", outcome, error)


_ADVICE = {
    "lost": "vCenter no longer knows this task, so its end is unknown: it was purged or vCenter's service was "
    "restarted. Check what the task was to change, then ask for it again if needed.",
    "never seen": "vCenter doesn't know this task: the id is mistyped or another vCenter's, or the task was purged "
    "before it was asked for. Check both, then ask for it again if needed.",
    "denied": "vCenter refuses to show this task to the bridge's user. Give that user the privilege to see it, "
    "then ask for the watch again.",
    "watch_timed_out": "The watch's timeout passed before vCenter reported the task's end; the task itself "
    "was not touched. Ask for it again to go on watching.",
    "unwatched": "The watch was ended on request; the task itself was not touched.",
}
