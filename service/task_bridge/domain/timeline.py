"""Everything that is stored about one task: its watch and its events, of all watches of it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from .events import Event, EventData
from .watch import Watch

MAX_EVENTS = 500
MAX_BODIES_BYTES = 8 * 1024 * 1024


class TimelineEvent(NamedTuple):
    """A stored event with its body as it is stored, and the replica that wrote it."""

    event: Event
    body: bytes
    owner: str


class TaskTimeline(NamedTuple):
    """The newest events of a task, oldest first, and its active watch if it has one.

    `dropped`: how many older events aren't kept. `unreadable`: how many this release can't read.
    """

    watch: Watch | None
    events: tuple[TimelineEvent, ...]
    dropped: int = 0
    unreadable: int = 0

    @property
    def last_event(self) -> Event | None:
        """The last event of the active watch; without one, of the task's last watch. None: no event yet."""
        event = self.events[-1].event if self.events else None
        if event is not None and self.watch is not None and event.data.watch.id != self.watch.id:
            return None
        return event

    @property
    def last(self) -> EventData | None:
        """The data of the last event."""
        return self.last_event.data if self.last_event is not None else None

    @property
    def is_active(self) -> bool:
        """Whether more events can come: an ended watch may be stored a moment longer than its final event."""
        return self.watch is not None and not (self.last is not None and self.last.final)


class TimelineBuilder:
    """Collects the events of a task, oldest first, and keeps the newest. `skipped` older ones aren't added."""

    def __init__(self, skipped: int = 0) -> None:
        self._events: list[TimelineEvent] = []
        self._dropped = skipped
        self._unreadable = self._bodies_bytes = 0

    def add(self, event: Event | None, body: bytes, owner: str) -> None:
        """Add a stored event; None if it can't be read."""
        if event is None:
            self._unreadable += 1
            return
        self._events.append(TimelineEvent(event, body, owner))
        self._bodies_bytes += len(body)
        while len(self._events) > MAX_EVENTS or (self._bodies_bytes > MAX_BODIES_BYTES and len(self._events) > 1):
            self._bodies_bytes -= len(self._events.pop(0).body)
            self._dropped += 1

    def build(self, watch: Watch | None) -> TaskTimeline:
        return TaskTimeline(watch, tuple(self._events), self._dropped, self._unreadable)
