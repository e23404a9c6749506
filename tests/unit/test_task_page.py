"""The page of one task, and its JSON."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from html import unescape
from typing import Any

import msgspec
import pytest
from lxml import etree

from task_bridge.domain.durations import rfc3339
from task_bridge.domain.events import Event, EventData, ResultRef, WatchRef, to_cloudevent
from task_bridge.domain.task import Message, Progress, Target, TaskError
from task_bridge.domain.timeline import MAX_BODIES_BYTES, MAX_EVENTS, TaskTimeline, TimelineBuilder, TimelineEvent
from task_bridge.domain.watch import Watch
from task_bridge.web.health import BridgeHealth, NatsHealth, VCenterHealth
from task_bridge.web.task_page import TaskPageRenderer, TaskView, build_json, format_json

SINCE = 1_700_000_000.0
WATCH = Watch("w-1", "lab", "task-1", SINCE, labels={"workflow": "patch-42"})
HEALTH = BridgeHealth(nats=NatsHealth(connected=True), vcenters=(VCenterHealth("lab", "ok"),))
EVIL = "<script>alert('1')</script>\x1b[31m\u202e"


def event(sequence: int, kind: str, *, watch: str = "w-1", **fields: Any) -> Event:
    outcome = fields.pop("outcome", None)
    data = EventData(
        vcenter="lab",
        api="vim",
        task="task-1",
        watch=WatchRef(watch, rfc3339(SINCE), None, {"workflow": "patch-42"}, "nightly"),
        kind=kind,
        outcome=outcome,
        final=outcome is not None,
        sequence=sequence,
        **{"status": "RUNNING", "operation": "clone"} | fields,
    )
    return Event("https://lab", SINCE + sequence, data)


def build_timeline(*events: Event, watch: Watch | None = None, **counts: int) -> TaskTimeline:
    stored = tuple(TimelineEvent(one, to_cloudevent(one), "0123456789") for one in events)
    return TaskTimeline(watch, stored, **counts)


def render(timeline: TaskTimeline | None, *, trouble: str | None = None, health: BridgeHealth = HEALTH) -> str:
    html = TaskPageRenderer().render(TaskView(health, "lab", "task-1", timeline, trouble, SINCE + 60))
    assert html.count("<script") == 1  # its own
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html.partition("<main")[2])).split())


TARGET = Target("VirtualMachine", "vm-7", "web01", "/DC/vm/web/web01")
FAILURE = TaskError(
    "NotPermitted", "It failed.", (Message("m.1", "First."), Message("m.2", "Then."), Message(None, "Last."))
)
FAILED = (
    event(1, "watching", status="PENDING", target=TARGET),
    event(2, "progress", progress=Progress(1, 4, 25.0, "Copying"), target=TARGET),
    event(3, "completed", outcome="failed", status="FAILED", target=TARGET, error=FAILURE, duration_seconds=125.0),
)


def test_a_failed_task_shows_what_it_was_about_why_it_failed_and_what_happened() -> None:
    text = render(build_timeline(*FAILED))
    for part in ("web01", "/DC/vm/web/web01", "VirtualMachine vm-7", "clone", "workflow=patch-42", "By follow nightly"):
        assert part in text
    assert "State ✗ failed" in text
    assert "Took 2 min" in text
    assert text.index("It failed. NotPermitted") < text.index("First.") < text.index("Then.") < text.index("Last.")
    assert (
        text.index("watching PENDING")
        < text.index("progress RUNNING 25 % 25 % Copying")
        < text.index("✗ failed FAILED")
    )
    assert "2023-11-14 22:13:21 UTC ( 59 s ago)" in text
    assert "The task has no result." in text


def test_every_row_of_the_timeline_has_a_cell_for_each_heading() -> None:
    html = TaskPageRenderer().render(TaskView(HEALTH, "lab", "task-1", build_timeline(*FAILED), None, SINCE))
    (table,) = etree.HTML(html).findall(".//table")
    headings = ["".join(map(str, heading.itertext())) for heading in table.iter("th")]
    rows = [[cell.get("data-label") for cell in row.iter("td")] for row in table.iter("tr")]
    assert [row == headings for row in rows if row] == [True] * 3


RESULTS: list[tuple[dict[str, Any], str]] = [
    ({"result": msgspec.Raw(b'{"status":"OK"}'), "result_state": "inline"}, 'Result { "status": "OK" }'),
    ({"result_state": "none"}, "Result The task has no result."),
    ({"result_state": "unavailable"}, "There is a result, and vCenter's answer couldn't be read"),
    (
        {"result_state": "stored", "result_ref": ResultRef("RESULTS", "lab/x", 8_000_000, "ab")},
        "8,000,000 bytes in the object store RESULTS , as lab/x .",
    ),
]


def test_an_abandoned_watch_says_nothing_of_a_result_that_nobody_knows() -> None:
    error = TaskError(None, "The watch's timeout passed.")
    text = render(build_timeline(event(2, "abandoned", outcome="watch_timed_out", error=error)))
    assert "The watch's timeout passed." in text
    assert "result" not in text.lower()


@pytest.mark.parametrize("is_reported", [False, True])
def test_a_standstill_that_a_later_event_restates_stays_stalled(is_reported: bool) -> None:
    restated = msgspec.structs.replace(event(2, "status"), stalled_reported=is_reported)
    assert ("State RUNNING ! stalled" in render(build_timeline(restated, watch=WATCH))) is is_reported


@pytest.mark.parametrize(("fields", "shown"), RESULTS)
def test_the_result_is_shown_or_where_it_is(fields: dict[str, Any], shown: str) -> None:
    assert shown in render(build_timeline(event(2, "completed", outcome="succeeded", status="SUCCEEDED", **fields)))


def test_a_long_result_shows_its_beginning_and_leads_to_all() -> None:
    whole = msgspec.json.encode({"text": ["x" * 100] * 1_000})
    done = event(2, "completed", outcome="succeeded", result=msgspec.Raw(whole), result_state="inline")
    text = render(build_timeline(done))
    assert "The beginning only: the JSON has all." in text
    assert len(text) < 25_000
    view = TaskView(HEALTH, "lab", "task-1", build_timeline(done), None, SINCE)
    assert msgspec.json.decode(build_json(view))["events"][0]["data"]["result"] == {"text": ["x" * 100] * 1_000}


def test_json_is_shown_on_lines_and_can_do_nothing_else() -> None:
    html = format_json(msgspec.Raw(msgspec.json.encode({"a": EVIL, "b": 1}))).html
    assert html.count("\n") == 3
    assert "<script>" not in html
    assert "\u202e" not in html


@pytest.mark.parametrize(
    "value", [{"a": {"b": [1, 'x,]}{[: \\"', {"c": {}}], "d": []}, "e": None}, [], {}, "text", -1.5e3, [[[]]], True]
)
def test_json_is_indented_and_stays_the_same(value: object) -> None:
    compact = msgspec.json.encode(value)
    for written in (compact, msgspec.json.format(compact, indent=4)):
        shown = format_json(msgspec.Raw(written))
        assert (unescape(shown.html), shown.is_cut) == (msgspec.json.format(compact, indent=2).decode(), False)


def test_a_deep_result_is_shown_within_milliseconds() -> None:
    """Indented as a whole it is 60 MB: it took 4 s, in which the bridge did nothing else."""
    deep = b"[" * 250 + b",".join([b"1"] * 130_000) + b"]" * 250
    before = time.process_time()
    shown = format_json(msgspec.Raw(deep))
    assert time.process_time() - before < 0.3
    assert (len(shown.html), shown.is_cut) == (20_000, True)


@pytest.mark.parametrize("is_final", [False, True])
def test_everything_on_it_is_escaped(is_final: bool) -> None:
    error = TaskError(EVIL, EVIL, (Message(EVIL, EVIL),), data={EVIL: EVIL})
    evil = event(
        2,
        "completed" if is_final else "progress",
        outcome="failed" if is_final else None,
        status=EVIL,
        operation=EVIL,
        service=EVIL,
        description=EVIL,
        user=EVIL,
        parent=EVIL,
        queued_at=EVIL,
        target=Target(EVIL, EVIL, EVIL, EVIL),
        progress=Progress(1, 2, 50.0, EVIL),
        error=error if is_final else None,
        result=msgspec.Raw(msgspec.json.encode(EVIL)),
        result_state="inline",
    )
    watch = Watch(EVIL, "lab", EVIL, SINCE, follow=EVIL, labels={EVIL: EVIL})
    health = replace(HEALTH, vcenters=(VCenterHealth("lab", "degraded", EVIL),))
    for one in (watch, None):
        view = TaskView(health, "lab", EVIL, build_timeline(evil, watch=one), EVIL, SINCE)
        html = TaskPageRenderer().render(view)
        assert html.count("<script") == 1
        assert html.count("&lt;script&gt;") >= 12
        assert "\x1b" not in html
        assert "\u202e" not in html


def test_a_watch_without_an_event_says_so_and_why() -> None:
    health = replace(HEALTH, vcenters=(VCenterHealth("lab", "degraded", "no answer within 10 s"),))
    text = render(TaskTimeline(WATCH, ()), health=health)
    assert "State not seen yet" in text
    assert "workflow=patch-42" in text
    assert "No event yet: vCenter hasn't shown the task" in text
    assert "vCenter lab is degraded: no answer within 10 s." in text
    assert "isn't in this replica's settings" in render(TaskTimeline(WATCH, ()), health=replace(HEALTH, vcenters=()))


def test_the_end_of_an_earlier_watch_is_not_the_state_of_the_present_one() -> None:
    earlier = event(3, "abandoned", outcome="unwatched", watch="w-0")
    text = render(build_timeline(earlier, watch=WATCH))
    assert "State not seen yet" in text
    assert "! abandoned: unwatched" in text
    assert "w-0/3" in text


def test_a_watch_that_is_gone_without_an_end_says_so() -> None:
    assert "State RUNNING ! nothing watches it any more" in render(build_timeline(event(2, "status")))
    assert "nothing watches" not in render(build_timeline(event(2, "status"), watch=WATCH))


def test_what_could_not_be_read_is_never_shown_as_none() -> None:
    text = render(None, trouble="no answer")
    assert "stale This task can't be read: no answer. Whether anything is stored about it isn't known." in text
    assert "No event" not in text
    nothing = render(TaskTimeline(None, ()))
    assert "No event of this task is in the stream, and nothing watches it." in nothing
    assert "2 stored events can't be read by this release." in render(TaskTimeline(None, (), unreadable=2))


def test_a_timeline_keeps_the_newest_events_and_bounds_their_size() -> None:
    builder = TimelineBuilder()
    for number in range(MAX_EVENTS + 7):
        builder.add(event(number, "progress"), b"x", "")
    many = builder.build(None)
    assert (len(many.events), many.dropped, many.events[0].event.data.sequence) == (MAX_EVENTS, 7, 7)
    builder = TimelineBuilder()
    for number in range(5):
        builder.add(event(number, "progress"), b"x" * (MAX_BODIES_BYTES // 2), "")
    builder.add(None, b"?", "")
    large = builder.build(WATCH)
    assert [stored.event.data.sequence for stored in large.events] == [3, 4]
    assert (large.dropped, large.unreadable, large.is_active) == (3, 1, True)
