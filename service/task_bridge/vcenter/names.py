"""Names of the objects that tasks of one vCenter work on: what is known, and what to ask for next. Pure.

Callers pass the time, in seconds. What vCenter doesn't show, or refuses to show, counts as known too, so that it isn't
asked for again and again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .vim.inventory import ObjectName
from .vim.soap import Ref

KEEP_S = 3_600.0
REQUEST_INTERVAL_S = 2.0
PAUSE_MAX_S = 900.0
"""Between requests that fail. Each may take a login, so there are few in an hour."""
BATCH_MAX = 500
_OBJECTS_MAX = 20_000
"""The most names that are kept, and the most that wait for a request: some 10 MB."""


class NameBook:
    """Names by object, and the objects that wait for the next request. There is one lookup at a time.

    It begins with `record_request`, may log in, takes a batch, and ends with what is recorded about that.
    """

    def __init__(self) -> None:
        self._known: dict[Ref, tuple[ObjectName, float]] = {}
        self._waiting: dict[Ref, None] = {}
        self._in_flight: frozenset[Ref] = frozenset()
        self._is_beginning = False
        self._batch_max = BATCH_MAX
        self.failures = 0
        """Requests in a row that failed, not counting those that only some objects are to blame for."""
        self.next_at = -math.inf
        """When the next request may go."""

    # What is known

    def find(self, ref: Ref, now: float) -> ObjectName | None:
        """Return what is known of the object, None if nothing is, or not since the last hour."""
        known = self._known.get(ref)
        if known is None:
            return None
        name, known_at = known
        if now < known_at + KEEP_S:
            return name
        del self._known[ref]
        return None

    def forget(self, ref: Ref) -> None:
        """Forget an object that vCenter doesn't have anymore."""
        self._known.pop(ref, None)

    # Requests

    def request(self, ref: Ref) -> None:
        """Ask for the object by one of the next requests."""
        if ref not in self._in_flight and len(self._waiting) < _OBJECTS_MAX:
            self._waiting[ref] = None

    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def is_coming(self, ref: Ref, now: float, within_s: float) -> bool:
        """Return True if an answer about the object may come within this time."""
        is_next = self._is_beginning or self.next_at <= now + within_s
        return ref in self._in_flight or (is_next and ref in self._waiting)

    def take_batch(self) -> list[Ref]:
        """Take the objects of the next request, those that have waited longest."""
        batch = list(self._waiting)[: self._batch_max]
        for ref in batch:
            del self._waiting[ref]
        self._in_flight, self._is_beginning = frozenset(batch), False
        return batch

    def record_request(self, now: float) -> None:
        """Record that a request goes now: the first of a lookup, or one for the rest of its answer."""
        self._is_beginning = not self._in_flight
        self.next_at = now + REQUEST_INTERVAL_S

    # What comes of a lookup, which it ends

    def record_names(self, names: Mapping[Ref, ObjectName], now: float) -> None:
        """Record the answer about a batch, with an empty name for what vCenter doesn't show."""
        self._in_flight = frozenset()
        self.failures = 0
        self._batch_max = min(BATCH_MAX, 2 * self._batch_max)
        for ref, name in names.items():
            self._known.pop(ref, None)  # to the end: the oldest come first
            self._known[ref] = name, now
        while len(self._known) > _OBJECTS_MAX:
            del self._known[next(iter(self._known))]

    def record_refusal(self, batch: Sequence[Ref], now: float, *, is_final: bool) -> None:
        """Record that this batch can't be answered. Ask for half of it next, until the object to blame is alone.

        `is_final`: it will be refused again, so it counts as known to have no name. Otherwise the object is dropped,
        and the next request waits longer.
        """
        if len(batch) > 1:
            self._put_back(batch)
            self._batch_max = len(batch) // 2
        elif is_final:
            self.record_names(dict.fromkeys(batch, ObjectName()), now)
        else:
            self._in_flight = frozenset()
            self._pause(now)

    def record_failure(self, batch: Sequence[Ref], now: float) -> None:
        """Record that vCenter didn't answer. The batch goes on waiting, longer after each failure in a row."""
        self._put_back(batch)
        self._pause(now)

    def _put_back(self, batch: Sequence[Ref]) -> None:
        self._in_flight, self._is_beginning = frozenset(), False
        self._waiting = dict.fromkeys(batch) | self._waiting

    def _pause(self, now: float) -> None:
        self.failures += 1
        self.next_at = now + min(PAUSE_MAX_S, REQUEST_INTERVAL_S * 2.0 ** min(self.failures - 1, 20))
