"""Ports of the follower: finders of tasks, the journal of follows' events, and the admission of watches. Pure."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, Protocol

from ..watch import Watch
from .event import FollowDraft, FollowEventData, FollowMemory
from .order import Follow, FoundTask
from .place import FollowPlace, Gap


class HistoryStart(NamedTuple):
    """vCenter's history when it was opened: its clock, and the queue time of the oldest task in it, if there is one.

    `clock_unknown_s`: how long ago vCenter's clock was read before.
    """

    vcenter_now: float
    oldest: float | None
    clock_unknown_s: float = 0.0


class FoundBatch(NamedTuple):
    """Tasks that a finder read at once, in vCenter's history or, with `service`, in a list of that CIS service.

    `trouble`: why they can't be read. `is_reread`: they may have watches or endings, since they were read after the
    history was opened (again), until its end was reached for the first time, or in the first list.

    Of the history: the last batch of those has `start`. `place`: the place that the history was opened at, if the
    follow had none. `empty_at`: vCenter had no more tasks then, by its own clock. `gap`: what can't be read.

    Of a list: `place`: where the follow is once these tasks have their watches, None if the list doesn't show that.
    `gap`: what it may lack.
    """

    tasks: Sequence[FoundTask] = ()
    is_reread: bool = False
    start: HistoryStart | None = None
    place: FollowPlace | None = None
    empty_at: float | None = None
    trouble: str | None = None
    service: str | None = None
    gap: Gap | None = None


class TaskFinder(Protocol):
    """Finds the tasks of one vCenter."""

    def find_tasks(self, follow: Follow, memory: Callable[[], FollowMemory]) -> AsyncGenerator[FoundBatch]:
        """Yield the tasks that a follow may be about, without end.

        `memory` returns how far the follow has come; the finder goes on from there whenever it has to begin again.
        """
        ...


class StoredFollowEvent(Protocol):
    """An event of a follow in the journal. `data` is None if this release can't read it."""

    @property
    def data(self) -> FollowEventData | None: ...
    @property
    def sequence(self) -> int: ...
    @property
    def event_id(self) -> str: ...


class FollowEventJournal(Protocol):
    """The events of all follows, fenced: of two writers, only one's next event is stored."""

    async def read_last(self, vcenter: str, name: str) -> StoredFollowEvent | None:
        """Return the follow's newest event. Raises NatsUnavailable."""
        ...

    async def append(self, draft: FollowDraft, after: int) -> StoredFollowEvent:
        """Store the event if `after` is still the follow's last sequence; never give up. Return the last event."""
        ...


class WatchStarter(Protocol):
    """The admission of watches. Both methods raise NatsUnavailable."""

    async def start(self, watch: Watch) -> bool:
        """Start the watch. Return False if its task is being watched or has ended."""
        ...

    async def has_ended(self, watch: Watch) -> bool:
        """Return whether the last event of its task is the ending of this task."""
        ...
