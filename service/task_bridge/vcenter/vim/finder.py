"""Finds classic tasks in vCenter's history: one TaskHistoryCollector for each filter that vCenter itself applies.

A collector gets new matches as long as it lives, so reading on from where one stopped misses nothing. `recentTask` and
the latest page of a collector do: they are short, and a burst pushes tasks out of them unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import structlog

from ...domain.errors import VCenterUnavailable
from ...domain.follows.event import FollowMemory
from ...domain.follows.order import Follow, FoundTask, build_found_task
from ...domain.follows.place import CLOCK_SLACK_S, FollowPlace, Gap
from ...domain.follows.ports import FoundBatch, HistoryStart
from ...domain.managed_objects import find_object_type
from ...domain.task import is_vim_task
from ..http import AnswerTooLarge
from ..shared import DiscoveryTurns
from .history import PAGE, HistoryFilter, close_history, fetch_oldest, fetch_time, open_history, read_page, step_back
from .session import VimSession
from .soap import Ref, UnreadableXml
from .taskinfo import Info, build_task, parse_identity

log = structlog.get_logger(__name__)

RETRY_S = 2.0
CHECK_CLOCK_S = 60.0
"""How often vCenter's clock is read: its times are compared with where a follow is."""
FAR_BEHIND_S = 300.0
_QUEUE_MAX = 8
"""Batches that a follow hasn't taken yet, after which the history isn't read on."""
_BUILT_BETWEEN_TURNS = 50
_SHRINKING = 8
"""By how much a page is shorter than one that couldn't be read."""
_ABSENCE_S = 86_400.0
"""How long ago vCenter's clock may have been set if nobody knows when it was read last."""


def build_history_filter(follow: Follow) -> HistoryFilter:
    """Return the part of a follow that vCenter itself selects by."""
    entity, users = follow.entity, _spell_users(follow.users)
    kind = None if entity is None else find_object_type(entity.id)
    if entity is None or kind is None:
        return HistoryFilter(users)
    return HistoryFilter(users, Ref(kind, entity.id), entity.recursive)


def _spell_users(users: tuple[str, ...]) -> tuple[str, ...]:
    r"""Return each user in both spellings that vCenter may keep: `DOMAIN\user` and `user@DOMAIN`."""
    spellings: dict[str, None] = {}
    for user in users:
        domain, backslash, name = user.rpartition("\\")
        if not backslash:
            name, _, domain = user.partition("@")
        spellings |= dict.fromkeys([user] if not domain else [f"{domain}\\{name}", f"{name}@{domain}"])
    return tuple(spellings)


class _Subscriber(NamedTuple):
    """A follow that gets what a reader reads. `place` returns how far it has come."""

    follow: Follow
    place: Callable[[], FollowPlace | None]
    batches: asyncio.Queue[FoundBatch]


class FinderContext(NamedTuple):
    """What the readers of a vCenter share.

    `clock` returns Unix seconds by nats-server's clock. `prepare` is called whenever the history is opened.
    `keep_session` keeps the session open while a history is read. `on_found` gets each task that is found.
    """

    session: VimSession
    clock: Callable[[], float]
    prepare: Callable[[], Awaitable[None]]
    keep_session: Callable[[], AbstractContextManager[None]]
    on_found: Callable[[str, Info], None]
    turns: DiscoveryTurns


class VimFinder:
    """Finds the classic tasks of one vCenter for any number of follows."""

    def __init__(
        self,
        session: VimSession,
        clock: Callable[[], float],
        prepare: Callable[[], Awaitable[None]],
        keep_session: Callable[[], AbstractContextManager[None]],
        on_found: Callable[[str, Info], None],
        turns: DiscoveryTurns,
    ) -> None:
        self._context = FinderContext(session, clock, prepare, keep_session, on_found, turns)
        self._readers: dict[HistoryFilter, _HistoryReader] = {}

    async def find_tasks(self, follow: Follow, memory: Callable[[], FollowMemory]) -> AsyncGenerator[FoundBatch]:
        """Yield the tasks that match the follow's filter at vCenter, without end.

        A follow that is far behind others with its filter reads by itself until it has caught up: they don't wait.
        """
        history_filter = build_history_filter(follow)
        place = memory().place
        behind_s = self._context.clock() - (follow.begins_at(0.0) if place is None else place.complete_until)
        subscriber = _Subscriber(follow, lambda: memory().place, asyncio.Queue())
        if history_filter in self._readers and behind_s > FAR_BEHIND_S:
            async with contextlib.aclosing(self._read_for(subscriber, None)) as batches:
                async for batch in batches:
                    yield batch
                    if batch.start is not None:
                        break
        async with contextlib.aclosing(self._read_for(subscriber, history_filter)) as batches:
            async for batch in batches:
                yield batch

    async def _read_for(
        self, subscriber: _Subscriber, shared_filter: HistoryFilter | None
    ) -> AsyncGenerator[FoundBatch]:
        """Yield what the reader with this filter reads, which follows share; without one, what a reader alone does."""
        reader = None if shared_filter is None else self._readers.get(shared_filter)
        if reader is None:
            reader = _HistoryReader(self._context, build_history_filter(subscriber.follow))
            if shared_filter is not None:
                self._readers[shared_filter] = reader
        reader.add(subscriber)
        try:
            while True:
                yield await reader.take(subscriber)
        finally:
            reader.remove(subscriber)
            if shared_filter is not None and not reader.has_subscribers:
                self._readers.pop(shared_filter, None)

    async def close(self) -> None:
        """End all readers, and their collectors with them."""
        await asyncio.gather(*(reader.stop() for reader in self._readers.values()))


class _HistoryReader:
    """Reads the history with one filter, for every follow that has it."""

    def __init__(self, context: FinderContext, history_filter: HistoryFilter) -> None:
        self._context = context
        self._filter = history_filter
        self._subscribers: list[_Subscriber] = []
        self._has_joined = False
        self._taken = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._page_size = PAGE
        self._read_until = self._ahead_s = 0.0
        self._clock_read_at: float | None = None

    @property
    def has_subscribers(self) -> bool:
        return bool(self._subscribers)

    def add(self, subscriber: _Subscriber) -> None:
        """Read for this follow too: the history is opened again, at the earliest place of all."""
        self._subscribers.append(subscriber)
        self._has_joined = True
        if self._reading is None:
            self._reading = asyncio.create_task(self._run())

    def remove(self, subscriber: _Subscriber) -> None:
        self._subscribers.remove(subscriber)
        self._taken.set()
        if not self._subscribers and self._reading is not None:
            self._reading.cancel()

    async def take(self, subscriber: _Subscriber) -> FoundBatch:
        """Return the next batch of this follow."""
        batch = await subscriber.batches.get()
        self._taken.set()
        return batch

    async def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            retry_s = RETRY_S
            try:
                with self._context.keep_session():
                    await self._read()
                continue
            except VCenterUnavailable as error:
                self._deliver(FoundBatch(trouble=str(error)))
                retry_s = max(RETRY_S, error.retry_after_s or 0.0)
            except Exception:
                log.exception("history_reader_failed")
            await asyncio.sleep(retry_s)

    async def _read(self) -> None:
        """Open the history and read on from the earliest place, until a follow joins or vCenter's clock was set."""
        session, clock, turns = self._context.session, self._context.clock, self._context.turns
        self._has_joined = False
        await self._context.prepare()
        await turns.wait()
        vcenter_now, checked_at = await fetch_time(session), clock()
        self._ahead_s = ahead_s = vcenter_now - checked_at
        unknown_s = _ABSENCE_S if self._clock_read_at is None else checked_at - self._clock_read_at
        self._clock_read_at = checked_at
        places = {id(one): one.place() or _begin(one.follow, ahead_s) for one in self._subscribers}
        start = HistoryStart(vcenter_now, None, unknown_s)
        if any(place.needs_oldest(vcenter_now) for place in places.values()):
            await turns.wait()
            start = start._replace(oldest=await fetch_oldest(session, turns.wait))
        self._read_until = read_from = min(vcenter_now, *(place.read_from for place in places.values()))
        await turns.wait()
        collector = await open_history(session, self._filter.to_xml(read_from))
        try:
            while tasks := await self._read_page(collector):
                self._deliver(FoundBatch(tasks, is_reread=True), places)
            self._deliver(FoundBatch(is_reread=True, start=start, empty_at=vcenter_now), places)
            while not self._has_joined:
                asked_at = clock() + ahead_s
                tasks = await self._read_page(collector)
                self._deliver(FoundBatch(tasks, empty_at=None if tasks else asked_at))
                if clock() >= checked_at + CHECK_CLOCK_S:
                    await turns.wait()
                    now, checked_at = await fetch_time(session), clock()
                    if abs(now - checked_at - ahead_s) > CLOCK_SLACK_S:
                        return
                    self._clock_read_at = checked_at
        finally:
            with contextlib.suppress(VCenterUnavailable):
                await close_history(session, collector)

    async def _read_page(self, collector: Ref) -> list[FoundTask]:
        """Return the next tasks, when it is this reader's turn and the follows have taken what was read before."""
        while any(one.batches.qsize() >= _QUEUE_MAX for one in self._subscribers):
            self._taken.clear()
            await self._taken.wait()
        await self._context.turns.wait()
        found: list[FoundTask] = []
        for count, info in enumerate(await self._fetch_page(collector), 1):
            if (task := self._build_found(info)) is not None:
                found.append(task)
                self._read_until = max(self._read_until, task.identity.queued_at or 0.0)
            if count % _BUILT_BETWEEN_TURNS == 0:
                await asyncio.sleep(0)
        return found

    async def _fetch_page(self, collector: Ref) -> list[Info]:
        """Return a page. One that can't be read is read again in shorter ones, until the task to blame is alone.

        That one is left out, with a gap, if what comes behind it can be read. Raises VCenterUnavailable.
        """
        session, turns = self._context.session, self._context.turns
        while True:
            page_size = self._page_size
            try:
                page = await read_page(session, collector, page_size)
            except (AnswerTooLarge, UnreadableXml) as error:
                self._page_size = max(1, page_size // _SHRINKING)
                await turns.wait()
                if page_size > 1:
                    await step_back(session, collector, page_size)
                    await turns.wait()
                    continue
                page = await read_page(session, collector, 1)
                gap = Gap(self._read_until, self._context.clock() + self._ahead_s, f"a task can't be read: {error}")
                self._deliver(FoundBatch(is_reread=True, gap=gap))
            self._page_size = min(PAGE, 2 * page_size)
            return page

    def _build_found(self, info: Info) -> FoundTask | None:
        """Return the task of a TaskInfo; None for one without a state or with an id that isn't a vCenter's."""
        key, task = str(info.get("key")), build_task(info, None, {})
        if task is None or not is_vim_task(key):
            return None
        self._context.on_found(key, info)
        return build_found_task(key, "vim", task, parse_identity(info))

    def _deliver(self, batch: FoundBatch, places: Mapping[int, FollowPlace] | None = None) -> None:
        for one in self._subscribers:
            one.batches.put_nowait(batch._replace(place=(places or {}).get(id(one))))


def _begin(follow: Follow, ahead_s: float) -> FollowPlace:
    begins_at = follow.begins_at(ahead_s)
    return FollowPlace(begins_at, begins_at)
