"""Which classic tasks changed, found out without asking each: the next step of every task waits in a heap."""

import heapq
import itertools
from collections.abc import Callable

from ..script import Script
from ..tasks_service import SimulatedTask

_Entry = tuple[float, int, SimulatedTask, Script, int]


class Changes:
    """Tells `heard` of each task that changed, once `pass_time` is called at or after that moment."""

    def __init__(self, heard: Callable[[SimulatedTask], None]) -> None:
        self._heard = heard
        self._numbers = itertools.count()
        self._coming: list[_Entry] = []

    def changed(self, task: SimulatedTask, now: float) -> None:
        """It was created, set, canceled, hidden or forgotten just now."""
        task.at(now)
        self._heard(task)
        if task.gone_at is None:
            self._plan(task, sum(step.after_s <= now - task.created_at for step in task.script.steps))

    def pass_time(self, now: float) -> None:
        while self._coming and self._coming[0][0] <= now:
            _, _, task, script, step = heapq.heappop(self._coming)
            if task.script is script and task.gone_at is None:
                self._heard(task)
                self._plan(task, step + 1)

    @property
    def next_at(self) -> float:
        """When something changes by itself, infinity when nothing does."""
        return self._coming[0][0] if self._coming else float("inf")

    def _plan(self, task: SimulatedTask, step: int) -> None:
        steps = task.script.steps
        if step < len(steps):
            at = task.created_at + steps[step].after_s
            heapq.heappush(self._coming, (at, next(self._numbers), task, task.script, step))
