"""Poll results with the names of their targets: what a source finds, before the watcher sees it.

Both APIs put their results into one queue, so both use one lookup. No result waits for a name, but the last one of a
task, for a moment. A name that is found later goes out by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from ..domain.ports import PollResult, TargetNamed
from ..domain.task import Target, Task, add_names
from .name_lookup import NameLookup
from .shared import ResultQueue
from .vim.inventory import ObjectName, find_ref
from .vim.soap import Ref

FINAL_WAIT_S = 0.5

NamedResult = tuple[str, PollResult]


class NamedResults:
    """The results of a queue, with names and paths as far as they are known.

    `_unnamed`: the targets of tasks that were passed on without names. `_tasks_on`: these tasks by object. `_held`:
    last results that wait. `_waited`: tasks that have waited.
    """

    def __init__(self, results: ResultQueue, lookup: NameLookup) -> None:
        self._results = results
        self._lookup = lookup
        lookup.on_answer = self._apply_names
        self._unnamed: dict[str, Target] = {}
        self._tasks_on: dict[Ref, set[str]] = {}
        self._held: dict[str, tuple[Task, asyncio.TimerHandle]] = {}
        self._waited: set[str] = set()

    async def batches(self) -> AsyncIterator[list[NamedResult]]:
        """Yield the batches of the queue."""
        async for batch in self._results.batches():
            yield self._name_batch(batch)

    def forget(self, task: str) -> None:
        """Forget a task that isn't tracked anymore, or is tracked anew."""
        self._settle(task)
        self._waited.discard(task)
        if task in self._held:
            self._drop_held(task)

    def _name_batch(self, batch: list[NamedResult]) -> list[NamedResult]:
        named: list[NamedResult] = []
        for task, result in batch:
            if isinstance(result, Task):
                if task in self._held and result.result is not None:
                    self._drop_held(task)  # this one is newer
                named += self._name_task(task, result)
            else:
                named.append((task, result))
        return named

    def add_known_names(self, task: Task) -> Task:
        """Return the task with the name and path of its target, as far as they are known. Look up what isn't."""
        ref = _find_unnamed(task.target)
        name = None if ref is None else self._lookup.find(ref)
        if task.target is None or name is None:
            return task
        return msgspec.structs.replace(task, target=_name_target(task.target, name))

    def _name_task(self, task: str, result: Task) -> list[NamedResult]:
        self._settle(task)
        result = self.add_known_names(result)
        target = result.target
        if target is not None and result.error is not None and result.error.type == "ManagedObjectNotFound":
            self._forget_object(target)
        ref = _find_unnamed(target)
        if target is None or ref is None or self._lookup.find(ref) is not None:
            return [(task, result)]
        self._unnamed[task] = target
        self._tasks_on.setdefault(ref, set()).add(task)
        if not self._may_wait(task, ref, result):
            return [(task, result)]
        # As if the result of the task weren't there yet: a first event must not wait, only the last.
        self._hold(task, result)
        return [(task, msgspec.structs.replace(result, result=None))]

    def _forget_object(self, target: Target) -> None:
        if (ref := find_ref(target)) is not None:
            self._lookup.forget(ref)

    # The last result of a task

    def _may_wait(self, task: str, ref: Ref, result: Task) -> bool:
        is_last = result.ended and result.result is not None
        return is_last and task not in self._waited and self._lookup.is_coming(ref, FINAL_WAIT_S)

    def _hold(self, task: str, result: Task) -> None:
        self._waited.add(task)
        timer = asyncio.get_running_loop().call_later(FINAL_WAIT_S, self._release, task)
        self._held[task] = result, timer

    def _release(self, task: str) -> None:
        self._results.put(task, self._drop_held(task))

    def _drop_held(self, task: str) -> Task:
        result, timer = self._held.pop(task)
        timer.cancel()
        return result

    # Names that were found

    def _apply_names(self, refs: list[Ref]) -> None:
        for ref in refs:
            name = self._lookup.find(ref)
            for task in self._tasks_on.pop(ref, ()):
                target = self._unnamed.pop(task)
                if task in self._held:
                    self._release(task)
                elif name is not None and (named := _name_target(target, name)) != target:
                    self._results.put(task, TargetNamed(named))

    def _settle(self, task: str) -> None:
        """Forget what is kept of a task because its names weren't known."""
        target = self._unnamed.pop(task, None)
        if target is None or (ref := find_ref(target)) is None:
            return
        tasks = self._tasks_on[ref]
        tasks.discard(task)
        if not tasks:
            del self._tasks_on[ref]


def _find_unnamed(target: Target | None) -> Ref | None:
    """Return the object of a target that lacks a name or path; None if it lacks nothing or is no object."""
    return find_ref(target) if target is not None and (target.name is None or target.path is None) else None


def _name_target(target: Target, name: ObjectName) -> Target:
    return add_names(target, Target(target.type, target.id, *name))
