"""The story of a watch: taken up -> looked at -> what changed is published -> looked at again, or over.

The watcher decides nothing itself: `watch.next_event` does, the source knows when to look, the journal keeps what
was said. Here they meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice

import structlog

from .domain.durations import parse_time
from .domain.errors import NatsUnavailable
from .domain.events import Event
from .domain.ports import UNCHANGED, EventEntry, EventJournal, PollResult, TaskSource, Unchanged, WatchHandle
from .domain.task import Task
from .domain.watch import (
    LAST_POLL_S,
    Absence,
    Draft,
    Policy,
    TaskView,
    Watch,
    answers_request,
    identity_from_event,
    needs_current_identity,
    next_event,
    record_poll,
    stall_at,
    view_from_event,
    wake_at,
)
from .metrics import Metrics

log = structlog.get_logger(__name__)

YIELD_EVERY = 25
AT_ONCE_S = 0.005
UNSETTLED_S = 5.0
SOON_S = 600.0
_CHUNK = 500
SWEEP_S = 600.0
LISTED_STATUSES = ("PENDING", "RUNNING", "BLOCKED", "SUCCEEDED", "FAILED")


async def is_request_answered(source: TaskSource | None, watch: Watch, last: Event, stored_at: float) -> bool:
    """Return whether the task's last event answers the watch's request; ask vCenter where that depends on it.

    Raises VCenterUnavailable.
    """
    current = None
    if source is not None and needs_current_identity(last, stored_at, watch):
        current = await source.fetch_identity(watch.task)
    return answers_request(last, stored_at, watch, current)


class HeldWatch:
    """A watch that this replica owns. `fence`: the stream sequence of its task's last event; `counted_as`: the
    status that it counts under while it is held; `stall_asked`: the standstill that a look was asked for.
    """

    __slots__ = (
        "counted_as",
        "fence",
        "handle",
        "last",
        "owes_look",
        "settling",
        "stall_asked",
        "stalls_at",
        "timer",
        "view",
        "watch",
    )

    def __init__(self, watch: Watch, handle: WatchHandle, last: Event | None, fence: int) -> None:
        self.watch = watch
        self.handle = handle
        self.last = last
        self.fence = fence
        self.counted_as: str | None = None
        self.view: TaskView = view_from_event(last)
        self.stalls_at = math.inf
        self.stall_asked = math.inf
        self.timer: asyncio.TimerHandle | None = None
        self.settling = False
        self.owes_look = False

    @property
    def key(self) -> tuple[str, str]:
        return self.watch.vcenter, self.watch.task


class Watcher:
    """All watches that this replica owns."""

    def __init__(
        self,
        sources: Mapping[str, TaskSource],
        journal: EventJournal,
        policy_of: Callable[[str], Policy],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._journal = journal
        self._policy_of = policy_of
        self._metrics = metrics
        self._clock = clock
        self._held: dict[tuple[str, str], HeldWatch] = {}
        self._standing: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def run(self) -> None:
        """Follows the looks of every source, without end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arm_in_time())
            for name, source in self._sources.items():
                group.create_task(self._follow(name, source))

    async def take_over(self, watch: Watch, handle: WatchHandle) -> str | None:
        """Takes up a watch that was handed over, again or for the first time; `accepted`, `already_completed`, or
        None when it was over before it arrived.

        Raises NatsUnavailable, VCenterUnavailable.
        """
        if self._is_held(watch, handle):
            return "accepted"
        last = await self._journal.last(watch.vcenter, watch.task)
        source = self._sources.get(watch.vcenter)
        answered = last is not None and await is_request_answered(source, watch, last.event, last.stored_at)
        own = last is not None and last.event.data.watch.id == watch.id
        # Behind another watch's event it may be one that was over long ago, late over a connection that hung.
        gone = last is not None and not own and not answered and not await handle.is_current()
        if self._is_held(watch, handle):
            return "accepted"  # delivered twice meanwhile
        if gone:
            handle.drop()
            return None
        if (older := self._held.get((watch.vcenter, watch.task))) is not None:
            self._forget(older)
        if answered:
            await handle.ack()
            return "already_completed"
        self._hold(HeldWatch(watch, handle, last.event if last and own else None, last.sequence if last else 0))
        return "accepted"

    def _is_held(self, watch: Watch, handle: WatchHandle) -> bool:
        """Whether it is held already: then this is a redelivery to its living owner."""
        held = self._held.get((watch.vcenter, watch.task))
        if held is None or held.watch.id != watch.id:
            return False
        held.handle = handle
        return True

    def _hold(self, held: HeldWatch) -> None:
        watch = held.watch
        self._held[held.key] = held
        self._count(held, self._status(held))
        self._arm(held)
        self._look_anew(held)
        log.debug("watch_held", vcenter=watch.vcenter, task=watch.task, watch=watch.id)

    def _look_anew(self, held: HeldWatch) -> None:
        watch = held.watch
        if self._held.get(held.key) is held and (source := self._sources.get(watch.vcenter)):
            seen = held.last is not None and held.last.data.status is not None
            birth = identity_from_event(held.last.data) if held.last else None
            source.track(watch.task, watch.since, seen=seen, with_result=watch.partial_results, birth=birth)

    async def _follow(self, vcenter: str, source: TaskSource) -> None:
        async for batch in source.poll_results():
            now, news = self._clock(), 0
            for task, standing in batch:
                held = self._held.get((vcenter, task))
                if held is None:
                    source.forget(task)
                elif standing is UNCHANGED and now < held.stalls_at and not held.view.last_poll_requested:
                    held.view.polled_at = now  # nearly all looks
                else:
                    self._take_in(held, standing, now)
                    news += 1
                    if news % YIELD_EVERY == 0:
                        await asyncio.sleep(0)

    def _take_in(self, held: HeldWatch, standing: PollResult, now: float) -> None:
        try:
            if self._is_news(held, standing, now):
                self._settle_soon(held)
        except Exception:
            # One task's trouble mustn't keep the looks at all others from being taken in.
            log.exception("look_not_taken_in", vcenter=held.watch.vcenter, task=held.watch.task)
            asyncio.get_running_loop().call_later(UNSETTLED_S, self._look_anew, held)

    def _is_news(self, held: HeldWatch, standing: PollResult, now: float) -> bool:
        """Takes one look into the view; whether something may follow from it."""
        view = held.view
        if view.last_poll_requested and not (isinstance(standing, Task) and standing.ended):
            view.last_poll_over = True
        if isinstance(standing, Unchanged):
            view.polled_at = now
            return now >= held.stalls_at or view.last_poll_over
        held.owes_look = True
        if isinstance(standing, Task):
            record_poll(view, held.last, standing, now)
        elif isinstance(standing, Absence):
            view.absence = standing
        else:
            view.answer = standing.answer
        return True

    def _settle_soon(self, held: HeldWatch) -> None:
        if held.settling or self._stopping:
            return  # who settles it now asks again before leaving
        held.settling = True
        task = asyncio.create_task(self._settle(held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, held: HeldWatch) -> None:
        try:
            await self._say_what_follows(held)
        except Exception:
            log.exception("watch_not_settled", vcenter=held.watch.vcenter, task=held.watch.task)
            asyncio.get_running_loop().call_later(UNSETTLED_S, self._settle_again, held)
        finally:
            held.settling = False

    def _settle_again(self, held: HeldWatch) -> None:
        if self._held.get(held.key) is held:
            self._settle_soon(held)

    async def _say_what_follows(self, held: HeldWatch) -> None:
        """Publishes what follows from the view until nothing does; then looks on, or the watch is over."""
        while not self._stopping and (draft := self._next(held)):
            # Publish before remembering: a crash in between repeats a look, never loses an event.
            entry = await self._journal.append(draft, held.fence)
            if not self._remember(held, entry):
                return
        if held.last is not None and held.last.data.final:
            await self._over(held)
        elif self._held.get(held.key) is held:
            self._arm(held)
            self._look_on(held)

    def _next(self, held: HeldWatch) -> Draft | None:
        policy = self._policy_of(held.watch.vcenter)
        return next_event(held.watch, held.last, held.view, self._clock(), policy)

    def _remember(self, held: HeldWatch, entry: EventEntry) -> bool:
        """Goes on from what is stored now; False when that means that somebody else owns the watch."""
        data = entry.event.data
        if data.watch.id == held.watch.id and (entry.instance == self._journal.instance or data.final):
            held.last, held.fence = entry.event, entry.sequence
            if held.counted_as is not None:
                self._count(held, self._status(held))
            self._tell(held, entry.event)
            return True
        log.info("stepped_back", vcenter=held.watch.vcenter, task=held.watch.task, writer=entry.instance)
        self._forget(held)
        held.handle.drop()
        return False

    def _tell(self, held: HeldWatch, event: Event) -> None:
        data = event.data
        keys = {**held.watch.log_keys, "sequence": data.sequence, "status": data.status}
        if not data.final:
            log.debug("event", kind=event.kind, **keys)
            return
        log.info("watch_over", outcome=event.kind, **keys)
        ended_at = parse_time(data.ended_at)
        if data.kind == "completed" and ended_at is not None:
            self._metrics.detection.observe(max(0.0, self._clock() - ended_at))

    async def _over(self, held: HeldWatch) -> None:
        self._forget(held)
        await held.handle.ack()

    def _forget(self, held: HeldWatch) -> None:
        if held.timer is not None:
            held.timer.cancel()
        if self._held.get(held.key) is held:
            del self._held[held.key]
            self._count(held, None)
            if source := self._sources.get(held.watch.vcenter):
                source.forget(held.watch.task)

    def _look_on(self, held: HeldWatch) -> None:
        if held.owes_look and (source := self._sources.get(held.watch.vcenter)):
            held.owes_look = False
            source.resume(held.watch.task)

    def _arm(self, held: HeldWatch) -> None:
        """Sets the timer to when the watch must be asked even if no look comes, if that is soon."""
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        held.stalls_at = stall_at(held.watch, held.last, held.view)
        wakes_at = wake_at(held.watch, held.last, held.view, self._policy_of(held.watch.vcenter))
        if held.stall_asked != held.stalls_at:
            wakes_at = min(wakes_at, held.stalls_at)
        delay = wakes_at - self._clock()
        if delay <= SOON_S and not self._stopping:
            held.timer = asyncio.get_running_loop().call_later(max(AT_ONCE_S, delay), self._woken, held)

    async def _arm_in_time(self) -> None:
        """Sets the timers that weren't soon before: one for each watch would take a sixth of its memory."""
        while True:
            await asyncio.sleep(SOON_S / 2)
            for number, held in enumerate(list(self._held.values())):
                if held.timer is None and not held.settling:
                    self._arm(held)
                if number % _CHUNK == _CHUNK - 1:
                    await asyncio.sleep(0)

    def _woken(self, held: HeldWatch) -> None:
        view = held.view
        if self._clock() >= held.watch.deadline and not view.last_poll_requested:
            view.last_poll_until = self._clock() + LAST_POLL_S
            if source := self._sources.get(held.watch.vcenter):
                source.poll_now(held.watch.task)
            else:
                view.last_poll_over = True
        elif self._clock() >= held.stalls_at and held.stall_asked != held.stalls_at:
            # A good look tells it; where none comes by itself soon, it is asked for.
            held.stall_asked = held.stalls_at
            if source := self._sources.get(held.watch.vcenter):
                source.poll_now(held.watch.task)
        self._settle_soon(held)

    async def check_ownership(self, vcenter: str, task: str, *, leader: bool = True) -> None:
        """The watch may have been ended, or be owned, by somebody else. Raises NatsUnavailable."""
        held = self._held.get((vcenter, task))
        if held is None or held.settling:
            return
        last = await self._journal.last(vcenter, task, leader=leader)
        if self._held.get(held.key) is not held or held.settling or last is None or last.sequence <= held.fence:
            return
        if not self._remember(held, last):
            return
        if last.event.data.final:
            await self._over(held)

    async def sweep_ownership(self) -> None:
        """Asks now and then of every watch whether somebody else wrote: a hint may have been missed."""
        keys: list[tuple[str, str]] = []
        while True:
            await asyncio.sleep(1.0)
            keys = keys or list(self._held)
            a_second = math.ceil(len(self._held) / SWEEP_S)
            asked, keys = keys[:a_second], keys[a_second:]
            with contextlib.suppress(NatsUnavailable):
                await asyncio.gather(*(self.check_ownership(*key, leader=False) for key in asked))

    def release(self, count: int) -> list[tuple[str, str]]:
        """Gives up to `count` watches out of hand, of which nothing is being published: (vCenter, task) of each."""
        idle = (held for held in self._held.values() if not held.settling and held.last is not None)
        released = list(islice(idle, count))
        for held in released:
            self._forget(held)
        return [held.key for held in released]

    async def stop(self) -> None:
        """Finishes the publishes in flight; nothing new begins."""
        self._stopping = True
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def held_count(self) -> int:
        """How many watches this replica owns."""
        return len(self._held)

    def held_by_status(self) -> Counter[tuple[str, str]]:
        """Owned watches by (vCenter, status): vCenter's five words, OTHER, UNSEEN, UNCONFIGURED."""
        return +self._standing

    def _count(self, held: HeldWatch, status: str | None) -> None:
        """Counted as it changes: looking through 50,000 at each scrape stopped the event loop for 0.2 s."""
        if held.counted_as is not None:
            self._standing[held.watch.vcenter, held.counted_as] -= 1
        held.counted_as = status
        if status is not None:
            self._standing[held.watch.vcenter, status] += 1

    def _status(self, held: HeldWatch) -> str:
        if held.watch.vcenter not in self._sources:
            return "UNCONFIGURED"
        status = held.last.data.status if held.last else None
        if status is None:
            return "UNSEEN"
        return status if status in LISTED_STATUSES else "OTHER"
