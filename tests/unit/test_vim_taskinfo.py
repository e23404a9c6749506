"""From TaskInfo to a task: every field alone, and whatever else may come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from task_bridge.domain.task import (
    NO_RESULT,
    Initiator,
    Message,
    Progress,
    Result,
    Target,
    Task,
    TaskIdentity,
    may_be_same_task,
)
from task_bridge.vcenter.vim.taskinfo import (
    DYNAMIC,
    PATHS,
    STATIC,
    Question,
    build_task,
    parse_identity,
    parse_info,
    parse_question,
)
from unit.builders import Replica, a_watch
from validity import check_event

XSI = "http://www.w3.org/2001/XMLSchema-instance"
LABELS = {"VirtualMachine.powerOn": "Power On virtual machine"}


def element(xml: str) -> etree._Element:
    return etree.fromstring(f'<i xmlns:x="{XSI}">{xml}</i>')


def read(state: str = "running", more: str = "", question: Question | None = None) -> Task:
    task = build_task(parse_info(element(f"<state>{state}</state>{more}")), question, LABELS)
    assert task is not None
    return task


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("queued", "PENDING"),
        ("running", "RUNNING"),
        ("success", "SUCCEEDED"),
        ("error", "FAILED"),
        ("paused", "PAUSED"),
    ],
)
def test_a_state_is_a_status_also_one_never_heard_of(state: str, status: str) -> None:
    assert read(state).status == status


@pytest.mark.parametrize("state", ["", "<state/>", '<state x:nil="true"/>', "<state> </state>"])
def test_without_a_state_there_is_no_task(state: str) -> None:
    assert build_task(parse_info(element(state)), None, {}) is None


@pytest.mark.parametrize(
    ("xml", "field", "expected"),
    [
        ("<descriptionId>VirtualMachine.powerOn</descriptionId>", "service", "VirtualMachine"),
        ("<descriptionId>VirtualMachine.powerOn</descriptionId>", "operation", "powerOn"),
        ("<descriptionId>VirtualMachine.powerOn</descriptionId>", "description", "Power On virtual machine"),
        ("<descriptionId>com.acme.drain.start</descriptionId>", "service", "com.acme.drain"),
        ("<descriptionId>alone</descriptionId>", "service", None),
        ("<descriptionId>alone</descriptionId>", "operation", "alone"),
        ('<entity type="VirtualMachine">vm-7</entity>', "target", Target("VirtualMachine", "vm-7")),
        (
            '<entity type="VirtualMachine">vm-7</entity><entityName>web</entityName>',
            "target",
            Target("VirtualMachine", "vm-7", "web"),
        ),
        ("<entity>vm-7</entity><entityName>web</entityName>", "target", None),
        ('<reason x:type="TaskReasonUser"><userName>LAB\\jo</userName></reason>', "user", "LAB\\jo"),
        ('<reason x:type="TaskReasonSchedule"><name>nightly</name></reason>', "user", "nightly"),
        ('<reason x:type="TaskReasonAlarm"><alarmName>full</alarmName></reason>', "user", "full"),
        ('<reason x:type="TaskReasonSystem"/>', "user", None),
        ('<reason x:type="v:TaskReasonOfLater"><who>me</who></reason>', "user", None),
        ('<reason x:type="TaskReasonUser"><userName>jo</userName></reason>', "initiator", Initiator("user", "jo")),
        (
            '<reason x:type="TaskReasonSchedule"><name>n</name><scheduledTask type="ScheduledTask">s</scheduledTask>'
            "</reason>",
            "initiator",
            Initiator("schedule", "n"),
        ),
        (
            '<reason x:type="TaskReasonAlarm"><alarmName>full</alarmName><alarm type="Alarm">a</alarm>'
            '<entityName>ds</entityName><entity type="Datastore">d</entity></reason>',
            "initiator",
            Initiator("alarm", "full"),
        ),
        ('<reason x:type="TaskReasonSystem"/>', "initiator", Initiator("system", None)),
        ('<reason x:type="v:TaskReasonOfLater"/>', "initiator", Initiator("TaskReasonOfLater", None)),
        (
            '<reason x:type="TaskReasonOfLater"><userName>jo</userName></reason>',
            "initiator",
            Initiator("TaskReasonOfLater", "jo"),
        ),
        ("<reason><userName>jo</userName></reason>", "initiator", Initiator("user", "jo")),
        ("<reason><alarmName>full</alarmName></reason>", "initiator", Initiator("alarm", "full")),
        ("<reason/>", "initiator", None),
        ("", "initiator", None),
        ("<cancelled>true</cancelled>", "cancel_requested", True),
        ("<cancelled>0</cancelled>", "cancel_requested", False),
        ("", "cancel_requested", None),
        ("<rootTaskKey>task-0</rootTaskKey>", "root", "task-0"),
        ("<queueTime>2026-11-24T22:40:55.123456789Z</queueTime>", "queued_at", "2026-11-24T22:40:55.123Z"),
        ("<queueTime>2026-11-24T23:40:55+01:00</queueTime>", "queued_at", "2026-11-24T22:40:55.000Z"),
        ("<queueTime>soon</queueTime>", "queued_at", None),
        ("<cancelable>1</cancelable>", "cancelable", True),
        ("<cancelable>perhaps</cancelable>", "cancelable", None),
        ("<parentTaskKey>task-1</parentTaskKey>", "parent", "task-1"),
        ("<progress>42</progress>", "progress", Progress(42, 100, 42.0, None)),
        ("<progress>250</progress>", "progress", Progress(250, 100, 100.0, None)),
        ("<progress>0</progress>", "progress", Progress(0, 100, 0.0, None)),
        ("<progress>-1</progress>", "progress", Progress(-1, 100, None, None)),
        (f"<progress>{'9' * 4000}</progress>", "progress", None),
        ("<progress>1_0</progress>", "progress", None),
        (
            "<description><key>k</key><message>Copying</message></description>",
            "progress",
            Progress(message="Copying"),
        ),
        ("<startTime>2026-11-24T22:40:55.123456789Z</startTime>", "started_at", "2026-11-24T22:40:55.123Z"),
        ("<startTime>2026-11-24T23:40:55+01:00</startTime>", "started_at", "2026-11-24T22:40:55.000Z"),
        ("<startTime>yesterday</startTime>", "started_at", None),
        ("<error><localizedMessage>old</localizedMessage></error>", "error", None),
        ("<result>early</result>", "result", NO_RESULT),
    ],
)
def test_a_field_of_a_running_task(xml: str, field: str, expected: Any) -> None:
    assert getattr(read(more=xml), field) == expected


@pytest.mark.parametrize(
    ("xml", "json"),
    [
        ('<result x:type="ManagedObjectReference" type="Folder">f-9</result>', b'{"type":"Folder","id":"f-9"}'),
        ('<result x:type="xsd:string">done</result>', b'"done"'),
        ('<result x:type="xsd:int">-7</result>', b"-7"),
        ('<result x:type="xsd:boolean">true</result>', b"true"),
        ('<result x:type="xsd:double">1.5</result>', b"1.5"),
        ('<result x:type="xsd:double">INF</result>', b'"INF"'),
        ('<result x:type="ArrayOfString"/>', b"[]"),
        ('<result x:type="v:OfLater"><a><b/></a></result>', b'{"_type":"OfLater","a":{"b":""}}'),
        ("<result><a/></result>", b'{"a":""}'),
        ('<result x:type="xsd:int">many</result>', b'"many"'),
        ('<result x:nil="true"/>', b""),
        ("", b""),
    ],
)
@pytest.mark.parametrize("state", ["success", "error"])
def test_a_result_is_the_whole_value_of_a_failed_task_too(state: str, xml: str, json: bytes) -> None:
    result = read(state, xml).result
    assert result is not None
    assert (result.json, result.available) == (json, True)


def test_a_result_that_exceeds_the_bounds_is_unavailable_with_the_reason() -> None:
    deepest = read("success", f"<result>{'<a>' * 32}x{'</a>' * 32}</result>").result
    deeper = read("success", f"<result>{'<a>' * 33}x{'</a>' * 33}</result>").result
    info = element("<state>success</state><result/>")
    info[1].text = "\n" * (17 * 1024 * 1024)  # JSON takes two bytes for each
    task = build_task(parse_info(info), None, {})
    assert task is not None
    long = task.result
    assert deepest is not None
    assert (deepest.json.count(b"{"), deepest.available) == (32, True)
    assert deeper == Result(available=False, reason="the result is nested more than 32 deep")
    assert long is not None
    assert (long.json, long.available, "35651586 bytes" in long.reason) == (b"", False, True)


@pytest.mark.parametrize(
    ("xml", "kind", "message", "texts"),
    [
        (
            '<error><fault x:type="v:NoDiskSpace"><faultMessage><key>k</key><message>full</message></faultMessage>'
            "</fault><localizedMessage>No space.</localizedMessage></error>",
            "NoDiskSpace",
            "No space.",
            ["No space.", "full"],
        ),
        (
            '<error><fault x:type="RequestCanceled"/></error>',
            "RequestCanceled",
            "RequestCanceled, without a message",
            [],
        ),
        ("<error><fault/></error>", None, "vCenter reports that the task failed and gives no reason", []),
        ('<error x:nil="true"/>', None, "vCenter reports that the task failed and gives no reason", []),
        ("", None, "vCenter reports that the task failed and gives no reason", []),
    ],
)
def test_a_failure_is_never_without_words(xml: str, kind: str | None, message: str, texts: list[str]) -> None:
    error = read("error", xml).error
    assert error is not None
    assert (error.type, [one.text for one in error.messages]) == (kind, texts)
    assert error.message.startswith(message)
    assert error.messages in ((), (Message(None, "No space."), Message("k", "full")))


def test_a_question_blocks_a_running_task_alone() -> None:
    asked = Question("q1", "Moved or copied?")
    blocked = read("running", "<progress>95</progress><description><message>Copying</message></description>", asked)
    assert (blocked.status, blocked.progress) == ("BLOCKED", Progress(95, 100, 95.0, asked.text))
    assert blocked.extra == {"question": {"id": "q1", "text": "Moved or copied?"}}
    assert read("queued", question=asked).status == "PENDING"
    assert read("success", question=asked).extra is None


def test_of_a_long_question_an_event_holds_the_beginning() -> None:
    question = parse_question(element(f"<id>q</id><text>{'x' * 100_000}</text>"))
    assert question is not None
    assert question.text == "x" * 8192


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (TaskIdentity(1.0, "a.b"), TaskIdentity(1.0, "a.b"), True),
        (TaskIdentity(1.0, "a.b"), TaskIdentity(1.4, "a.b"), True),
        (TaskIdentity(1.0, "a.b"), TaskIdentity(60.0, "a.b"), False),
        (TaskIdentity(1.0, "a.b"), TaskIdentity(1.0, "a.c"), False),
        (TaskIdentity(None, "a.b"), TaskIdentity(1.0, "a.b"), True),
        (TaskIdentity(1.0, None), TaskIdentity(1.0, "a.b"), True),
    ],
)
def test_a_task_is_another_one_where_what_both_tell_differs(one: TaskIdentity, other: TaskIdentity, same: bool) -> None:
    assert may_be_same_task(one, other) is same


def test_a_birth_is_when_it_was_queued_and_to_do_what() -> None:
    info = parse_info(element("<queueTime>1970-01-01T00:01:00.5Z</queueTime><descriptionId>a.b</descriptionId>"))
    assert parse_identity(info) == TaskIdentity(60.5, "a.b")


# Whatever comes

names = st.sampled_from([*DYNAMIC, *STATIC, "key", "fault", "message", "localizedMessage", "userName", "faultMessage"])
texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=8) | st.sampled_from(
    ["running", "success", "error", "true", "12", "2026-11-24T22:40:55Z", "9" * 30, "a.b.c", "."]
)
attributes = st.dictionaries(
    st.sampled_from([f"{{{XSI}}}nil", f"{{{XSI}}}type", "type"]), st.sampled_from(["true", "", "a:b", "int", ":"])
)


def _built(name: str, text: str, given: dict[str, str], inner: list[etree._Element]) -> etree._Element:
    made = etree.Element(name, given)
    made.text = text
    made.extend(inner)
    return made


leaves = st.builds(_built, names, texts, attributes, st.just([]))
trees = st.recursive(leaves, lambda inner: st.builds(_built, names, texts, attributes, st.lists(inner, max_size=4)))


@settings(deadline=None, max_examples=150)
@given(st.lists(trees, max_size=8), st.sampled_from(["queued", "running", "success", "error", "odd"]), st.booleans())
def test_whatever_vcenter_says_is_an_event_as_the_schema_has_it(
    fields: list[etree._Element], state: str, asked: bool
) -> None:
    info = parse_info(_built("info", "", {}, [*fields, _built("state", state, {}, [])]))
    task = build_task(info, Question(None, "?") if asked else None, {})
    assert task is not None
    replica = Replica(a_watch(task="task-7", api="vim"), inline_max=100)
    replica.look(task)
    assert replica.stream
    for stored in replica.stream:
        check_event(stored.body)


def test_every_field_that_is_read_is_asked_for() -> None:
    assert {f"info.{field}" for field in (*DYNAMIC, *STATIC)} == set(PATHS)
