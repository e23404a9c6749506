"""TaskHistoryCollector: the classic tasks that match a filter, oldest first, read in either direction.

Sources: the vSphere API reference of HistoryCollector, TaskHistoryCollector and TaskFilterSpec. Tasks that match and
are created while the collector exists are appended. One position serves both directions.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from ..options import Options
from ..script import ENDED
from ..simulated_task import SimulatedTask
from ..task_attributes import SimulatedTarget
from ..tasks_service import TasksService
from .properties import STATES
from .soap import Element, SoapFaultError, children, find, parse_target, text_of
from .values import text

PAGE_MAX = 1_000
"""The most tasks that vCenter returns at once."""
LATEST_PAGE = 10
"""vCenter's default size of `latestPage`."""

IsWithin = Callable[[SimulatedTarget | None, SimulatedTarget], bool]
"""Returns whether an object lies below another one in the inventory."""


class TaskHistoryCollector:
    """The tasks of a vCenter's history that match a TaskFilterSpec.

    `latest_size` is the size of the latest page, which `reset` moves the position in front of.
    """

    def __init__(
        self, ref: SimulatedTarget, tasks: TasksService, options: Options, task_filter: "TaskFilter", now: float
    ) -> None:
        self.ref = ref
        self.latest_size = LATEST_PAGE
        self._tasks = tasks
        self._options = options
        self._filter = task_filter
        self._found: list[SimulatedTask] = []
        self._scanned = 0
        self._position = 0
        """Number of the newest task behind the position; reading forward returns those after it."""
        self._update(now)

    def read_next(self, at_most: int, now: float) -> list[SimulatedTask]:
        self._update(now)
        first = bisect_right(self._found, self._position, key=lambda task: task.number)
        page = self._found[first : first + at_most]
        if page:
            self._position = page[-1].number
        return page

    def read_previous(self, at_most: int, now: float) -> list[SimulatedTask]:
        """Return the tasks in front of the position, newest first."""
        self._update(now)
        end = bisect_right(self._found, self._position, key=lambda task: task.number)
        page = self._found[max(0, end - at_most) : end]
        if page:
            self._position = page[0].number - 1
        return page[::-1]

    def rewind(self) -> None:
        """Move the position before the oldest task."""
        self._position = 0

    def reset(self, now: float) -> None:
        """Move the position before the latest page."""
        self._update(now)
        older = self._found[: max(0, len(self._found) - self.latest_size)]
        self._position = older[-1].number if older else 0

    def _update(self, now: float) -> None:
        """Append the matching tasks that were created since, and drop those that the history no longer has."""
        created = self._tasks.list_classic_created_after(self._scanned)
        if created:
            self._scanned = created[-1].number
            self._found += [task for task in created if self._filter.matches(task, now)]
        kept_s = self._options.history_retention_s
        self._found = [
            task
            for task in self._found
            if (task.forgotten_at is None or task.retired) and (kept_s is None or task.created_at > now - kept_s)
        ]


class TimeRange(NamedTuple):
    """A range of one of a task's times, by vCenter's clock, both ends included."""

    kind: str
    begin: float
    end: float


class TaskFilter:
    """A TaskFilterSpec. Every filter that is set must match. `alarm` and `scheduledTask` match no task.

    `skew_s`: how far vCenter's clock, by which the filter's times are, is ahead.
    """

    def __init__(self, spec: Element | None, skew_s: float, is_within: IsWithin) -> None:
        self._skew_s = skew_s
        self._is_within = is_within
        self._spec = spec
        self._time = None if spec is None or find(spec, "time") is None else _parse_time_range(spec)
        self._lists = {name: _list_texts(spec, name) for name in ("state", "parentTaskKey", "rootTaskKey")}
        self._unmatched = [
            name for name in ("activationId", "tag", "alarm", "scheduledTask") if _list_texts(spec, name)
        ]

    def matches(self, task: SimulatedTask, now: float) -> bool:
        """Return whether the task matches as it is now."""
        attributes = task.attributes
        shown = {
            "state": STATES.get(task.frame_at(now).status, ""),
            "parentTaskKey": attributes.parent,
            "rootTaskKey": attributes.parent or task.id,
        }
        return (
            not self._unmatched
            and all(not wanted or shown[name] in wanted for name, wanted in self._lists.items())
            and self._matches_time(task, now)
            and self._matches_user(attributes.user)
            and self._matches_entity(attributes.target)
        )

    def _matches_time(self, task: SimulatedTask, now: float) -> bool:
        if self._time is None:
            return True
        frame = task.frame_at(now)
        after_s = {
            "queuedTime": 0.0,
            "startedTime": frame.started_s,
            "completedTime": frame.ended_s if frame.status in ENDED else None,
        }[self._time.kind]
        if after_s is None:
            return False
        at = math.floor((task.created_at + after_s + self._skew_s) * 1_000) / 1_000  # vCenter shows milliseconds
        return self._time.begin <= at <= self._time.end

    def _matches_user(self, user: str | None) -> bool:
        by_user = None if self._spec is None else find(self._spec, "userName")
        if by_user is None:
            return True
        if user is None:
            return text_of(find(by_user, "systemUser")) in ("true", "1")
        users = _list_texts(by_user, "userList")
        return user in users if users else text_of(find(by_user, "systemUser")) not in ("true", "1")

    def _matches_entity(self, target: SimulatedTarget | None) -> bool:
        by_entity = None if self._spec is None else find(self._spec, "entity")
        if by_entity is None:
            return True
        node, recursion = find(by_entity, "entity"), text_of(find(by_entity, "recursion"))
        if node is None or recursion not in ("self", "children", "all"):
            raise SoapFaultError("InvalidArgument", "", ("invalidProperty", text("filter.entity")))
        entity = parse_target(node)
        return (recursion != "children" and target == entity) or (
            recursion != "self" and self._is_within(target, entity)
        )


def parse_page_size(value: str | None, *, default: int | None = None) -> int:
    """Return a number of tasks. Raises SoapFaultError if vCenter would refuse it."""
    size = int(value or 0)
    if size == 0 and default is not None:
        return default
    if not 1 <= size <= PAGE_MAX:
        raise SoapFaultError("InvalidArgument", "", ("invalidProperty", text("maxCount")))
    return size


def _parse_time_range(spec: Element) -> TimeRange:
    kind = text_of(find(spec, "time", "timeType")) or ""
    if kind not in ("queuedTime", "startedTime", "completedTime"):
        raise SoapFaultError("InvalidArgument", "", ("invalidProperty", text("filter.time.timeType")))
    begin, end = text_of(find(spec, "time", "beginTime")), text_of(find(spec, "time", "endTime"))
    return TimeRange(
        kind,
        datetime.fromisoformat(begin).timestamp() if begin else float("-inf"),
        datetime.fromisoformat(end).timestamp() if end else float("inf"),
    )


def _list_texts(spec: Element | None, name: str) -> list[str]:
    return [] if spec is None else [text_of(one) or "" for one in children(spec, name)]
