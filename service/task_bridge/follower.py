"""The loop of follows. A follow is taken over, a finder reads tasks for it, and each selected task becomes a watch.

    take_over ──► finder.find_tasks ──► batch of found tasks ──► admit a watch for each ──► the place advances
                                              │                                                   │
                                              └── a gap, if completeness can't be shown ──► journal.append

The follower decides nothing itself: `domain.follows` says which tasks a follow is about, how far it has come and where
a gap is. It starts watches by the admission that requests use too, so their order, fence and endings are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from .domain.durations import rfc3339
from .domain.errors import NatsUnavailable
from .domain.follows.event import FollowMemory, FollowReport, build_draft, build_gap, build_view, read_memory
from .domain.follows.order import Follow, FoundTask, build_watch, is_selected
from .domain.follows.place import FollowPlace, Pace, find_gap, restart_after_gap
from .domain.follows.ports import FollowEventJournal, HistoryStart, StoredFollowEvent, TaskFinder, WatchStarter
from .domain.ports import WatchHandle
from .domain.watch import Watch
from .metrics import Metrics

log = structlog.get_logger(__name__)

RETRY_S = 1.0
_AT_ONCE = 50
"""Watches of one follow that are admitted at the same time."""
_REMEMBERED = 50_000
"""Watches that a follow remembers, so that tasks that are read again after an interruption cost nothing."""
_SAVE_S = 60.0
"""How long after an event the place is stored again, if watches were started."""
_SAVE_WATCHES = 2_000
_SAVE_QUIET_S = 3_600.0


class HeldFollow:
    """A follow that this replica runs.

    `fence`: the stream sequence of its last event. `state`: `starting`, `following`, `slowed` (by the maximum rate) or
    `waiting` (vCenter can't be read; `trouble` says why). `saved`: what its last event says; `saved_at`: when it was
    stored. `started`: the ids of the watches that it has started, newest last. `read_at`: the monotonic time of the
    last answer of vCenter.
    """

    def __init__(
        self, follow: Follow, handle: WatchHandle, memory: FollowMemory, fence: int, now: float, max_rate: float
    ) -> None:
        self.follow = follow
        self.handle = handle
        self.memory = memory
        self.fence = fence
        self.state = "starting"
        self.trouble: str | None = None
        self.saved = memory
        self.saved_at = now
        self.started: dict[str, None] = {}
        self.read_at: float | None = None
        self.pace = Pace(max_rate)
        self.running: asyncio.Task[None] | None = None

    def report(self) -> FollowReport:
        memory = self.memory
        newest = memory.place.newest if memory.place else None
        return FollowReport(
            self.follow.vcenter,
            self.follow.name,
            self.state,
            self.trouble,
            rfc3339(memory.place.begins_at) if memory.place else None,
            rfc3339(newest.queued_at) if newest else None,
            memory.started_watches,
            memory.gaps,
            None if self.read_at is None else time.monotonic() - self.read_at,
        )


class Follower:
    """All follows that this replica runs. `source_of` returns a vCenter's URL, which events carry as `source`."""

    def __init__(
        self,
        finders: Mapping[str, TaskFinder],
        journal: FollowEventJournal,
        watches: WatchStarter,
        source_of: Callable[[str], str],
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        max_rate: float,
    ) -> None:
        self._finders = finders
        self._journal = journal
        self._watches = watches
        self._source_of = source_of
        self._metrics = metrics
        self._clock = clock
        self._max_rate = max_rate
        self._held: dict[tuple[str, str], HeldFollow] = {}

    def reports(self) -> list[FollowReport]:
        """Return the state of each follow that this replica runs."""
        return [held.report() for held in self._held.values()]

    async def take_over(self, follow: Follow, handle: WatchHandle) -> str | None:
        """Run a follow that JetStream delivered. Return `accepted`, None if it was over. Raises NatsUnavailable."""
        last = await self._journal.read_last(follow.vcenter, follow.name)
        data = last.data if last is not None and last.data and last.data.follow.id == follow.id else None
        self._stop_running(follow.key)
        if data is not None and data.final:
            await handle.ack()
            return None
        memory = read_memory(data) if data else FollowMemory()
        held = HeldFollow(follow, handle, memory, last.sequence if last else 0, self._clock(), self._max_rate)
        reason = "started" if data is None else "resumed" if data.follow == build_view(follow) else "replaced"
        self._held[follow.key] = held
        if follow.vcenter not in self._finders:
            held.state = "unconfigured"
            return "accepted"
        held.running = asyncio.create_task(self._run_and_log_errors(held, reason))
        return "accepted"

    async def check_ownership(self, vcenter: str, name: str) -> None:
        """Stop running a follow whose message is gone: it was ended or replaced. Raises NatsUnavailable."""
        held = self._held.get((vcenter, name))
        if held is not None and not await held.handle.is_current():
            self._step_back(held)

    async def stop(self) -> None:
        """Start no more watches, and store how far each follow has come."""
        held_follows = list(self._held.values())
        for key in list(self._held):
            self._stop_running(key)
        await asyncio.gather(*(held.running for held in held_follows if held.running), return_exceptions=True)
        for held in held_follows:
            if held.memory != held.saved:
                with contextlib.suppress(_NotOwner):
                    await self._publish_following(held, "progressed")

    def _stop_running(self, key: tuple[str, str]) -> None:
        if (held := self._held.pop(key, None)) is not None and held.running is not None:
            held.running.cancel()

    def _step_back(self, held: HeldFollow) -> None:
        """Leave the follow to the replica that owns it now, if it isn't over."""
        log.info("follow_stepped_back", **held.follow.log_keys)
        held.handle.drop()
        if self._held.get(held.follow.key) is held:
            self._stop_running(held.follow.key)

    async def _run_and_log_errors(self, held: HeldFollow, reason: str) -> None:
        while True:
            try:
                await self._run(held, reason)
            except _NotOwner:
                self._step_back(held)
                return
            except Exception:
                log.exception("follow_failed", **held.follow.log_keys)
            await asyncio.sleep(RETRY_S)
            reason = "resumed"

    async def _run(self, held: HeldFollow, reason: str) -> None:
        """Find tasks and start their watches, without end. Raises _NotOwner if another replica wrote an event."""
        follow, is_announced = held.follow, False
        reading: FollowPlace | None = None
        has_newest = False
        async for batch in self._finders[follow.vcenter].find_tasks(follow, lambda: held.memory.place):
            held.trouble = batch.trouble
            if batch.trouble is not None:
                held.state, reading, has_newest = "waiting", None, False
                continue
            held.read_at = time.monotonic()
            held.memory = held.memory._replace(place=held.memory.place or batch.place)
            if not is_announced:
                await self._publish_following(held, reason)
                is_announced = True
            place = held.memory.place
            selected = [task for task in batch.tasks if is_selected(follow, task) and _is_queued_since(task, place)]
            await self._start_watches(held, selected, is_reread=batch.is_reread)
            held.state = "following"
            if place is not None:
                has_newest = has_newest or place.knows(selected)
                reading = (reading or place).advance(selected, batch.empty_at)
                if batch.start is not None:
                    reading = await self._publish_gap(held, place, batch.start, has_newest=has_newest) or reading
                if batch.start is not None or not batch.is_reread:
                    held.memory = held.memory._replace(place=reading)
                    reading, has_newest = None, False
            if self._is_save_due(held):
                await self._publish_following(held, "progressed")

    # Watches

    async def _start_watches(self, held: HeldFollow, selected: Sequence[FoundTask], *, is_reread: bool) -> None:
        """Start a watch for each of these tasks, at the maximum rate at most; retry until NATS took them all."""
        watches = [build_watch(held.follow, task, self._clock()) for task in selected]
        new = [watch for watch in watches if watch.id not in held.started]
        self._metrics.follow_found.labels(held.follow.vcenter).inc(len(new))
        for first in range(0, len(new), _AT_ONCE):
            some = new[first : first + _AT_ONCE]
            if (pause_s := held.pace.take(len(some), time.monotonic())) > 0:
                held.state = "slowed"
                await asyncio.sleep(pause_s)
            await asyncio.gather(*(self._start_watch(held, watch, is_reread=is_reread) for watch in some))
            held.started |= dict.fromkeys(watch.id for watch in some)
        while len(held.started) > _REMEMBERED:
            del held.started[next(iter(held.started))]

    async def _start_watch(self, held: HeldFollow, watch: Watch, *, is_reread: bool) -> None:
        while True:
            try:
                if not (is_reread and await self._watches.has_ended(watch)) and await self._watches.start(watch):
                    held.memory = held.memory._replace(started_watches=held.memory.started_watches + 1)
                    self._metrics.follow_watches.labels(held.follow.vcenter).inc()
            except NatsUnavailable as error:
                log.debug("followed_task_not_watched_yet", **watch.log_keys, reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                return

    # Events

    async def _publish_gap(
        self, held: HeldFollow, place: FollowPlace, start: HistoryStart, *, has_newest: bool
    ) -> FollowPlace | None:
        """Publish a gap if what was read again doesn't show completeness. Return the place behind it, None without."""
        gap = find_gap(place, start.vcenter_now, start.oldest, has_newest=has_newest)
        if gap is None:
            return None
        self._metrics.follow_gaps.labels(held.follow.vcenter).inc()
        log.warning("follow_gap", **held.follow.log_keys, begin=gap.begin, end=gap.end, reason=gap.reason)
        behind = restart_after_gap(place, gap, start.vcenter_now)
        memory = held.memory._replace(place=behind)
        draft = build_gap(held.follow, memory, gap, self._source_of(held.follow.vcenter), self._clock())
        self._adopt(held, await self._journal.append(draft, held.fence), draft.id)
        return behind

    async def _publish_following(self, held: HeldFollow, reason: str) -> None:
        follow, now = held.follow, self._clock()
        draft = build_draft(follow, held.memory, "following", self._source_of(follow.vcenter), now, reason=reason)
        self._adopt(held, await self._journal.append(draft, held.fence), draft.id)
        if reason != "progressed":
            log.info("following", **follow.log_keys, reason=reason)

    def _adopt(self, held: HeldFollow, entry: StoredFollowEvent, event_id: str) -> None:
        """Go on from the event that was stored. Raises _NotOwner if it is another writer's."""
        if entry.event_id != event_id or entry.data is None:
            raise _NotOwner
        held.fence, held.memory = entry.sequence, read_memory(entry.data)
        held.saved, held.saved_at = held.memory, self._clock()

    def _is_save_due(self, held: HeldFollow) -> bool:
        """Return whether the place is to be stored: what was found since would be read again after a crash."""
        age_s = self._clock() - held.saved_at
        count = held.memory.started_watches - held.saved.started_watches
        return age_s >= _SAVE_QUIET_S or count >= _SAVE_WATCHES or (count > 0 and age_s >= _SAVE_S)


class _NotOwner(Exception):  # noqa: N818 - no failure: another replica runs the follow, or it is over
    pass


def _is_queued_since(task: FoundTask, place: FollowPlace | None) -> bool:
    queued_at = task.identity.queued_at
    return place is None or queued_at is None or queued_at >= place.begins_at
