"""What the commands print of a task's target."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from task_bridge.cli import output, tables
from task_bridge.cli.demo_view import LineView
from task_bridge.domain.durations import parse_time
from task_bridge.domain.events import WatchRef
from task_bridge.domain.replies import ListedWatch
from task_bridge.domain.task import Progress, Target
from task_bridge.lab.demo import DemoAddresses
from unit.builders import an_event

UNNAMED = Target("VirtualMachine", "vm-7")
NAMED = Target("VirtualMachine", "vm-7", "web\x1b01", "/DC/vm/web\x1b01")
WATCH = {"vcenter": "lab", "task": "task-1", "watch": {"id": "1", "since": "2026-11-28T00:00:00.000Z"}}
STATE = {"status": "RUNNING", "progress": None, "unconfigured": False}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (None, ""),
        (UNNAMED, "VirtualMachine vm-7"),
        (Target(None, "vm-7"), "vm-7"),
        (Target("VirtualMachine", "vm-7", "web01"), "web01"),
        (NAMED, "/DC/vm/web\N{REPLACEMENT CHARACTER}01"),
    ],
)
def test_a_target_is_shown_by_the_best_name_that_is_known(target: Target | None, text: str) -> None:
    assert output.describe_target(target) == text


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (None, "lab task-1 status RUNNING"),
        (UNNAMED, "lab task-1 status RUNNING"),
        (NAMED, "lab task-1 status RUNNING on web\N{REPLACEMENT CHARACTER}01"),
    ],
)
@pytest.mark.parametrize("message", [None, "Copying disks"])
def test_a_line_about_an_event_has_the_name_of_the_target(
    target: Target | None, text: str, message: str | None
) -> None:
    event = an_event(task="task-1", status="RUNNING", progress=Progress(message=message), target=target)
    text += f"{':' if target is NAMED else ''} {message}" if message else ""
    assert output.format_event(event).plain.partition(" ")[2] == text


@pytest.mark.parametrize(
    ("text", "width", "cut"),
    [
        ("clone web01", 24, "clone web01"),
        ("reconfigure production-web-01", 24, "reconfig…oduction-web-01"),
        ("clone 本番ウェブサーバー-01", 16, "clone…ーバー-01"),
        ("clone 本番ウェブサーバー-01", 27, "clone 本番ウェブサーバー-01"),
    ],
)
def test_a_name_keeps_its_end_by_which_machines_differ(text: str, width: int, cut: str) -> None:
    assert output.cut_middle(text, width, start=width // 3) == cut
    assert cell_len(cut) <= width


@pytest.mark.parametrize(("width", "cut"), [(4, "本…"), (5, "本番…"), (6, "本番サ"), (1, "…"), (0, "")])
def test_a_text_is_cut_by_the_columns_that_it_takes(width: int, cut: str) -> None:
    assert output.truncate("本番サ", width) == cut


def test_what_the_encoding_lacks_is_escaped_before_columns_are_lined_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert output.clean("wéb 日") == "w\\xe9b \\u65e5"
    assert output.truncate("Working through", 10) == "Working..."
    assert list(tables.format_yaml({"a": "клон", "b": "clone"})) == ['a: "клон"', "b: clone"]


def test_columns_line_up_also_with_characters_that_take_two() -> None:
    names = ["web01", "本番ウェブ"]
    listed = [msgspec.convert({**WATCH, **STATE, "target": {"name": name}}, ListedWatch) for name in names]
    _, first, second = tables.format_rows([tables.row_of_listed(one, 0.0) for one in listed], wide=False)
    assert cell_len(first.partition("task-1")[0]) == cell_len(second.partition("task-1")[0])


def test_the_demo_says_again_where_everything_is_once_its_tasks_have_ended() -> None:
    screen = io.StringIO()
    view = LineView(Console(file=screen), keep=True)
    view.show_addresses(DemoAddresses("http://127.0.0.1:1", "nats://127.0.0.1:2", "http://127.0.0.1:3", Path("log")))
    view.show_results([])
    after = screen.getvalue().rpartition("Outcome")[2]
    assert [line.split(":")[0] for line in after.splitlines() if "127.0.0.1" in line][:3] == [
        "Board",
        "NATS",
        "Simulated vCenter",
    ]


def test_a_listed_watch_has_its_target_also_where_a_bridge_of_1_0_lists_it_without() -> None:
    old = msgspec.convert({**WATCH, **STATE}, ListedWatch)
    new = msgspec.convert({**WATCH, **STATE, "target": {"type": "VirtualMachine", "id": "vm-7"}}, ListedWatch)
    assert (old.target, new.target) == (None, UNNAMED)
    assert old.watch == WatchRef("1", "2026-11-28T00:00:00.000Z")
    now = parse_time("2026-11-28T00:01:05.000Z") or 0.0
    header, first, second = tables.format_rows([tables.row_of_listed(one, now) for one in (old, new)], wide=False)
    assert header.split() == ["VCENTER", "STATUS", "PROGRESS", "AGE", "TARGET", "TASK"]
    assert first.split() == ["lab", "RUNNING", "-", "1m05s", "-", "task-1"]
    assert second.split() == ["lab", "RUNNING", "-", "1m05s", "VirtualMachine", "vm-7", "task-1"]
    assert first.index("task-1") == second.index("task-1") == header.index("TASK")
