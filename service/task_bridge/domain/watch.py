"""A watch, and every rule about what follows from a look at its task. Pure: nothing here sleeps, logs or publishes.

`next_event` is asked again after each stored event until it has nothing more to say. It knows only the watch,
its last stored event and the newest view of the task, so whoever resumes from the last event decides the same.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import msgspec

from .durations import parse_time, rfc3339
from .events import Event, EventData, WatchRef
from .task import CANCELED, NO_RESULT, UNAVAILABLE, Result, Task, TaskError, TaskIdentity, may_be_same_task

LAST_POLL_S = 15.0
"""How long the one look at a watch's deadline may take."""


class Watch(msgspec.Struct, frozen=True, gc=False):
    """A watch as it lies in its JetStream message. Times in Unix seconds, durations in seconds.

    `stored_request`: made of a request out of the stream, which a redelivery may repeat at any later time.
    """

    id: str
    vcenter: str
    task: str
    since: float
    api: str = "cis"
    timeout_at: float | None = None
    stalled_after_s: float = 0.0
    partial_results: bool = False
    labels: dict[str, str] = {}
    traceparent: str | None = None
    tracestate: str | None = None
    stored_request: bool = False

    @property
    def ref(self) -> WatchRef:
        timeout_at = None if self.timeout_at is None else rfc3339(self.timeout_at)
        return WatchRef(self.id, rfc3339(self.since), timeout_at, self.labels)

    @property
    def log_keys(self) -> dict[str, str]:
        """What every log line about the watch carries."""
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
    doesn't reuse ids or wasn't asked.
    """
    data = last.data
    if not data.final:
        return False
    if _ended_watch_or_request(last, stored_at, watch):
        return True
    ended = identity_from_event(data)
    return data.kind == "completed" and (ended is None or current is None or may_be_same_task(ended, current))


def needs_current_identity(last: Event, stored_at: float, watch: Watch) -> bool:
    """Return whether `answers_request` depends on which task has the id now, which only vCenter knows."""
    data = last.data
    if data.kind != "completed" or _ended_watch_or_request(last, stored_at, watch):
        return False
    return identity_from_event(data) is not None


def _ended_watch_or_request(last: Event, stored_at: float, watch: Watch) -> bool:
    """Return whether this final event is the watch's own or came after its stored request."""
    return last.data.watch.id == watch.id or (watch.stored_request and stored_at > watch.since)


def identity_from_event(data: EventData) -> TaskIdentity | None:
    """What the event's task is by its birth, where its id may be given again: that is told in `extra`."""
    queued_at = data.extra.get("queueTime") if isinstance(data.extra, dict) else None
    if data.api != "vim" or queued_at is None:
        return None
    described = f"{data.service}.{data.operation}" if data.service else data.operation
    return TaskIdentity(parse_time(queued_at), described)


class Policy(NamedTuple):
    """The settings that decide about events, in seconds, and the URL of the vCenter that events name.

    `source` is None for a vCenter that is no longer configured: its events go on naming what the last one did.
    """

    source: str | None
    progress_interval_s: float
    events_max_age_s: float

    @property
    def restate_after_s(self) -> float:
        # Half: the memory of a quiet watch is its last event, which must not age out of the stream.
        return self.events_max_age_s / 2


class Absence(msgspec.Struct, frozen=True, gc=False):
    """Proof that vCenter no longer shows the task: `lost` or `denied`, and its last answer."""

    outcome: str
    answer: TaskError


class TaskView(msgspec.Struct, gc=False):
    """The newest that is known of a watch's task. Times in Unix seconds.

    `looked_at`: the last good look; `last_look_until`: how long the one look at the deadline may take, infinite
    before it is asked for; `last_look_over`: it was answered or failed.
    """

    changed_at: float = 0.0
    polled_at: float = 0.0
    task: Task | None = None
    absence: Absence | None = None
    answer: TaskError | None = None
    last_poll_until: float = math.inf
    last_poll_over: bool = False
    unwatched: bool = False

    @property
    def last_poll_requested(self) -> bool:
        return self.last_poll_until < math.inf


def view_from_event(last: Event | None) -> TaskView:
    """The view of whoever takes a watch up: what its last event tells."""
    return TaskView(changed_at=last.unchanged_since) if last else TaskView()


def record_poll(view: TaskView, last: Event | None, task: Task, now: float) -> None:
    """Takes a good look at `task` into the view."""
    changed = _differs(view.task, task) if view.task else last is None or _differs_from(last.data, task)
    if changed:
        view.changed_at = round(now, 3)
    view.task, view.polled_at, view.absence, view.answer = task, now, None, None


def _differs(before: Task, now: Task) -> bool:
    if (before.status, before.progress, before.cancelable) != (now.status, now.progress, now.cancelable):
        return True
    if now.ended or now.result is None or not now.result.available:
        return False
    return before.result != now.result


def _differs_from(last: EventData, task: Task) -> bool:
    return (last.status, last.progress, last.cancelable) != (
        task.status,
        task.progress,
        task.cancelable,
    ) or _partial_differs(last, task)


def _partial_differs(last: EventData, task: Task) -> bool:
    """Whether a result that came with a look of a running task differs from the one of the last event."""
    result = task.result
    if task.ended or result is None or not result.available:
        return False
    if last.result_state == "unavailable":
        return False  # what it was can't be compared any more; `_is_untold` goes by the time of the change
    if last.result_ref is not None:
        return last.result_ref.sha256 != hashlib.sha256(result.json).hexdigest()
    return result.json != (bytes(last.result) if last.result_state == "inline" else b"")


class Draft(NamedTuple):
    """An event whose result has yet to find its place (inline, or in the object store).

    `result` is None when the event already carries what there is.
    """

    event: Event
    result: Result | None


def next_event(watch: Watch, last: Event | None, view: TaskView, now: float, policy: Policy) -> Draft | None:
    """The event that follows, None when there is nothing to say yet."""
    if last is not None and last.data.final:
        return None
    make = _Maker(watch, last, view, now, policy)
    task = view.task
    if view.unwatched:
        return make.abandoned("unwatched")
    if task is not None:
        if last is None:
            return make.event("watching")
        if task.ended:
            return _completed(make, task)
    if view.absence is not None:
        return make.abandoned(view.absence.outcome)
    if is_past_last_poll(watch, view, now):
        return make.abandoned("watch_timed_out")
    if last is None:
        return None
    return _change(make, last, task) or _standstill(make, last, now)


def _completed(make: _Maker, task: Task) -> Draft | None:
    if task.result is None and not is_past_last_poll(make.watch, make.view, make.now):
        return None  # its result is being fetched
    if task.status == "SUCCEEDED":
        return make.event("completed", "succeeded")
    canceled = task.error is not None and task.error.type in CANCELED
    return make.event("completed", "canceled" if canceled else "failed")


def is_past_last_poll(watch: Watch, view: TaskView, now: float) -> bool:
    """Whether the watch's time is up and the last look at its task is over, or has had its time."""
    ended = view.task is not None and view.task.ended
    looked = view.last_poll_over and not ended
    return now >= watch.deadline and (looked or now >= view.last_poll_until)


def _change(make: _Maker, last: Event, task: Task | None) -> Draft | None:
    if task is None:
        return None
    if task.status != last.data.status:
        return make.event("status")
    # A clock that was set back must not hold progress back for as long. An event's time is rounded to milliseconds.
    held_back = -0.001 <= make.now - last.time < make.policy.progress_interval_s
    return make.event("progress") if _is_untold(last, make.view, task) and not held_back else None


def _is_untold(last: Event, view: TaskView, task: Task) -> bool:
    """Whether the newest look showed what the last event doesn't tell."""
    if _differs_from(last.data, task):
        return True
    return last.data.result_state == "unavailable" and _changed_since(last, view)


def _standstill(make: _Maker, last: Event, now: float) -> Draft | None:
    if make.view.polled_at >= stall_at(make.watch, last, make.view):
        return make.event("stalled")
    if now >= last.time + make.policy.restate_after_s:
        return make.event("status")
    return None


def stall_at(watch: Watch, last: Event | None, view: TaskView) -> float:
    """From when on a good look without a change is a standstill; infinity when it was told or nobody asks."""
    if last is None or not watch.stalled_after_s or _stall_told(last, view):
        return math.inf
    return view.changed_at + watch.stalled_after_s


def _stall_told(last: Event | None, view: TaskView) -> bool:
    return last is not None and last.stalled_reported and not _changed_since(last, view)


def _changed_since(last: Event, view: TaskView) -> bool:
    # Events carry milliseconds, so equal times may differ in the last bits of a float. A change may also seem to
    # lie before the event, when the clock was set back.
    return abs(view.changed_at - last.unchanged_since) > 0.0005


def wake_at(watch: Watch, last: Event | None, view: TaskView, policy: Policy) -> float:
    """When `next_event` must be asked even if no look comes: a deadline, progress held back, a quiet watch."""
    times = [view.last_poll_until if view.last_poll_requested else watch.deadline]
    if last is not None:
        times.append(last.time + policy.restate_after_s)
        if view.task is not None and not view.task.ended and _is_untold(last, view, view.task):
            times.append(last.time + policy.progress_interval_s)
    return min(times)


class _Maker(NamedTuple):
    """Makes the next event of a watch out of the newest look, or of the last event where there was none."""

    watch: Watch
    last: Event | None
    view: TaskView
    now: float
    policy: Policy

    def event(self, kind: str, outcome: str | None = None, error: TaskError | None = None) -> Draft:
        last = self.last.data if self.last else None
        task = self.view.task
        fields = _of_task(task) if task else _of_event(last) if last else {}
        fields["error"] = error
        if kind == "completed" and task:
            fields["error"] = task.error
        # Of a classic task it tells what its id alone doesn't: which task it was.
        if task and (kind == "completed" or (self.watch.api == "vim" and not task.ended)):
            fields["extra"] = task.extra
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
        return Draft(self._around(data), result)

    def _around(self, data: EventData) -> Event:
        return Event(
            source=self.policy.source or (self.last and self.last.source) or f"urn:vcenter:{data.vcenter}",
            time=self.now,
            data=data,
            traceparent=self.watch.traceparent,
            tracestate=self.watch.tracestate,
            stalled_reported=data.kind == "stalled" or _stall_told(self.last, self.view),
        )

    def _result(self, kind: str) -> Result | None:
        """What goes with the event; None is "as in the last one", where the newest look brought no result."""
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
        advice = "never seen" if outcome == "lost" and self.last is None else outcome
        error = TaskError(
            type=answer.type if answer else None,
            message=_ADVICE[advice] + said,
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


def _of_task(task: Task) -> dict[str, Any]:
    return {
        "status": task.status,
        "service": task.service,
        "operation": task.operation,
        "description": task.description,
        "target": task.target,
        "parent": task.parent,
        "user": task.user,
        "cancelable": task.cancelable,
        "progress": task.progress,
        "started_at": task.started_at,
        "ended_at": task.ended_at,
        "duration_seconds": task.duration_s,
    }


def _of_event(data: EventData) -> dict[str, Any]:
    return {
        "status": data.status,
        "service": data.service,
        "operation": data.operation,
        "description": data.description,
        "target": data.target,
        "parent": data.parent,
        "user": data.user,
        "cancelable": data.cancelable,
        "progress": data.progress,
        "started_at": data.started_at,
        "ended_at": data.ended_at,
        "duration_seconds": data.duration_seconds,
    }
