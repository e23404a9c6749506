"""Tasks, watches and events for tests, and a replica in memory that does to one watch what the watcher does."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import msgspec

from task_bridge.domain.events import (
    INLINE_MAX_BYTES,
    Event,
    EventData,
    ResultRef,
    WatchRef,
    attach_result,
    from_cloudevent,
    to_cloudevent,
)
from task_bridge.domain.ports import UNCHANGED, PollResult, TargetNamed, Unanswered, Unchanged
from task_bridge.domain.task import NO_RESULT, Progress, Result, Task, TaskError
from task_bridge.domain.watch import (
    Absence,
    Draft,
    Policy,
    TaskView,
    Watch,
    last_poll_until,
    next_event,
    record_poll,
    record_target,
    stall_at,
    view_from_event,
    wake_at,
)

NOW = 1_764_024_000.0
DAY_S = 86_400.0
SOURCE = "https://vcenter.example.com"
TASK = "52f9f1b0-160a-25fe-fd1e-e7526df80e0d:com.vmware.esx.settings.clusters.software"
POLICY = Policy(SOURCE, progress_interval_s=2.0, events_max_age_s=7 * DAY_S)


def a_watch(**fields: Any) -> Watch:
    """A watch that began at NOW, without timeout and never stalled."""
    return Watch(**{"id": "1764024000000-42", "vcenter": "lab", "task": TASK, "since": NOW, **fields})


def progress(completed: float | None, total: float | None = 100, message: str | None = None) -> Progress:
    percent = None if completed is None or not total else round(completed / total * 100, 1)
    return Progress(completed, total, percent, message)


def a_task(status: str, **fields: Any) -> Task:
    return Task(**{"status": status, "service": "com.example.service", "operation": "apply$task", **fields})


def running(completed: int | None = None, **fields: Any) -> Task:
    return a_task("RUNNING", **{"progress": None if completed is None else progress(completed), **fields})


def blocked(**fields: Any) -> Task:
    return a_task("BLOCKED", **fields)


def succeeded(result: Result | None = NO_RESULT, **fields: Any) -> Task:
    return a_task("SUCCEEDED", result=result, **fields)


def failed(error_type: str | None = "ERROR", result: Result | None = NO_RESULT, **fields: Any) -> Task:
    return a_task("FAILED", result=result, error=TaskError(error_type, "It broke."), **fields)


def result_of(value: object) -> Result:
    return Result(json.dumps(value, separators=(",", ":")).encode())


def lost(message: str = "Task not found.") -> Absence:
    return Absence("lost", TaskError("NOT_FOUND", message))


def denied() -> Absence:
    return Absence("denied", TaskError("UNAUTHORIZED", "Not for you."))


def an_event(kind: str = "status", outcome: str | None = None, **fields: Any) -> Event:
    """A stored event of `a_watch()` that took place at NOW; `time` and `stalled_reported` stand around the data."""
    around: dict[str, Any] = {"source": SOURCE, "time": NOW}
    around |= {name: fields.pop(name) for name in ("time", "stalled_reported") if name in fields}
    data: dict[str, Any] = {
        "vcenter": "lab",
        "api": "cis",
        "task": TASK,
        "watch": WatchRef("1764024000000-42", "2025-11-24T22:40:00.000Z"),
        "kind": kind,
        "outcome": outcome,
        "final": outcome is not None,
        "sequence": 1,
        **fields,
    }
    return Event(data=EventData(**data), **around)


def stored(event: Event) -> Event:
    """The event as whoever comes later reads it."""
    read = from_cloudevent(to_cloudevent(event), stalled_reported=event.stalled_reported)
    assert read is not None
    return read


def place(draft: Draft, inline_max: int = INLINE_MAX_BYTES) -> Event:
    """What the journal makes of a draft: its result inline, or by reference above `inline_max` bytes."""
    event, result = draft
    if result is None:
        return event
    if len(result.json) <= inline_max:
        return attach_result(event, result)
    digest = hashlib.sha256(result.json).hexdigest()
    return attach_result(event, result, ResultRef("VCENTER_TASKS_RESULTS", event.id, len(result.json), digest))


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


class Stored(NamedTuple):
    """An event as it lies in the stream."""

    body: bytes
    stalled_reported: bool

    def read(self) -> Event:
        event = from_cloudevent(self.body, stalled_reported=self.stalled_reported)
        assert event is not None
        return event


class Replica:
    """Does to one watch what the watcher does: takes looks in, asks for events until there are none, keeps them.

    `stream` outlives it: whoever resumes from it reads bodies and headers, nothing else.
    """

    def __init__(
        self,
        watch: Watch,
        policy: Policy = POLICY,
        *,
        stream: list[Stored] | None = None,
        now: float = NOW,
        inline_max: int = INLINE_MAX_BYTES,
        whole_looks: bool = False,
    ) -> None:
        self.watch = watch
        self.policy = policy
        self.stream: list[Stored] = [] if stream is None else stream
        self.began = self.now = now
        self.last = self.stream[-1].read() if self.stream else None
        self.view: TaskView = view_from_event(self.last)
        self._inline_max = inline_max
        self._whole_looks = whole_looks
        self._shown: Task | None = None

    def resumed(self) -> Replica:
        """Another replica that takes the watch up now."""
        return Replica(
            self.watch,
            self.policy,
            stream=self.stream,
            now=self.now,
            inline_max=self._inline_max,
            whole_looks=self._whole_looks,
        )

    @property
    def over(self) -> bool:
        return self.last is not None and self.last.data.final

    @property
    def events(self) -> list[Event]:
        return [entry.read() for entry in self.stream]

    def look(self, standing: PollResult | None) -> None:
        """A look now; None is one that got no answer. A task that ended is shown twice, as sources do."""
        if standing is None or self.over:
            return
        if isinstance(standing, Task) and standing.ended:
            self._take(msgspec.structs.replace(standing, result=None))
            self.settle()
        self._take(standing)
        self.settle()

    def _take(self, standing: PollResult) -> None:
        if isinstance(standing, Task):
            if standing == self._shown and not self._whole_looks:
                standing = UNCHANGED
            else:
                self._shown = standing
        if isinstance(standing, TargetNamed):
            record_target(self.view, standing.target)
            return
        if self.view.last_poll_requested and not (isinstance(standing, Task) and standing.ended):
            self.view.last_poll_over = True
        if isinstance(standing, Unchanged):
            self.view.polled_at = self.now
        elif isinstance(standing, Task):
            record_poll(self.view, self.last, standing, self.now)
        elif isinstance(standing, Absence):
            self.view.absence = standing
        elif isinstance(standing, Unanswered):
            self.view.answer = standing.answer

    def settle(self) -> None:
        while draft := next_event(self.watch, self.last, self.view, self.now, self.policy):
            self.last = place(draft, self._inline_max)
            self.stream.append(Stored(to_cloudevent(self.last), self.last.stalled_reported))

    def wait_until(self, to: float, world: PollResult | None = None) -> None:
        """Time passes; timers go off. `world` is what the one look at the deadline finds, None: no answer."""
        while not self.over and (at := self.wakes_at) <= to:
            # A timer never goes off at once again.
            self.now = max(at, self.now + 0.005)
            if self.now >= self.watch.deadline and not self.view.last_poll_requested:
                self.view.last_poll_until = last_poll_until(self.watch, self.now)
                self.look(world)
            self.settle()
        self.now = to

    @property
    def wakes_at(self) -> float:
        return wake_at(self.watch, self.last, self.view, self.policy)

    @property
    def stalls_at(self) -> float:
        return stall_at(self.watch, self.last, self.view)
