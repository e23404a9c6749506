"""The board's rows as files: JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from ..domain.board import BoardSelection, WatchBoard, WatchRow
from ..domain.durations import rfc3339
from ..domain.text import to_one_line
from .board import BoardView

_FORMULA_START = re.compile("((?:^|;)[\"'\\s]*)(?=[=+@＝＋－＠-])")  # noqa: RUF001 - spreadsheets take the wide ones too
"""Where the list separator is a semicolon, spreadsheets begin a cell behind one even within quotes."""
_COLUMNS = (
    "table",
    "vcenter",
    "task",
    "status",
    "stalled",
    "outcome",
    "operation",
    "target",
    "target_ref",
    "target_path",
    "percent",
    "message",
    "labels",
    "follow",
    "watched_since",
    "changed_at",
    "took_seconds",
    "watch",
    "replica",
    "stale",
)


class Export(NamedTuple):
    """What a file shows: all rows that the view's filter matches, and what isn't among them.

    `unread_count`: watches whose state isn't read yet. `unlisted_count`: watches that the board has no room for.
    """

    view: BoardView
    selection: BoardSelection
    unread_count: int
    unlisted_count: int
    has_endings: bool

    @property
    def is_whole(self) -> bool:
        return self.has_endings and not self.unread_count


def select_export(view: BoardView, board: WatchBoard) -> Export:
    return Export(view, board.select(view.row_filter), board.count_unread(), board.unlisted.total(), board.complete)


def build_json(export: Export) -> bytes:
    """Return the rows. `stale` says why they aren't up to date."""
    view, selection = export.view, export.selection
    row_filter = view.row_filter._asdict()
    del row_filter["page"]
    content: dict[str, Any] = {
        "as_of": rfc3339(view.now),
        "stale": view.stale_reason,
        "filter": row_filter,
        "unread_watches": export.unread_count,
        "unlisted_watches": export.unlisted_count,
        "endings_are_read": export.has_endings,
        "watches": [_build_row(row, view, "watches") for row in selection.watches],
        "endings": [_build_row(row, view, "endings") for row in selection.endings],
    }
    return msgspec.json.encode(content)


def build_csv(export: Export) -> str:
    """Return the rows, watches first. No cell can be taken for a formula."""
    lines = io.StringIO()
    writer = csv.writer(lines, quoting=csv.QUOTE_ALL)
    writer.writerow(_COLUMNS)
    for table, rows in (("watches", export.selection.watches), ("endings", export.selection.endings)):
        writer.writerows(_format_cells(_build_row(row, export.view, table).values()) for row in rows)
    return lines.getvalue()


def _build_row(row: WatchRow, view: BoardView, table: str) -> dict[str, Any]:
    is_ending = table == "endings"
    values = (
        table,
        row.vcenter,
        row.task,
        row.status if row.is_loaded else "being read",
        None if is_ending else row.is_stalled,
        row.kind if is_ending else None,
        row.operation or None,
        row.target or None,
        row.target_ref or None,
        row.target_path or None,
        row.percent,
        row.message or None,
        row.labels or None,
        row.follow or None,
        rfc3339(row.since),
        None if row.last_event_at is None else rfc3339(row.last_event_at),
        row.duration_s,
        row.watch_id,
        row.owner or None,
        view.stale_reason,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _format_cells(values: Iterable[Any]) -> list[str]:
    """Return the cells. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return ["" if value is None else _FORMULA_START.sub(r"\1'", to_one_line(value)) for value in values]
