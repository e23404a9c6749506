"""The board's view as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest

from task_bridge.domain.board import RowFilter, WatchBoard
from task_bridge.domain.events import Event, EventData, WatchRef
from task_bridge.domain.task import Progress, Target, TaskError
from task_bridge.web.board import BoardView
from task_bridge.web.export import build_csv, build_json, select_export
from task_bridge.web.health import BridgeHealth, NatsHealth

HERE = BridgeHealth(nats=NatsHealth(connected=True))
AWAY = BridgeHealth(nats=NatsHealth(connected=False, reason="connection lost"))
EVERYTHING = RowFilter()


def build_board(text: str = "web01") -> WatchBoard:
    board = WatchBoard()
    board.all_listed = board.complete = True
    for number, outcome in ((1, None), (2, "failed")):
        data = EventData(
            vcenter="lab",
            api="cis",
            task=f"{text}{number}",
            watch=WatchRef(f"w-{number}", "2026-11-24T20:00:00.000Z", labels={text: text}),
            kind="completed" if outcome else "stalled",
            outcome=outcome,
            final=outcome is not None,
            sequence=2,
            status="FAILED" if outcome else "RUNNING",
            operation=text,
            target=Target("VirtualMachine", "vm-7", text, text),
            progress=Progress(1, 4, 25.0, text),
            error=TaskError("ERROR", text) if outcome else None,
            duration_seconds=1.5 if outcome else None,
        )
        board.apply_event(Event("https://lab", 1_700_000_000.0, data), "replica")
    return board


def read_csv(
    board: WatchBoard, row_filter: RowFilter = EVERYTHING, health: BridgeHealth = HERE
) -> list[dict[str, str]]:
    text = build_csv(select_export(BoardView(health, board, None, row_filter, 1.0), board))
    return list(csv.DictReader(io.StringIO(text)))


def test_a_table_has_the_watches_and_the_endings_that_the_filter_matches() -> None:
    watch, ending = read_csv(build_board())
    assert (watch["table"], watch["task"], watch["status"], watch["stalled"]) == (
        "watches",
        "web011",
        "RUNNING",
        "True",
    )
    assert (ending["table"], ending["outcome"], ending["took_seconds"]) == ("endings", "completed.failed", "1.5")
    assert [row["table"] for row in read_csv(build_board(), RowFilter(status="pending"))] == ["endings"]
    assert read_csv(build_board(), RowFilter("nothing-like-it")) == []


FORMULAS = [
    "=1+1",
    "+1",
    "-1+1",
    "@SUM(A1)",
    " =1+1",
    "\t=1+1",
    "\r=1",
    "\n=cmd|' /C calc'!A0",
    "\uff1d1+1",
    '"=1+1',
    "\x00=1",
    "a;=1+1;b",
    'a; "@SUM(A1)"',
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_can_be_taken_for_a_formula(formula: str) -> None:
    rows = read_csv(build_board(formula))
    assert len(rows) == 2
    for row in rows:
        cells = [(name, part) for name, cell in row.items() for part in cell.split(";")]
        for name, cell in cells:
            assert not cell.lstrip(' "').startswith(("=", "+", "-", "@", "\uff1d", "\t", "\r")), (name, cell)
        assert row["message"][-1] == formula[-1]


def test_the_stale_says_why_in_each_row() -> None:
    rows = read_csv(build_board(), health=AWAY)
    assert {row["stale"] for row in rows} == {"NATS is away: connection lost"}
    assert {row["stale"] for row in read_csv(build_board())} == {""}


def test_json_says_what_is_not_read_yet() -> None:
    board = build_board()
    view = BoardView(HERE, board, None, RowFilter("web", sort="task"), 1.0)
    content = json.loads(build_json(select_export(view, board)))
    assert (content["unread_watches"], content["endings_are_read"], content["stale"]) == (0, True, None)
    assert content["filter"] == {"words": "web", "vcenter": "", "status": "", "outcome": "", "sort": "task"}
    (watch,) = content["watches"]
    assert (watch["task"], watch["percent"], watch["stalled"], watch["outcome"]) == ("web011", 25.0, True, None)
    assert [ending["message"] for ending in content["endings"]] == ["web01"]
    board.all_listed = False
    board.unlisted["lab"] = 7
    assert json.loads(build_json(select_export(view, board)))["unread_watches"] == 7
