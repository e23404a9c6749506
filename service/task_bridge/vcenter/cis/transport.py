"""Times of the polls of CIS tasks: by age and progress, and as often as the budget of requests allows."""

from __future__ import annotations

import random
from collections.abc import Callable

from ...domain.task import Task
from ..backoff import JITTER
from ..policy import PollPolicy
from ..tracked_task import PARKED, POLLING, PollTransport
from . import schedule
from .schedule import PollAgenda, TrackedCisTask


class CisTransport:
    """The port `PollTransport` over an agenda of lists and gets.

    `stretch` lengthens all intervals. `polls_per_s`: of all tasks together, if nothing is stretched. `is_prompt`:
    something is due that better goes at once than gathered with others, such as a first poll or a result.
    """

    def __init__(self, agenda: PollAgenda, policy: PollPolicy, clock: Callable[[], float], rng: random.Random) -> None:
        self.agenda = agenda
        self.policy = policy
        self.clock = clock
        self.rng = rng
        self.stretch = 1.0
        self.polls_per_s = 0.0
        self.is_prompt = False

    # The port

    def start(self, tracked: TrackedCisTask) -> None:
        now = self.clock()
        self.agenda.schedule(tracked, now, now)
        self.is_prompt = True

    def stop(self, tracked: TrackedCisTask) -> None:
        self.polls_per_s -= tracked.polls_per_s

    def pause(self, tracked: TrackedCisTask) -> None:
        now = self.clock()
        tracked.awaits_result = False
        tracked.due = now + self.interval_s(tracked, now)

    def resume(self, tracked: TrackedCisTask) -> None:
        now = self.clock()
        self.agenda.schedule(tracked, now, max(now, tracked.due))

    def poll_now(self, tracked: TrackedCisTask) -> bool:
        if tracked.awaits_result:
            return False
        if tracked.phase != POLLING:
            self.agenda.queue(tracked, self.clock(), before_others=True)
        return True

    def poll_at(self, tracked: TrackedCisTask, due: float) -> None:
        if tracked.phase == PARKED:
            tracked.due = due
        else:
            self.agenda.schedule(tracked, self.clock(), due)

    def absence_poll_at(self, tracked: TrackedCisTask, confirm_at: float) -> float:
        """Poll by get as soon as an answer about the task alone counts, and by list before."""
        now = self.clock()
        list_at = now + max(self.interval_s(tracked, now), self.policy.poll_min_s)
        get_at = max(confirm_at, now + self.policy.poll_min_s)
        get_at += self.agenda.ahead_s(now, get_at)
        tracked.by_get = get_at <= list_at
        return min(get_at, list_at)

    # What only polling knows

    def schedule_next(self, those: list[TrackedCisTask], now: float) -> None:
        """Schedule the next poll of tasks that are as before. This is the hottest loop of the bridge.

        Those with the longest interval stay together, so that one list asks for them again.
        """
        slow = []
        for tracked in those:
            if tracked.is_slow:
                slow.append(tracked)
            else:
                self.agenda.schedule(tracked, now, now + self.interval_s(tracked, now))
        spread = min(JITTER, 1 - self.policy.poll_min_s / self.policy.poll_max_s)
        longest_s = self.policy.poll_max_s * self.stretch
        self.agenda.schedule_together(slow, now, now + longest_s * (1 - spread * self.rng.random()))

    def note_change(self, tracked: TrackedCisTask, task: Task) -> None:
        """Let the progress of a changed task decide how soon it is polled again."""
        tracked.is_slow = False
        tracked.note_progress(task.progress.percent if task.progress else None, self.clock())

    def schedule_result(self, tracked: TrackedCisTask, wait_s: float) -> None:
        """Fetch the result of a task that has ended, after a while in which results are gathered."""
        tracked.awaits_result = True
        now = self.clock()
        self.agenda.schedule(tracked, now, now + wait_s)
        self.is_prompt = self.is_prompt or not wait_s

    def interval_s(self, tracked: TrackedCisTask, now: float) -> float:
        """Return how long until the next poll of the task, and update the demand."""
        left_s = tracked.estimate_remaining_s(now)
        interval = schedule.interval_s(self.policy, now - tracked.started_at, left_s, 1.0, self.rng.random())
        # An unchanged task only gets older, and its estimated duration only longer.
        tracked.is_slow = interval >= self.policy.poll_max_s * (1 - JITTER)
        polls_per_s = 1 / interval
        self.polls_per_s += polls_per_s - tracked.polls_per_s
        tracked.polls_per_s = polls_per_s
        return interval * self.stretch


_CIS_TRANSPORT_IS_A_POLL_TRANSPORT: type[PollTransport[TrackedCisTask]] = CisTransport
