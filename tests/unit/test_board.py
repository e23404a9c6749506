"""Which rows the board shows, in which order, and what it says while it is being read."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from task_bridge.domain.board import SORT_KEYS, RowFilter, WatchBoard
from task_bridge.domain.durations import rfc3339
from task_bridge.domain.events import Event, EventData, WatchRef
from task_bridge.domain.task import Progress, Target, TaskError

SINCE = 1_700_000_000
EVERYTHING = RowFilter()


def event(
    number: int, kind: str = "status", *, status: str | None = "RUNNING", outcome: str | None = None, name: str = ""
) -> Event:
    """The event of a watch that was requested that many seconds after a moment."""
    is_final = kind in ("completed", "abandoned")
    data = EventData(
        vcenter="lab",
        api="cis",
        task=f"task-{number}",
        watch=WatchRef(f"w-{number}", rfc3339(SINCE + number), follow="nightly"),
        kind=kind,
        outcome=outcome,
        final=is_final,
        sequence=2,
        status=status,
        target=Target("VirtualMachine", f"vm-{number}", name) if name else None,
        progress=Progress(number, 100, float(number)),
        error=TaskError("ERROR", "No space left") if outcome == "failed" else None,
        duration_seconds=float(number) if is_final else None,
    )
    return Event("https://lab", SINCE + 100.0 + number, data)


def build_board(*events: Event) -> WatchBoard:
    board = WatchBoard()
    board.all_listed = board.complete = True
    for one in events:
        board.apply_event(one, "replica")
    return board


def numbers(rows: list[str]) -> list[int]:
    return [int(task.removeprefix("task-")) for task in rows]


def shown(board: WatchBoard, row_filter: RowFilter = EVERYTHING) -> list[int]:
    return numbers([row.task for row in board.select_page(row_filter).rows])


def ended(board: WatchBoard, row_filter: RowFilter = EVERYTHING) -> list[int]:
    return numbers([row.task for row in board.select_page(row_filter).endings])


def test_blocked_and_stalled_watches_come_first_then_the_oldest() -> None:
    board = build_board(
        event(1), event(2, "stalled"), event(3), event(4, status="BLOCKED"), event(5, "stalled"), event(6, status=None)
    )
    assert shown(board) == [4, 2, 5, 1, 3, 6]


def test_failed_and_lost_endings_come_first_then_the_newest() -> None:
    board = build_board(
        event(1, "completed", outcome="failed"),
        event(2, "completed", outcome="succeeded"),
        event(3, "abandoned", outcome="lost"),
        event(4, "abandoned", outcome="unwatched"),
        event(5, "completed", outcome="failed"),
    )
    assert ended(board) == [5, 1, 3, 4, 2]


def test_a_standstill_that_a_later_event_restates_stays_stalled() -> None:
    restated = msgspec.structs.replace(event(1, "status"), stalled_reported=True)
    (row,) = build_board(restated).select_page(RowFilter()).rows
    assert row.is_stalled


def test_each_state_has_its_count_and_chooses_its_rows() -> None:
    board = build_board(
        event(1),
        event(2, "stalled", status="BLOCKED"),
        event(3, "stalled"),
        event(4, status=None),
        event(5, "completed", outcome="failed"),
        event(6, "completed", outcome="succeeded"),
    )
    page = board.select_page(RowFilter(status="stalled", outcome="failed"))
    assert page.statuses == Counter({"running": 2, "stalled": 2, "blocked": 1, "not seen yet": 1})
    assert page.outcomes == Counter({"failed": 1, "succeeded": 1})
    assert (shown(board, RowFilter(status="stalled")), ended(board, RowFilter(status="stalled"))) == (
        [2, 3],
        [6, 5][::-1],
    )
    assert (shown(board, RowFilter(outcome="failed")), ended(board, RowFilter(outcome="failed"))) == ([2, 3, 1, 4], [5])
    assert shown(board, RowFilter(status="not seen yet")) == [4]
    assert shown(board, RowFilter(status="nonsense")) == []


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("since", [1, 2, 3, 10]),
        ("-since", [10, 3, 2, 1]),
        ("changed", [1, 2, 3, 10]),
        ("task", [1, 10, 2, 3]),
        ("target", [3, 2, 1, 10]),
        ("-target", [2, 3, 1, 10]),
        ("status", [2, 1, 3, 10]),
        ("-progress", [10, 3, 2, 1]),
        ("took", [1, 2, 3, 10]),
        ("nonsense", [2, 1, 3, 10]),
    ],
)
def test_rows_are_sorted_and_those_without_a_value_come_last(sort: str, order: list[int]) -> None:
    board = build_board(event(1), event(2, status="BLOCKED", name="web"), event(3, name="Db"), event(10))
    assert shown(board, RowFilter(sort=sort)) == order


@pytest.mark.parametrize("sort", SORT_KEYS)
def test_watches_whose_state_is_not_read_can_be_sorted_by_everything(sort: str) -> None:
    board = WatchBoard()
    board.begin_refresh()
    board.finish_refresh([("lab", f"task-{n}", WatchRef(f"w-{n}", rfc3339(SINCE + n))) for n in (1, 2)], Counter())
    for name in (sort, f"-{sort}"):
        assert sorted(shown(board, RowFilter(sort=name))) == [1, 2]


def test_it_knows_how_many_watches_have_not_been_read() -> None:
    board = WatchBoard()
    board.begin_refresh()
    board.finish_refresh([("lab", "task-1", WatchRef("w-1", rfc3339(SINCE)))], Counter({"lab": 9_000}))
    page = board.select_page(RowFilter("nothing-like-it"))
    assert (page.match_count, page.unread_count) == (0, 9_001)
    (row,) = board.rows_in_order()
    assert row.states == ("being read",)
    board.mark_without_events(row)
    board.all_listed = True  # the rest has no room
    assert board.select_page(RowFilter()).unread_count == 0
    assert shown(board, RowFilter(status="not seen yet")) == [1]


def test_rows_are_found_by_the_follow_that_started_them() -> None:
    board = build_board(event(1))
    assert (shown(board, RowFilter("nightly")), shown(board, RowFilter("weekly"))) == ([1], [])
