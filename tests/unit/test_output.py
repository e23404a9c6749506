"""What the commands print of a task's target."""

from __future__ import annotations

import msgspec
import pytest

from task_bridge.cli import output, tables
from task_bridge.domain.durations import parse_time
from task_bridge.domain.events import WatchRef
from task_bridge.domain.replies import ListedWatch
from task_bridge.domain.task import Progress, Target
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
