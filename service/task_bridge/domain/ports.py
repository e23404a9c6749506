"""Ports of the watcher: sources of tasks, the journal of events, and the held message of each watch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from .events import Event
from .task import Api, Target, Task, TaskError, TaskIdentity
from .watch import Absence, Draft, Watch


class Unchanged(msgspec.Struct, frozen=True):
    """A successful poll that found the task as the poll before did."""


class TargetNamed(msgspec.Struct, frozen=True):
    """What the task acts on, with a name or path that wasn't known when a poll showed it. No poll brought this."""

    target: Target


class Unanswered(msgspec.Struct, frozen=True):
    """A requested poll that failed or was inconclusive; `answer` is what vCenter said, if anything."""

    answer: TaskError | None = None


UNCHANGED = Unchanged()

PollResult = Task | Unchanged | TargetNamed | Absence | Unanswered
"""What one poll found of a tracked task, or what became known since."""


class TaskSource(Protocol):
    """The tasks of one vCenter. It decides when to poll and yields the results.

    After any result but `Unchanged` and `TargetNamed`, polling of the task pauses until `resume()`, so that no state
    overtakes an event that isn't stored yet. An ended task is yielded twice: at once with `result` None, and, without
    waiting for `resume()`, with its result (or `UNAVAILABLE`).
    """

    def track(
        self,
        task: str,
        since: float,
        *,
        seen: bool,
        begun: bool,
        with_result: bool,
        with_details: bool,
        identity: TaskIdentity | None,
    ) -> None:
        """Poll `task` from now on.

        `since`: when its watch started (Unix s). `seen`: vCenter showed it before. `begun`: an event of its watch is
        stored, and what was read before it must not be told after it. `with_result`: each poll fetches the result.
        `with_details`: each poll fetches all that vCenter knows, for `extra`. `identity`: the task's identity, where
        an event holds it.
        """

    def resume(self, task: str, *, quiet_until: float) -> None:
        """Go on polling `task`: the events that follow from its last result are stored.

        Before `quiet_until` (monotonic s) polls that are unchanged are kept back, but for those that `poll_now` asks
        for.
        """

    def poll_now(self, task: str) -> None:
        """Poll `task` as soon as possible and yield a result whatever comes of it."""

    def forget(self, task: str) -> None:
        """Stop polling `task`; an unknown one is ignored."""

    @property
    def absent_counts(self) -> dict[Api, int]:
        """Number of tracked tasks that vCenter showed before and doesn't show now, by the API that should show them."""
        ...

    def set_absent_elsewhere(self, counts: Mapping[Api, int]) -> None:
        """Set how many tasks other replicas miss. If many vanish together, all wait longer before giving up."""

    def find_trouble(self, task: str) -> str | None:
        """Return why vCenter can't be asked about `task` now, as far as that is known."""

    def poll_results(self) -> AsyncIterator[list[tuple[str, PollResult]]]:
        """Yield poll results in batches, without end."""
        ...

    async def fetch_identity(self, task: str) -> TaskIdentity | None:
        """Ask vCenter for the identity of the task that has this id now; None if ids aren't reused or none has it.

        Raises VCenterUnavailable.
        """

    async def cancel(self, task: str) -> None:
        """Ask vCenter to cancel `task`, tracked or not. Raises Refused or VCenterUnavailable."""


class EventEntry(Protocol):
    """An event in the journal, with its stream sequence, when it was stored (Unix s), and who wrote it."""

    @property
    def event(self) -> Event: ...
    @property
    def sequence(self) -> int: ...
    @property
    def stored_at(self) -> float: ...
    @property
    def instance(self) -> str: ...


def find_fence(last: EventEntry | None, own: EventEntry | None) -> int:
    """Return the sequence that the next event has to follow: of the task's last event, or of the watch's if newer.

    The two were read one after the other, perhaps from two replicas of the stream. One that was killed has again what
    had gone, and an event that follows the older read would hide that.
    """
    return max(last.sequence if last else 0, own.sequence if own else 0)


class StreamContents(NamedTuple):
    """A summary of the events stream. `removals` changes if any event may have been removed."""

    first_sequence: int
    removals: object


EntryT_co = TypeVar("EntryT_co", bound=EventEntry, covariant=True)


class Memory(NamedTuple, Generic[EntryT_co]):
    """A watch's newest event in the stream, None if it holds none. `lost`: the stream may have held one."""

    last: EntryT_co | None
    lost: bool


class MemoryLost(Exception):  # noqa: N818 - what was found, not a failure
    """The stream has lost the event that the next one was to follow; `sequence` is that of the task's last one."""

    def __init__(self, sequence: int) -> None:
        super().__init__(sequence)
        self.sequence = sequence


class EventJournal(Protocol):
    """The events of all tasks, fenced: of two writers, only one's next event is stored."""

    @property
    def instance(self) -> str: ...

    async def read_last(self, vcenter: str, task: str, *, leader: bool = False) -> EventEntry | None:
        """Return the task's newest event of any watch. Raises NatsUnavailable."""

    async def read_memory(self, watch: Watch) -> Memory[EventEntry]:
        """Search the stream for the watch's newest event where the task's newest isn't its. Raises NatsUnavailable."""
        ...

    async def append(self, draft: Draft, after: int, *, memory_lost: bool = False) -> EventEntry:
        """Store the event if `after` is still the task's last sequence; never give up. Return the task's last event.

        With `memory_lost` the event gets a number that its watch can't have used. Raises MemoryLost.
        """
        ...


class ResultMarks(Protocol):
    """Marks of results that are being read, by watch; they outlive the replica. Methods raise NatsUnavailable."""

    async def read(self, watch_id: str) -> int:
        """Return how many owners of the watch have begun to read its result and haven't taken that back."""
        ...

    async def write(self, watch_id: str, readers: int) -> None:
        """Set that number; 0 removes the mark."""


class WatchHandle(Protocol):
    """The held message of a watch. `is_redelivered`: it was delivered before, so its watch may have events."""

    @property
    def is_redelivered(self) -> bool: ...

    async def ack(self) -> None:
        """Delete the message: the watch is over."""

    async def is_current(self) -> bool:
        """Return whether the message still exists; a delivery can be stale. Raises NatsUnavailable."""

    def drop(self) -> None:
        """Stop holding the message, without ack or nak: another replica owns the watch."""
