"""TaskHistoryCollector: tasks that were queued within a time, read page by page, newest or oldest first."""

from datetime import datetime

from ..bodies import SimulatedTarget
from ..tasks_service import SimulatedTask
from .soap import Element, find, text_of

PAGE = 10


class History:
    """The tasks that matched when it was created, oldest first."""

    def __init__(self, ref: SimulatedTarget, tasks: list[SimulatedTask]) -> None:
        self.ref = ref
        self.tasks = tasks
        self._next = 0
        self._previous = len(tasks)

    def read_next(self, at_most: int) -> list[SimulatedTask]:
        page = self.tasks[self._next : self._next + at_most]
        self._next += len(page)
        return page

    def read_previous(self, at_most: int) -> list[SimulatedTask]:
        first = max(0, self._previous - at_most)
        page = self.tasks[first : self._previous]
        self._previous = first
        return page[::-1]

    def rewind(self) -> None:
        self._next = 0

    def reset(self) -> None:
        self._previous = len(self.tasks)


def within(spec: Element | None) -> tuple[float, float]:
    """From when to when the filter wants tasks to have been queued, in seconds since 1970."""
    begin = end = None
    if spec is not None:
        begin = text_of(find(spec, "time", "beginTime"))
        end = text_of(find(spec, "time", "endTime"))
    return _seconds(begin, float("-inf")), _seconds(end, float("inf"))


def _seconds(time: str | None, otherwise: float) -> float:
    return datetime.fromisoformat(time).timestamp() if time else otherwise
