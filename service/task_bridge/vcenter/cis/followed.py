"""The followed tasks of one vCenter, and where each of them is between two looks.

    WAITING ──due──► QUEUED ──► ASKED ──┬─ unchanged, or failed ──► WAITING
       ▲                                ├─ news ──► PARKED ──again──► WAITING
       │                                └─ ended ─► WAITING for its result, then PARKED
     follow

A task that waits lies in a slot of time; one that is moved leaves its old entry there, which is known by the task's
due time. A task that is queued lies in the queue of those that can be asked for in one request.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Literal

import msgspec

from ...domain.task import Task

WAITING, QUEUED, ASKED, PARKED, GONE = range(5)

SLOW_S = 4.0
SLOW_AHEAD_S = 1.0
FAST_AHEAD = 0.25
"""How early a task may be asked for when a request goes anyway: a second, or a quarter of the shortest interval."""

Way = Literal["list", "get"]
_Key = tuple[str, Way, bool, bool]
_GROUPS_KEPT = 500


class Group(msgspec.Struct, eq=False):
    """Tasks that one request can ask for: those of a provider by list, or by a get each.

    `results`: for the results of tasks that ended. `in_flight`: requests under way. `failures`: lists in a row that
    showed nothing at all. `listed_from`: until then there is no list of them.
    """

    provider: str
    way: Way
    with_result: bool
    results: bool = False
    in_flight: int = 0
    failures: int = 0
    listed_from: float = 0.0
    queue: deque[TrackedCisTask] = msgspec.field(default_factory=deque)

    @property
    def first(self) -> float:
        """The due time of the task that has waited longest, infinity when there is none."""
        while self.queue and self.queue[0].place != QUEUED:
            self.queue.popleft()
        return self.queue[0].due if self.queue else math.inf


class TrackedCisTask(msgspec.Struct, eq=False, gc=False):
    """One followed task. Times are those of a clock that never goes back.

    `mark` is the fingerprint of the JSON that `task` was read from. `ended`: its result is being fetched.
    `alone`: the next look is by get. `listed_from`: until then no list works with it. `home`: the group that it is
    looked at with otherwise. `settled`: looked at as seldom as can be until it changes. `demand`: looks a second.
    `failures`: of looks at it alone, in a row; `told`: the log tells of them.
    """

    id: str
    provider: str
    begun: float
    seen: bool
    with_result: bool
    place: int = PARKED
    due: float = math.inf
    next_due: float = 0.0
    mark: int | None = None
    task: Task | None = None
    percent: float | None = None
    first_percent: float = 0.0
    first_percent_at: float = 0.0
    settled: bool = False
    demand: float = 0.0
    failures: int = 0
    told: bool = False
    hurried: bool = False
    alone: bool = False
    ended: bool = False
    listed_from: float = 0.0
    home: Group | None = None


class _Slots:
    """Waiting tasks by the slot of time in which they are due, which costs less than a heap."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._slots: defaultdict[int, list[TrackedCisTask]] = defaultdict(list)

    def add(self, followed: TrackedCisTask) -> None:
        self._slots[int(followed.due * self._per_s)].append(followed)

    def add_all(self, those: list[TrackedCisTask], due: float) -> None:
        self._slots[int(due * self._per_s)] += those

    def first(self) -> float:
        """When the first slot begins, infinity when there is none. Those in it may have been moved since."""
        return min(self._slots) / self._per_s if self._slots else math.inf

    def due(self, until: float) -> Iterator[TrackedCisTask]:
        """Takes out what is due until then, the oldest slot first."""
        last = int(until * self._per_s)
        for slot in sorted(slot for slot in self._slots if slot <= last):
            for followed in self._slots.pop(slot):
                if followed.place == WAITING and int(followed.due * self._per_s) == slot:
                    yield followed


class PollAgenda:
    """When each waiting task is due, and the queues of those that are."""

    def __init__(self, poll_min_s: float, in_flight_max: int = 1) -> None:
        # A provider that hangs must not keep every request of this vCenter busy.
        self._in_flight_max = max(1, in_flight_max - 1)
        self._fast, self._slow = _Slots(per_s=40), _Slots(per_s=4)
        self._fast_ahead_s = min(SLOW_AHEAD_S, poll_min_s * FAST_AHEAD)
        self._groups: dict[_Key, Group] = {}
        self._waiting: list[Group] = []
        self.lists_from = 0.0
        """Until then there is no list at all."""

    def wait(self, followed: TrackedCisTask, now: float, due: float) -> None:
        followed.place, followed.due = WAITING, due
        (self._slow if due - now >= SLOW_S else self._fast).add(followed)

    def wait_together(self, those: list[TrackedCisTask], now: float, due: float) -> None:
        for followed in those:
            followed.place, followed.due = WAITING, due
        if those:
            (self._slow if due - now >= SLOW_S else self._fast).add_all(those, due)

    def first(self) -> float:
        """When the next waiting task is due, infinity when none waits."""
        return min(self._fast.first(), self._slow.first())

    def ahead_s(self, now: float, due: float) -> float:
        """How early what is due then may be taken."""
        return SLOW_AHEAD_S if due - now >= SLOW_S else self._fast_ahead_s

    @property
    def is_queued(self) -> bool:
        """Whether there is something that may be asked for now."""
        return any(group.first < math.inf and self._may_ask(group) for group in self._waiting)

    def _may_ask(self, group: Group) -> bool:
        return group.in_flight < (1 if group.failures else self._in_flight_max)

    def queue_due(self, now: float) -> None:
        """Queues what is due, and what may be asked for with it."""
        no_list = self.lists_from > now
        for slots, ahead_s in ((self._fast, self._fast_ahead_s), (self._slow, SLOW_AHEAD_S)):
            for followed in slots.due(now + ahead_s):
                home = followed.home
                if home is None or no_list or home.listed_from > now or _is_odd(followed, now):
                    self.queue(followed, now)
                else:
                    followed.place = QUEUED
                    if not home.queue:
                        self._has_tasks(home)
                    home.queue.append(followed)

    def queue(self, followed: TrackedCisTask, now: float, *, before_others: bool = False) -> None:
        followed.place = QUEUED
        group = self._group_of(followed, now)
        self._has_tasks(group)
        if before_others:
            followed.due = -math.inf
            group.queue.appendleft(followed)
        else:
            group.queue.append(followed)

    def _has_tasks(self, group: Group) -> None:
        if group not in self._waiting:
            self._waiting.append(group)

    def _group_of(self, followed: TrackedCisTask, now: float) -> Group:
        home_from = followed.home.listed_from if followed.home else 0.0
        by_get = followed.alone or max(followed.listed_from, home_from, self.lists_from) > now
        with_result = followed.ended or followed.with_result
        key: _Key = (followed.provider, "get" if by_get else "list", with_result, followed.ended)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _GROUPS_KEPT:
                self._groups.clear()  # those in use live on by their tasks; providers come from users' requests
            group = self._groups[key] = Group(*key)
        if not by_get and not followed.ended:
            followed.home = group
        return group

    def next_group(self, *, results_first: bool) -> Group | None:
        """Of those that may be asked for, the queue whose first task has waited longest."""
        self._waiting = [group for group in self._waiting if group.first < math.inf]
        waiting = [group for group in self._waiting if self._may_ask(group)]
        if results_first and (results := [group for group in waiting if group.results]):
            waiting = results
        return min(waiting, key=lambda group: group.first, default=None)

    @staticmethod
    def take(group: Group, at_most: int) -> list[TrackedCisTask]:
        """The first of a queue, which are asked for from now on."""
        taken: list[TrackedCisTask] = []
        while group.queue and len(taken) < at_most:
            followed = group.queue.popleft()
            if followed.place == QUEUED:
                followed.place = ASKED
                taken.append(followed)
        group.in_flight += bool(taken)
        return taken


def _is_odd(followed: TrackedCisTask, now: float) -> bool:
    """Not to be looked at by list with the others of its provider."""
    return followed.alone or followed.ended or followed.listed_from > now
