"""The board: every active watch of all replicas with its last event, and the latest final events. Pure.

It is built from the stored watches, which are read as a whole from time to time, and from the events, which are
applied one by one as they are stored. An event that came during a read wins over what was read. The size is limited:
by rows, by endings, and by the length of each text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from .durations import parse_time
from .events import Event, EventData, WatchRef
from .task import Target
from .text import truncate

MAX_ROWS, MAX_ENDINGS, PAGE_ROWS = 20_000, 100, 200
_MAX_MESSAGE, _MAX_LABELS, _MAX_WORDS, _MAX_PATH, _MAX_OWNER = 300, 300, 200, 300, 64
"""Lengths in characters."""
NOT_SEEN, BEING_READ = "not seen yet", "being read"
"""States of watches without a status: vCenter hasn't shown the task, or the bridge hasn't read the last event."""
_ATTENTION = ("failed", "blocked", "stalled", "lost", "denied", "watch_timed_out")
"""The states that come first, in this order."""


class WatchRow(msgspec.Struct, frozen=True):
    """A watch on one line. Times are in Unix seconds; `kind` and the fields after it come from its last event.

    `target` is the name of the target, or else its id, `target_ref` its type and id, and `target_path` its path.
    `message` is the progress message, or on a final event the error. `owner` is the replica that wrote the event;
    `sequence` numbers the events of a watch. Filters search `search_text`, in lower case. `is_loaded` is False until
    the last event has been read or found missing. `states`: what the row can be filtered by, in lower case: its status
    and whether it is stalled, or its outcome. `follow`: the follow that started the watch.
    """

    vcenter: str
    task: str
    watch_id: str
    since: float
    labels: str = ""
    kind: str = ""
    status: str | None = None
    operation: str = ""
    target: str = ""
    target_ref: str = ""
    target_path: str = ""
    percent: float | None = None
    message: str = ""
    owner: str = ""
    last_event_at: float | None = None
    duration_s: float | None = None
    sequence: int = 0
    search_text: str = ""
    is_loaded: bool = True
    states: tuple[str, ...] = (NOT_SEEN,)
    follow: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.vcenter, self.task

    @property
    def is_stalled(self) -> bool:
        return "stalled" in self.states


class RowFilter(NamedTuple):
    """The rows to show: those that contain all `words`, ignoring case. `page` counts from 1.

    `status` restricts the watches, `outcome` the endings. `sort` is a name in `SORT_KEYS`, with `-` in front for the
    opposite order; rows that need attention come first without it.
    """

    words: str = ""
    vcenter: str = ""
    page: int = 1
    status: str = ""
    outcome: str = ""
    sort: str = ""


class BoardPage(NamedTuple):
    """The rows of one page. `first_number` is the position of its first row among all matches, from 1.

    `statuses` and `outcomes` count the matches by state. `unread_count`: watches whose state isn't read yet.
    """

    rows: Sequence[WatchRow]
    endings: Sequence[WatchRow]
    match_count: int
    first_number: int
    page: int
    page_count: int
    statuses: Counter[str]
    outcomes: Counter[str]
    unread_count: int


class BoardSelection(NamedTuple):
    """All rows that a filter matches, in its order, and the counts of their states before it chose among those."""

    watches: list[WatchRow]
    endings: list[WatchRow]
    statuses: Counter[str]
    outcomes: Counter[str]


class WatchBoard:
    """The rows of all watches and the latest endings.

    `unlisted` counts, by vCenter, the watches that don't fit, or aren't read until `all_listed` is set. `complete` is
    set once the first page can be shown.
    """

    def __init__(self) -> None:
        self.complete = False
        self.all_listed = False
        self.endings: list[WatchRow] = []
        self.unlisted: Counter[str] = Counter()
        self._rows: dict[tuple[str, str], WatchRow] = {}
        self._order: list[tuple[str, str]] | None = None
        self._counts: Counter[str] | None = None
        self._updated_keys: set[tuple[str, str]] = set()
        self._ended_watch_ids: set[str] = set()

    def count_by_vcenter(self) -> Counter[str]:
        """Return the number of watches by vCenter."""
        if self._counts is None:
            self._counts = Counter(vcenter for vcenter, _ in self._rows) + self.unlisted
        return self._counts

    def rows_without_events(self) -> list[WatchRow]:
        """Return the watches without a known event, oldest request first."""
        return [row for row in self.rows_in_order() if not row.sequence]

    def begin_refresh(self) -> None:
        """Start a read of the stored watches. Events applied from now on are newer than what it returns."""
        self._updated_keys.clear()
        self._ended_watch_ids.clear()

    def finish_refresh(self, watches: Iterable[tuple[str, str, WatchRef]], unlisted: Counter[str]) -> None:
        """Take over the watches read since `begin_refresh`. Drop rows of watches that weren't read: they ended."""
        rows = {key: row for key, row in self._rows.items() if key in self._updated_keys}
        for vcenter, task, ref in watches:
            if ref.id in self._ended_watch_ids or (vcenter, task) in rows:
                continue
            known = self._rows.get((vcenter, task))
            rows[vcenter, task] = known if known and known.watch_id == ref.id else _build_new_row(vcenter, task, ref)
        self._rows, self.unlisted = rows, unlisted
        self._clear_caches()

    def apply_event(self, event: Event, owner: str) -> None:
        """Update the board by a stored event. An older event, or one that was applied before, changes nothing."""
        row = _build_row(event, owner)
        known = self._rows.get(row.key)
        if event.data.final:
            self._move_to_endings(row, known)
            return
        if known is None and len(self._rows) >= MAX_ROWS:
            return
        if known is not None and known.watch_id == row.watch_id and known.sequence >= row.sequence:
            return
        if row.watch_id in self._ended_watch_ids:
            return
        self._rows[row.key] = row
        self._updated_keys.add(row.key)
        if known is None or known.watch_id != row.watch_id:
            self._clear_caches()

    def mark_without_events(self, row: WatchRow) -> None:
        """Record that the watch of this row has no event."""
        if self._rows.get(row.key) is row and not row.is_loaded:
            self._rows[row.key] = msgspec.structs.replace(row, is_loaded=True, states=_build_states(NOT_SEEN, False))

    def _move_to_endings(self, row: WatchRow, known: WatchRow | None) -> None:
        self._ended_watch_ids.add(row.watch_id)
        if known is not None and known.watch_id == row.watch_id:
            del self._rows[row.key]
        if all(ending.watch_id != row.watch_id for ending in self.endings):
            # Sort, because older endings are read while new ones arrive.
            self.endings = sorted([*self.endings, row], key=lambda ending: -(ending.last_event_at or 0.0))[:MAX_ENDINGS]
        self._clear_caches()

    def select_page(self, row_filter: RowFilter) -> BoardPage:
        """Return one page of the matching watches, and the matching endings."""
        selection = self.select(row_filter)
        matches = selection.watches
        page_count = max(1, math.ceil(len(matches) / PAGE_ROWS))
        page = min(max(1, row_filter.page), page_count)
        start = (page - 1) * PAGE_ROWS
        return BoardPage(
            rows=matches[start : start + PAGE_ROWS],
            endings=selection.endings,
            match_count=len(matches),
            first_number=start + 1,
            page=page,
            page_count=page_count,
            statuses=selection.statuses,
            outcomes=selection.outcomes,
            unread_count=self.count_unread(),
        )

    def select(self, row_filter: RowFilter) -> BoardSelection:
        """Return all matches: watches oldest request first, endings newest first, unless the filter sorts them."""
        watches = _filter_rows(self.rows_in_order(), row_filter)
        endings = _filter_rows(self.endings, row_filter)
        return BoardSelection(
            _sort_rows(_filter_states(watches, row_filter.status), row_filter.sort),
            _sort_rows(_filter_states(endings, row_filter.outcome), row_filter.sort),
            _count_states(watches),
            _count_states(endings),
        )

    def count_unread(self) -> int:
        """Return the number of watches whose state hasn't been read yet."""
        unloaded = [row.is_loaded for row in self._rows.values()].count(False)
        return unloaded if self.all_listed else unloaded + self.unlisted.total()

    def rows_in_order(self) -> Iterator[WatchRow]:
        """Return all watches, oldest request first."""
        if self._order is None:
            ordered = sorted(self._rows.values(), key=lambda row: (row.since, row.watch_id))
            self._order = [row.key for row in ordered]
        return (self._rows[key] for key in self._order)

    def _clear_caches(self) -> None:
        """Forget order and counts, because a watch came or ended."""
        self._order = self._counts = None


def _filter_rows(rows: Iterable[WatchRow], row_filter: RowFilter) -> list[WatchRow]:
    vcenter = row_filter.vcenter
    matches = [row for row in rows if not vcenter or row.vcenter == vcenter]
    for word in row_filter.words.casefold().split():
        matches = [row for row in matches if word in row.search_text]
    return matches


def _filter_states(rows: list[WatchRow], state: str) -> list[WatchRow]:
    return [row for row in rows if state in row.states] if state else rows


def _count_states(rows: Iterable[WatchRow]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for states, count in Counter([row.states for row in rows]).items():
        counts.update(dict.fromkeys(states, count))
    return counts


def rank_attention(states: Iterable[str]) -> int:
    """Return how soon a row with these states is shown: the lower, the sooner."""
    return min((_ATTENTION.index(state) for state in states if state in _ATTENTION), default=len(_ATTENTION))


SORT_KEYS: dict[str, Callable[[WatchRow], str | float | None]] = {
    "task": lambda row: row.task,
    "vcenter": lambda row: row.vcenter,
    "target": lambda row: row.target.casefold(),
    "status": lambda row: " ".join(row.states),
    "progress": lambda row: row.percent,
    "took": lambda row: row.duration_s,
    "since": lambda row: row.since,
    "changed": lambda row: row.last_event_at,
}


def _sort_rows(rows: list[WatchRow], sort: str) -> list[WatchRow]:
    """Sort by a name in `SORT_KEYS`, else by attention. Rows that have nothing to sort by come last."""
    key = SORT_KEYS.get(sort.removeprefix("-"))
    if key is None:
        # Once for each of a few combinations: ranking every one of 20,000 rows took twice as long as all the rest.
        ranks = {states: rank_attention(states) for states in {row.states for row in rows}}
        return sorted(rows, key=lambda row: ranks[row.states])
    lacking = [row for row in rows if key(row) in (None, "")]
    having = [row for row in rows if key(row) not in (None, "")]
    return sorted(having, key=key, reverse=sort.startswith("-")) + lacking  # type: ignore[arg-type]


@lru_cache(maxsize=1024)  # rows share the tuples
def _build_states(word: str, is_stalled: bool) -> tuple[str, ...]:
    return (word.lower(), "stalled") if is_stalled else (word.lower(),)


def _build_new_row(vcenter: str, task: str, ref: WatchRef) -> WatchRow:
    labels = _format_labels(ref)
    search_text = " ".join((vcenter, task, labels, ref.follow or "", "unseen")).casefold()
    return WatchRow(
        vcenter,
        task,
        ref.id,
        parse_time(ref.since) or 0.0,
        labels,
        search_text=search_text,
        is_loaded=False,
        states=_build_states(BEING_READ, False),
        follow=ref.follow or "",
    )


def _build_row(event: Event, owner: str) -> WatchRow:
    data, target = event.data, event.data.target or Target()
    target_ref = truncate(" ".join(filter(None, (target.type, target.id))), _MAX_WORDS)
    target_name = truncate(target.name or target.id or "", _MAX_WORDS)
    target_path = truncate(target.path or "", _MAX_PATH)
    operation = truncate(data.operation or "", _MAX_WORDS)
    status = None if data.status is None else truncate(data.status, _MAX_WORDS)
    labels, message = _format_labels(data.watch), truncate(_choose_message(data), _MAX_MESSAGE)
    where = (target_name, target_ref, target_path)
    follow = data.watch.follow or ""
    search_text = (data.vcenter, data.task, labels, follow, event.kind, status or "", operation, *where, message, owner)
    return WatchRow(
        vcenter=data.vcenter,
        task=data.task,
        watch_id=data.watch.id,
        since=parse_time(data.watch.since) or 0.0,
        labels=labels,
        kind=event.kind,
        status=status,
        operation=operation,
        target=target_name,
        target_ref=target_ref,
        target_path=target_path,
        percent=data.progress.percent if data.progress else None,
        message=message,
        owner=truncate(owner, _MAX_OWNER),
        last_event_at=event.time,
        duration_s=data.duration_seconds,
        sequence=data.sequence,
        search_text=" ".join(search_text).casefold(),
        states=_build_states(data.outcome if data.final and data.outcome else status or NOT_SEEN, event.is_stalled),
        follow=follow,
    )


def _choose_message(data: EventData) -> str:
    if data.error is not None:
        return data.error.message
    return "" if data.final or data.progress is None else data.progress.message or ""


def _format_labels(ref: WatchRef) -> str:
    return truncate(" ".join(f"{key}={value}" for key, value in ref.labels.items()), _MAX_LABELS)
