"""Finds CIS tasks in the lists of named services: the live ones every few seconds, and now and then all.

The API lists nothing without a service, has no pages, and answers more than 1,000 matches with an error. A list that
is too long is split by what its filter allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import NamedTuple

import structlog

from ...domain.durations import parse_time
from ...domain.errors import VCenterUnavailable
from ...domain.follows.event import FollowMemory
from ...domain.follows.lists import (
    ListedTask,
    ServiceList,
    adjust_clock,
    advance_by_list,
    find_list_gap,
    is_gap_due,
    select_first,
)
from ...domain.follows.order import Follow, FoundTask, build_found_task
from ...domain.follows.place import FollowPlace
from ...domain.follows.ports import FoundBatch
from ...domain.managed_objects import find_object_type
from ...domain.task import Rendering, Target, TaskIdentity, is_vim_task
from ...domain.task_json import TaskBodies, UnreadableBody
from ...waits import wait_for_event
from ..parsing import parse_task_outside_loop
from ..shared import DiscoveryTurns
from .api import CisTasksApi, TooManyTasks
from .renderings import ServiceFilter

log = structlog.get_logger(__name__)

LIVE_INTERVAL_S = 5.0
WHOLE_INTERVAL_S = 30.0
"""Time between two lists of a service: of its live tasks, and of all."""
SPLIT_S = 600.0
"""How long lists of a service are split at once after they had to be."""
LIVE = ("PENDING", "RUNNING", "BLOCKED")
_ALL = (*LIVE, "SUCCEEDED", "FAILED")
_QUEUE_MAX = 8
"""Batches that a follow hasn't taken yet, after which it gets no more."""
_PARSED_BETWEEN_TURNS = 50
_UNKNOWN = TaskIdentity(None, None)


class _Subscriber:
    """A follow that gets a service's tasks.

    `place`: where it is once it has taken what it was given, None until vCenter's clock is known. `given`: tasks that
    it was given. `live`: those that hadn't ended in the last list. `is_first`: it got no complete list of all tasks
    yet; `has_list`: it got one at all. `gap_at`: when a list was incomplete and that was published.
    """

    def __init__(self, follow: Follow, batches: asyncio.Queue[FoundBatch], place: FollowPlace | None) -> None:
        self.follow = follow
        self.batches = batches
        self.place = place
        self.given: set[str] = set()
        self.live: set[str] = set()
        self.is_first = True
        self.has_list = False
        self.gap_at: float | None = None

    @property
    def takes(self) -> bool:
        return self.batches.qsize() < _QUEUE_MAX


class CisFinder:
    """Finds the CIS tasks of one vCenter for any number of follows. `clock`: Unix seconds by nats-server's clock."""

    def __init__(self, api: CisTasksApi, clock: Callable[[], float], turns: DiscoveryTurns) -> None:
        self._api = api
        self._clock = clock
        self._turns = _CisTurns(turns)
        self._readers: dict[str, _ServiceReader] = {}

    async def find_tasks(self, follow: Follow, memory: Callable[[], FollowMemory]) -> AsyncGenerator[FoundBatch]:
        """Yield the tasks of the follow's services, without end."""
        batches: asyncio.Queue[FoundBatch] = asyncio.Queue()
        places = memory().services
        subscribers = {one: _Subscriber(follow, batches, places.get(one)) for one in follow.cis_services}
        try:
            for service, subscriber in subscribers.items():
                if service not in self._readers:
                    self._readers[service] = _ServiceReader(service, self._api, self._clock, self._turns)
                self._readers[service].add(subscriber)
            while True:
                yield await batches.get()
        finally:
            for service, subscriber in subscribers.items():
                self._remove(service, subscriber)

    def _remove(self, service: str, subscriber: _Subscriber) -> None:
        reader = self._readers.get(service)
        if reader is not None and reader.remove(subscriber):
            del self._readers[service]

    async def close(self) -> None:
        """End all readers."""
        await asyncio.gather(*(reader.stop() for reader in self._readers.values()))


class _CisTurns:
    """Lets the readers of services wait for their turns one after the other, so classic tasks get every second one."""

    def __init__(self, turns: DiscoveryTurns) -> None:
        self._turns = turns
        self._lock = asyncio.Lock()

    async def wait(self) -> None:
        async with self._lock:
            await self._turns.wait()


class _Entries(NamedTuple):
    """The tasks of some lists. `problem`: why they may lack some."""

    tasks: list[ListedTask]
    problem: str | None = None


class _ServiceReader:
    """Lists the tasks of one service, for every follow that names it."""

    def __init__(self, service: str, api: CisTasksApi, clock: Callable[[], float], turns: _CisTurns) -> None:
        self._service = service
        self._api = api
        self._clock = clock
        self._turns = turns
        self._subscribers: list[_Subscriber] = []
        self._ended: dict[str, ListedTask] = {}
        self._ahead_s = 0.0
        self._splits_until = float("-inf")
        self._has_joined = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def add(self, subscriber: _Subscriber) -> None:
        """List for this follow too, all tasks at once."""
        self._subscribers.append(subscriber)
        self._has_joined.set()
        if self._reading is None:
            self._reading = asyncio.create_task(self._run())

    def remove(self, subscriber: _Subscriber) -> bool:
        """Return whether no follow is left, which ends the reader."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)
        if not self._subscribers and self._reading is not None:
            self._reading.cancel()
        return not self._subscribers

    async def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _run(self) -> None:
        whole_at = float("-inf")
        while True:
            began_at = asyncio.get_running_loop().time()
            is_whole, wait_s = began_at >= whole_at or self._has_joined.is_set(), LIVE_INTERVAL_S
            try:
                if is_whole:
                    self._has_joined.clear()
                    await self._list_all()
                    whole_at = began_at + WHOLE_INTERVAL_S
                else:
                    await self._list_live()
            except VCenterUnavailable as error:
                self._report_trouble(str(error))
                whole_at, wait_s = float("-inf"), max(wait_s, error.retry_after_s or 0.0)
            except Exception:
                log.exception("service_reader_failed", service=self._service)
            await self._wait_until(began_at + wait_s)

    async def _wait_until(self, at: float) -> None:
        wait_s = max(0.0, at - asyncio.get_running_loop().time())
        await wait_for_event(self._has_joined, wait_s)

    # Requests

    async def _list_live(self) -> None:
        listing = await self._list(LIVE)
        for one in self._subscribers:
            if one.has_list and one.takes:
                self._give(one, listing.tasks)
                one.live |= {task.found.id for task in listing.tasks if not task.found.ended}

    async def _list_all(self) -> None:
        asked_at = self._clock()
        tasks, problem = await self._list(())
        listing = ServiceList(tasks, asked_at + self._ahead_s, problem)
        self._ended = {task.found.id: task for task in tasks if task.found.ended}
        for one in self._subscribers:
            if one.takes:
                self._give_all(one, listing)

    async def _list(self, status: tuple[str, ...]) -> _Entries:
        """List in one request, or in several while that is too much. Raises VCenterUnavailable."""
        waiting = [ServiceFilter(self._service, status)]
        if asyncio.get_running_loop().time() < self._splits_until:
            waiting = list(self._split(waiting[0]))
        tasks: dict[str, ListedTask] = {}
        refusal: TooManyTasks | None = None
        problem: str | None = None
        has_listed = False
        while waiting:
            wanted = waiting.pop()
            try:
                tasks |= await self._fetch(wanted)
                has_listed = True
            except TooManyTasks as error:
                refusal = error
                parts = list(self._split(wanted))
                if parts:
                    self._splits_until = asyncio.get_running_loop().time() + SPLIT_S
                else:
                    problem = f"{self._service}: {_describe(wanted)} are more than vCenter lists ({error})"
                waiting += parts
        if refusal is not None and not has_listed:
            raise refusal
        return _Entries(list(tasks.values()), problem)

    def _split(self, wanted: ServiceFilter) -> Iterator[ServiceFilter]:
        """Yield filters that together select what the follows want of this one; none if there is nothing to split by.

        Of a status more is only left out if every follow names its operations, or an object, exactly.
        """
        if len(wanted.status) != 1:
            yield from (wanted._replace(status=(status,)) for status in wanted.status or _ALL)
            return
        follows = [one.follow for one in self._subscribers]
        if not wanted.operations and all(map(_names_operations, follows)):
            for operation in sorted({name for follow in follows for name in follow.operations if name[0] != "!"}):
                yield wanted._replace(operations=(operation,))
            return
        targets = list(map(_find_target, follows))
        if wanted.target is None and None not in targets:
            for target in dict.fromkeys(targets):
                yield wanted._replace(target=target)

    async def _fetch(self, wanted: ServiceFilter) -> dict[str, ListedTask]:
        await self._turns.wait()
        asked_at = self._clock()
        listing = await self._api.list_service(wanted)
        self._ahead_s = adjust_clock(self._ahead_s, listing.date, asked_at, self._clock())
        return await self._parse(listing.bodies, listing.rendering)

    async def _parse(self, bodies: TaskBodies, rendering: Rendering) -> dict[str, ListedTask]:
        """Return the tasks. One that ended doesn't change, so it is parsed once."""
        tasks: dict[str, ListedTask] = {}
        for count, (task_id, body) in enumerate(bodies.items(), 1):
            if is_vim_task(task_id):
                continue
            if (known := self._ended.get(task_id)) is not None:
                tasks[task_id] = known
                continue
            try:
                task = await parse_task_outside_loop(body, rendering, with_result=False)
            except UnreadableBody:
                # Its watch says what is wrong with it.
                unknown = FoundTask(task_id, "cis", _UNKNOWN, self._service, None, None, None, None, ended=False)
                tasks[task_id] = ListedTask(unknown)
                continue
            found = build_found_task(task_id, "cis", task, _UNKNOWN)._replace(service=self._service)
            tasks[task_id] = ListedTask(found, parse_time(task.started_at), parse_time(task.ended_at))
            if count % _PARSED_BETWEEN_TURNS == 0:
                await asyncio.sleep(0)
        return tasks

    # What follows get

    def _give(self, one: _Subscriber, tasks: list[ListedTask]) -> None:
        """Give a follow the tasks that it doesn't have yet."""
        new = [task.found for task in tasks if task.found.id not in one.given]
        one.given |= {found.id for found in new}
        one.batches.put_nowait(FoundBatch(new, service=self._service))

    def _give_all(self, one: _Subscriber, listing: ServiceList) -> None:
        """Give a follow the tasks of a whole list that it doesn't have yet, and its place behind them."""
        place, is_first = one.place or self._begin(one.follow), one.is_first
        first = select_first(listing, place) if is_first else listing.tasks
        new = [task.found for task in first if task.found.id not in one.given]
        gap = find_list_gap(place, listing, one.live, is_first=is_first)
        if gap is None or is_gap_due(listing, one.gap_at):
            one.place = advance_by_list(place, listing)
            one.gap_at = listing.listed_at if gap is not None else None
        else:
            one.place, gap = place, None
        shown = {task.found.id for task in listing.tasks}
        # What an incomplete list lacks may be in the next one, and isn't new then.
        one.given = shown if listing.problem is None else one.given | shown
        one.is_first, one.has_list = is_first and listing.problem is not None, True
        one.live = {task.found.id for task in listing.tasks if not task.found.ended}
        one.batches.put_nowait(FoundBatch(new, is_first, place=one.place, service=self._service, gap=gap))

    def _begin(self, follow: Follow) -> FollowPlace:
        begins_at = follow.begins_at(self._ahead_s)
        return FollowPlace(begins_at, begins_at)

    def _report_trouble(self, reason: str) -> None:
        for one in self._subscribers:
            if one.takes:
                one.batches.put_nowait(FoundBatch(trouble=f"{self._service}: {reason}", service=self._service))


def _names_operations(follow: Follow) -> bool:
    """Return whether the follow is about operations that it names exactly."""
    wanted = [name for name in follow.operations if not name.startswith("!")]
    return bool(wanted) and not any("*" in name for name in wanted)


def _find_target(follow: Follow) -> Target | None:
    """Return the object that all tasks of the follow are about, None if there isn't one."""
    entity = follow.entity
    kind = None if entity is None or entity.recursive else find_object_type(entity.id)
    return None if entity is None or kind is None else Target(kind, entity.id)


def _describe(wanted: ServiceFilter) -> str:
    words = [*wanted.status, *wanted.operations, *([wanted.target.id or ""] if wanted.target else [])]
    return f"the {' '.join(words)} tasks"
