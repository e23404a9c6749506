"""The agenda of the polls of CIS tasks: when, and by what request. Pure: times, in seconds, and chance are passed in.

A waiting task lies in a slot of time. A task that is moved leaves its old entry there, which its due time tells from
the new one. A due task lies in the queue of those that one request can ask for.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Literal, Self

import msgspec

from ..backoff import JITTER
from ..policy import PollPolicy
from ..tracked_task import POLLING, QUEUED, WAITING, TrackedTask

SLOW_S = 4.0
SLOW_AHEAD_S = 1.0
FAST_AHEAD = 0.25
"""How early a task may be polled when a request goes anyway: a second, or a quarter of the shortest interval."""

PollMethod = Literal["list", "get"]
_Key = tuple[str, PollMethod, bool, bool, bool]
_GROUPS_KEPT = 500
_INTERVALS_PER_AGE = 13.0
_POLLS_SHARE = 0.8
"""The share of the requests per second that polls may take; results, logins and cancels need some too."""


# Intervals


def interval_s(policy: PollPolicy, age_s: float, remaining_s: float | None, stretch: float, chance: float) -> float:
    """Return how long until the next poll of a task of this age.

    It is a thirteenth of the age. An end is then reported late by less than a tenth of the task's duration, with the
    time to fetch the result and to gather polls under load. It is shorter if the progress says that the end is near.
    `stretch` lengthens all intervals alike when there are too few requests. `chance`, 0 to 1, spreads tasks that were
    tracked together, or they would come due together for ever.
    """
    interval = min(age_s / _INTERVALS_PER_AGE, policy.poll_max_s)
    if remaining_s is not None and remaining_s < interval:
        interval = remaining_s
    spread = max(interval * (1 - JITTER * chance), policy.poll_min_s * (1 + JITTER * chance))
    return min(spread, policy.poll_max_s) * stretch


def remaining_s(percent: float, first_percent: float, since_first_s: float) -> float | None:
    """Estimate how long a task still takes, from its pace since `first_percent`, `since_first_s` ago."""
    if percent <= first_percent or since_first_s <= 0:
        return None
    return (100 - percent) * since_first_s / (percent - first_percent)


def stretch(polls_per_s: float, tasks_a_request: int, requests_per_s: float) -> float:
    """Return by how much intervals must grow so that the polls fit into the requests; 1 when they fit."""
    return max(1.0, polls_per_s / (tasks_a_request * requests_per_s * _POLLS_SHARE))


# Tasks and groups


class PollGroup(msgspec.Struct, eq=False):
    """Tasks that one request can ask for: those of a provider by list, or one of them by get.

    `return_all`: the requests ask for all that vCenter knows. `results`: they are for tasks that ended. `in_flight`:
    requests under way. `failures`: lists in a row that showed no task at all. `listable_from`: until then the tasks
    aren't listed.
    """

    provider: str
    method: PollMethod
    with_result: bool
    return_all: bool = False
    results: bool = False
    in_flight: int = 0
    failures: int = 0
    listable_from: float = 0.0
    queue: deque[TrackedCisTask] = msgspec.field(default_factory=deque)

    def first_due(self) -> float:
        """Drop tasks that have left the queue. Return the first task's due time, infinity when there is none."""
        while self.queue and self.queue[0].phase != QUEUED:
            self.queue.popleft()
        return self.queue[0].due if self.queue else math.inf


def provider_of(task: str) -> str:
    """Return the service that a task id names, which is empty in many odd ids."""
    return sys.intern(task.partition(":")[2])


class TrackedCisTask(TrackedTask, kw_only=True, gc=False):
    """A tracked CIS task. Times are those of a clock that never goes back.

    `started_at`: when its watch began. `due`: when it is polled next, once resumed. `fingerprint`: of the JSON that
    `task` was parsed from. `is_slow`: its interval is the longest until it changes. `polls_per_s`: its share of the
    demand. `by_get`: the next poll is by get. `awaits_result`: it ended, and its result is being fetched.
    `with_details`: each poll asks for all that vCenter knows. `listable_from`: until then no list works with it.
    `home`: the group that it is listed with.
    """

    started_at: float
    with_result: bool = False
    with_details: bool = False
    due: float = math.inf
    fingerprint: int | None = None
    percent: float | None = None
    first_percent: float = 0.0
    first_percent_at: float = 0.0
    is_slow: bool = False
    polls_per_s: float = 0.0
    by_get: bool = False
    awaits_result: bool = False
    listable_from: float = 0.0
    home: PollGroup | None = None

    @classmethod
    def with_age(
        cls, task: str, age_s: float, now: float, *, seen: bool, with_result: bool, with_details: bool = False
    ) -> Self:
        """Create a task whose watch has this age, which is negative if the requester's clock is ahead of ours."""
        return cls(
            task,
            seen,
            provider=provider_of(task),
            started_at=now - max(0.0, age_s),
            with_result=with_result,
            with_details=with_details,
        )

    @property
    def needs_result(self) -> bool:
        """True if its next poll asks for the result."""
        return self.with_result or self.awaits_result

    @property
    def needs_all(self) -> bool:
        """True if its next poll asks for all that vCenter knows, as the one of an ended task always does."""
        return self.with_details or self.awaits_result

    def note_progress(self, percent: float | None, now: float) -> None:
        """Keep what the pace is estimated from: the first progress seen, or the latest one that went back."""
        if percent is not None and (self.percent is None or percent < self.first_percent):
            self.first_percent, self.first_percent_at = percent, now
        self.percent = percent

    def estimate_remaining_s(self, now: float) -> float | None:
        if self.percent is None:
            return None
        return remaining_s(self.percent, self.first_percent, now - self.first_percent_at)


class _Slots:
    """Waiting tasks by the slot of time in which they are due, which costs less than a heap."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._slots: defaultdict[int, list[TrackedCisTask]] = defaultdict(list)

    def add(self, tracked: TrackedCisTask) -> None:
        self._slots[int(tracked.due * self._per_s)].append(tracked)

    def add_all(self, those: list[TrackedCisTask], due: float) -> None:
        self._slots[int(due * self._per_s)] += those

    def first_due(self) -> float:
        """Return when the first slot begins, infinity when there is none. Its tasks may have been moved since."""
        return min(self._slots) / self._per_s if self._slots else math.inf

    def pop_due(self, until: float) -> Iterator[TrackedCisTask]:
        """Take out what is due until then, the oldest slot first."""
        last = int(until * self._per_s)
        for slot in sorted(slot for slot in self._slots if slot <= last):
            for tracked in self._slots.pop(slot):
                if tracked.phase == WAITING and int(tracked.due * self._per_s) == slot:
                    yield tracked


class PollAgenda:
    """The due times of waiting tasks, and the queues of those that are due. `lists_from`: no list before."""

    def __init__(self, poll_min_s: float, in_flight_max: int = 1) -> None:
        # A provider that hangs must not keep every request of this vCenter busy.
        self._in_flight_max = max(1, in_flight_max - 1)
        self._fast, self._slow = _Slots(per_s=40), _Slots(per_s=4)
        self._fast_ahead_s = min(SLOW_AHEAD_S, poll_min_s * FAST_AHEAD)
        self._groups: dict[_Key, PollGroup] = {}
        self._waiting: list[PollGroup] = []
        self.lists_from = 0.0

    def schedule(self, tracked: TrackedCisTask, now: float, due: float) -> None:
        tracked.phase, tracked.due = WAITING, due
        (self._slow if due - now >= SLOW_S else self._fast).add(tracked)

    def schedule_together(self, those: list[TrackedCisTask], now: float, due: float) -> None:
        for tracked in those:
            tracked.phase, tracked.due = WAITING, due
        if those:
            (self._slow if due - now >= SLOW_S else self._fast).add_all(those, due)

    def first_due(self) -> float:
        """Return when the next waiting task is due, infinity when none waits."""
        return min(self._fast.first_due(), self._slow.first_due())

    def ahead_s(self, now: float, due: float) -> float:
        """Return how early a task that is due then may be polled."""
        return SLOW_AHEAD_S if due - now >= SLOW_S else self._fast_ahead_s

    def has_queued(self) -> bool:
        """Return True if there is a queued task whose group may have one more request."""
        return any(group.first_due() < math.inf and self._has_request_left(group) for group in self._waiting)

    def _has_request_left(self, group: PollGroup) -> bool:
        return group.in_flight < (1 if group.failures else self._in_flight_max)

    def queue_due(self, now: float) -> None:
        """Queue what is due, and what may be polled along with it."""
        no_list = self.lists_from > now
        for slots, ahead_s in ((self._fast, self._fast_ahead_s), (self._slow, SLOW_AHEAD_S)):
            for tracked in slots.pop_due(now + ahead_s):
                home = tracked.home
                is_polled_alone = tracked.by_get or tracked.awaits_result or tracked.listable_from > now
                if home is None or no_list or home.listable_from > now or is_polled_alone:
                    self.queue(tracked, now)
                else:
                    tracked.phase = QUEUED
                    if not home.queue:
                        self._add_waiting(home)
                    home.queue.append(tracked)

    def queue(self, tracked: TrackedCisTask, now: float, *, before_others: bool = False) -> None:
        tracked.phase = QUEUED
        group = self._group_of(tracked, now)
        self._add_waiting(group)
        if before_others:
            tracked.due = -math.inf
            group.queue.appendleft(tracked)
        else:
            group.queue.append(tracked)

    def _add_waiting(self, group: PollGroup) -> None:
        if group not in self._waiting:
            self._waiting.append(group)

    def _group_of(self, tracked: TrackedCisTask, now: float) -> PollGroup:
        home_from = tracked.home.listable_from if tracked.home else 0.0
        by_get = tracked.by_get or max(tracked.listable_from, home_from, self.lists_from) > now
        method: PollMethod = "get" if by_get else "list"
        key: _Key = (tracked.provider, method, tracked.needs_result, tracked.needs_all, tracked.awaits_result)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _GROUPS_KEPT:
                self._groups.clear()  # those in use live on by their tasks; providers come from users' requests
            group = self._groups[key] = PollGroup(*key)
        if not by_get and not tracked.awaits_result:
            tracked.home = group
        return group

    def next_group(self, *, results_first: bool) -> PollGroup | None:
        """Return the group that may have a request and whose first task has waited longest."""
        self._waiting = [group for group in self._waiting if group.first_due() < math.inf]
        waiting = [group for group in self._waiting if self._has_request_left(group)]
        if results_first and (results := [group for group in waiting if group.results]):
            waiting = results
        return min(waiting, key=PollGroup.first_due, default=None)

    @staticmethod
    def take(group: PollGroup, at_most: int) -> list[TrackedCisTask]:
        """Take the first tasks of a queue for one request, which counts as in flight from now on."""
        taken: list[TrackedCisTask] = []
        while group.queue and len(taken) < at_most:
            tracked = group.queue.popleft()
            if tracked.phase == QUEUED:
                tracked.phase = POLLING
                taken.append(tracked)
        group.in_flight += bool(taken)
        return taken
