"""All watches of all replicas as people look at them: how each stands, and how the latest ended. Pure.

It is made of the watches' messages, read now and then as a whole, and of events, one by one as they are stored;
what an event told meanwhile goes before what was read. Bounded: by rows, by endings, and every text is cut.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from .durations import parse_time
from .events import Event, EventData, WatchRef
from .text import truncate

MAX_ROWS, MAX_ENDINGS, PAGE_ROWS = 20_000, 100, 200
_SAID, _LABELS, _WORDS = 300, 300, 200


class WatchRow(msgspec.Struct, frozen=True):
    """A watch on one line. Times in Unix seconds; `kind` and what follows are of its last event.

    `said` is the progress message, or on an ending the error; `owner` wrote the event, whose place in its watch is
    `number`; `searched` is what a filter sees; `read`: whether an event was looked for.
    """

    vcenter: str
    task: str
    watch_id: str
    since: float
    labels: str = ""
    kind: str = ""
    status: str | None = None
    operation: str = ""
    percent: float | None = None
    message: str = ""
    owner: str = ""
    last_event_at: float | None = None
    duration_s: float | None = None
    sequence: int = 0
    search_text: str = ""
    is_loaded: bool = True

    @property
    def key(self) -> tuple[str, str]:
        return self.vcenter, self.task


class RowFilter(NamedTuple):
    """What is asked to be shown: `words` must all be found, case aside; `page` counts from 1."""

    words: str = ""
    vcenter: str = ""
    page: int = 1


class BoardPage(NamedTuple):
    """The rows of one page: `first` is the place of its first among the `matching` ones, from 1."""

    rows: Sequence[WatchRow]
    endings: Sequence[WatchRow]
    match_count: int
    first_number: int
    page: int
    page_count: int


class WatchBoard:
    """`beyond` is how many watches there are that don't fit, by vCenter; `complete`: whether a first page is."""

    def __init__(self) -> None:
        self.complete = False
        self.endings: list[WatchRow] = []
        self.unlisted: Counter[str] = Counter()
        self._rows: dict[tuple[str, str], WatchRow] = {}
        self._order: list[tuple[str, str]] | None = None
        self._counts: Counter[str] | None = None
        self._told: set[tuple[str, str]] = set()
        self._ended: set[str] = set()

    def count_by_vcenter(self) -> Counter[str]:
        """How many watches there are, by vCenter."""
        if self._counts is None:
            self._counts = Counter(vcenter for vcenter, _ in self._rows) + self.unlisted
        return self._counts

    def rows_without_events(self) -> list[WatchRow]:
        """The watches of which no event is known yet, oldest request first."""
        return [row for row in self.rows_in_order() if not row.sequence]

    def begin_refresh(self) -> None:
        """The watches begin to be read: what events tell from now on is newer."""
        self._told.clear()
        self._ended.clear()

    def finish_refresh(self, watches: Iterable[tuple[str, str, WatchRef]], beyond: Counter[str]) -> None:
        """The watches as they were read since `expect`: what isn't among them is over."""
        rows = {key: row for key, row in self._rows.items() if key in self._told}
        for vcenter, task, ref in watches:
            if ref.id in self._ended or (vcenter, task) in rows:
                continue
            known = self._rows.get((vcenter, task))
            rows[vcenter, task] = known if known and known.watch_id == ref.id else _unseen(vcenter, task, ref)
        self._rows, self.unlisted = rows, beyond
        self._changed()

    def apply_event(self, event: Event, owner: str) -> None:
        """An event that was stored; one that was told before, or is older, changes nothing."""
        row = _row(event, owner)
        known = self._rows.get(row.key)
        if event.data.final:
            self._end(row, known)
            return
        if known is None and len(self._rows) >= MAX_ROWS:
            return
        if known is not None and known.watch_id == row.watch_id and known.sequence >= row.sequence:
            return
        if row.watch_id in self._ended:
            return
        self._rows[row.key] = row
        self._told.add(row.key)
        if known is None or known.watch_id != row.watch_id:
            self._changed()

    def mark_without_events(self, row: WatchRow) -> None:
        """There is no event of this watch."""
        if self._rows.get(row.key) is row and not row.is_loaded:
            self._rows[row.key] = msgspec.structs.replace(row, is_loaded=True)

    def _end(self, row: WatchRow, known: WatchRow | None) -> None:
        self._ended.add(row.watch_id)
        if known is not None and known.watch_id == row.watch_id:
            del self._rows[row.key]
        if all(ending.watch_id != row.watch_id for ending in self.endings):
            # The older ones are read while new ones come.
            self.endings = sorted([*self.endings, row], key=lambda ending: -(ending.last_event_at or 0.0))[:MAX_ENDINGS]
        self._changed()

    def select_page(self, asked: RowFilter) -> BoardPage:
        """One page of the watches that match, oldest request first, and the endings that match, newest first."""
        words = asked.words.casefold().split()
        matching = _matching(self.rows_in_order(), asked.vcenter, words)
        pages = max(1, math.ceil(len(matching) / PAGE_ROWS))
        page = min(max(1, asked.page), pages)
        first = (page - 1) * PAGE_ROWS
        endings = _matching(self.endings, asked.vcenter, words)
        rows = matching[first : first + PAGE_ROWS]
        return BoardPage(rows, endings, len(matching), first + 1, page, pages)

    def rows_in_order(self) -> Iterator[WatchRow]:
        """All watches, oldest request first."""
        if self._order is None:
            ordered = sorted(self._rows.values(), key=lambda row: (row.since, row.watch_id))
            self._order = [row.key for row in ordered]
        return (self._rows[key] for key in self._order)

    def _changed(self) -> None:
        """They aren't the same watches as before."""
        self._order = self._counts = None


def _matching(rows: Iterable[WatchRow], vcenter: str, words: Sequence[str]) -> list[WatchRow]:
    found = [row for row in rows if not vcenter or row.vcenter == vcenter]
    for word in words:
        found = [row for row in found if word in row.search_text]
    return found


def _unseen(vcenter: str, task: str, ref: WatchRef) -> WatchRow:
    labels = _labels(ref)
    searched = " ".join((vcenter, task, labels, "unseen")).casefold()
    return WatchRow(vcenter, task, ref.id, parse_time(ref.since) or 0.0, labels, search_text=searched, is_loaded=False)


def _row(event: Event, owner: str) -> WatchRow:
    data = event.data
    labels, said = _labels(data.watch), truncate(_said(data), _SAID)
    target = (data.target.type, data.target.id) if data.target else ()
    operation = truncate(" ".join(filter(None, (data.operation, *target))), _WORDS)
    status = None if data.status is None else truncate(data.status, _WORDS)
    searched = (data.vcenter, data.task, labels, event.kind, status or "", operation, said, owner)
    return WatchRow(
        data.vcenter,
        data.task,
        data.watch.id,
        parse_time(data.watch.since) or 0.0,
        labels,
        event.kind,
        status,
        operation,
        data.progress.percent if data.progress else None,
        said,
        truncate(owner, 64),
        event.time,
        data.duration_seconds,
        data.sequence,
        " ".join(searched).casefold(),
    )


def _said(data: EventData) -> str:
    if data.error is not None:
        return data.error.message
    return "" if data.final or data.progress is None else data.progress.message or ""


def _labels(ref: WatchRef) -> str:
    return truncate(" ".join(f"{key}={value}" for key, value in ref.labels.items()), _LABELS)
