"""The order in which a delivery sends its events. Pure.

Events of a task go out one after the other, in the stream's order: a later one waits until the one before is delivered
or given up. Events of different tasks don't wait for each other.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar


class Sequenced(Protocol):
    """An event that is held: its sequence in the stream, and its task."""

    @property
    def sequence(self) -> int: ...
    @property
    def task_key(self) -> str: ...


E = TypeVar("E", bound=Sequenced)


class _Due(NamedTuple):
    at: float
    sequence: int
    task_key: str


class DeliveryOrder(Generic[E]):
    """The events that a replica holds for one delivery. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._tasks: dict[str, list[E]] = {}
        self._sending: dict[str, int] = {}
        self._due: list[_Due] = []
        self._due_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._due_at)

    def __iter__(self) -> Iterator[E]:
        for events in self._tasks.values():
            yield from events

    def find(self, sequence: int, task_key: str) -> E | None:
        """Return the event of this sequence, if it is held."""
        return next((one for one in self._tasks.get(task_key, ()) if one.sequence == sequence), None)

    def count_up_to(self, sequence: int) -> int:
        """Return how many of the held events have this sequence at most."""
        return sum(held <= sequence for held in self._due_at)

    def add(self, event: E) -> None:
        """Hold an event. Its turn comes at once if no earlier one of its task is held."""
        events = self._tasks.setdefault(event.task_key, [])
        bisect.insort(events, event, key=lambda one: one.sequence)
        self._due_at[event.sequence] = 0.0
        self._schedule(event.task_key)

    def take_due(self, now: float) -> E | None:
        """Return an event whose turn it is, and mark it as being sent; None if there is none."""
        while self._due and self._due[0].at <= now:
            due = heapq.heappop(self._due)
            events = self._tasks.get(due.task_key)
            is_valid = events and events[0].sequence == due.sequence and self._due_at[due.sequence] == due.at
            if events and is_valid and due.task_key not in self._sending:
                self._sending[due.task_key] = due.sequence
                return events[0]
        return None

    def next_due_at(self) -> float | None:
        """Return when the next event may be due; None if all that are held are being sent."""
        return self._due[0].at if self._due else None

    def postpone(self, event: E, due_at: float) -> None:
        """Try the event that was being sent again, at this time; later ones of its task wait for it."""
        self._end_sending(event)
        if event.sequence in self._due_at:
            self._due_at[event.sequence] = due_at
            self._schedule(event.task_key)

    def remove(self, event: E) -> None:
        """Let go of an event that was delivered or given up."""
        self._end_sending(event)
        if self._due_at.pop(event.sequence, None) is None:
            return
        events = self._tasks[event.task_key]
        events[:] = [one for one in events if one.sequence != event.sequence]
        if events:
            self._schedule(event.task_key)
        else:
            del self._tasks[event.task_key]

    def clear(self) -> None:
        """Let go of everything; what is being sent is no longer known."""
        self.__init__()  # type: ignore[misc]

    def _end_sending(self, event: E) -> None:
        if self._sending.get(event.task_key) == event.sequence:
            del self._sending[event.task_key]

    def _schedule(self, task_key: str) -> None:
        first = self._tasks[task_key][0]
        heapq.heappush(self._due, _Due(self._due_at[first.sequence], first.sequence, task_key))
