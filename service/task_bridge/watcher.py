"""The main loop. A watch is taken over, its task is polled, each change is published, until one event ends it.

    take_over ──► source.track ──► poll result ──► apply_poll_result ──► next_event ──► journal.append
                       ▲                                                                      │
                       └── source.resume ◄── nothing more follows ◄── adopt the stored event ◄┘
                                             final event stored ──► handle.ack

The watcher decides nothing itself. `domain.watch` says which event follows, the source knows when to poll, and the
journal stores an event only if nobody else has written one for the task meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice

import msgspec
import structlog

from .domain.clock import ServerClock
from .domain.durations import parse_time
from .domain.errors import NatsUnavailable
from .domain.events import Event
from .domain.ports import (
    EventEntry,
    EventJournal,
    Memory,
    MemoryLost,
    PollResult,
    StreamContents,
    TargetNamed,
    TaskSource,
    Unchanged,
    WatchHandle,
    find_fence,
)
from .domain.task import UNAVAILABLE, Task
from .domain.watch import (
    Absence,
    Policy,
    TaskView,
    Watch,
    answers_request,
    identity_from_event,
    last_poll_until,
    needs_current_identity,
    next_event,
    record_poll,
    record_target,
    stall_at,
    view_from_event,
    wake_at,
)
from .metrics import Metrics
from .result_reads import DEATHS_MAX, ResultReads
from .waits import sleep_to_tick

log = structlog.get_logger(__name__)

YIELD_EVERY = 25
"""Poll results that are applied between two turns of the event loop."""
TIMER_MIN_S = 0.005
RETRY_S = 5.0
"""Pause after an unexpected error over one watch."""
TIMER_HORIZON_S = 600.0
"""Timers are armed only for what is due within this time; one per watch would cost a sixth of its memory."""
SWEEP_S = 600.0
"""Time in which the last event of every held watch is read once, in case another replica has written it."""
CHECK_MEMORIES_S = 0.5
_CHUNK = 500
LISTED_STATUSES = ("PENDING", "RUNNING", "BLOCKED", "SUCCEEDED", "FAILED")


async def is_request_answered(source: TaskSource | None, watch: Watch, last: Event, stored_at: float) -> bool:
    """Return whether the task's last event answers the watch's request; ask vCenter where that depends on it.

    Raises VCenterUnavailable.
    """
    current = None
    if source is not None and needs_current_identity(last, stored_at, watch):
        current = await source.fetch_identity(watch.task)
    return answers_request(last, stored_at, watch, current)


def find_trouble(sources: Mapping[str, TaskSource], watch: Watch) -> str | None:
    """Return why the watch's task can't be polled, None if nothing keeps it from being polled."""
    source = sources.get(watch.vcenter)
    if source is None:
        return f"vCenter {watch.vcenter} isn't in the settings of the replica that ended the watch."
    return source.find_trouble(watch.task)


class HeldWatch:
    """A watch that this replica owns.

    `fence`: the stream sequence of its task's last event. `is_parked`: the source polls its task again only after
    `resume`. `is_publishing`: a coroutine publishes what follows. `stalls_at`: when the next standstill is due.
    `stall_polled_for`: its value for which a poll was requested already. `counted_status`: the status under which the
    metrics count the watch. `held_since`: the monotonic time of takeover. `clock_offset_s`: the clock's at takeover.
    The watch goes by it, so a clock that is stepped later ends or stalls nothing early or late.
    """

    __slots__ = (
        "clock_offset_s",
        "counted_status",
        "fence",
        "handle",
        "held_since",
        "is_parked",
        "is_publishing",
        "last",
        "stall_polled_for",
        "stalls_at",
        "timer",
        "view",
        "watch",
    )

    def __init__(self, watch: Watch, handle: WatchHandle, last: Event | None, fence: int, clock: ServerClock) -> None:
        self.watch = watch
        self.handle = handle
        self.last = last
        self.fence = fence
        self.held_since = clock.monotonic()
        self.clock_offset_s = clock.offset_s
        self.counted_status: str | None = None
        self.view: TaskView = view_from_event(last)
        self.stalls_at = math.inf
        self.stall_polled_for = math.inf
        self.timer: asyncio.TimerHandle | None = None
        self.is_publishing = False
        self.is_parked = False

    @property
    def key(self) -> tuple[str, str]:
        return self.watch.vcenter, self.watch.task


class Watcher:
    """All watches that this replica owns.

    `ack_wait_s`: as for `Ownership`. A watch that has no event for so long after it was requested or taken up may have
    been delivered to another replica too, which may even have ended it. So JetStream is asked then whether its message
    is still there, and not before, since nobody else gets it (docs/decisions/0032).
    """

    def __init__(
        self,
        sources: Mapping[str, TaskSource],
        journal: EventJournal,
        policy_of: Callable[[str], Policy],
        metrics: Metrics,
        clock: ServerClock,
        reads: ResultReads,
        *,
        ack_wait_s: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._journal = journal
        self._policy_of = policy_of
        self._metrics = metrics
        self._clock = clock
        self._reads = reads
        self._ack_wait_s = ack_wait_s
        self._held: dict[tuple[str, str], HeldWatch] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._publishing: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def run(self) -> None:
        """Process the poll results of every source, without end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arm_timers_again())
            for vcenter, source in self._sources.items():
                group.create_task(self._process_poll_results(vcenter, source))

    # From a poll result to a stored event

    async def _process_poll_results(self, vcenter: str, source: TaskSource) -> None:
        """Apply each result to its watch, and start publishing where an event may follow."""
        async for batch in source.poll_results():
            monotonic, applied = self._clock.monotonic(), 0
            for task, result in batch:
                held = self._held.get((vcenter, task))
                if held is None:
                    source.forget(task)
                    continue
                self._apply_and_log_errors(held, result, monotonic + held.clock_offset_s)
                applied += 1
                if applied % YIELD_EVERY == 0:
                    await asyncio.sleep(0)

    async def _publish_what_follows(self, held: HeldWatch) -> None:
        """Publish the events that follow from the newest poll, one after the other; then resume polling or finish."""
        while not self._is_stopping:
            now = self._now(held)
            if now >= held.watch.deadline:
                held.view.trouble = find_trouble(self._sources, held.watch)
            draft = next_event(held.watch, held.last, held.view, now, self._policy_of(held.watch.vcenter))
            if draft is None:
                break
            # Nothing but the message shows that a watch without events goes on: the stream may have lost all of them.
            is_late = held.last is None and self._clock.monotonic() - held.held_since > self._ack_wait_s()
            if (held.view.memory_lost or is_late) and not await self._is_still_watched(held):
                return
            # Publish before remembering: a crash between the two repeats a poll, never loses an event.
            try:
                entry = await self._journal.append(draft, held.fence, memory_lost=held.view.memory_lost)
            except MemoryLost as lost:
                held.fence, held.view.memory_lost = lost.sequence, True
                continue
            if not (await self._go_on_after_foreign(held, entry) or self._adopt(held, entry)):
                return
        if held.last is not None and held.last.data.final:
            await self._finish(held)
        elif self._held.get(held.key) is held:
            self._arm_timer(held)
            self._resume_polling(held)

    def _apply_and_log_errors(self, held: HeldWatch, result: PollResult, now: float) -> None:
        try:
            if self._apply_poll_result(held, result, now):
                self._start_publishing(held)
        except Exception:
            # An error over one task must not keep the results of the others from being applied.
            log.exception("look_not_taken_in", vcenter=held.watch.vcenter, task=held.watch.task)
            asyncio.get_running_loop().call_later(RETRY_S, self._start_tracking, held)

    def _apply_poll_result(self, held: HeldWatch, result: PollResult, now: float) -> bool:
        """Apply one result to the watch's view. Return whether an event may follow."""
        view = held.view
        if isinstance(result, TargetNamed):
            record_target(view, result.target)
            return False
        if view.last_poll_requested and not (isinstance(result, Task) and result.ended):
            view.last_poll_over = True
        if isinstance(result, Unchanged):
            view.polled_at = now
            return now >= held.stalls_at or view.last_poll_over
        held.is_parked = True
        if isinstance(result, Task):
            record_poll(view, held.last, result, now)
            if result.ended and result.result is None:
                had_owner, give_up = held.handle.is_redelivered, partial(self._give_up_result, held)
                self._reads.begin(held.watch.id, had_owner=had_owner, give_up=give_up)
        elif isinstance(result, Absence):
            view.absence = result
        else:
            view.answer = result.answer
        return True

    def _give_up_result(self, held: HeldWatch) -> None:
        """End the watch without its result, because replicas died while they read it."""
        task = held.view.task
        if self._held.get(held.key) is not held or task is None or task.result is not None:
            return
        reason = f"{DEATHS_MAX} replicas died while they read it"
        log.warning("result_unavailable", vcenter=held.watch.vcenter, task=held.watch.task, reason=reason)
        if source := self._sources.get(held.watch.vcenter):
            source.forget(held.watch.task)
        held.view.task = msgspec.structs.replace(task, result=UNAVAILABLE)
        self._start_publishing(held)

    def _start_publishing(self, held: HeldWatch) -> None:
        """Start the coroutine that publishes for this watch; one that runs sees the newest view before it ends."""
        if held.is_publishing or self._is_stopping:
            return
        held.is_publishing = True
        task = asyncio.create_task(self._publish_and_log_errors(held))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish_and_log_errors(self, held: HeldWatch) -> None:
        try:
            await self._publish_what_follows(held)
        except Exception:
            log.exception("watch_not_settled", vcenter=held.watch.vcenter, task=held.watch.task)
            asyncio.get_running_loop().call_later(RETRY_S, self._retry_publishing, held)
        finally:
            held.is_publishing = False

    def _retry_publishing(self, held: HeldWatch) -> None:
        if self._held.get(held.key) is held:
            self._start_publishing(held)

    def _adopt(self, held: HeldWatch, entry: EventEntry) -> bool:
        """Go on from the task's last stored event. Return True if it is this replica's.

        Otherwise another replica owns the watch: this second owner steps back, without ack or nak. Return False.
        """
        data = entry.event.data
        if data.watch.id == held.watch.id and (entry.instance == self._journal.instance or data.final):
            held.last, held.fence = entry.event, entry.sequence
            held.view.memory_lost = False
            if held.counted_status is not None:
                self._count(held, self._status(held))
            self._log_event(held, entry.event)
            return True
        self._step_back(held, entry.instance)
        return False

    def _step_back(self, held: HeldWatch, writer: str | None) -> None:
        log.info("stepped_back", vcenter=held.watch.vcenter, task=held.watch.task, writer=writer)
        self._forget(held)
        held.handle.drop()

    async def _is_still_watched(self, held: HeldWatch) -> bool:
        """Step back from a watch whose message has gone too: what was lost may be the event that ended it."""
        with contextlib.suppress(NatsUnavailable):  # stepped back from, the watch is delivered again
            if await held.handle.is_current():
                return True
        self._step_back(held, None)
        return False

    async def _go_on_after_foreign(self, held: HeldWatch, entry: EventEntry) -> bool:
        """Return whether the stored event is a stranger's: of no other replica, since the watch's message is there.

        Then the next event of the watch follows that one, if nobody wrote one for the watch meanwhile.
        """
        data = entry.event.data
        if data.watch.id == held.watch.id or (data.final and held.last is None):
            return False  # a final event may answer the request: the watch is delivered again, and that is checked
        try:
            if not await held.handle.is_current():
                return False
            memory = await self._journal.read_memory(held.watch)
        except NatsUnavailable:
            return False  # stepped back from, the watch is delivered again
        if memory.last is not None and memory.last.sequence > held.fence:
            return False
        held.fence = entry.sequence
        held.view.memory_lost = memory.last is None and (memory.lost or held.last is not None)
        return True

    def _log_event(self, held: HeldWatch, event: Event) -> None:
        data = event.data
        keys = {**held.watch.log_keys, "sequence": data.sequence, "status": data.status}
        if not data.final:
            log.debug("event", kind=event.kind, **keys)
            return
        log.info("watch_over", outcome=event.kind, **keys)
        ended_at = parse_time(data.ended_at)
        if data.kind == "completed" and ended_at is not None:
            self._metrics.detection.observe(max(0.0, self._now(held) - ended_at))

    async def _finish(self, held: HeldWatch) -> None:
        self._forget(held)
        await held.handle.ack()

    def _resume_polling(self, held: HeldWatch) -> None:
        if held.is_parked and (source := self._sources.get(held.watch.vcenter)):
            held.is_parked = False
            # From the standstill on an unchanged poll confirms it. The one at the timeout is asked for.
            source.resume(held.watch.task, quiet_until=held.stalls_at - held.clock_offset_s)

    # Taking watches over and giving them up

    async def take_over(self, watch: Watch, handle: WatchHandle) -> str | None:
        """Hold a watch that JetStream delivered, for the first time or again.

        Returns `accepted`, `already_completed`, or None if the watch was over before it arrived.
        Raises NatsUnavailable, VCenterUnavailable.
        """
        if self._rebind_if_held(watch, handle):
            return "accepted"
        last = await self._journal.read_last(watch.vcenter, watch.task)
        source = self._sources.get(watch.vcenter)
        is_answered = last is not None and await is_request_answered(source, watch, last.event, last.stored_at)
        own = last if last is not None and last.event.data.watch.id == watch.id else None
        memory: Memory[EventEntry] = Memory(own, lost=False)
        if own is None and not is_answered and handle.is_redelivered:
            memory = await self._journal.read_memory(watch)
            is_answered = memory.last is not None and memory.last.event.data.final
        # The last event is another watch's, or this watch's have gone, so this delivery may be stale: check that its
        # message still exists.
        may_be_stale = last is not None or self._clock.now() - watch.since > self._ack_wait_s()
        is_gone = may_be_stale and own is None and not is_answered and not await handle.is_current()
        if self._rebind_if_held(watch, handle):
            return "accepted"  # delivered twice meanwhile
        if is_gone:
            handle.drop()
            return None
        if (older := self._held.get((watch.vcenter, watch.task))) is not None:
            self._forget(older)
        if is_answered:
            await handle.ack()
            return "already_completed"
        own_last = memory.last.event if memory.last else None
        held = HeldWatch(watch, handle, own_last, find_fence(last, memory.last), self._clock)
        held.view.memory_lost = memory.lost
        self._hold(held)
        return "accepted"

    def _rebind_if_held(self, watch: Watch, handle: WatchHandle) -> bool:
        """Give the handle of a redelivery to a watch that is held already. Return whether it is."""
        held = self._held.get((watch.vcenter, watch.task))
        if held is None or held.watch.id != watch.id:
            return False
        held.handle = handle
        return True

    def _hold(self, held: HeldWatch) -> None:
        self._held[held.key] = held
        self._count(held, self._status(held))
        self._arm_timer(held)
        self._start_tracking(held)
        log.debug("watch_held", vcenter=held.watch.vcenter, task=held.watch.task, watch=held.watch.id)

    def _start_tracking(self, held: HeldWatch) -> None:
        watch = held.watch
        if self._held.get(held.key) is held and (source := self._sources.get(watch.vcenter)):
            seen = watch.was_seen or (held.last is not None and held.last.data.status is not None)
            identity = (identity_from_event(held.last.data) if held.last else None) or watch.identity
            source.track(
                watch.task,
                watch.since,
                seen=seen,
                begun=held.last is not None,
                with_result=watch.partial_results,
                with_details=watch.details,
                identity=identity,
            )

    def _forget(self, held: HeldWatch) -> None:
        if held.timer is not None:
            held.timer.cancel()
        if self._held.get(held.key) is held:
            del self._held[held.key]
            self._reads.end(held.watch.id)
            self._count(held, None)
            if source := self._sources.get(held.watch.vcenter):
                source.forget(held.watch.task)

    async def check_ownership(self, vcenter: str, task: str, *, leader: bool = True) -> None:
        """Read the task's last event, in case another replica ended or owns the watch, or the event has gone.

        Raises NatsUnavailable.
        """
        held = self._held.get((vcenter, task))
        if held is None or held.is_publishing:
            return
        fence = held.fence
        last = await self._journal.read_last(vcenter, task, leader=leader)
        sequence = last.sequence if last else 0
        if sequence == fence:
            return
        if sequence < fence and not leader:
            await self.check_ownership(vcenter, task)  # a stream's replica may lag behind its leader
            return
        is_foreign = last is not None and last.event.data.watch.id != held.watch.id
        is_covered = is_foreign and sequence > fence and await held.handle.is_current()
        if self._held.get(held.key) is not held or held.is_publishing or held.fence != fence:
            return
        if last is None or is_covered or (sequence < fence and not _is_ahead(last.event, held)):
            self._restate(held, sequence)
        elif self._adopt(held, last) and last.event.data.final:
            await self._finish(held)

    def _restate(self, held: HeldWatch, sequence: int) -> None:
        """Publish the watch's state again, since its last event has gone or may be covered by a foreign one."""
        held.fence = min(held.fence, sequence)  # what is behind a foreign event is read once the publish is refused
        held.view.memory_lost = True
        self._start_publishing(held)

    async def check_memories(self, read_contents: Callable[[], StreamContents | None]) -> None:
        """Restate the watches whose last event has gone from the stream, without end.

        `read_contents` returns what the stream held when it was last read.
        """
        before: StreamContents | None = None
        while True:
            await sleep_to_tick(CHECK_MEMORIES_S)
            contents = read_contents()
            if contents is None or contents == before:
                continue
            any_may_be_gone = before is not None and before.removals != contents.removals
            suspects = [
                key
                for key, held in self._held.items()
                if held.last is not None and (any_may_be_gone or held.fence < contents.first_sequence)
            ]
            try:
                for start in range(0, len(suspects), _CHUNK):
                    chunk = suspects[start : start + _CHUNK]
                    await asyncio.gather(*(self.check_ownership(*key, leader=False) for key in chunk))
                before = contents
            except NatsUnavailable as error:
                log.debug("memories_not_checked", reason=str(error))

    async def sweep_ownership(self) -> None:
        """Check the ownership of every held watch once in SWEEP_S, without end: a hint may have been missed."""
        keys: list[tuple[str, str]] = []
        while True:
            await sleep_to_tick(1.0)
            keys = keys or list(self._held)
            per_second = math.ceil(len(self._held) / SWEEP_S)
            checked, keys = keys[:per_second], keys[per_second:]
            with contextlib.suppress(NatsUnavailable):
                await asyncio.gather(*(self.check_ownership(*key, leader=False) for key in checked))

    def release(self, count: int) -> list[tuple[str, str]]:
        """Stop holding up to `count` watches for which nothing is being published; return (vCenter, task) of each."""
        idle = (held for held in self._held.values() if not held.is_publishing and held.last is not None)
        released = list(islice(idle, count))
        for held in released:
            self._forget(held)
        return [held.key for held in released]

    def release_unconfigured(self, vcenter: str, count: int) -> list[tuple[str, str]]:
        """Stop holding up to `count` watches of an unconfigured vCenter; return (vCenter, task) of each."""
        idle = (held for held in self._held.values() if held.watch.vcenter == vcenter and not held.is_publishing)
        released = list(islice(idle, count))
        for held in released:
            self._forget(held)
        return [held.key for held in released]

    async def stop(self) -> None:
        """Finish the publishes in flight; start no others."""
        self._is_stopping = True
        await asyncio.gather(*self._publishing, self._reads.close(), return_exceptions=True)

    # Time

    def _now(self, held: HeldWatch) -> float:
        """Return the time by which this watch goes: nats-server's at takeover, and what passed since."""
        return self._clock.monotonic() + held.clock_offset_s

    def _arm_timer(self, held: HeldWatch) -> None:
        """Arm the watch's timer for when an event may be due although no poll brings news, if that is soon."""
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        held.stalls_at = stall_at(held.watch, held.last, held.view)
        wakes_at = wake_at(held.watch, held.last, held.view, self._policy_of(held.watch.vcenter))
        if held.stall_polled_for != held.stalls_at:
            wakes_at = min(wakes_at, held.stalls_at)
        delay = wakes_at - self._now(held)
        if delay <= TIMER_HORIZON_S and not self._is_stopping:
            held.timer = asyncio.get_running_loop().call_later(max(TIMER_MIN_S, delay), self._on_timer, held)

    async def _arm_timers_again(self) -> None:
        """Arm the timers that have come within the horizon, without end."""
        while True:
            await asyncio.sleep(TIMER_HORIZON_S / 2)
            for number, held in enumerate(list(self._held.values())):
                if held.timer is None and not held.is_publishing:
                    self._arm_timer(held)
                if number % _CHUNK == _CHUNK - 1:
                    await asyncio.sleep(0)

    def _on_timer(self, held: HeldWatch) -> None:
        view, source, now = held.view, self._sources.get(held.watch.vcenter), self._now(held)
        if now >= held.watch.deadline and not view.last_poll_requested:
            view.last_poll_until = last_poll_until(held.watch, now)
            if source is not None:
                source.poll_now(held.watch.task)
            else:
                view.last_poll_over = True
        elif now >= held.stalls_at and held.stall_polled_for != held.stalls_at:
            # Only a good poll can confirm a standstill; request one, since none may come by itself soon.
            held.stall_polled_for = held.stalls_at
            if source is not None:
                source.poll_now(held.watch.task)
        self._start_publishing(held)

    # Counts

    @property
    def held_count(self) -> int:
        return len(self._held)

    def held_by_status(self) -> Counter[tuple[str, str]]:
        """Count the held watches by (vCenter, status): LISTED_STATUSES, OTHER, UNSEEN, UNCONFIGURED."""
        return +self._counts

    def _count(self, held: HeldWatch, status: str | None) -> None:
        """Count the watch under its new status. Counting 50,000 at each scrape stopped the event loop for 0.2 s."""
        if held.counted_status is not None:
            self._counts[held.watch.vcenter, held.counted_status] -= 1
        held.counted_status = status
        if status is not None:
            self._counts[held.watch.vcenter, status] += 1

    def _status(self, held: HeldWatch) -> str:
        if held.watch.vcenter not in self._sources:
            return "UNCONFIGURED"
        status = held.last.data.status if held.last else None
        if status is None:
            return "UNSEEN"
        return status if status in LISTED_STATUSES else "OTHER"


def _is_ahead(last: Event, held: HeldWatch) -> bool:
    """Return whether another replica went on with the watch, in a stream whose sequences began again."""
    if last.data.watch.id != held.watch.id:
        return False
    return held.last is None or last.data.sequence >= held.last.data.sequence
