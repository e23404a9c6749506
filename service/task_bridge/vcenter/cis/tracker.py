"""Who is followed, what was found of them, and when each is looked at next."""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Callable, Sequence

import msgspec
import structlog

from ...domain.ports import UNCHANGED, PollResult, Unanswered
from ...domain.task import UNAVAILABLE, Task, TaskError
from ..absence import Absences
from ..backoff import JITTER, backoff_s
from ..policy import PollPolicy, Timeouts
from ..result_queue import ResultQueue
from . import schedule
from .followed import ASKED, GONE, PARKED, WAITING, PollAgenda, TrackedCisTask

log = structlog.get_logger(__name__)


class CisTaskTracker:
    """The followed tasks of one vCenter."""

    def __init__(
        self,
        vcenter: str,
        policy: PollPolicy,
        patience: Timeouts,
        agenda: PollAgenda,
        clock: Callable[[], float],
        rng: random.Random,
        results_wait_s: Callable[[], float],
    ) -> None:
        self.vcenter = vcenter
        self.policy = policy
        self.patience = patience
        self._results_wait_s = results_wait_s
        self.clock = clock
        self.rng = rng
        self.tasks: dict[str, TrackedCisTask] = {}
        self.hurried: set[TrackedCisTask] = set()
        self.agenda = agenda
        self.absences = Absences(policy.not_found_grace_s, patience)
        self.finds = ResultQueue()
        self.urgent = False
        """Something is due that is better not gathered with others: a first look, or the result of an end."""
        self.stretch = 1.0
        self.demand = 0.0
        """Looks a second that all tasks together would have."""
        self.said: TaskError | None = None
        """What vCenter answered last, when it told nothing about tasks."""
        self._pulled_at = float("-inf")

    # What is asked for

    def follow(self, task: str, age_s: float, *, seen: bool, with_result: bool) -> None:
        self.forget(task)
        now = self.clock()
        provider = sys.intern(task.partition(":")[2])
        followed = TrackedCisTask(task, provider, now - max(0.0, age_s), seen, with_result)
        self.tasks[task] = followed
        self.agenda.wait(followed, now, now)
        self.urgent = True

    def again(self, task: str) -> float:
        """When the task is due then, infinity when it wasn't waiting for this."""
        followed = self.tasks.get(task)
        if followed is None or followed.place != PARKED:
            return math.inf
        now = self.clock()
        self.agenda.wait(followed, now, max(now, followed.next_due))
        return followed.due

    def hurry(self, task: str) -> TrackedCisTask | None:
        """Queues the task before all others; the one whose standing must be told soon, if it is followed.

        The result of one that ended is being fetched already: that is its standing.
        """
        followed = self.tasks.get(task)
        if followed is None or followed.ended:
            return None
        followed.hurried = True
        self.hurried.add(followed)
        if followed.place != ASKED:
            self.agenda.queue(followed, self.clock(), before_others=True)
        return followed

    def forget(self, task: str) -> None:
        followed = self.tasks.pop(task, None)
        if followed is not None:
            followed.place = GONE
            self.demand -= followed.demand
            self.hurried.discard(followed)
            self.absences.forget(task)

    def forget_all(self) -> None:
        for task in list(self.tasks):
            self.forget(task)
        self.finds.close()

    # What was found

    def unchanged(self, those: Sequence[TrackedCisTask], now: float) -> None:
        """The hottest loop of the bridge: so many tasks are shown as they were.

        Those that are looked at as seldom as can be stay together, as one list again.
        """
        settled = []
        for followed in those:
            if followed.hurried:
                self._no_hurry(followed)
            if followed.settled:
                settled.append(followed)
            else:
                self.agenda.wait(followed, now, now + self.interval_s(followed, now))
        spread = min(JITTER, 1 - self.policy.poll_min_s / self.policy.poll_max_s)
        longest_s = self.policy.poll_max_s * self.stretch
        self.agenda.wait_together(settled, now, now + longest_s * (1 - spread * self.rng.random()))
        self.finds.waiting += [(followed.id, UNCHANGED) for followed in those]
        self.finds.notify()

    def changed(self, followed: TrackedCisTask, task: Task, now: float) -> None:
        """The task is shown otherwise than before. One that ended without its result gets that fetched now."""
        followed.task, followed.settled = task, False
        _note_progress(followed, task, now)
        self.give(followed, task, now)
        if task.ended and task.result is None:
            followed.ended, followed.failures = True, 0
            asyncio.get_running_loop().call_later(self.patience.result_s, self.give_up_result, followed)
            wait_s = self._results_wait_s()
            self.agenda.wait(followed, now, now + wait_s)
            self.urgent = self.urgent or not wait_s

    def give(self, followed: TrackedCisTask, standing: PollResult, now: float) -> None:
        """Tells how the task stands; it isn't looked at before `again`."""
        self._no_hurry(followed)
        followed.ended = False
        followed.place = PARKED
        followed.next_due = now + self.interval_s(followed, now)
        self.finds.put(followed.id, standing)

    def failed(self, followed: TrackedCisTask, now: float, due: float, answer: Unanswered | None = None) -> None:
        """A look that told nothing certain; the next is at `due`."""
        if followed.hurried:
            self.give(followed, answer or Unanswered(self.said), now)
            followed.next_due = due
        else:
            self.agenda.wait(followed, now, due)

    def give_up_result(self, followed: TrackedCisTask) -> None:
        """The task is told without its result, if that isn't there by now."""
        if followed.ended and followed.place != GONE and followed.task is not None:
            log.warning("result_unavailable", vcenter=self.vcenter, task=followed.id)
            self.give(followed, msgspec.structs.replace(followed.task, result=UNAVAILABLE), self.clock())

    def answer_hurried(self) -> None:
        """Nobody answers: so much is told of the tasks whose standing is wanted soon."""
        now = self.clock()
        for followed in list(self.hurried):
            if followed.place != ASKED:
                self.give(followed, Unanswered(self.said), now)

    # When

    def interval_s(self, followed: TrackedCisTask, now: float) -> float:
        left_s = None
        if followed.percent is not None:
            since_s = now - followed.first_percent_at
            left_s = schedule.remaining_s(followed.percent, followed.first_percent, since_s)
        interval = schedule.interval_s(self.policy, now - followed.begun, left_s, 1.0, self.rng.random())
        # While nothing is new a task only gets older, and what it takes only more.
        followed.settled = interval >= self.policy.poll_max_s * (1 - JITTER)
        demand = 1 / interval
        self.demand += demand - followed.demand
        followed.demand = demand
        return interval * self.stretch

    def backoff_s(self, failures: int) -> float:
        return backoff_s(failures, self.policy, self.rng.random())

    def look_around(self, provider: str, at_most: int) -> None:
        """Makes others due now, of this provider first: what vanished may not have vanished alone."""
        now = self.clock()
        if now - self._pulled_at < self.patience.confirm_s / 2:
            return
        self._pulled_at = now
        waiting = [f for f in self.tasks.values() if f.place == WAITING and not f.ended]
        same = [f for f in waiting if f.provider == provider and f.id not in self.absences]
        chosen = same if len(same) >= at_most else waiting
        for followed in self.rng.sample(chosen, min(at_most, len(chosen))):
            self.agenda.wait(followed, now, now)

    def _no_hurry(self, followed: TrackedCisTask) -> None:
        if followed.hurried:
            followed.hurried = False
            self.hurried.discard(followed)


def _note_progress(followed: TrackedCisTask, task: Task, now: float) -> None:
    """Keeps what the pace is told by: the first progress seen, anew when it goes backwards."""
    percent = task.progress.percent if task.progress else None
    if percent is not None and (followed.percent is None or percent < followed.first_percent):
        followed.first_percent, followed.first_percent_at = percent, now
    followed.percent = percent
