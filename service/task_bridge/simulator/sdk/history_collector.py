"""TaskHistoryCollector: the tasks that were queued within a time range, read page by page in either order."""

from collections.abc import Iterable
from datetime import datetime

from ..simulated_task import SimulatedTask
from ..task_attributes import SimulatedTarget
from .soap import Element, find, text_of


class TaskHistoryCollector:
    """The tasks that matched its filter when it was created, oldest first."""

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
        """Start `read_next` at the oldest task again."""
        self._next = 0

    def reset(self) -> None:
        """Start `read_previous` at the newest task again."""
        self._previous = len(self.tasks)


def select_tasks(tasks: Iterable[SimulatedTask], spec: Element | None) -> list[SimulatedTask]:
    """Return the tasks that match a TaskFilterSpec, oldest first. Of the filters, the range of queue times is built.

    Forgotten tasks are left out, unless they are retired: those remain in the history.
    """
    begin, end = float("-inf"), float("inf")
    if spec is not None and (time := text_of(find(spec, "time", "beginTime"))):
        begin = datetime.fromisoformat(time).timestamp()
    if spec is not None and (time := text_of(find(spec, "time", "endTime"))):
        end = datetime.fromisoformat(time).timestamp()
    # A second more on both sides: the filter's times may lack the fraction.
    matches = (task for task in tasks if begin - 1 <= task.created_at <= end + 1)
    return sorted(
        (task for task in matches if task.forgotten_at is None or task.retired), key=lambda task: task.created_at
    )
