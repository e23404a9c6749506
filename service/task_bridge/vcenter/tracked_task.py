"""The lifecycle of a tracked task, the same for every API of vCenter.

    track ──► WAITING ──due──► QUEUED ──► POLLING ──┬─ unchanged, missing, unreadable ──► WAITING
                 ▲                                  └─ changed, absent, unanswered ──► PARKED
                 └───────────────────────────── resume ──────────────────────────────────┘

`TaskTracker` owns the tasks and these transitions. A `PollTransport` (`cis.transport`, `vim.transport`) decides when
and by what request a task is polled. A poller (`cis.poller`, `vim.poller`) reads vCenter's answers and hands them to
the tracker. A task of which vCenter pushes updates stays WAITING until it is parked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from ..domain.ports import UNCHANGED, PollResult, Unanswered
from ..domain.task import Task, TaskError
from ..domain.watch import Absence
from .absence import Absences
from .backoff import backoff_s
from .policy import PollPolicy, Timeouts
from .shared import ResultQueue

log = structlog.get_logger(__name__)

WAITING, QUEUED, POLLING, PARKED, FORGOTTEN = range(5)


class TrackedTask(msgspec.Struct, eq=False, gc=False):
    """One task that a watch follows, as every API knows it.

    `provider`: the service behind vCenter's API that knows it, empty where there is only one. `seen`: vCenter showed
    it, to this or an earlier watch. `phase`: where it is in its lifecycle. `task`: as it was
    reported last. `quiet_until`: before that an unchanged poll isn't reported. `is_urgent`: the watcher wants a result
    of the next poll, whatever it is. `failures`: its own failed or unreadable polls in a row. `is_logged`: the log says
    that it can't be read.
    """

    id: str
    seen: bool
    provider: str = ""
    phase: int = WAITING
    task: Task | None = None
    quiet_until: float = -math.inf
    is_urgent: bool = False
    failures: int = 0
    is_logged: bool = False


Tracked = TypeVar("Tracked", bound=TrackedTask)
_Tracked_contra = TypeVar("_Tracked_contra", bound=TrackedTask, contravariant=True)


class PollTransport(Protocol[_Tracked_contra]):
    """The times and requests of polls: all that the lifecycle needs of an API. Times are by the tracker's clock."""

    def start(self, tracked: _Tracked_contra) -> None:
        """Poll the task as soon as possible, and regularly from then on."""

    def stop(self, tracked: _Tracked_contra) -> None:
        """Never poll the task again."""

    def pause(self, tracked: _Tracked_contra) -> None:
        """Prepare for `resume`: the task has just been parked."""

    def resume(self, tracked: _Tracked_contra) -> None:
        """Poll the task again when it is due."""

    def poll_now(self, tracked: _Tracked_contra) -> bool:
        """Poll the task before all others. Return False if a poll of it is under way anyway."""
        ...

    def poll_at(self, tracked: _Tracked_contra, due: float) -> None:
        """Poll the task at this time, or, if it is parked, not before."""

    def absence_poll_at(self, tracked: _Tracked_contra, confirm_at: float) -> float:
        """Return when to poll a missing task again. An answer counts as confirmation from `confirm_at` on."""
        ...


class TaskTracker(Generic[Tracked]):
    """The tasks of one API of one vCenter that are tracked, and each step from one poll result to the next."""

    def __init__(
        self,
        vcenter: str,
        policy: PollPolicy,
        timeouts: Timeouts,
        transport: PollTransport[Tracked],
        results: ResultQueue,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.vcenter = vcenter
        self.tasks: dict[str, Tracked] = {}
        self.results = results
        self.absences = Absences(policy.not_found_grace_s, timeouts)
        self.last_refusal: TaskError | None = None
        """The error that vCenter answered last, if it didn't show tasks. Unanswered results carry it."""
        self.add_known_names: Callable[[Task], Task] = lambda task: task
        """Adds what is known of names. Named here, a task is kept once: nobody makes a copy with names of it."""
        self._policy = policy
        self._transport = transport
        self._urgent: set[Tracked] = set()
        self._clock = clock
        self._rng = rng

    # Requests of the watcher

    def track(self, tracked: Tracked) -> None:
        """Poll the task from now on. It replaces a task of the same id."""
        self.forget(tracked.id)
        self.tasks[tracked.id] = tracked
        self._transport.start(tracked)

    def resume(self, task: str, quiet_until: float) -> Tracked | None:
        """Poll a parked task again. Return it, or None if it wasn't parked."""
        tracked = self.tasks.get(task)
        if tracked is None:
            return None
        tracked.quiet_until = quiet_until
        if tracked.phase != PARKED:
            return None
        tracked.phase = WAITING
        self._transport.resume(tracked)
        return tracked

    def poll_now(self, task: str) -> None:
        """Poll the task before all others and report the result, even if it is unchanged or there is no answer."""
        tracked = self.tasks.get(task)
        if tracked is not None and self._transport.poll_now(tracked):
            tracked.is_urgent = True
            self._urgent.add(tracked)

    def forget(self, task: str) -> bool:
        """Stop tracking the task. Return False if it wasn't tracked."""
        tracked = self.tasks.pop(task, None)
        if tracked is None:
            return False
        tracked.phase = FORGOTTEN
        self._urgent.discard(tracked)
        self.absences.forget(task)
        self._transport.stop(tracked)
        return True

    def close(self) -> None:
        """Forget every task and end the stream of results."""
        for task in list(self.tasks):
            self.forget(task)
        self.results.close()

    # Answers of vCenter

    def report(self, tracked: Tracked, result: PollResult) -> None:
        """Park the task until `resume`, and report the result."""
        self._clear_urgent(tracked)
        tracked.phase = PARKED
        self._transport.pause(tracked)
        self.results.put(tracked.id, result)

    def report_task(self, tracked: Tracked, task: Task) -> None:
        """Report a state that differs from the last one."""
        tracked.task = task
        self.report(tracked, task)

    def log_unavailable_result(self, tracked: Tracked, task: Task) -> None:
        """Log why the result of a task, as it will be reported, can't be had. Partial results are read repeatedly."""
        before = tracked.task and tracked.task.result
        if task.result is not None and task.result.reason and task.result != before:
            reason = f"It can't be passed on: {task.result.reason}."
            log.warning("result_unavailable", vcenter=self.vcenter, task=tracked.id, reason=reason)

    def report_unchanged(self, those: Sequence[Tracked]) -> None:
        """Report that these are as they were reported last, where anything can follow from that.

        They aren't parked, so the caller schedules them.
        """
        now = self._clock()
        wanted = [tracked for tracked in those if tracked.is_urgent or now >= tracked.quiet_until]
        if wanted:
            for tracked in wanted:
                self._clear_urgent(tracked)
            self.results.put_all([(tracked.id, UNCHANGED) for tracked in wanted])

    def mark_seen(self, tracked: Tracked) -> bool:
        """Record that vCenter shows the task. Return True if it was absent before."""
        tracked.seen = True
        return self.absences.forget(tracked.id)

    def mark_readable(self, tracked: Tracked) -> bool:
        """Record that the task can be read. Return True if the log says that it can't."""
        was_logged, tracked.failures, tracked.is_logged = tracked.is_logged, 0, False
        return was_logged

    def mark_unreadable(self, tracked: Tracked, reason: str, *, log_after: int = 1, logs: bool = True) -> None:
        """Count a failure that concerns this task alone, and log it once, from the `log_after`-th in a row on."""
        self.record_interruption(tracked)
        tracked.failures += 1
        if logs and tracked.failures >= log_after and not tracked.is_logged:
            tracked.is_logged = True
            log.warning("task_not_readable", vcenter=self.vcenter, task=tracked.id, reason=reason)

    def retry_later(self, tracked: Tracked) -> None:
        """Poll the task less and less often while it can't be read."""
        self.retry_at(tracked, self._clock() + self.backoff_s(tracked.failures))

    def retry_at(self, tracked: Tracked, due: float, answer: TaskError | None = None) -> None:
        """Poll the task again at `due`, as this poll proved nothing. An urgent task is reported as unanswered.

        `answer` is what vCenter said about the task; without it, what vCenter said last.
        """
        if tracked.is_urgent:
            self.report(tracked, Unanswered(answer or self.last_refusal))
        self._transport.poll_at(tracked, due)

    def report_unreachable(self) -> None:
        """Report every urgent task as unanswered, because vCenter is unreachable, unless its poll is under way."""
        for tracked in list(self._urgent):
            if tracked.phase not in (POLLING, PARKED):
                self.report(tracked, Unanswered(self.last_refusal))

    # Tasks that vCenter doesn't show

    def mark_missing(self, tracked: Tracked) -> bool:
        """Record that a poll didn't show the task. Return True if it is the first such poll of a task seen before."""
        return self.absences.record_absent(tracked.id, tracked.provider, tracked.seen, self._clock())

    def mark_replaced(self, tracked: Tracked) -> None:
        """Record that vCenter shows another task under this id: this one is gone, whatever else has vanished."""
        self.absences.record_replaced(tracked.id, tracked.provider, self._clock())

    def record_interruption(self, tracked: Tracked) -> None:
        """Record that the tasks service didn't answer about this task, so answers before prove nothing anymore."""
        self.absences.record_interruption(tracked.id, self._clock())

    def confirm_missing(self, tracked: Tracked, *, is_denied: bool) -> bool:
        """Record vCenter's answer about this missing task alone. Return True if it suffices to report the absence."""
        return self.absences.confirm_absent(tracked.id, is_denied, self._clock())

    def retry_missing(self, tracked: Tracked, answer: TaskError | None = None) -> None:
        """Poll a missing task again when an answer can count."""
        if self.is_missing(tracked):
            confirm_at = self.absences.confirm_at(tracked.id, self._clock())
            self.retry_at(tracked, self._transport.absence_poll_at(tracked, confirm_at), answer)

    def report_absence(self, tracked: Tracked, answer: TaskError, *, is_denied: bool) -> None:
        """Report the task as lost or denied, unless it was shown or forgotten while the proof was made."""
        if self.is_missing(tracked):
            self.report(tracked, Absence("denied" if is_denied else "lost", answer))

    def is_missing(self, tracked: Tracked) -> bool:
        return tracked.phase != FORGOTTEN and tracked.id in self.absences

    # Times

    def backoff_s(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row."""
        return backoff_s(failures, self._policy, self._rng.random())

    def _clear_urgent(self, tracked: Tracked) -> None:
        if tracked.is_urgent:
            tracked.is_urgent = False
            self._urgent.discard(tracked)
