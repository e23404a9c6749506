"""What the watcher stands on: sources of tasks, a journal of events, and the held message of each watch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from .events import Event
from .task import Task, TaskError, TaskIdentity
from .watch import Absence, Draft


class Unchanged(msgspec.Struct, frozen=True):
    """A good look that found the task as the look before did."""


class Unanswered(msgspec.Struct, frozen=True):
    """A hurried look that failed or told nothing certain; `answer` is what vCenter said, if anything."""

    answer: TaskError | None = None


UNCHANGED = Unchanged()

PollResult = Task | Unchanged | Absence | Unanswered
"""How a followed task stands by one look."""


class TaskSource(Protocol):
    """The tasks of one vCenter behind one API. It decides when to look and yields what it finds.

    A task that was given with anything but `Unchanged` isn't looked at again before `again`: its events are
    stored first, so that no state that was seen can be overtaken by the next one. A task that ended is given
    twice: at once with `result` None, and, without waiting for `again`, with its result (or `UNAVAILABLE`).
    """

    def track(self, task: str, since: float, *, seen: bool, with_result: bool, birth: TaskIdentity | None) -> None:
        """Looks at `task` from now on. `since`: when its watch began (Unix s); `seen`: an event tells that
        vCenter showed it before; `with_result`: each look brings the result; `birth`: what an event tells of it.
        """

    def resume(self, task: str) -> None:
        """What was given of `task` has been dealt with: look on."""

    def poll_now(self, task: str) -> None:
        """Looks at `task` as soon as possible and gives its standing whatever comes."""

    def forget(self, task: str) -> None:
        """Looks no more. Unknown tasks are fine."""

    @property
    def absent_count(self) -> int:
        """How many followed tasks that were seen before aren't shown any more."""

    def set_absent_elsewhere(self, count: int) -> None:
        """So many other replicas miss: tasks that vanish together are given up later, whoever follows them."""

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        """What the looks found, in batches, without end."""
        ...

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        """What the task that has this id now is by its birth; None where no id is given twice, or nothing has it.

        Raises VCenterUnavailable.
        """

    async def cancel(self, task: str) -> None:
        """Asks vCenter to cancel `task`, followed or not. Raises Refused or VCenterUnavailable."""


class EventEntry(Protocol):
    """An event in the journal: what it says, where it lies since when, and which instance wrote it."""

    @property
    def event(self) -> Event: ...
    @property
    def sequence(self) -> int: ...
    @property
    def stored_at(self) -> float: ...
    @property
    def instance(self) -> str: ...


class EventJournal(Protocol):
    """The events of all tasks, fenced: of two writers only one's next event is stored."""

    @property
    def instance(self) -> str: ...

    async def read_last(self, vcenter: str, task: str, *, leader: bool = False) -> EventEntry | None:
        """The task's newest event of any watch. Raises NatsUnavailable."""

    async def append(self, draft: Draft, after: int) -> EventEntry:
        """Stores the event behind sequence `after`, never giving up; returns what is the task's last event then."""
        ...


class WatchHandle(Protocol):
    """The held message of a watch."""

    async def ack(self) -> None:
        """The watch is over: its message goes."""

    async def is_current(self) -> bool:
        """Whether the message still lies in the stream: one may arrive late. Raises NatsUnavailable."""

    def drop(self) -> None:
        """Somebody else owns the watch: hold it no longer, say nothing."""
