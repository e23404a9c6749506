"""From vCenter's JSON to a Task: both renderings, everything that may be missing, errors of all shapes."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_bridge.domain.json_size import CUT_ABOVE_BYTES, encode_compact
from task_bridge.domain.task import (
    NO_RESULT,
    Initiator,
    Message,
    NotATask,
    Progress,
    Rendering,
    Result,
    Target,
    Task,
    TaskError,
    convert_rest_rendering,
    parse_error,
    parse_task,
)

API_FAILED: dict[str, Any] = {
    "description": {"id": "com.vmware.desc", "default_message": "Apply software", "args": []},
    "service": "com.vmware.esx.settings.clusters.software",
    "operation": "apply$task",
    "parent": "",
    "target": {"type": "ClusterComputeResource", "id": "domain-c9"},
    "status": "FAILED",
    "cancelable": False,
    "error": {
        "error_type": "ERROR",
        "messages": [
            {"id": "com.vmware.a", "default_message": "Remediation failed.", "args": ["host-1", 2]},
            {"id": "com.vmware.b", "default_message": "The host did not answer.", "args": []},
        ],
        "data": {"is_transient": True, "hosts": {"host-1": "FAILED"}},
    },
    "start_time": "2026-11-24T22:40:55.123Z",
    "end_time": "2026-11-24T22:41:07.468Z",
    "user": "Administrator@VSPHERE.LOCAL",
    "progress": {
        "total": 100,
        "completed": 40,
        "message": {"id": "com.vmware.p", "default_message": "Remediating host 2 of 5", "args": []},
    },
    "result": {"status": "ERROR", "hosts": {"host-1": "FAILED"}},
    "notifications": {"info": [], "errors": []},
}

REST_FAILED: dict[str, Any] = {
    "@class": "com.vmware.cis.task.info",
    **API_FAILED,
    "error": {
        "@class": "com.vmware.vapi.std.errors.error",
        "messages": API_FAILED["error"]["messages"],
        "data": {"is_transient": True, "hosts": [{"key": "host-1", "value": "FAILED"}]},
    },
    "result": {
        "@class": "com.vmware.esx.settings.apply_result",
        "status": "ERROR",
        "hosts": [{"key": "host-1", "value": "FAILED"}],
    },
    "notifications": {"@class": "com.vmware.notifications", "info": [], "errors": []},
}

SAID_NOTHING = "vCenter reports that the task failed and gives no reason, neither as an error nor in the result."

text = st.text(max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def parsed(rendering: Rendering = "api", with_result: bool = True, **fields: Any) -> Task:
    return parse_task({"status": "RUNNING", **fields}, rendering, with_result=with_result)


def failure(rendering: Rendering = "api", **fields: Any) -> TaskError:
    error = parsed(rendering, status="FAILED", **fields).error
    assert error is not None
    return error


@pytest.mark.parametrize(("body", "rendering"), [(API_FAILED, "api"), (REST_FAILED, "rest")])
def test_both_renderings_show_the_same_task(body: dict[str, Any], rendering: Rendering) -> None:
    assert parse_task(body, rendering, with_result=True) == Task(
        status="FAILED",
        service="com.vmware.esx.settings.clusters.software",
        operation="apply$task",
        description="Apply software",
        target=Target("ClusterComputeResource", "domain-c9"),
        parent=None,
        user="Administrator@VSPHERE.LOCAL",
        initiator=Initiator("user", "Administrator@VSPHERE.LOCAL"),
        cancelable=False,
        progress=Progress(40, 100, 40.0, "Remediating host 2 of 5"),
        error=TaskError(
            type="ERROR",
            message="Remediation failed.",
            messages=(
                Message("com.vmware.a", "Remediation failed.", ("host-1", "2")),
                Message("com.vmware.b", "The host did not answer."),
            ),
            transient=True,
            data={"is_transient": True, "hosts": {"host-1": "FAILED"}},
        ),
        result=Result(b'{"status":"ERROR","hosts":{"host-1":"FAILED"}}'),
        extra={"notifications": {"info": [], "errors": []}},
        started_at="2026-11-24T22:40:55.123Z",
        ended_at="2026-11-24T22:41:07.468Z",
        duration_seconds=12.345,
    )


def test_a_bare_status_is_a_task() -> None:
    assert parse_task({"status": "SUCCEEDED"}, "api", with_result=True) == Task("SUCCEEDED", result=NO_RESULT)


@pytest.mark.parametrize(
    "body",
    [None, [], "RUNNING", 5, {}, {"status": None}, {"status": ""}, {"status": 1}, {"value": {"status": "RUNNING"}}],
)
def test_without_a_status_it_is_no_task(body: object) -> None:
    with pytest.raises(NotATask):
        parse_task(body, "api", with_result=False)


@pytest.mark.parametrize("name", sorted(API_FAILED.keys() - {"status", "error"}))
@pytest.mark.parametrize("junk", [None, "", 0, True, [], {}, [1], {"x": {"y": 1}}, "2026"])
def test_a_field_of_a_kind_nobody_promised_spoils_no_other(name: str, junk: object) -> None:
    task = parse_task({**API_FAILED, name: junk}, "api", with_result=True)
    whole = parse_task(API_FAILED, "api", with_result=True)

    changed = {field for field in Task.__struct_fields__ if getattr(task, field) != getattr(whole, field)}
    assert changed <= {
        "start_time": {"started_at", "duration_seconds"},
        "end_time": {"ended_at", "duration_seconds"},
        "notifications": {"extra"},
        "user": {"user", "initiator"},
    }.get(name, {name})


@pytest.mark.parametrize("name", sorted(API_FAILED.keys() - {"status", "error", "result", "start_time", "end_time"}))
def test_a_missing_field_is_none(name: str) -> None:
    body = {key: value for key, value in API_FAILED.items() if key != name}

    assert getattr(parse_task(body, "api", with_result=True), "extra" if name == "notifications" else name) is None


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ("PENDING", False),
        ("RUNNING", False),
        ("BLOCKED", False),
        ("SUCCEEDED", True),
        ("FAILED", True),
        ("CANCELED", False),
        ("succeeded", False),
        ("ARCHIVED", False),
    ],
)
def test_only_two_words_end_a_task(status: str, ended: bool) -> None:
    assert parsed(status=status).ended is ended


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ({"completed": 40, "total": 100}, Progress(40, 100, 40.0, None)),
        ({"completed": 1, "total": 3}, Progress(1, 3, 33.3, None)),
        ({"completed": 2.5, "total": 10}, Progress(2.5, 10, 25.0, None)),
        ({"completed": 0, "total": 100}, Progress(0, 100, 0.0, None)),
        ({"completed": 120, "total": 100}, Progress(120, 100, 100.0, None)),
        ({"completed": -5, "total": 100}, Progress(-5, 100, None, None)),
        ({"completed": -0.1, "total": 100}, Progress(-0.1, 100, None, None)),
        ({"completed": 5, "total": -100}, Progress(5, -100, None, None)),
        ({"completed": -5, "total": -100}, Progress(-5, -100, None, None)),
        ({"completed": 0, "total": -1}, Progress(0, -1, None, None)),
        ({"completed": 0, "total": 0.5}, Progress(0, 0.5, 0.0, None)),
        ({"completed": 0.001, "total": 1.5}, Progress(0.001, 1.5, 0.1, None)),
        ({"completed": 0, "total": 0}, Progress(0, 0, None, None)),
        ({"completed": 5, "total": 0}, Progress(5, 0, None, None)),
        ({"completed": 5}, Progress(5, None, None, None)),
        ({"total": 5}, Progress(None, 5, None, None)),
        ({"completed": True, "total": "100"}, Progress(None, None, None, None)),
        ({"completed": math.nan, "total": math.inf}, Progress(None, None, None, None)),
        ({"completed": 10**400, "total": 100}, Progress(10**400, 100, 100.0, None)),
        ({"completed": -(10**400), "total": 1.5}, Progress(-(10**400), 1.5, None, None)),
        ({"completed": 1.5, "total": 10**400}, Progress(1.5, 10**400, 0.0, None)),
        ({"completed": 10**400, "total": 2 * 10**400}, Progress(10**400, 2 * 10**400, 50.0, None)),
        ({"completed": 1e308, "total": 1e-308}, Progress(1e308, 1e-308, 100.0, None)),
        ({"message": {"default_message": "Half way"}}, Progress(None, None, None, "Half way")),
        ({"message": "Half way"}, Progress(None, None, None, "Half way")),
        ({"message": {"id": "com.vmware.p"}}, Progress(None, None, None, "com.vmware.p")),
        ({}, Progress(None, None, None, None)),
        (None, None),
        ([40, 100], None),
    ],
)
def test_percent_lies_within_0_and_100_and_completed_is_passed_on_as_sent(told: object, read: Progress | None) -> None:
    assert parsed(progress=told).progress == read


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ({"type": "VirtualMachine", "id": "vm-1"}, Target("VirtualMachine", "vm-1")),
        ({"type": "VirtualMachine"}, Target("VirtualMachine", None)),
        ({"id": "vm-1", "type": ""}, Target(None, "vm-1")),
        ({"type": "", "id": ""}, None),
        ("vm-1", None),
    ],
)
def test_a_target_has_a_type_or_an_id(told: object, read: Target | None) -> None:
    assert parsed(target=told).target == read


@pytest.mark.parametrize(
    ("start", "end", "started", "ended", "duration"),
    [
        ("2026-11-24T22:40:55.123Z", None, "2026-11-24T22:40:55.123Z", None, None),
        (None, "2026-11-24T22:40:55Z", None, "2026-11-24T22:40:55.000Z", None),
        (
            "2026-11-24T22:40:55+02:00",
            "2026-11-24T20:40:56.5Z",
            "2026-11-24T20:40:55.000Z",
            "2026-11-24T20:40:56.500Z",
            1.5,
        ),
        (
            "2026-11-24T22:40:56Z",
            "2026-11-24T22:40:55Z",
            "2026-11-24T22:40:56.000Z",
            "2026-11-24T22:40:55.000Z",
            -1.0,
        ),
        ("soon", "9999-12-31T23:59:59.9999Z", None, None, None),
    ],
)
def test_times_are_told_in_utc_and_the_duration_when_both_are_known(
    start: object, end: object, started: str | None, ended: str | None, duration: float | None
) -> None:
    task = parsed(start_time=start, end_time=end)

    assert (task.started_at, task.ended_at, task.duration_seconds) == (started, ended, duration)


@pytest.mark.parametrize(
    ("error", "kind", "texts"),
    [
        ({"error_type": "NOT_FOUND", "messages": []}, "NOT_FOUND", []),
        ({"error_type": "NOT_FOUND", "messages": [{"default_message": "Gone"}]}, "NOT_FOUND", ["Gone"]),
        ({"@class": "com.vmware.vapi.std.errors.not_found"}, "NOT_FOUND", []),
        ({"@class": "com.vmware.vapi.std.errors.error", "error_type": "CANCELED"}, "CANCELED", []),
        (
            {"type": "com.vmware.vapi.std.errors.not_found", "value": {"messages": [{"default_message": "Gone"}]}},
            "NOT_FOUND",
            ["Gone"],
        ),
        (
            {"name": "com.vmware.vapi.rest.httpNotFound", "localizableMessages": [{"defaultMessage": "No route"}]},
            "com.vmware.vapi.rest.httpNotFound",
            ["No route"],
        ),
        ({"messages": [{"id": "com.vmware.x"}]}, None, ["com.vmware.x"]),
        ({"messages": [{"localized": "Weg", "id": "x"}]}, None, ["Weg"]),
        ({"messages": [{"default_message": "", "id": ""}, {"default_message": "B"}]}, None, ["B"]),
        ({"messages": ["one", {"message": {"default_message": "two"}}]}, None, ["one", "two"]),
        ({"messages": {"default_message": "single"}}, None, ["single"]),
    ],
)
def test_an_error_of_any_form_tells_its_type_and_its_messages_in_order(
    error: dict[str, Any], kind: str | None, texts: list[str]
) -> None:
    read = parse_error(error)

    assert read is not None
    assert read.type == kind
    assert [message.text for message in read.messages] == texts
    assert read.message == (texts[0] if texts else f"vCenter said {kind} and nothing more.")


@pytest.mark.parametrize(
    "body", [None, "boom", 5, [], {}, {"error_type": 5}, {"messages": 5}, {"value": {}}, {"data": {}}]
)
def test_what_is_no_error_is_none(body: object) -> None:
    assert parse_error(body) is None


@pytest.mark.parametrize(
    ("data", "transient"),
    [(None, None), ({"is_transient": False}, False), ({"is_transient": "yes"}, None), ([1], None)],
)
def test_an_error_tells_whether_it_is_transient_when_vcenter_does(data: object, transient: bool | None) -> None:
    error = parse_error({"error_type": "ERROR", "data": data})

    assert error is not None
    assert (error.transient, error.data) == (transient, data)


@pytest.mark.parametrize(
    ("fields", "kind", "texts"),
    [
        ({"error": {"error_type": "ERROR", "messages": [{"default_message": "A"}]}}, "ERROR", ["A"]),
        ({"error": {"error_type": "ERROR"}, "result": "B"}, "ERROR", ["B"]),
        ({"error": "A"}, None, ["A"]),
        (
            {"error": {}, "result": {"notifications": {"errors": [{"message": {"default_message": "B"}}]}}},
            None,
            ["B"],
        ),
        ({"result": {"notifications": {"errors": [{"message": {"default_message": "B"}}]}}}, None, ["B"]),
        ({"result": {"errors": [{"default_message": "B"}, {"default_message": "C"}]}}, None, ["B", "C"]),
        ({"result": {"error": {"error_type": "X", "messages": [{"default_message": "B"}]}}}, None, ["B"]),
        ({"result": {"messages": [{"default_message": "B"}]}}, None, ["B"]),
        ({"result": {"message": {"default_message": "B"}}}, None, ["B"]),
        ({"result": {"message": "B"}}, None, ["B"]),
        ({"result": "B"}, None, ["B"]),
        ({"result": [{"default_message": "B"}, "C"]}, None, ["B", "C"]),
        (
            {"result": {"status": {"notifications": {"errors": [{"message": {"default_message": "B"}}]}}}},
            None,
            ["B"],
        ),
        (
            {
                "result": {
                    "hosts": {"h": {"host_status": {"notifications": {"errors": [{"default_message": "C"}]}}}},
                    "notifications": {"warnings": [{"default_message": "W"}]},
                }
            },
            None,
            ["C"],
        ),
        ({"result": {"notifications": {"warnings": [{"message": {"default_message": "W"}}]}}}, None, ["W"]),
        ({"notifications": {"errors": [{"message": {"default_message": "D"}}]}}, None, ["D"]),
    ],
)
def test_a_failed_task_has_a_reason_from_the_error_else_from_the_result(
    fields: dict[str, Any], kind: str | None, texts: list[str]
) -> None:
    error = failure(**fields)

    assert (error.type, [message.text for message in error.messages]) == (kind, texts)
    assert error.message


@pytest.mark.parametrize("result", [None, {}, [], ""])
def test_a_failed_task_that_gives_no_reason_says_so_in_words(result: object) -> None:
    assert failure(result=result) == TaskError(type=None, message=SAID_NOTHING)


def test_a_reason_is_found_in_a_rest_result_too() -> None:
    result = [{"key": "notifications", "value": {"errors": [{"message": {"default_message": "B"}}]}}]

    assert failure("rest", result=result).message == "B"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "BLOCKED", "SUCCEEDED", "LATER"])
def test_only_a_failed_task_has_an_error(status: str) -> None:
    assert parsed(status=status, error=API_FAILED["error"]).error is None


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"b": 1, "a": [1, 2.5, None, True]}, b'{"b":1,"a":[1,2.5,null,true]}'),
        ("text", b'"text"'),
        (0, b"0"),
        (False, b"false"),
        ({}, b"{}"),
        ([], b"[]"),
        ("ä日", '"ä日"'.encode()),
        (2**70, b"1180591620717411303424"),
        ({"a": "\ud800b"}, b'{"a":"?b"}'),
        ({"\ud800": [2**70, math.nan, "\udfff"]}, b'{"?":[1180591620717411303424,null,"?"]}'),
        (math.inf, b"null"),
    ],
)
def test_a_result_is_kept_as_compact_json_in_utf8(value: object, kept: bytes) -> None:
    assert parsed(status="SUCCEEDED", result=value).result == Result(kept)


@pytest.mark.parametrize("fields", [{}, {"result": None}])
def test_no_result_and_a_null_result_are_the_same(fields: dict[str, Any]) -> None:
    assert parsed(status="SUCCEEDED", **fields).result == NO_RESULT


def test_a_result_that_was_not_asked_for_is_unknown() -> None:
    assert parsed(status="SUCCEEDED", with_result=False, result={"a": 1}).result is None


@given(json_values)
def test_compact_json_means_what_it_was_made_of(value: Any) -> None:
    assert json.loads(encode_compact(value)) == value


@given(st.recursive(st.text(st.characters(), max_size=4) | st.floats() | st.integers(), st.lists, max_leaves=6))
def test_compact_json_is_json_whatever_python_made_of_the_answer(value: Any) -> None:
    msgspec.json.decode(encode_compact(value))


@pytest.mark.parametrize(
    ("rest", "api"),
    [
        ([{"key": "a", "value": 1}, {"key": "b", "value": [{"key": "c", "value": 2}]}], {"a": 1, "b": {"c": 2}}),
        ([], []),
        (
            [{"key": "a", "value": 1}, {"key": "a", "value": 2}],
            [{"key": "a", "value": 1}, {"key": "a", "value": 2}],
        ),
        ([{"key": 1, "value": 1}], [{"key": 1, "value": 1}]),
        ([{"key": ["x"], "value": 1}], [{"key": ["x"], "value": 1}]),
        ([{"key": "a"}], [{"key": "a"}]),
        ([{"key": "a", "value": 1, "more": 2}], [{"key": "a", "value": 1, "more": 2}]),
        ([{"key": "a", "value": 1}, 5], [{"key": "a", "value": 1}, 5]),
        ([{"key": "a", "value": 1, "@class": "x"}], [{"key": "a", "value": 1}]),
        ({"key": "a", "value": 1}, {"key": "a", "value": 1}),
        ({"@class": "x", "a": {"@class": "y"}}, {"a": {}}),
        ("@class", "@class"),
        (None, None),
    ],
)
def test_a_rest_value_becomes_what_api_would_have_said(rest: object, api: object) -> None:
    assert convert_rest_rendering(rest) == api


def test_an_api_value_that_looks_like_a_rest_map_is_left_alone() -> None:
    tags = [{"key": "a", "value": 1}]

    assert parsed("api", status="SUCCEEDED", result=tags).result == Result(encode_compact(tags))
    assert parsed("api", notifications=tags).extra == {"notifications": tags}


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({}, None),
        ({"@class": "com.vmware.cis.task.info"}, None),
        ({"subtasks": {}}, {"subtasks": {}}),
        ({"subtasks": None}, {"subtasks": None}),
        (
            {"notifications": {"info": []}, "subtask_order": ["a"]},
            {"notifications": {"info": []}, "subtask_order": ["a"]},
        ),
    ],
)
def test_what_goes_beyond_info_is_extra(fields: dict[str, Any], extra: object) -> None:
    assert parsed(**fields).extra == extra


def test_extra_is_in_api_rendering_from_rest_too() -> None:
    subtasks = [{"key": "one", "value": {"@class": "x", "status": "RUNNING"}}]

    assert parsed("rest", subtasks=subtasks).extra == {"subtasks": {"one": {"status": "RUNNING"}}}


@pytest.mark.parametrize(("over", "kept"), [(0, True), (1, False)])
def test_extra_is_carried_up_to_64_kib(over: int, kept: bool) -> None:
    filler = "x" * (CUT_ABOVE_BYTES - len(b'{"notes":""}') + over)

    cut = {"truncated": True, "bytes": CUT_ABOVE_BYTES + over}
    assert parsed(notes=filler).extra == ({"notes": filler} if kept else cut)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from([*sorted(API_FAILED), "@class", "subtasks"]), json_values),
    st.sampled_from(["RUNNING", "FAILED", "SUCCEEDED", "ODD"]),
    st.sampled_from(["api", "rest"]),
)
def test_no_json_that_has_a_status_is_too_odd_to_be_a_task(
    fields: dict[str, Any], status: str, rendering: Rendering
) -> None:
    task = parse_task({**fields, "status": status}, rendering, with_result=True)

    assert task.status == status
    assert (task.error is not None) == (status == "FAILED")
    assert task.error is None or task.error.message
