"""Many tasks by few lists: halves where vCenter refuses, and smaller lists where answers are too large."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from .api import BadAnswer, CisTasksApi, Listing, ListUnavailable
from .followed import Group, TrackedCisTask

RESULTS_MAX = 70
"""Some kilobytes a result: vCenter's own limit for an answer is 7 MB."""


class ListPart(NamedTuple):
    """Tasks that were asked for, and what came: a listing, an error, or neither where there is no list at all."""

    tasks: list[TrackedCisTask]
    listing: Listing | None = None
    error: BadAnswer | None = None


class TaskLister:
    """Lists of one vCenter's tasks."""

    def __init__(self, tasks: CisTasksApi) -> None:
        self._tasks = tasks
        self._results_max = RESULTS_MAX

    def max_tasks(self, group: Group) -> int:
        """How many tasks of the group one list may ask for."""
        return min(self._results_max, self._tasks.list_max) if group.with_result else self._tasks.list_max

    async def list_in_parts(self, group: Group, batch: list[TrackedCisTask]) -> AsyncIterator[ListPart]:
        """The batch in parts: what vCenter lists, and each task that no list works with, alone.

        Where so much fails that it isn't worth going on, the rest comes as one part with the last error.
        Raises VCenterUnavailable.
        """
        parts, failures = [batch], 0
        allowed = 3 if group.failures else 6 + 2 * len(batch).bit_length()
        while parts:
            part = parts.pop()
            try:
                yield ListPart(part, await self._list(group, part))
                continue
            except ListUnavailable:
                yield ListPart([followed for rest in (part, *parts) for followed in rest])
                return
            except BadAnswer as error:
                failures += 1
                if len(part) == 1:
                    yield ListPart(part, error=error)
                elif failures > allowed:
                    yield ListPart([followed for rest in (part, *parts) for followed in rest], error=error)
                    return
                else:
                    parts += _halves(part)

    async def _list(self, group: Group, part: list[TrackedCisTask]) -> Listing:
        try:
            listing = await self._tasks.list_tasks([followed.id for followed in part], with_result=group.with_result)
        except BadAnswer:
            if group.with_result:
                self._results_max = max(1, min(self._results_max, len(part) // 2))
            raise
        if group.with_result and len(part) >= self._results_max:
            self._results_max = min(RESULTS_MAX, self._results_max + 1 + self._results_max // 8)
        return listing


def _halves(part: list[TrackedCisTask]) -> tuple[list[TrackedCisTask], list[TrackedCisTask]]:
    middle = len(part) // 2
    return part[middle:], part[:middle]
